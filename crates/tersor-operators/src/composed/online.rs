//! Changes of inputs that are applied when the network runs.

use tersor_core::{DType, Error, InputChange, Layout, LinearOp, Result, Rotation, TensorInfo};

use super::{Permuted, Rotated, ScaledInputs};

/// Returns an operator that applies `change` to its inputs, `[tokens, features]`, whenever it multiplies, and passes them to `op`: a
/// [`ScaledInputs`], [`Permuted`] or [`Rotated`]. Errors if the change is for another number of features than `op` has, a factor is not
/// finite, a permutation does not hold each feature once, or [`InputChange::Rotate`] does not hold exactly one rotation.
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

/// Returns the name, type and shape of each tensor that the result of [`online`] stores for `change`, without those of the operator behind
/// it. For [`InputChange::Scale`] there is one tensor, `input_scales` (f32, `[features]`), for [`InputChange::Permute`] one tensor, `order`
/// (u32, `[features]`). `features` is the number of input features of the operator; the vector in the change is not read and may be empty.
/// For [`InputChange::Rotate`] there are the two tensors of the rotation ([`Rotation::layout`]): `signs` (i8, one for each of the `p * 2^m`
/// features that it rotates) and `factor` (f32, `[p, p]`, the orthogonal matrix that it applies besides a Walsh-Hadamard transform of order
/// `2^m`); `features` is not read. Errors if [`InputChange::Rotate`] does not hold exactly one rotation.
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
