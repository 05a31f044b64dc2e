//! Passes of calibration data through the stages of a network.

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor_core::network::{Batch, Stage, Stream};
use tersor_core::rewrite::{MakesKeysAndValues, ModuleOutput};
use tersor_core::{
    Changes, Context, Error, Exec, Fold, Input, LinearOp, MatViewMut, Method, Network, Result, Rewrite, Seen, SeenSite,
    Site, StatNeeds, StatSet, Tap, Weights, Write,
};

use super::plan::Folded;
use super::taps::{Operators, Recorder};

/// The largest number of rows (tokens, or windows of floats) of the batches of one shard, unless a single batch has more. A shard is a run of batches
/// whose statistics are summed together; shards are added in order.
const SHARD_TOKENS: usize = 8192;

/// The tensors that flow into the next stage, for all batches.
pub(crate) struct Streams {
    streams: Vec<Stream>,
    /// Whether a shard of statistics (a run of batches that is summed before it is added to others) begins with the batch.
    begins_shard: Vec<bool>,
}

impl Streams {
    /// Returns the tensors that flow into the first stage of `network` for each batch of `data`. Consecutive batches that together have at most 8192
    /// tokens, or windows of floats, form a shard of statistics: they are summed before they are added to others. Errors if the network refuses a
    /// batch or the work is cancelled.
    pub(crate) fn enter(network: &dyn Network, data: &[Batch], weights: &dyn Weights, cx: &Context) -> Result<Self> {
        let (mut streams, mut begins_shard, mut in_shard) = (Vec::new(), Vec::new(), 0usize);
        for batch in data {
            cx.cancel.check()?;
            let tokens: usize = batch.tokens.iter().map(Vec::len).sum();
            let rows = tokens + batch.shape.first().copied().unwrap_or(0);
            let begins = streams.is_empty() || in_shard + rows > SHARD_TOKENS;
            in_shard = if begins { rows } else { in_shard + rows };
            begins_shard.push(begins);
            streams.push(network.enter(batch, weights, &cx.exec)?);
        }
        Ok(Self { streams, begins_shard })
    }

    /// Returns the tensors `stream` of a single batch.
    pub(crate) fn of(stream: Stream) -> Self {
        Self { streams: vec![stream], begins_shard: vec![true] }
    }

    /// Returns the tensors of the first batch; None if there are no batches.
    pub(crate) fn first(&self) -> Option<&Stream> {
        self.streams.first()
    }

    /// Returns whether there are no batches.
    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Returns the tensors of each batch; after the last stage, the outputs of the network.
    pub(crate) fn into_vec(self) -> Vec<Stream> {
        self.streams
    }
}

/// What a pass of all batches through one stage of a network needs.
pub(crate) struct Pass<'a> {
    /// The network.
    pub(crate) network: &'a dyn Network,
    /// The index of the stage.
    pub(crate) stage: usize,
    /// The stage, loaded.
    pub(crate) loaded: &'a (dyn Stage + 'a),
    /// The changes of rewrites found so far. Changes of inputs that the running network makes are applied before statistics are gathered.
    pub(crate) changes: &'a Changes,
    /// Seed, threads and cancellation.
    pub(crate) cx: &'a Context,
}

/// The observed inputs of a site, for a rewrite.
pub(crate) struct Observed {
    /// The index of the site in the network.
    pub(crate) index: usize,
    stats: StatSet,
    /// The sampled inputs, `[rows, features]`.
    sample: Vec<f32>,
}

impl Observed {
    /// Returns `site`, the site that was observed, with its observations as a rewrite takes them. `output` computes the outputs of its matrices,
    /// `keys_and_values` their keys and values if they make such, and `plain` has the method without data for each matrix, or None.
    pub(crate) fn as_site<'o>(
        &'o self,
        site: &'o Site,
        output: &'o ModuleOutput<'o>,
        keys_and_values: &'o MakesKeysAndValues<'o>,
        plain: &'o [Option<&'o dyn Method>],
    ) -> SeenSite<'o> {
        SeenSite { site, stats: &self.stats, sample: &self.sample, output, keys_and_values, plain }
    }
}

