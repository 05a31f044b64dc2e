//! [`assemble`]: makes a method and rewrites from the stages of a matrix.

use super::{Part, Slot, Target, Wrap};
use crate::{Error, Method, ParamError, Pruner, Result, Rewrite};

/// What [`assemble`] makes of the stages of a matrix (its steps of compression, such as smoothing and quantization).
pub struct Assembled {
    /// The changes before compression, such as smoothing, in the order of the stages that make them. Each is a change of the whole
    /// [`Site`](crate::Site) of the matrix: its input, with all matrices that read this input. Empty if no stage makes one.
    pub rewrites: Vec<Box<dyn Rewrite>>,
    /// The choices of weights of the matrix that become zero, in the order of the stages that make them. Empty if no stage makes one.
    pub pruners: Vec<Box<dyn Pruner>>,
    /// The method that compresses the matrix: the base, which makes the stored form of the weights, inside the methods that other stages put around
    /// it, such as a low-rank correction or the quantization of the inputs.
    pub method: Box<dyn Method>,
}

/// Makes the rewrites (changes before compression), the pruners and the method of compression for the matrix `at` from its stages
/// ([`Target::stages`]), which are steps of compression in the order of [`Slot`]. One stage makes the base, the method that stores the weights
/// ([`Part::Base`]). Other stages put methods around it ([`Part::Wrap`]): first those in front of the base, from the last to the first, and then
/// those behind it, in order.
///
/// Errors with [`Error::Param`] of the parameter `stages` if no stage or more than one makes a base, if the stages are not in the order of [`Slot`],
/// or if one of them stores caches or changes the whole network. Errors as [`StageSpec::parts`](super::StageSpec::parts) of a stage does, and as a
/// [`Wrap`] does.
pub fn assemble(at: &Target<'_>) -> Result<Assembled> {
    let (mut rewrites, mut pruners, mut base) = (Vec::new(), Vec::new(), None);
    let (mut before, mut after): (Vec<Wrap>, Vec<Wrap>) = (Vec::new(), Vec::new());
    let mut last = Slot::Transform;
    for stage in at.stages() {
        let (slot, kind) = (stage.slot(), stage.kind());
        let refuse = |rule: String| -> Error { ParamError::new("stages", format!("`{kind}`"), rule).into() };
        if slot < last {
            return Err(refuse(format!("a stage of `{}` comes before those of `{}`", slot.name(), last.name())));
        }
        last = slot;
        for part in stage.parts(at)? {
            match part {
                Part::Rewrite(r) => rewrites.push(r),
                Part::Prune(p) => pruners.push(p),
                Part::Base(_) if base.is_some() => {
                    return Err(refuse("another stage already makes the stored form".into()));
                }
                Part::Base(m) => base = Some(m),
                Part::Cache(_) => return Err(refuse("it stores key-value caches, and no matrix".into())),
                Part::Wrap(w) if base.is_none() => before.push(w),
                Part::Wrap(w) => after.push(w),
            }
        }
    }
    let rule = "one of them must make the stored form, such as `rtn` or `keep`";
    let mut method = base.ok_or_else(|| ParamError::new("stages", "incomplete", rule))?;
    for wrap in before.into_iter().rev().chain(after) {
        method = wrap(method)?;
    }
    Ok(Assembled { rewrites, pruners, method })
}
