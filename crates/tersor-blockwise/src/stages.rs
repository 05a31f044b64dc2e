//! Registration of the stages of this crate.

use tersor_core::stages::Stages;

use crate::{Blockwise, LlmInt8};

/// Adds the quantizers `nf4`, `fp4`, `dynamic` and `int8` to `stages`, a registry of the kinds of steps (stages) that a recipe for the
/// compression of a model can name. Kinds of these names that the registry already has are replaced.
pub fn register_stages(stages: &mut Stages) {
    stages.register(Blockwise::nf4());
    stages.register(Blockwise::fp4());
    stages.register(Blockwise::dynamic());
    stages.register(LlmInt8);
}
