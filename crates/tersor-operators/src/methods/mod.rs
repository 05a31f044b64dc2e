//! Methods that need only the operators of this crate: [`Cast`] and [`WithActivations`].

mod activations;
mod cast;

pub use activations::WithActivations;
pub use cast::Cast;
