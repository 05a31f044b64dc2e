//! Products of packed integer weights.

use std::ops::Range;

use tersor_core::operator::check_apply;
use tersor_core::rows::check_range;
use tersor_core::{Exec, GemmTask, Input, MatViewMut, Result, Write};
use tersor_kernels::integer::{Panels, Task};
use tersor_kernels::run_tasks;

use crate::activations::tokens;

/// Sets `y`, `[tokens, out_features]`, to `x Wᵀ` for the packed weights `W` of this shape, or adds it. Errors if shapes differ or a value of `x` is
/// not finite.
pub(crate) fn multiply(
    panels: &Panels,
    shape: [usize; 2],
    x: &Input<'_>,
    y: MatViewMut<'_>,
    write: Write,
    exec: &Exec,
) -> Result<()> {
    check_apply(shape, x, &y)?;
    let task = Task::new(tokens(x, panels.token_layout(exec.isa()))?, panels)?;
    exec.run(|| run_tasks(vec![(&task, write, y.into_out())], exec.parallel()))?;
    Ok(())
}

/// Returns the product of packed weights with `x` as a task that joins others. Errors as [`multiply`].
pub(crate) fn task<'a>(panels: &'a Panels, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
    Ok(Some(Box::new(Task::new(tokens(x, panels.token_layout(exec.isa()))?, panels)?)))
}

/// Writes `rows` of a matrix of 8-bit integers with one scale for each row to `out`, `[rows.len(), cols]`; `integers(row)` returns the integers of
/// a row. Errors if the range leaves the matrix or `out` has another length.
pub(crate) fn scaled_rows(
    shape: [usize; 2],
    rows: Range<usize>,
    scales: &[f32],
    integers: impl Fn(usize) -> Result<Vec<i8>>,
    out: &mut [f32],
) -> Result<()> {
    check_range(shape, &rows, out.len())?;
    for (r, out) in rows.zip(out.chunks_exact_mut(shape[1].max(1))) {
        out.iter_mut().zip(integers(r)?).for_each(|(o, v)| *o = scales[r] * f32::from(v));
    }
    Ok(())
}
