//! [`CompressedNetwork`]: the result of the compression of a network.

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stream};
use tersor_core::{Changes, Context, LinearOp, Network, Report, Result, Weights, operator};

use super::pass::{Pass, Streams};
use super::plan::Folded;
use super::taps::{Operators, dense};
use crate::recipe::Recipe;

/// The matrices of a network after compression, in memory: the result of [`compress_network`](crate::compress_network).
pub struct CompressedNetwork {
    /// The compressed matrices, by the name of the weight. A matrix that no rule of the recipe matched is not among them.
    pub operators: BTreeMap<String, Arc<dyn LinearOp>>,
    /// The errors of each compressed matrix and deviations from what was requested, by the name of the weight.
    pub reports: BTreeMap<String, Report>,
    /// The changes of weights that were made before compression, such as those of smoothing; the compressed matrices have them. The other weights of
    /// the network, such as norms, must be read with its [`folds`](Changes::folds) applied, as [`run`](Self::run) does. Entries of a configuration
    /// are for the caller to apply.
    pub changes: Changes,
    /// The recipe by which the network was compressed.
    pub recipe: Recipe,
}

impl CompressedNetwork {
    /// Returns the stored bits of the compressed matrices for each of their elements, scales and the like included. Data that matrices share is
    /// counted once. 0 if there are no matrices.
    pub fn bits_per_weight(&self) -> f64 {
        let elements: f64 = self.operators.values().map(|op| op.shape()[0] as f64 * op.shape()[1] as f64).sum();
        operator::storage_bits_of(self.operators.values().map(|op| &**op)) as f64 / elements.max(1.0)
    }

    /// Computes the compressed network for `batch`, and returns its output: the tensors after the last stage. `network` and `weights` must be the
    /// network and the original weights that were compressed; matrices that are not compressed, and all other weights, are read from `weights`. `cx`
    /// has threads and cancellation.
    ///
    /// Errors if the network refuses the batch, or if a weight is missing, has a value that is not finite, or has another shape. Errors with
    /// [`Error::Missing`](tersor_core::Error::Missing) or [`Error::Order`](tersor_core::Error::Order), with the name of the site (an input and the
    /// matrices that read it), if the network does not ask its tap for each matrix exactly once. Errors with
    /// [`Error::Cancelled`](tersor_core::Error::Cancelled) if `cx` is cancelled.
    pub fn run(&self, network: &dyn Network, weights: &dyn Weights, batch: &Batch, cx: &Context) -> Result<Stream> {
        run(network, weights, Some(self), batch, cx)
    }

    /// Returns the scores of the compressed network, summed over `batches`: against their labels, and against the outputs of the original network,
    /// which is computed as well. `network` and `weights` must be the network and the original weights that were compressed. `cx` has threads and
    /// cancellation. Without batches, returns the scores of no rows. Errors as [`run`](Self::run) does, and if outputs cannot be scored, for example
    /// because a logit is not finite.
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

/// Computes a network for a batch, with its original matrices or with the compressed ones. Returns its output.
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

/// Returns the scores of the original network `network`, with the weights `weights`, against the labels of `batches`, summed over all of them. `cx`
/// has threads and cancellation. Without batches, returns the scores of no rows. Errors as [`CompressedNetwork::run`] does, and if outputs cannot be
/// scored, for example because a logit is not finite.
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
