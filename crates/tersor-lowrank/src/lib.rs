#![doc = include_str!("../README.md")]

mod correct;
mod factor;
mod principal;
pub mod rotate;
mod stages;
mod subspace;

pub use correct::{CheckedCorrected, Corrected};
pub use factor::{CheckedLowRank, Factors, LowRank, Norm, Rank, factorize};
pub use principal::{Blocks, basis, principal_rotation};
pub use rotate::{By, CheckedRotate, Rotate};
pub use stages::register_stages;
pub use subspace::{CheckedSubspaces, Subspaces, widths};
pub use tersor_core::{
    Check, Context, DType, Error, Exec, Input, IntoMat, LinearOp, LinearOpExt, MatView, MatViewMut, Method, ParamError,
    Report, Result, StatNeeds, StatSet, Write,
};
use tersor_core::{RowSource, read_masked};

/// Returns the values of `rows` of `w`, `[rows.len(), in_features]`. Errors if a mask drops some of them: products of factors keep no zeros.
/// `method` is the name in the error message.
fn read_unmasked(w: &dyn RowSource, rows: std::ops::Range<usize>, method: &str) -> Result<Vec<f32>> {
    let (values, mask) = read_masked(w, rows)?;
    if mask.is_some_and(|m| m.count() < values.len()) {
        let value = format!("for {method}: products of factors keep no zeros; compress without a mask");
        return Err(Error::Unsupported { what: "mask", value });
    }
    Ok(values)
}

/// Compresses the whole matrix `w` by `method`, with the default context.
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
