//! Rotations in recipes.

use tersor_core::stages::{Fields, NameRule, Named, Part, Slot, StageSpec, Stages, Target, set, value_of};
use tersor_core::{Check, ParamError, Result, Role, Value};

use super::{By, Rotate, SHARES};
use crate::stages::{Split, with_bits};

/// The matrices of a rotation in recipes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Matrices {
    #[default]
    Hadamard,
    Orthogonal,
    Pca,
}

/// A rotation of the whole network in recipes.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct RotateStage {
    by: Matrices,
    mix: bool,
    parts: Vec<f64>,
}

impl RotateStage {
    /// The kind of the stage.
    pub(crate) const KIND: &'static str = "rotate";

    /// Makes `recipe` that of ResQ: the columns of all matrices but down projections are split into two parts, of which the second has 8
    /// bits. The rotation of the inner activations cannot be merged into the gated product, so that down projections are not split.
    fn split(recipe: &mut Named<'_>) -> Result<()> {
        let kinds: &Stages = recipe.kinds;
        if !recipe.quantizer_named {
            let mut gptq = kinds.make("gptq")?;
            for field in ["bits", "group"] {
                let value = recipe.stage(Slot::Quantize).and_then(|s| value_of(s, field));
                value.into_iter().try_for_each(|v| set(&mut *gptq, field, v))?;
            }
            set(&mut *gptq, "grid", Value::Text("sym".into()))?;
            set(&mut *gptq, "mse", Value::Bool(true))?;
            recipe.replace(gptq);
        }
        recipe.rules.push(NameRule { roles: vec![Role::Down], stages: recipe.stages.clone() });
        let inside = |s: &dyn StageSpec| matches!(s.slot(), Slot::Quantize | Slot::Activations);
        let (low, outside): (Vec<_>, Vec<_>) =
            std::mem::take(&mut recipe.stages).into_iter().partition(|s| inside(&**s));
        let high = low.iter().map(|s| with_bits(&**s, 8, kinds)).collect::<Result<Vec<_>>>()?;
        outside.into_iter().for_each(|s| recipe.push(s));
        recipe.push(Box::new(Split::new(SHARES.into_iter().zip([low, high]))));
        Ok(())
    }
}

impl StageSpec for RotateStage {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn help(&self) -> &'static str {
        "Rotates the residual stream, values and inner activations of a decoder (arXiv 2404.00456, 2412.14363)."
    }
    fn slot(&self) -> Slot {
        Slot::Network
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        let words = [("hadamard", Matrices::Hadamard), ("orthogonal", Matrices::Orthogonal), ("pca", Matrices::Pca)];
        let help =
            "Matrices: random Hadamard ones, random orthogonal ones, or the principal directions of calibration data.";
        f.choice("by", help, &words, &mut self.by)?;
        let help = "Whether principal directions are mixed by a random rotation inside each part.";
        f.flag("mix", help, &mut self.mix)?;
        let help = "Shares of the features in the parts that `split` has; the smallest variances first. None for matrices without parts.";
        f.floats("parts", help, f64::MIN_POSITIVE..=1.0, &mut self.parts)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        let by = match self.by {
            Matrices::Pca => By::Principal { mix: self.mix },
            _ if self.mix => {
                let rule = "it is for `by = \"pca\"` alone; random rotations mix all features";
                return Err(ParamError::new("mix", "given", rule).into());
            }
            Matrices::Hadamard => By::Hadamard,
            Matrices::Orthogonal => By::Orthogonal,
        };
        let mut rotate = Rotate::new(by);
        if !self.parts.is_empty() {
            rotate = rotate.shares(self.parts.clone()).split_heads(true);
        }
        Ok(vec![Part::Rewrite(Box::new(rotate.check()?))])
    }
    fn words(&self) -> Vec<&'static str> {
        vec!["hadamard", "resq"]
    }
    fn add_to(&self, recipe: &mut Named<'_>, word: &str) -> Result<()> {
        let resq = word == "resq";
        let text = |word: &str| Value::Text(word.into());
        // Keys are rotated in the cache, after the rotary embedding.
        recipe.cache_values.push(("keys", text(if resq { "stored" } else { "hadamard" })));
        if !resq {
            recipe.push(Box::new(Self { by: Matrices::Hadamard, ..Self::default() }));
            return Ok(());
        }
        recipe.cache_values.push(("high", text("eighth")));
        recipe.push(Box::new(Self { by: Matrices::Pca, mix: true, parts: SHARES.to_vec() }));
        Self::split(recipe)
    }
}