impl Pass<'_> {
    /// Returns the statistics of the inputs of sites over all batches, by the index of the site. `wanted` has the indices of the sites, each with the
    /// kinds of statistics; `ops` are the matrices with which the stage is computed. Errors if a site is not observed once in each batch, if
    /// statistics of windows are wanted, or if the work is cancelled.
    pub(crate) fn gather(
        &self,
        streams: &Streams,
        ops: &Operators,
        wanted: &[(usize, StatNeeds)],
    ) -> Result<BTreeMap<usize, StatSet>> {
        let mut all = BTreeMap::new();
        for seen in self.run(streams, ops, wanted, true)? {
            all.insert(seen.index, seen.stats);
        }
        Ok(all)
    }

    /// Returns statistics and samples of the inputs of sites, in the order of `wanted`, which has the index of each site and the kinds of statistics.
    /// A sample has all rows of the first batches that together have at most as many rows as wanted, and of at least one batch. The statistics have
    /// no sample. Errors as [`Pass::gather`] does.
    pub(crate) fn observe(
        &self,
        streams: &Streams,
        ops: &Operators,
        wanted: &[(usize, StatNeeds)],
    ) -> Result<Vec<Observed>> {
        self.run(streams, ops, wanted, false)
    }

    fn run(
        &self,
        streams: &Streams,
        ops: &Operators,
        wanted: &[(usize, StatNeeds)],
        changed: bool,
    ) -> Result<Vec<Observed>> {
        let sites = self.network.sites();
        if let Some((site, _)) = wanted.iter().find(|(_, n)| n.windows) {
            let value = format!("statistics of windows, for site `{}`", sites[*site].name);
            return Err(Error::Unsupported { what: "calibration of this network", value });
        }
        // If samples are kept whole, the statistics need none.
        let needs = |n: &StatNeeds| if changed { *n } else { StatNeeds { sample: 0, ..*n } };
        let seed = self.cx.seed;
        let empty = |site: usize, n: &StatNeeds, rows| StatSet::new(sites[site].features, needs(n), seed, rows);
        let mut changes = BTreeMap::new();
        for &(site, _) in wanted.iter().filter(|_| changed) {
            let online = sites[site].consumers.iter().find_map(|c| self.changes.online(&c.weight));
            if let Some(fold) = online {
                changes.insert(site, fold.transform.input_change()?);
            }
        }
        let mut totals = wanted.iter().map(|(s, n)| empty(*s, n, 0)).collect::<Result<Vec<_>>>()?;
        let mut shard: Vec<Option<StatSet>> = wanted.iter().map(|_| None).collect();
        // Rows of each site in the batches so far.
        let mut rows = vec![0u64; wanted.len()];
        let mut samples = vec![Vec::new(); wanted.len()];
        for (stream, begins) in streams.streams.iter().zip(&streams.begins_shard) {
            self.cx.cancel.check()?;
            let (mut sets, mut before) = (BTreeMap::new(), Vec::new());
            for (i, (site, n)) in wanted.iter().enumerate() {
                if *begins && let Some(done) = shard[i].take() {
                    totals[i].merge(&done)?;
                }
                let set = shard[i].take().map_or_else(|| empty(*site, n, rows[i]), Ok)?;
                before.push(set.tokens());
                sets.insert(*site, set);
            }
            let whole = |i: &usize| wanted[*i].1.sample * sites[wanted[*i].0].features;
            let sampled = (0..wanted.len()).filter(|i| !changed && samples[*i].len() < whole(i));
            let kept: Vec<usize> = sampled.map(|i| wanted[i].0).collect();
            let tap = Recorder::new(self.network, ops.clone()).observing(sets, kept, changes.clone(), true);
            let tap = Arc::new(tap);
            let as_tap: Arc<dyn Tap> = tap.clone();
            match self.loaded.run(stream.clone(), &as_tap, &self.cx.exec) {
                // A framework may have wrapped the error that stopped it.
                Err(_) if tap.stopped() => {}
                other => other.map(drop)?,
            }
            let mut seen = tap.finish(self.stage)?;
            for (i, (site, _)) in wanted.iter().enumerate() {
                shard[i] = seen.stats.remove(site);
                rows[i] += shard[i].as_ref().map_or(0, |set| set.tokens() - before[i]);
                let new = seen.inputs.remove(site).unwrap_or_default();
                if samples[i].is_empty() || samples[i].len() + new.len() <= whole(&i) {
                    samples[i].extend(new);
                }
            }
        }
        let mut all = Vec::new();
        for (i, (site, _)) in wanted.iter().enumerate() {
            if let Some(done) = shard[i].take() {
                totals[i].merge(&done)?;
            }
            let stats = std::mem::replace(&mut totals[i], StatSet::none());
            all.push(Observed { index: *site, stats, sample: std::mem::take(&mut samples[i]) });
        }
        Ok(all)
    }

    /// Passes all batches through the stage, computed with the matrices `ops`. Errors if the network does not ask for each matrix of the stage once
    /// in each batch, if the stage errors, or if the work is cancelled.
    pub(crate) fn advance(&self, streams: &mut Streams, ops: &Operators) -> Result<()> {
        let sites: Vec<usize> = self.network.waves(self.stage).into_iter().flatten().collect();
        for stream in &mut streams.streams {
            self.cx.cancel.check()?;
            let tap = Arc::new(Recorder::new(self.network, ops.clone()));
            let as_tap: Arc<dyn Tap> = tap.clone();
            *stream = self.loaded.run(std::mem::take(stream), &as_tap, &self.cx.exec)?;
            tap.check_complete(self.network, &sites, self.stage)?;
        }
        Ok(())
    }
}

