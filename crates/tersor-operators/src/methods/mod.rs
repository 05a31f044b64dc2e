//! The two methods that only store: they need nothing but the forms of this crate.

mod activations;
mod cast;

pub use activations::WithActivations;
pub use cast::Cast;
