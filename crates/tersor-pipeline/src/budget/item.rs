//! [`Item`]: a matrix with the forms in which it can be stored, as it is measured and saved.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tersor_core::stages::{Measured, StageSpec, Stages, Way};
use tersor_core::{Error, Result};

use super::allocate::Choice;
use crate::recipe;

/// A matrix with the forms in which it can be stored, and its measured effect on the predictions of the network.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    /// The name of the weight.
    pub(crate) name: String,
    /// The forms in which it can be stored.
    pub(crate) ways: Vec<SavedWay>,
    /// The error of the form in which the matrix was stored to measure its effect, in the unit of the errors of `ways`.
    pub(crate) measured: f64,
    /// The divergence of the predictions from those of the original network, measured with the matrix stored in that form.
    pub(crate) effect: f64,
}

/// One form in which a matrix can be stored, as it is saved in JSON.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SavedWay {
    /// The stages that store the matrix in this form, as in a recipe.
    pub(crate) stages: Json,
    /// The stored bytes.
    pub(crate) bytes: u64,
    /// The error of the stored matrix ([`Way::error`]).
    pub(crate) error: f64,
}

impl Item {
    /// Returns the item of the matrix `name`. `measured` has the forms that each kind of stage (step of compression) offers, with their errors; the
    /// effect is taken to be measured with the [`probe`](Measured::probe) of the first. The effect is 0 until it is set.
    pub(crate) fn new(name: &str, measured: &[Measured]) -> Self {
        let saved = |w: &Way| SavedWay { stages: recipe::stages_json(&w.stages), bytes: w.bytes, error: w.error };
        let ways = measured.iter().flat_map(|m| &m.ways).map(saved).collect();
        let probe = measured.first().map_or(0.0, |m| m.probe.error);
        Self { name: name.into(), ways, measured: probe, effect: 0.0 }
    }

    /// Returns cost (bytes) and predicted loss of each form, in the order of `ways`. The loss is the effect times the error of the form divided by
    /// the error of the measured one.
    pub(crate) fn choices(&self) -> Vec<Choice> {
        let scale = self.effect / self.measured.max(f64::MIN_POSITIVE);
        self.ways.iter().map(|w| Choice { cost: w.bytes, loss: w.error * scale }).collect()
    }

    /// Returns the stages (steps of compression) that store the matrix in form `way`, an index in `ways`; `kinds` has the kinds of stages. Errors if
    /// there is no such form, or if a stage is of no kind in `kinds` or has invalid parameters.
    pub(crate) fn stages(&self, way: usize, kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
        let way =
            self.ways.get(way).ok_or_else(|| Error::missing(format!("way {way}"), "the ways to store a matrix"))?;
        recipe::stages_from_json(&way.stages, &self.name, kinds)
    }
}
