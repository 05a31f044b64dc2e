//! [`Kinds`]: the kinds of operators and stages that a pipeline knows.

use tersor_core::Registry;
use tersor_core::stages::Stages;

/// The kinds of operators (stored forms of matrices) and of stages (steps of compression that recipes name) that a pipeline knows. This crate has
/// none of its own: the facade `tersor` has all of them (`tersor::kinds()`), and an application can register others beside them. The default has
/// none.
#[derive(Clone, Default)]
pub struct Kinds {
    /// Loads the operators of compressed models and of work in progress, by the name of their kind.
    pub operators: Registry,
    /// Makes the stages that recipes name, such as a quantizer, by the name of their kind.
    pub stages: Stages,
}
