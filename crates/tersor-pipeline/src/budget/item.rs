//! A matrix with the ways to store it, as it is measured and saved.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tersor_core::stages::{Measured, StageSpec, Stages, Way};
use tersor_core::{Error, Result};

use super::allocate::Choice;
use crate::recipe;

/// A matrix with the ways to store it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    /// Name of the tensor.
    pub(crate) name: String,
    /// The ways to store it.
    pub(crate) ways: Vec<SavedWay>,
    /// Error of the way by which the effect was measured, in the unit of the ways' errors.
    pub(crate) measured: f64,
    /// Measured divergence of the predictions with that way.
    pub(crate) effect: f64,
}

/// One way to store a matrix.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SavedWay {
    /// The stages, as in a recipe.
    pub(crate) stages: Json,
    /// Stored bytes.
    pub(crate) bytes: u64,
    /// Error; see [`Way::error`].
    pub(crate) error: f64,
}

impl Item {
    /// Returns the item of a measured matrix, without its effect on the predictions.
    pub(crate) fn new(name: &str, measured: &[Measured]) -> Self {
        let saved = |w: &Way| SavedWay { stages: recipe::stages_json(&w.stages), bytes: w.bytes, error: w.error };
        let ways = measured.iter().flat_map(|m| &m.ways).map(saved).collect();
        let probe = measured.first().map_or(0.0, |m| m.probe.error);
        Self { name: name.into(), ways, measured: probe, effect: 0.0 }
    }

    /// Returns cost and predicted loss of each way.
    pub(crate) fn choices(&self) -> Vec<Choice> {
        let scale = self.effect / self.measured.max(f64::MIN_POSITIVE);
        self.ways.iter().map(|w| Choice { cost: w.bytes, loss: w.error * scale }).collect()
    }

    /// Returns the stages of a way. Errors if the way does not exist, or its stages are none of `kinds`.
    pub(crate) fn stages(&self, way: usize, kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
        let way =
            self.ways.get(way).ok_or_else(|| Error::missing(format!("way {way}"), "the ways to store a matrix"))?;
        recipe::stages_from_json(&way.stages, &self.name, kinds)
    }
}
