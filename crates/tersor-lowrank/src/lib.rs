//! Low-rank factors of weight matrices: in place of a weight ([`LowRank`]), or beside a quantized one as a correction of its error ([`Corrected`], the
//! methods LQER and L²QER of arXiv 2402.02446).
//!
//! [`Subspaces`] gives more bits to the directions in which inputs vary most; [`principal_rotation`] finds them (ResQ, arXiv 2412.14363), and
//! [`Rotate`] rotates a whole network into them, or by random Hadamard or orthogonal matrices.
//!
//! The base of a correction, and the storage of factors, are methods of any crate; the result is a
//! [`Residual`](tersor_operators::Residual) of a [`Factored`](tersor_operators::Factored).
//!
//! ```
//! use tersor_core::{Check, DType, MatView, StatSet};
//! use tersor_groupwise::Rtn;
//! use tersor_lowrank::{Corrected, Rank};
//! use tersor_operators::Cast;
//!
//! # fn main() -> tersor_core::Result<()> {
//! let weights: Vec<f32> = (0..64 * 96).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
//! let w = MatView::new(&weights, [64, 96])?;
//! let three_bits = Rtn::new().bits(3).group(32);
//! let (_, plain) = three_bits.quantize(&w)?;
//! let lqer = Corrected::lqer(Box::new(three_bits.check()?)).rank(Rank::Fixed(16)).factors(Box::new(Cast::new(DType::F16)?));
//! let (op, corrected) = lqer.quantize(&w, &StatSet::none())?;
//! assert!(corrected.relative_error() < 0.8 * plain.relative_error());
//! # assert_eq!(op.shape(), [64, 96]);
//! # Ok(())
//! # }
//! ```
//!
//! This crate trains no adapters; [`peft`] writes a correction as an adapter that others load.

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
