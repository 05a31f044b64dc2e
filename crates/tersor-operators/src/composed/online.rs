//! Changes of inputs that happen when the network runs.

use tersor_core::{DType, Error, InputChange, Layout, LinearOp, Result, Rotation, TensorInfo};

use super::{Permuted, Rotated, ScaledInputs};

/// Puts a change of inputs in front of an operator that was made for changed inputs. Errors if it is for another number of features, a factor is
/// not finite, or there is more than one rotation.
pub fn online(op: Box<dyn LinearOp>, change: &InputChange) -> Result<Box<dyn LinearOp>> {
    Ok(match change {
        InputChange::Scale(factors) => Box::new(ScaledInputs::new(factors.clone(), op)?),
        InputChange::Permute(order) => Box::new(Permuted::new(order.clone(), op)?),
        InputChange::Rotate(all) => Box::new(Rotated::new(single(all)?.clone(), op)?),
    })
}

/// Returns the tensors that [`online`] stores beside those of an operator with so many features; of a scale or a permutation the values do not
/// matter. Errors if there is more than one rotation.
pub fn online_layout(change: &InputChange, features: usize) -> Result<Layout> {
    let vector = |name: &str, dtype| (name.to_string(), TensorInfo { dtype, shape: vec![features] });
    let tensors = match change {
        InputChange::Scale(_) => vec![vector("input_scales", DType::F32)],
        InputChange::Permute(_) => vec![vector("order", DType::U32)],
        InputChange::Rotate(all) => single(all)?.layout().into(),
    };
    Ok(Layout { tensors, exact: true })
}

fn single(all: &[Rotation]) -> Result<&Rotation> {
    match all {
        [one] => Ok(one),
        _ => Err(Error::shape("rotations in front of an operator", 1, all.len())),
    }
}
