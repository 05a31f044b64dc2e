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

/// Maximum number of windows' tokens that one shard of statistics covers. Shards are summed in order.
const SHARD_TOKENS: usize = 8192;

/// What flows into the next stage for all batches.
pub struct Streams {
    streams: Vec<Stream>,
    /// Whether a shard of statistics begins with the batch.
    begins_shard: Vec<bool>,
}

impl Streams {
    /// Returns what flows into the first stage. Consecutive batches whose tokens, or windows of floats, are together at most 8192 form a shard of
    /// statistics, which is summed before it is added to the others.
    pub fn enter(network: &dyn Network, data: &[Batch], weights: &dyn Weights, cx: &Context) -> Result<Self> {
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

    /// Returns one stream.
    pub fn of(stream: Stream) -> Self {
        Self { streams: vec![stream], begins_shard: vec![true] }
    }

    /// Returns the first stream.
    pub fn first(&self) -> Option<&Stream> {
        self.streams.first()
    }

    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Returns the streams, at the end the outputs of the network.
    pub fn into_vec(self) -> Vec<Stream> {
        self.streams
    }
}

/// Passes through one stage.
pub struct Pass<'a> {
    pub network: &'a dyn Network,
    pub stage: usize,
    pub loaded: &'a (dyn Stage + 'a),
    pub changes: &'a Changes,
    pub cx: &'a Context,
}

/// What was observed of a site for a rewrite.
pub struct Observed {
    /// Index of the site.
    pub index: usize,
    stats: StatSet,
    /// Inputs, `[rows, features]`.
    sample: Vec<f32>,
}

impl Observed {
    /// Returns the site with its observations, as a rewrite takes it.
    pub fn as_site<'o>(
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
    /// Returns the statistics of the inputs of the wanted sites over all batches. Errors if a site is not observed once in each batch.
    pub fn gather(
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

    /// Returns statistics and samples of the inputs of the wanted sites. A sample has all rows of the first batches that together have at most as
    /// many rows as wanted, and of at least one batch. The statistics have no sample.
    pub fn observe(&self, streams: &Streams, ops: &Operators, wanted: &[(usize, StatNeeds)]) -> Result<Vec<Observed>> {
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

    /// Passes all batches through the stage. Errors if a matrix of the stage is not asked for once in each batch.
    pub fn advance(&self, streams: &mut Streams, ops: &Operators) -> Result<()> {
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

/// Returns the products of a site's inputs with operators, side by side: `[rows, sum of out_features]`. Errors if a shape differs or an input is not
/// finite.
pub fn products(site: &Site, x: &[f32], ops: &[&dyn LinearOp], exec: &Exec) -> Result<Vec<f32>> {
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
pub struct Sites<'a, 's>(pub &'a [SeenSite<'s>]);

impl Seen for Sites<'_, '_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(self.0)
    }
}

/// Observations of the original network for a rewrite of the whole network, made stage by stage.
pub struct Original<'a> {
    pub network: &'a dyn Network,
    pub weights: &'a dyn Weights,
    pub folds: Vec<Fold>,
    pub rewrite: &'a dyn Rewrite,
    pub data: &'a [Batch],
    pub cx: &'a Context,
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
