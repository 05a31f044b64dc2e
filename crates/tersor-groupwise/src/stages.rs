//! Registration of the stages of this crate.

use tersor_core::stages::Stages;

use crate::awq::AwqStage;
use crate::output_clip::ClipStage;
use crate::qqq::QqqStage;
use crate::rtn::Mxint;
use crate::smooth::AdaptiveStage;
use crate::{Dgq, Gptq, Percentile, Rtn, SmoothQuant};

/// Adds to the registry `stages` the kinds of steps that this crate offers to recipes: the quantizers `rtn`, `mxint`, `gptq`, `dgq` and
/// `qqq`, and what comes before them, `smoothquant`, `awq`, `clip`, `adaptive` and `percentile`. A kind of the same name that is in the
/// registry is replaced.
pub fn register_stages(stages: &mut Stages) {
    stages.register(Rtn::new());
    stages.register(Mxint::default());
    stages.register(Gptq::new());
    stages.register(Dgq::new());
    stages.register(QqqStage::default());
    stages.register(SmoothQuant::new());
    stages.register(AwqStage::default());
    stages.register(ClipStage);
    stages.register(AdaptiveStage);
    stages.register(Percentile);
}
