//! Products of packed integer weights.

use tersor_core::operator::check_apply;
use tersor_core::{Exec, GemmTask, Input, MatViewMut, Result, Write};
use tersor_kernels::integer::{Panels, Task};
use tersor_kernels::run_tasks;

use crate::activations::tokens;

/// Computes `y = x Wᵀ`, or adds it to `y`, for packed weights of an operator of this shape. Errors if the shapes do not fit or a value of `x` is not
/// finite.
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

/// Returns the product of packed weights with `x` as a task. Errors as [`multiply`].
pub(crate) fn task<'a>(panels: &'a Panels, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
    Ok(Some(Box::new(Task::new(tokens(x, panels.token_layout(exec.isa()))?, panels)?)))
}
