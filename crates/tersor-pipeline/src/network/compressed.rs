//! The result of the compression of a network.

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stream};
use tersor_core::{Changes, Context, LinearOp, Network, Report, Result, Weights, operator};

use super::pass::{Pass, Streams};
use super::plan::Folded;
use super::taps::{Operators, dense};
use crate::recipe::Recipe;

/// The matrices of a network after compression, in memory.
pub struct CompressedNetwork {
    /// The compressed matrices, by the name of the weight. A matrix that no rule of the recipe matched is not among them.
    pub operators: BTreeMap<String, Arc<dyn LinearOp>>,
    /// Errors and warnings of each compressed matrix, by the name of the weight.
    pub reports: BTreeMap<String, Report>,
    /// The changes of weights that were made before compression, such as those of smoothing: the other weights of the network, such as norms, must be
    /// read with its `folds`.
    pub changes: Changes,
    /// The recipe.
    pub recipe: Recipe,
}

impl CompressedNetwork {
    /// Returns the stored bits of the compressed matrices for each of their elements. Parts that matrices share are counted once.
    pub fn bits_per_weight(&self) -> f64 {
        let elements: f64 = self.operators.values().map(|op| op.shape()[0] as f64 * op.shape()[1] as f64).sum();
        operator::storage_bits_of(self.operators.values().map(|op| &**op)) as f64 / elements.max(1.0)
    }

    /// Runs the compressed network on a batch and returns its output. `network` and `weights` are those that were compressed. Errors if they are
    /// others, the batch is not what the network takes, or the network does not call its tap once for each matrix.
    pub fn run(&self, network: &dyn Network, weights: &dyn Weights, batch: &Batch, cx: &Context) -> Result<Stream> {
        run(network, weights, Some(self), batch, cx)
    }

    /// Returns the scores of the compressed network over batches: against their labels, and against the outputs of the original network. Errors as
    /// [`run`](Self::run) does, and if outputs cannot be scored.
    pub fn scores(
        &self,
        network: &dyn Network,
        weights: &dyn Weights,
        batches: &[Batch],
        cx: &Context,
    ) -> Result<Scores> {
        let (mut sum, folded) = (Scores::default(), Folded { weights, folds: &self.changes.folds });
        for batch in batches {
            let original = run(network, weights, None, batch, cx)?;
            let out = self.run(network, weights, batch, cx)?;
            sum = sum.plus(network.score(&out, Some(&original), batch, &folded)?);
        }
        Ok(sum)
    }
}

/// Runs a network on a batch, with its original matrices or with compressed ones.
fn run(
    network: &dyn Network,
    weights: &dyn Weights,
    compressed: Option<&CompressedNetwork>,
    batch: &Batch,
    cx: &Context,
) -> Result<Stream> {
    let none = Changes::default();
    let changes = compressed.map_or(&none, |c| &c.changes);
    let weights = Folded { weights, folds: &changes.folds };
    let mut streams = Streams::enter(network, std::slice::from_ref(batch), &weights, cx)?;
    for stage in 0..network.stages() {
        let sites: Vec<usize> = network.waves(stage).into_iter().flatten().collect();
        let op = |name: &str| {
            compressed.and_then(|c| c.operators.get(name).cloned()).map_or_else(|| dense(&weights, name), Ok)
        };
        let ops = Operators::of_sites(network, &sites, &op)?;
        let loaded = network.stage(stage, &weights)?;
        Pass { network, stage, loaded: &*loaded, changes, cx }.advance(&mut streams, &ops)?;
    }
    Ok(streams.into_vec().pop().unwrap_or_default())
}

/// Returns the scores of the original network over batches, against their labels. Errors if a batch is not what the network takes, the network does
/// not call its tap once for each matrix, or outputs cannot be scored.
pub fn original_scores(
    network: &dyn Network,
    weights: &dyn Weights,
    batches: &[Batch],
    cx: &Context,
) -> Result<Scores> {
    let mut sum = Scores::default();
    for batch in batches {
        let out = run(network, weights, None, batch, cx)?;
        sum = sum.plus(network.score(&out, None, batch, weights)?);
    }
    Ok(sum)
}