/// Returns the products of `x`, inputs of `site` `[rows, features]`, with the operators `ops`, side by side: `[rows, sum of out_features]`. Errors if
/// a shape differs or an input is not finite.
pub(crate) fn products(site: &Site, x: &[f32], ops: &[&dyn LinearOp], exec: &Exec) -> Result<Vec<f32>> {
    let rows = x.len() / site.features.max(1);
    let x = Input::new(x, [rows, site.features])?;
    let width: usize = ops.iter().map(|op| op.shape()[0]).sum();
    let (mut out, mut at) = (vec![0f32; rows * width], 0);
    for op in ops {
        let n = op.shape()[0];
        let all = MatViewMut::new(&mut out, [rows, width])?;
        op.apply(&x, all.columns(at..at + n)?, Write::Set, exec)?;
        at += n;
    }
    Ok(out)
}

/// Observations of sites that are in memory.
pub(crate) struct Sites<'a, 's>(pub(crate) &'a [SeenSite<'s>]);

impl Seen for Sites<'_, '_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(self.0)
    }
}

/// The inputs of the sites of the original network, for a rewrite of the whole network. They are observed stage by stage when the rewrite asks for
/// them.
pub(crate) struct Original<'a> {
    /// The network.
    pub(crate) network: &'a dyn Network,
    /// Its original weights.
    pub(crate) weights: &'a dyn Weights,
    /// The changes of stored weights with which the network is observed.
    pub(crate) folds: Vec<Fold>,
    /// The rewrite, which says what it needs of each site.
    pub(crate) rewrite: &'a dyn Rewrite,
    /// The calibration batches.
    pub(crate) data: &'a [Batch],
    /// Seed, threads and cancellation.
    pub(crate) cx: &'a Context,
}

impl Seen for Original<'_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        let (network, cx) = (self.network, self.cx);
        let weights = Folded { weights: self.weights, folds: &self.folds };
        let mut streams = Streams::enter(network, self.data, &weights, cx)?;
        for stage in 0..network.stages() {
            let loaded = network.stage(stage, &weights)?;
            let sites: Vec<usize> = network.waves(stage).into_iter().flatten().collect();
            let ops = Operators::originals(network, &weights, &sites)?;
            let changes = Changes::default();
            let pass = Pass { network, stage, loaded: &*loaded, changes: &changes, cx };
            let wanted: Vec<_> = sites.iter().map(|s| (*s, self.rewrite.needs(&network.sites()[*s]))).collect();
            let wanted: Vec<_> = wanted.into_iter().filter(|w| w.1.any_data()).collect();
            let observed = pass.observe(&streams, &ops, &wanted)?;
            let exec = &cx.exec;
            let outputs: Vec<_> = observed
                .iter()
                .map(|o| {
                    let site = &network.sites()[o.index];
                    move |x: &[f32], ops: &[&dyn LinearOp], _: bool| products(site, x, ops, exec)
                })
                .collect();
            let none = |_: &[f32]| Ok(None);
            let seen: Vec<SeenSite<'_>> = observed
                .iter()
                .zip(&outputs)
                .map(|(o, output)| o.as_site(&network.sites()[o.index], output, &none, &[]))
                .collect();
            f(&seen)?;
            pass.advance(&mut streams, &ops)?;
        }
        Ok(())
    }
}
