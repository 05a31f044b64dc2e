//! Operators composed of others, of any stored form.

mod factored;
mod online;
mod split;
mod wrap;

pub use factored::{Factored, Residual};
pub(crate) use factored::{load_factored, load_residual};
pub use online::{online, online_layout};
pub(crate) use split::load as load_split;
pub use split::{Split, split_layout};
pub use wrap::{Permuted, QuantizedInputs, Rotated, ScaledInputs};
pub(crate) use wrap::{load_permuted, load_quantized, load_rotated, load_scaled};
