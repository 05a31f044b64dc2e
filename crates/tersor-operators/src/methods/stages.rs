//! The stages of this crate: float types, and quantized activations.

use tersor_core::cache::{CacheLayout, CacheNeeds, CacheSample};
use tersor_core::stages::{Fields, Named, Part, Segment, Slot, StageSpec, Stages, Target};
use tersor_core::{CacheMethod, CacheSet, Context, DType, Heads, Layout, ParamError, Result};

use super::{Cast, WithActivations};
use crate::{ActPlan, ActQuant, ActRange, DenseCaches};

/// Adds the kinds of stages of this crate to the registry `stages`. A stage is a step of a recipe, which says how to compress the matrices
/// of a network, or to cache keys and values. The kinds `keep`, `f32`, `f16` and `bf16` store weights as floats: `keep` in the type in which the model has them, the
/// others in the type that they are named after. The kind `act` quantizes the inputs of a matrix when the network runs. The kinds `f32` and
/// `f16` of caches store keys and values in these types. Kinds of these names that the registry has are replaced.
pub fn register_stages(stages: &mut Stages) {
    stages.register(Floats(None));
    stages.register(Floats(Some(DType::F32)));
    stages.register(Floats(Some(DType::F16)));
    stages.register(Floats(Some(DType::BF16)));
    stages.register(Act::default());
    stages.register(DenseCache(DType::F32));
    stages.register(DenseCache(DType::F16));
}

/// Weights in a float type; None for the type in which the model has them.
#[derive(Clone, Copy)]
struct Floats(Option<DType>);

impl StageSpec for Floats {
    fn kind(&self) -> &'static str {
        match self.0 {
            None => "keep",
            Some(DType::F16) => "f16",
            Some(DType::BF16) => "bf16",
            Some(_) => "f32",
        }
    }
    fn help(&self) -> &'static str {
        match self.0 {
            None => "Keeps the weights in the type in which the model has them.",
            Some(_) => "Rounds the weights to this float type.",
        }
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(Cast::new(self.0.unwrap_or(at.dtype))?))])
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        recipe.everything = true;
        recipe.push(Box::new(*self));
        Ok(())
    }
}

/// Where the scales of quantized activations come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Token,
    Asym,
    Tensor,
    Mxint,
    Static,
    StaticChannel,
}

/// Quantized inputs of a matrix.
#[derive(Clone, Copy)]
struct Act {
    bits: u32,
    scale: Scale,
    range: ActRange,
}

impl Default for Act {
    fn default() -> Self {
        Self { bits: 8, scale: Scale::Token, range: ActRange::Max }
    }
}

impl StageSpec for Act {
    fn kind(&self) -> &'static str {
        "act"
    }
    fn help(&self) -> &'static str {
        "Quantizes the inputs of the matrix when the network runs."
    }
    fn slot(&self) -> Slot {
        Slot::Activations
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 2..=8, &mut self.bits)?;
        let scales = [
            ("token", Scale::Token),
            ("asym", Scale::Asym),
            ("tensor", Scale::Tensor),
            ("mxint", Scale::Mxint),
            ("static", Scale::Static),
            ("static_channel", Scale::StaticChannel),
        ];
        let help = "Scales: one a token; one with a zero point a token, or a head of the attention output; one a call; a power of two per \
                    16 features of a token; a fixed one; or a fixed one a feature.";
        f.choice("scale", help, &scales, &mut self.scale)?;
        f.float_or_word(
            (
                "range",
                "Range of fixed scales: the largest magnitude, a percentile, or the one of the smallest squared error.",
            ),
            50f64.next_up()..=100.0,
            &[("max", ActRange::Max), ("mse", ActRange::Mse)],
            (ActRange::Percentile, |range| if let ActRange::Percentile(p) = range { Some(p) } else { None }),
            &mut self.range,
        )
    }
    fn parts(&self, at: &Target<'_>) -> Result<Vec<Part>> {
        let fixed = matches!(self.scale, Scale::Static | Scale::StaticChannel);
        if self.range != ActRange::Max && !fixed {
            let rule = "it is for the scales `static` and `static_channel` alone";
            return Err(ParamError::new("range", "given", rule).into());
        }
        let plan = match self.scale {
            Scale::Token => ActPlan::Ready(ActQuant::per_token(self.bits)?),
            Scale::Asym => ActPlan::Ready(ActQuant::asymmetric(self.bits, at.heads)?),
            Scale::Tensor => ActPlan::Ready(ActQuant::per_tensor(self.bits)?),
            Scale::Mxint => ActPlan::Ready(ActQuant::mxint(self.bits, 16)?),
            Scale::Static => ActPlan::fixed(self.bits, self.range, false)?,
            Scale::StaticChannel => ActPlan::fixed(self.bits, self.range, true)?,
        };
        Ok(vec![Part::Wrap(Box::new(move |method| Ok(Box::new(WithActivations::planned(plan, method)))))])
    }
    fn words(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn segments(&self) -> Vec<Segment> {
        vec![Segment::number("a", "bits")]
    }
    fn is_default(&self) -> bool {
        true
    }
    fn add_to(&self, recipe: &mut Named<'_>, _: &str) -> Result<()> {
        // Below 8 bits a name stands for activations with a zero point.
        let scale = if self.bits < 8 && self.scale == Scale::Token { Scale::Asym } else { self.scale };
        recipe.push(Box::new(Self { scale, ..*self }));
        Ok(())
    }
}

/// Caches of keys and values in a float type.
#[derive(Clone, Copy)]
struct DenseCache(DType);

impl StageSpec for DenseCache {
    fn kind(&self) -> &'static str {
        if self.0 == DType::F16 { "f16" } else { "f32" }
    }
    fn help(&self) -> &'static str {
        "Stores keys and values in this float type."
    }
    fn slot(&self) -> Slot {
        Slot::Cache
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Cache(Box::new(*self))])
    }
}

impl CacheMethod for DenseCache {
    fn needs(&self) -> CacheNeeds {
        CacheNeeds::default()
    }
    fn fit(&self, _: &CacheSample<'_>, _: &Context) -> Result<Box<dyn CacheSet>> {
        Ok(Box::new(DenseCaches::new(self.0)?))
    }
    fn layout(&self, layers: &[Heads]) -> Result<CacheLayout> {
        let bytes_per_token = DenseCaches::new(self.0)?.bytes_per_token(layers)?;
        Ok(CacheLayout { bytes_per_token, tensors: Layout::exact([]) })
    }
}
