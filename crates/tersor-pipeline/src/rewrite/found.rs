//! Finds the changes of rewrites, on what was observed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use tersor_core::{
    Changes, Context, Fold, FoldedRows, Method, NonFinite, Repaired, Result, Rewrite, RowSource, SeenSite, Site,
    StatNeeds, StatSet, Weights,
};
use tersor_formats::Model;
use tersor_models::{Calibration, Checkpoint, Hooks, ObservedSite, SiteChanges, Upstream};

/// The model for which the changes of a rewrite are computed, and how its weights are read.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    /// The model whose weights are read.
    pub(crate) model: &'a Model,
    /// What is done with NaN and infinite values of a weight, by the name of the weight. A weight that is not in the map must be finite.
    pub(crate) non_finite: &'a BTreeMap<String, NonFinite>,
    /// The seed, progress and cancellation.
    pub(crate) cx: &'a Context,
}

/// The calibration windows (token sequences) on which a network is observed.
#[derive(Clone, Copy)]
pub(crate) struct Windows<'a> {
    /// The original network.
    pub(crate) checkpoint: &'a Checkpoint,
    /// The token numbers of each window.
    pub(crate) tokens: &'a [Vec<u32>],
    /// The maximum number of tokens of a window.
    pub(crate) ctx: usize,
    /// The directory for files of hidden states (the activations between layers); None to keep them in memory.
    pub(crate) scratch: Option<&'a Path>,
}

/// Computes the changes of the observed sites of a layer, one after the other, each on weights that have the changes of the sites before it.
/// `smoothings` has the rewrite of each site that is changed, by the name of the site. `plain` returns for each matrix of a site, in the order of
/// [`Site::consumers`], the data-free method of the grid that the matrix will be quantized to, or None. Returns the changes of all sites together.
/// Errors if a rewrite does, for example because a weight is not finite, or if two changes of a matrix cannot be combined.
pub(crate) fn of_sites<'m>(
    search: Search<'_>,
    smoothings: &BTreeMap<String, Box<dyn Rewrite>>,
    plain: &dyn Fn(&Site) -> Vec<Option<&'m dyn Method>>,
    observed: &[ObservedSite<'_>],
) -> Result<Changes> {
    let mut all = Changes::default();
    for s in observed {
        let Some(rewrite) = smoothings.get(&s.site.name) else { continue };
        let plain = plain(s.site);
        let site = [s.as_site(&plain)];
        let folds = all.folds.clone();
        let weights = Changed { search, folds: &folds };
        all.extend(rewrite.rewrite(std::slice::from_ref(s.site), &weights, &Observed(&site), search.cx)?)?;
    }
    Ok(all)
}

/// Computes the changes of the network by a rewrite that needs no data. Errors if the rewrite does.
pub(crate) fn without_data(search: Search<'_>, rewrite: &dyn Rewrite, sites: &[Site]) -> Result<Changes> {
    rewrite.rewrite(sites, &Changed { search, folds: &[] }, &tersor_core::Unseen, search.cx)
}

/// Computes the changes of the network by a rewrite that observes the original network on calibration windows, layer by layer. Errors if the rewrite
/// does, if the network cannot be run on the windows, or if the work is cancelled.
pub(crate) fn with_data(
    search: Search<'_>,
    rewrite: &dyn Rewrite,
    sites: &[Site],
    text: Windows<'_>,
) -> Result<Changes> {
    let weights = Changed { search, folds: &[] };
    let folds = rewrite.observed_with(sites, &weights)?;
    let pass = OriginalPass { search, rewrite, text, folds };
    rewrite.rewrite(sites, &weights, &pass, search.cx)
}

/// The weights of the model as compression reads them, with the folds found so far.
struct Changed<'a> {
    search: Search<'a>,
    folds: &'a [Fold],
}

/// Rows of [`Changed`] weights.
struct ChangedRows<'a> {
    rows: Box<dyn RowSource + 'a>,
    policy: NonFinite,
    name: String,
    folds: &'a [Fold],
}

impl Weights for Changed<'_> {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let policy = self.search.non_finite.get(name).copied().unwrap_or(NonFinite::Refuse);
        let rows = self.search.model.rows(name)?;
        Ok(Box::new(ChangedRows { rows, policy, name: name.into(), folds: self.folds }))
    }
}

impl RowSource for ChangedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.rows.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let repaired = Repaired::new(&*self.rows, self.policy);
        FoldedRows::new(&repaired, &self.name, self.folds)?.read_rows(rows, out)
    }
}

/// Observations of sites that are in memory.
struct Observed<'a, 's>(&'a [SeenSite<'s>]);

impl tersor_core::Seen for Observed<'_, '_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(self.0)
    }
}

/// Observations of the original network, made layer by layer on the calibration windows.
struct OriginalPass<'a> {
    search: Search<'a>,
    rewrite: &'a dyn Rewrite,
    text: Windows<'a>,
    folds: Vec<Fold>,
}

impl tersor_core::Seen for OriginalPass<'_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        let Windows { checkpoint, tokens, ctx, scratch } = self.text;
        let (model, cx) = (self.search.model, self.search.cx);
        let slices: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let mut calibration = Calibration::new(checkpoint, &slices, 0..slices.len(), ctx, scratch)?;
        calibration.embed(&mut |name, row, out| model.rows(name)?.read_rows(row..row + 1, out))?;
        let layers = checkpoint.architecture()?.layers();
        cx.progress.begin("principal directions", layers as u64);
        for layer in 0..layers {
            let needs = |site: &Site| self.rewrite.needs(site);
            let rewrite = &mut |observed: &[ObservedSite<'_>]| {
                let sites: Vec<SeenSite<'_>> = observed.iter().map(|s| s.as_site(&[])).collect();
                f(&sites).map(|()| Vec::new())
            };
            let prefix = format!("model.layers.{layer}.");
            let mut hooks = Hooks {
                upstream: Upstream::Original,
                cancel: &cx.cancel,
                seed: cx.seed,
                needs: &|_| StatNeeds::default(),
                change: &|_| Ok(None),
                compress: &mut |_: &Site, _: &StatSet| Ok(Vec::new()),
                rewriting: Some(SiteChanges { needs: &needs, rewrite }),
                folds: self.folds.iter().filter(|f| f.weight.starts_with(&prefix)).cloned().collect(),
            };
            calibration.layer(layer, &mut hooks)?;
            cx.progress.advance(1, &format!("layer {layer}"));
        }
        cx.progress.end();
        Ok(())
    }
}
