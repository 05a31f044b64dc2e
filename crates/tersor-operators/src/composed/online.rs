//! Changes of inputs that are applied when the network runs.

use tersor_core::{DType, Error, InputChange, Layout, LinearOp, Result, Rotation, TensorInfo};

use super::{Permuted, Rotated, ScaledInputs};

/// Returns `op` with `change` applied to its inputs, `[tokens, features]`: a [`ScaledInputs`], [`Permuted`] or [`Rotated`]. Errors if the change is
/// for another number of features than `op` has, a factor is not finite, an order is not a permutation, or [`InputChange::Rotate`] does not hold
/// exactly one rotation.
///
/// ```
/// use tersor_operators::*;
/// # fn main() -> Result<()> {
/// let op = Dense::new(vec![1.0, 1.0], [1, 2], DType::F32)?;
/// let op = online(Box::new(op), &InputChange::Scale(vec![2.0, 3.0]))?;
/// let mut row = [0f32; 2];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [2.0, 3.0]);
/// # Ok(())
/// # }
/// ```
pub fn online(op: Box<dyn LinearOp>, change: &InputChange) -> Result<Box<dyn LinearOp>> {
    Ok(match change {
        InputChange::Scale(factors) => Box::new(ScaledInputs::new(factors.clone(), op)?),
        InputChange::Permute(order) => Box::new(Permuted::new(order.clone(), op)?),
        InputChange::Rotate(all) => Box::new(Rotated::new(single(all)?.clone(), op)?),
    })
}

/// Returns the tensors that the result of [`online`] stores in addition to those of the operator, which has `features` input features. Factors and
/// orders are not read: an [`InputChange::Scale`] or [`InputChange::Permute`] may be empty. Errors if [`InputChange::Rotate`] does not hold exactly
/// one rotation.
pub fn online_layout(change: &InputChange, features: usize) -> Result<Layout> {
    let vector = |name: &str, dtype| (name.to_string(), TensorInfo { dtype, shape: vec![features] });
    let tensors = match change {
        InputChange::Scale(_) => vec![vector("input_scales", DType::F32)],
        InputChange::Permute(_) => vec![vector("order", DType::U32)],
        InputChange::Rotate(all) => single(all)?.layout().into(),
    };
    Ok(Layout { tensors, exact: true })
}

/// Returns the only rotation. Errors if there is not exactly one.
fn single(all: &[Rotation]) -> Result<&Rotation> {
    match all {
        [one] => Ok(one),
        _ => Err(Error::shape("rotations in front of an operator", 1, all.len())),
    }
}
