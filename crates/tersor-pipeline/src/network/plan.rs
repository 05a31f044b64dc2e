//! [`NetworkPlan`]: how a recipe compresses the matrices of a network.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tersor_core::stages::{StageSpec, Target, assemble};
use tersor_core::{
    Changes, Context, DType, Effect, Error, Fold, FoldedRows, LinearOp, Method, Network, NonFinite, ParamError,
    Prepared, Producer, Repaired, Report, Result, Rewrite, Role, RowSource, Site, StatNeeds, StatSet, Weights,
};
use tersor_operators::online;

use crate::kinds::Kinds;
use crate::recipe::{Recipe, Roles};
use crate::rewrite;

/// A recipe applied to a network: the method of each matrix, and the rewrites of sites (inputs, each with the matrices that read it) and of the
/// network.
pub(crate) struct NetworkPlan<'a> {
    /// The recipe.
    pub(crate) recipe: &'a Recipe,
    network: &'a dyn Network,
    /// The changes of the whole network, in order.
    pub(crate) network_rewrites: Vec<Box<dyn Rewrite>>,
    /// The change of each site that has one, by the index of the site.
    pub(crate) rewrites: BTreeMap<usize, Box<dyn Rewrite>>,
    /// The compression of each matrix that a rule matches, by the index of the site and of the matrix in it.
    methods: BTreeMap<(usize, usize), Compression>,
}

/// A compressed matrix, with what its compression reports.
pub(crate) type Made = (Arc<dyn LinearOp>, Report);

/// How a matrix is compressed.
struct Compression {
    /// The index of the rule in the recipe.
    rule: usize,
    method: Box<dyn Method>,
    non_finite: NonFinite,
}

impl<'a> NetworkPlan<'a> {
    /// Applies `recipe` to `network`. `kinds` has the kinds of stages. Errors with a [`ParamError`] if the recipe is invalid, names a stage that
    /// prunes, or matches no matrix. Errors with the name of the tensor if a method cannot store a matrix of its shape, or if a change of the whole
    /// network would add, untie or resize a tensor.
    pub(crate) fn new(network: &'a dyn Network, recipe: &'a Recipe, kinds: &Kinds) -> Result<Self> {
        recipe.check(&kinds.stages)?;
        let sites = network.sites();
        let roles = Roles::of_sites(sites);
        let mut methods = BTreeMap::new();
        for (index, site) in sites.iter().enumerate() {
            let lists: Vec<&[Box<dyn StageSpec>]> = recipe.stages_of(site, &roles);
            for (own, consumer) in site.consumers.iter().enumerate() {
                let Some((rule, found)) = recipe.rule(&consumer.weight, roles.of(&consumer.weight)) else { continue };
                let at = Target {
                    weight: &consumer.weight,
                    dtype: DType::F32,
                    site: Some(site),
                    heads: heads_of(site),
                    rules: &lists,
                    own,
                    network: &recipe.network,
                    kinds: &kinds.stages,
                };
                let made = assemble(&at)?;
                if let Some(pruner) = made.pruners.first() {
                    let rule = "pruning stages of a network in memory are not supported";
                    return Err(ParamError::new("stages", format!("`{}`", pruner.name()), rule).into());
                }
                let in_matrix = |e: tersor_core::Error| e.in_tensor(&consumer.weight);
                made.method.layout(consumer.shape).map_err(in_matrix)?;
                let compression = Compression { rule, method: made.method, non_finite: found.non_finite };
                methods.insert((index, own), compression);
            }
        }
        if methods.is_empty() {
            let rule = "no rule of the recipe matches a matrix of the network";
            return Err(ParamError::new("recipe", format!("`{}`", recipe.name), rule).into());
        }
        let mut by_name = rewrite::smoothings(recipe, sites, &roles, kinds)?;
        let mut rewrites = BTreeMap::new();
        for (index, site) in sites.iter().enumerate() {
            if let Some(found) = by_name.remove(&site.name) {
                rewrites.insert(index, found);
            }
        }
        let network_rewrites = recipe.network_rewrites(&kinds.stages)?;
        for rewrite in &network_rewrites {
            for (name, effect) in rewrite.plan(sites)? {
                if matches!(effect, Effect::Untie { .. } | Effect::New { .. } | Effect::Shape(_)) {
                    let value =
                        format!("`{}`, which adds, unties or resizes tensors, of a network in memory", rewrite.name());
                    return Err(Error::Unsupported { what: "change of the network", value }.in_tensor(&name));
                }
            }
        }
        Ok(Self { recipe, network, network_rewrites, rewrites, methods })
    }

    /// Returns what is done with values of a matrix that are not finite, for the matrices whose rule replaces them, by name.
    pub(crate) fn repairs(&self) -> BTreeMap<String, NonFinite> {
        let name = |(site, own): (usize, usize)| self.network.sites()[site].consumers[own].weight.clone();
        let replaced = self.methods.iter().filter(|(_, m)| !matches!(m.non_finite, NonFinite::Refuse));
        replaced.map(|(at, m)| (name(*at), m.non_finite)).collect()
    }

    /// Returns the number of matrices that are compressed.
    pub(crate) fn matrices(&self) -> usize {
        self.methods.len()
    }

    /// Returns whether some method or rewrite needs calibration data.
    pub(crate) fn needs_data(&self) -> bool {
        let sites = self.network.sites();
        self.methods.values().any(|m| m.method.needs().any_data())
            || self.rewrites.iter().any(|(i, r)| r.needs(&sites[*i]).any_data())
            || self.network_rewrites.iter().any(|r| sites.iter().any(|s| r.needs(s).any_data()))
    }

