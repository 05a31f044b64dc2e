//! Compression of any [`Network`], one of this workspace or of the caller's own, in memory.
//!
//! A [`Network`] is a list of sites (a site is one input and the weight matrices that read it) in stages (parts of which one at a time is in memory).
//! It computes everything but the products with these matrices, which go through a [`Tap`](tersor_core::Tap). [`compress_network`] passes calibration
//! data through it, compresses the matrices by a recipe, and returns them as a [`CompressedNetwork`]. [`choose_for_network`] returns a recipe for a
//! number of bits.

mod budget;
mod compressed;
mod pass;
mod plan;
mod save;
mod taps;

pub use budget::choose_for_network;
pub use compressed::{CompressedNetwork, original_scores};

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor_core::network::{Batch, check_network};
use tersor_core::{Changes, Context, Error, LinearOp, Network, ParamError, Result, Rewrite, StatSet, Weights};

use crate::kinds::Kinds;
use crate::recipe::{Recipe, Statistics};
use pass::{Pass, Streams};
use plan::{Made, NetworkPlan};
use taps::Operators;

/// Compresses the matrices of `network` that a rule of `recipe` matches, and returns them in memory.
///
/// `weights` has the original weights by name. `data` are the calibration batches; it may be empty if the recipe needs none. `kinds` has the kinds of
/// stages that the recipe may name. `cx` has seed, threads, progress, warnings and cancellation. The recipe's key-value caches are ignored.
///
/// The stages of the network (parts such as layers) run one after the other. With the recipe's [`Statistics::Sequential`], the default, the inputs of
/// each site (one input and the matrices that read it) are observed behind the compressed matrices of all waves before it; a wave is a set of sites
/// that do not depend on each other. With [`Statistics::Layer`], all sites of a stage are observed in one pass behind the compressed matrices of
/// earlier stages. With [`Statistics::Original`], they are observed in the original network. The result does not depend on the number of threads.
///
/// Errors if [`check_network`] refuses the network. Errors with [`Error::Param`] if the recipe is invalid for it, matches no matrix, or names a stage
/// that prunes (these are not supported here), or if it needs data and there is none. Errors with [`Error::Tensor`], with the name, if a method
/// cannot store a matrix or fails, if a change of the whole network would add, untie or resize a tensor, or if a weight or an input is not finite. A
/// weight that is not finite, and that the recipe replaces, is an error nevertheless if data pass through it.
///
/// Errors with [`Error::Missing`] or [`Error::Order`], with the name of the site, if the network does not ask its tap for each matrix exactly once in
/// each batch. Errors with [`Error::Unsupported`] if a method needs statistics of windows, and with [`Error::Cancelled`] if `cx` is cancelled. Errors
/// of the network are passed on.
///
/// ```
#[doc = include_str!("../../examples/mlp.rs")]
/// ```
pub fn compress_network(
    network: &dyn Network,
    weights: &dyn Weights,
    data: &[Batch],
    recipe: &Recipe,
    kinds: &Kinds,
    cx: &Context,
) -> Result<CompressedNetwork> {
    check_network(network, weights)?;
    let plan = NetworkPlan::new(network, recipe, kinds)?;
    if plan.needs_data() && data.is_empty() {
        let rule = format!("recipe `{}` needs calibration data", recipe.name);
        return Err(ParamError::new("data", "empty", rule).into());
    }
    let repaired = plan::RepairedWeights { weights, repairs: plan.repairs() };
    let mut work = Work {
        network,
        weights: &repaired,
        original: weights,
        plan: &plan,
        cx,
        made: BTreeMap::new(),
        changes: Changes::default(),
    };
    work.rewrite_network(data)?;
    // Without data, one pass over no batches compresses everything.
    let data = if plan.needs_data() { data } else { &[] };
    let mut streams = Streams::enter(network, data, &work.folded(), cx)?;
    cx.progress.begin("compress", plan.matrices() as u64);
    for stage in 0..network.stages() {
        work.stage(stage, &mut streams)?;
    }
    cx.progress.end();
    let Work { made, changes, .. } = work;
    let (mut operators, mut reports) = (BTreeMap::new(), BTreeMap::new());
    for (weight, (op, report)) in made {
        operators.insert(weight.clone(), op);
        reports.insert(weight, report);
    }
    Ok(CompressedNetwork { operators, reports, changes, recipe: recipe.clone() })
}

/// A compression of a network in progress.
struct Work<'a> {
    network: &'a dyn Network,
    weights: &'a dyn Weights,
    original: &'a dyn Weights,
    plan: &'a NetworkPlan<'a>,
    cx: &'a Context,
    /// The finished matrices, by name.
    made: BTreeMap<String, Made>,
    /// The changes of rewrites found so far.
    changes: Changes,
}

