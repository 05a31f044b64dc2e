#![doc = include_str!("../README.md")]

mod correct;
mod factor;
pub mod peft;
pub mod rotate;
mod subspace;

pub use correct::{CheckedCorrected, Corrected};
pub use factor::{CheckedLowRank, Factors, LowRank, Norm, Rank, factorize};
pub use rotate::{By, CheckedRotate, Rotate};
pub use subspace::{Blocks, CheckedSubspaces, Subspaces, basis, principal_rotation, widths};
pub use tersor_core::{
    Check, Context, DType, Error, Exec, Input, IntoMat, LinearOp, LinearOpExt, MatView, MatViewMut, Method, ParamError,
    Report, Result, StatNeeds, StatSet, Write,
};
use tersor_core::{RowSource, read_masked};

/// Reads rows of a matrix all of whose weights are kept. Errors if some are dropped: a sum of products has no zeros of its own, so `method` cannot
/// keep them.
fn read_unmasked(w: &dyn RowSource, rows: std::ops::Range<usize>, method: &str) -> Result<Vec<f32>> {
    let (values, mask) = read_masked(w, rows)?;
    if mask.is_some_and(|m| m.count() < values.len()) {
        let value = format!("by {method}, whose factors give dropped weights other values; compress without a mask");
        return Err(Error::Unsupported { what: "mask", value });
    }
    Ok(values)
}

/// Compresses a whole matrix by a checked method.
fn typed<T: tersor_core::Element>(
    method: &dyn Method,
    w: &impl IntoMat<T>,
    stats: &StatSet,
) -> Result<(Box<dyn LinearOp>, Report)> {
    let cx = Context::new();
    w.with_mat(|m| {
        let done = method.prepare(stats, &cx)?.compress(&m, 0..m.shape()[0], &cx)?;
        Ok((done.op, done.report))
    })
}