    fn of_site(&self, site: usize) -> impl Iterator<Item = (usize, &Compression)> {
        self.methods.range((site, 0)..(site + 1, 0)).map(|((_, own), m)| (*own, m))
    }

    /// Returns the kinds of statistics that the methods of the matrices of the site of index `site` need together.
    pub(crate) fn needs(&self, site: usize) -> StatNeeds {
        self.of_site(site).map(|(_, m)| m.method.needs()).fold(StatNeeds::none(), StatNeeds::union)
    }

    /// Returns, for each matrix of the site of index `site`, the method without data with the stored form that it will be compressed to, or None.
    pub(crate) fn plain(&self, site: usize) -> Vec<Option<&dyn Method>> {
        let all = self.network.sites()[site].consumers.len();
        (0..all).map(|own| self.methods.get(&(site, own)).and_then(|m| m.method.plain())).collect()
    }

    /// Compresses the matrices of the site of index `site`; None for one that no rule matches. `weights` has the original weights, `changes` the
    /// changes of rewrites, and `stats` the statistics of the site's inputs. Matrices of one rule share the preparation of their method. Warns of
    /// deviations from what was requested. Errors with the name of the matrix if a method fails or a value is not finite, and if the work is
    /// cancelled.
    pub(crate) fn compress(
        &self,
        site: usize,
        weights: &dyn Weights,
        changes: &Changes,
        stats: &StatSet,
        cx: &Context,
    ) -> Result<Vec<Option<Made>>> {
        let consumers = &self.network.sites()[site].consumers;
        let mut prepared: Vec<(usize, Box<dyn Prepared + '_>)> = Vec::new();
        let mut all = Vec::new();
        for (own, consumer) in consumers.iter().enumerate() {
            let Some(m) = self.methods.get(&(site, own)) else {
                all.push(None);
                continue;
            };
            cx.cancel.check()?;
            let fail = |e: tersor_core::Error| e.in_tensor(&consumer.weight);
            if !prepared.iter().any(|p| p.0 == m.rule) {
                prepared.push((m.rule, m.method.prepare(stats, cx).map_err(fail)?));
            }
            let Some((_, ready)) = prepared.iter().find(|p| p.0 == m.rule) else { continue };
            let rows = weights.rows(&consumer.weight)?;
            let repaired = Repaired::new(&*rows, m.non_finite);
            let folds = rewrite::folds_of(changes, &consumer.weight);
            let folded = FoldedRows::new(&repaired, &consumer.weight, &folds).map_err(fail)?.with_isa(cx.isa());
            let done = ready.compress(&folded, 0..consumer.shape[0], cx).map_err(fail)?;
            for fallback in &done.report.fallbacks {
                cx.progress.warn(&format!("{}: {fallback}", consumer.weight));
            }
            let op = match changes.online(&consumer.weight) {
                Some(fold) => online(done.op, &fold.transform.input_change()?)?,
                None => done.op,
            };
            let report = Report { replaced: repaired.count(), ..done.report };
            if report.replaced > 0 {
                let what = format!("{}: {} values were not finite and were replaced", consumer.weight, report.replaced);
                cx.progress.warn(&what);
            }
            all.push(Some((Arc::from(op), report)));
        }
        Ok(all)
    }
}

/// Returns the number of heads whose outputs are concatenated in the inputs of a site: of an attention output, the number of blocks of the matrix that
/// produces it; 1 for any other site.
fn heads_of(site: &Site) -> usize {
    let attention = site.consumers.iter().any(|c| c.role == Role::AttentionOutput);
    match &site.producer {
        Producer::Linear { block, .. } if attention => site.features / (*block).max(1),
        _ => 1,
    }
}

/// Weights whose values that are not finite are replaced as the rules say.
pub(crate) struct RepairedWeights<'a> {
    /// The weights as they are.
    pub(crate) weights: &'a dyn Weights,
    /// What is done with values that are not finite, by the name of the weight; other weights are read as they are.
    pub(crate) repairs: BTreeMap<String, NonFinite>,
}

struct RepairedRows<'a>(Box<dyn RowSource + 'a>, NonFinite);

impl Weights for RepairedWeights<'_> {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let rows = self.weights.rows(name)?;
        Ok(match self.repairs.get(name) {
            Some(how) => Box::new(RepairedRows(rows, *how)),
            None => rows,
        })
    }
    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }
}

impl RowSource for RepairedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        Repaired::new(&*self.0, self.1).read_rows(rows, out)
    }
}

/// Weights with folds (changes of rows or columns) applied as they are read.
pub(crate) struct Folded<'a> {
    /// The original weights.
    pub(crate) weights: &'a dyn Weights,
    /// The changes, in the order in which they are applied.
    pub(crate) folds: &'a [Fold],
}

struct Rows<'a> {
    rows: Box<dyn RowSource + 'a>,
    name: &'a str,
    folds: &'a [Fold],
}

impl Weights for Folded<'_> {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let rows = self.weights.rows(name)?;
        if self.folds.iter().all(|f| f.weight != name) {
            return Ok(rows);
        }
        // Reports folds that do not fit before anything is read.
        FoldedRows::new(&*rows, name, self.folds)?;
        Ok(Box::new(Rows { rows, name, folds: self.folds }))
    }
    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }
}

impl RowSource for Rows<'_> {
    fn shape(&self) -> [usize; 2] {
        match FoldedRows::new(&*self.rows, self.name, self.folds) {
            Ok(folded) => folded.shape(),
            Err(_) => self.rows.shape(),
        }
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        FoldedRows::new(&*self.rows, self.name, self.folds)?.read_rows(rows, out)
    }
}