impl<'a> Work<'a> {
    /// Returns the weights with the changes found so far applied, without the changes of columns that the running network makes up for.
    fn folded(&self) -> plan::Folded<'_> {
        plan::Folded { weights: self.weights, folds: &self.changes.folds }
    }

    /// Finds the changes of the whole network that the recipe names.
    fn rewrite_network(&mut self, data: &[Batch]) -> Result<()> {
        for rewrite in &self.plan.network_rewrites {
            let found = self.observed_whole(&**rewrite, data)?;
            self.changes.extend(found)?;
        }
        Ok(())
    }

    /// Returns the changes of one rewrite of the whole network, which observes the original network if it needs data.
    fn observed_whole(&self, rewrite: &dyn Rewrite, data: &[Batch]) -> Result<Changes> {
        let (sites, cx) = (self.network.sites(), self.cx);
        let weights = self.folded();
        if !sites.iter().any(|s| rewrite.needs(s).any_data()) {
            return rewrite.rewrite(sites, &weights, &tersor_core::Unseen, cx);
        }
        let mut folds = self.changes.folds.clone();
        folds.extend(rewrite.observed_with(sites, &weights)?);
        let seen = pass::Original { network: self.network, weights: self.weights, folds, rewrite, data, cx };
        rewrite.rewrite(sites, &weights, &seen, cx)
    }

    /// Compresses the matrices of a stage and passes the data through it.
    fn stage(&mut self, stage: usize, streams: &mut Streams) -> Result<()> {
        let (network, cx) = (self.network, self.cx);
        let waves = network.waves(stage);
        let sites: Vec<usize> = waves.iter().flatten().copied().collect();
        let mode = self.plan.recipe.statistics.unwrap_or(Statistics::Sequential);
        self.rewrite_sites(stage, &sites, streams)?;
        let folded_ops = |work: &Self| Operators::originals(network, &work.folded(), &sites);
        let folds = self.changes.folds.clone();
        let weights = plan::Folded { weights: self.weights, folds: &folds };
        let loaded = network.stage(stage, &weights)?;
        let mut ops = if streams.is_empty() { Operators::none(network) } else { folded_ops(self)? };
        let groups = if mode == Statistics::Sequential { waves } else { vec![sites.clone()] };
        for group in groups {
            cx.cancel.check()?;
            let wanted: Vec<_> = group.iter().map(|s| (*s, self.plan.needs(*s))).filter(|w| w.1.any_data()).collect();
            let pass = Pass { network, stage, loaded: &*loaded, changes: &self.changes, cx };
            let mut stats = if wanted.is_empty() { BTreeMap::new() } else { pass.gather(streams, &ops, &wanted)? };
            for site in group {
                let stats = stats.remove(&site).unwrap_or_else(StatSet::none);
                let done = self.site(site, &stats)?;
                if mode != Statistics::Original {
                    ops.replace(site, done);
                }
            }
        }
        if !streams.is_empty() {
            let pass = Pass { network, stage, loaded: &*loaded, changes: &self.changes, cx };
            pass.advance(streams, &ops)?;
        }
        Ok(())
    }

    /// Finds the changes of the sites of a stage, each with those of the sites before it applied.
    fn rewrite_sites(&mut self, stage: usize, sites: &[usize], streams: &Streams) -> Result<()> {
        let network = self.network;
        let changed: Vec<usize> = sites.iter().copied().filter(|s| self.plan.rewrites.contains_key(s)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let observed = {
            let weights = self.folded();
            let loaded = network.stage(stage, &weights)?;
            let pass = Pass { network, stage, loaded: &*loaded, changes: &self.changes, cx: self.cx };
            let wanted: Vec<_> =
                changed.iter().map(|s| (*s, self.plan.rewrites[s].needs(&network.sites()[*s]))).collect();
            pass.observe(streams, &Operators::originals(network, &weights, sites)?, &wanted)?
        };
        for seen in &observed {
            let rewrite = &self.plan.rewrites[&seen.index];
            let site = &network.sites()[seen.index];
            let plain = self.plan.plain(seen.index);
            let output = |x: &[f32], ops: &[&dyn LinearOp], _: bool| pass::products(site, x, ops, &self.cx.exec);
            let none = |_: &[f32]| Ok(None);
            let as_site = [seen.as_site(site, &output, &none, &plain)];
            let found = rewrite.rewrite(std::slice::from_ref(site), &self.folded(), &pass::Sites(&as_site), self.cx)?;
            self.changes.extend(found)?;
        }
        Ok(())
    }

    /// Compresses the matrices of a site with the statistics of its inputs, and returns its operators; None for one that stays as it is.
    fn site(&mut self, index: usize, stats: &StatSet) -> Result<Vec<Option<Arc<dyn LinearOp>>>> {
        let site = &self.network.sites()[index];
        let done = self.plan.compress(index, self.original, &self.changes, stats, self.cx)?;
        let mut ops = Vec::new();
        for (consumer, made) in site.consumers.iter().zip(done) {
            ops.push(made.as_ref().map(|m| m.0.clone()));
            if let Some(made) = made {
                self.made.insert(consumer.weight.clone(), made);
                self.cx.progress.advance(1, &consumer.weight);
            }
        }
        Ok(ops)
    }
}

/// The error of a network that has no site of index `site`, or no matrix of index `consumer` in it.
fn no_such(site: usize, consumer: usize) -> Error {
    Error::range("site and matrix of a product", "the sites of the network", (site, consumer))
}
