//! Products of packed integer weights.

use tersor_core::operator::check_apply;
use tersor_core::{Error, Exec, Input, MatViewMut, Result, Write};
use tersor_kernels::integer::{self, Panels};

use crate::activations::integers;

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
    let x = integers(x, exec.isa(), panels.padding())?;
    let done = exec.run(|| integer::product(exec.isa(), &x, panels, write, y.into_out(), exec.parallel()));
    if done { Ok(()) } else { Err(Error::shape("output", "rows that fit their stride", "fewer elements")) }
}
