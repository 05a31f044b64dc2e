//! Methods that need only the operators of this crate: [`Cast`] and [`WithActivations`].

mod activations;
mod cast;
mod stages;

pub use activations::WithActivations;
pub use cast::Cast;
pub use stages::register_stages;
