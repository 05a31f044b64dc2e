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
