//! Operators made of operators. They know nothing of the crates that their parts come from.

mod activations;
mod cast;
mod dense;
mod factored;
mod split;
mod wrap;

pub use activations::WithActivations;
pub use cast::Cast;
pub use dense::Dense;
pub use factored::{Factored, Residual};
pub use split::{Split, split_layout};
pub use wrap::{Permuted, QuantizedInputs, Rotated, ScaledInputs};

use crate::Registry;

pub(crate) fn register(registry: &mut Registry) {
    registry.register(Dense::KIND, dense::load);
    registry.register(Factored::KIND, factored::load_factored);
    registry.register(Residual::KIND, factored::load_residual);
    registry.register(Split::KIND, split::load);
    registry.register(Rotated::KIND, wrap::load_rotated);
    registry.register(Permuted::KIND, wrap::load_permuted);
    registry.register(ScaledInputs::KIND, wrap::load_scaled);
    registry.register(QuantizedInputs::KIND, wrap::load_quantized);
}
