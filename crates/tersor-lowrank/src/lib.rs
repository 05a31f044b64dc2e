//! Products of two thin matrices: in place of a weight ([`LowRank`]), or beside a quantized one, to put right what quantization got wrong
//! ([`Corrected`], the methods LQER and L²QER of arXiv 2402.02446).
//!
//! [`Subspaces`] gives more bits to the directions that inputs vary most in ([`Moments`] finds them: ResQ, arXiv 2412.14363).
//!
//! What is quantized, and how factors are stored, are other methods, of whatever crate; the result is a
//! [`Residual`](tersor_core::compose::Residual) of a [`Factored`](tersor_core::compose::Factored).
//!
//! ```
//! use tersor_core::compose::Cast;
//! use tersor_core::*;
//! use tersor_groupwise::Rtn;
//! use tersor_lowrank::{Corrected, Rank};
//!
//! # fn main() -> Result<()> {
//! let weights: Vec<f32> = (0..64 * 96).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
//! let w = MatView::new(&weights, [64, 96])?;
//! let cx = Context::new();
//! let error = |method: &dyn Method| -> Result<f64> {
//!     Ok(method.prepare(None, &cx)?.compress(&w, 0..64, &cx)?.report.relative_error())
//! };
//! let three_bits = Rtn::new().bits(3).group(32).check()?;
//! let plain = error(&three_bits)?;
//! let corrected = Corrected::lqer(Box::new(three_bits)).rank(Rank::Fixed(16)).factors(Box::new(Cast::new(DType::F16)?));
//! assert!(error(&corrected.check()?)? < 0.8 * plain);
//! # Ok(())
//! # }
//! ```

mod correct;
mod factor;
mod gram;
pub mod peft;
mod subspace;

pub use correct::{CheckedCorrected, Corrected};
pub use factor::{CheckedLowRank, Factors, LowRank, Norm, Rank, factorize};
pub use subspace::{Blocks, CheckedSubspaces, Moments, Subspaces, basis, widths};
