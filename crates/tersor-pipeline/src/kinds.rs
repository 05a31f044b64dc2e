//! [`Kinds`]: the kinds of operators and stages that a pipeline knows.

use tersor_core::Registry;
use tersor_core::stages::Stages;

/// The kinds of operators and of stages that a pipeline knows. This crate has none of its own: the facade `tersor` has all of them
/// (`tersor::kinds()`), and an application can register others beside them.
#[derive(Clone, Default)]
pub struct Kinds {
    /// Loads the operators (stored forms of matrices) of compressed models and of work in progress, by the name of their kind.
    pub operators: Registry,
    /// Makes the stages (steps of the compression of a matrix, such as a quantizer) that recipes name, by the name of their kind.
    pub stages: Stages,
}
