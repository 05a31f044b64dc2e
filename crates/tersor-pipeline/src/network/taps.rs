//! The taps (products with the matrices of a network) of compression and evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tersor_core::{
    DType, Error, Exec, Input, InputChange, LinearOp, MatView, MatViewMut, Network, Result, StatSet, Tap, Weights,
    Write, operator, read_finite,
};
use tersor_operators::Dense;

use super::no_such;

/// The matrices of sites (inputs, each with the matrices that read it) as operators, by the index of the site: one for each matrix, in order. Sites
/// outside of the stage have none.
#[derive(Clone)]
pub(crate) struct Operators(Vec<Vec<Arc<dyn LinearOp>>>);

impl Operators {
    /// Returns operators for `network` that are none for any site.
    pub(crate) fn none(network: &dyn Network) -> Self {
        Self(vec![Vec::new(); network.sites().len()])
    }

    /// Returns the matrices of the sites of the indices `sites`, read from `weights`, as dense operators. Errors if a matrix cannot be read or a
    /// value is not finite.
    pub(crate) fn originals(network: &dyn Network, weights: &dyn Weights, sites: &[usize]) -> Result<Self> {
        Self::of_sites(network, sites, &|name| dense(weights, name))
    }

    /// Returns the operators of the sites of the indices `sites`, which `make` returns for the names of their matrices. Errors if there is no such
    /// site, or if `make` does.
    pub(crate) fn of_sites(
        network: &dyn Network,
        sites: &[usize],
        make: &dyn Fn(&str) -> Result<Arc<dyn LinearOp>>,
    ) -> Result<Self> {
        let mut all = Self::none(network);
        for &index in sites {
            let site = network.sites().get(index).ok_or_else(|| no_such(index, 0))?;
            all.0[index] = site.consumers.iter().map(|c| make(&c.weight)).collect::<Result<_>>()?;
        }
        Ok(all)
    }

    /// Replaces the operators of the site of index `site` by `made`, one for each matrix in order; None leaves one as it is.
    pub(crate) fn replace(&mut self, site: usize, made: Vec<Option<Arc<dyn LinearOp>>>) {
        for (op, made) in self.0[site].iter_mut().zip(made) {
            if let Some(made) = made {
                *op = made;
            }
        }
    }

    /// Returns the operators of the site of index `site`; none if there is no such site.
    pub(crate) fn of(&self, site: usize) -> &[Arc<dyn LinearOp>] {
        self.0.get(site).map_or(&[], Vec::as_slice)
    }
}

/// Returns the matrix `name`, read from `weights`, as a dense f32 operator. Errors if there is none or a value is not finite.
pub(crate) fn dense(weights: &dyn Weights, name: &str) -> Result<Arc<dyn LinearOp>> {
    let rows = weights.rows(name)?;
    let shape = rows.shape();
    let values = read_finite(&*rows, 0..shape[0]).map_err(|e| e.in_tensor(name))?;
    Ok(Arc::new(Dense::new(values, shape, DType::F32)?))
}

/// A tap that multiplies with operators, and observes the inputs of some sites. A network may ask for each matrix once.
pub(crate) struct Recorder {
    ops: Operators,
    /// Names of the sites, for messages.
    names: Vec<String>,
    /// The change of the inputs of sites that the compressed network makes at run time, before its matrices multiply.
    changes: BTreeMap<usize, InputChange>,
    /// Whether to stop when all wanted sites have been observed.
    stop: bool,
    state: Mutex<State>,
}

/// The inputs that a [`Recorder`] observed, by the index of the site.
pub(crate) struct Seen {
    /// The statistics of the inputs of the sites that were wanted.
    pub(crate) stats: BTreeMap<usize, StatSet>,
    /// The inputs of the sites that were to be kept, `[rows, features]`.
    pub(crate) inputs: BTreeMap<usize, Vec<f32>>,
}

/// What a [`Recorder`] has seen so far.
#[derive(Default)]
struct State {
    /// The wanted sites that have not been observed yet, with the set that their inputs are added to.
    wanted: BTreeMap<usize, StatSet>,
    /// The observed sites.
    seen: BTreeMap<usize, StatSet>,
    /// The sites whose inputs are kept, with the inputs.
    kept: BTreeMap<usize, Vec<f32>>,
    /// The products so far: site and matrix.
    calls: BTreeSet<(usize, usize)>,
    /// Whether the network was asked to stop.
    stopped: bool,
}

impl Recorder {
    /// Returns a tap of `network` that multiplies with `ops` and observes nothing.
    pub(crate) fn new(network: &dyn Network, ops: Operators) -> Self {
        let names = network.sites().iter().map(|s| s.name.clone()).collect();
        Self { ops, names, changes: BTreeMap::new(), stop: false, state: Mutex::default() }
    }

    /// Makes the tap observe sites, by their indices: inputs of the sites in `wanted` are added to these statistics, after the change in `changes` if
    /// there is one, and inputs of the sites `kept` are kept as they are, if these are wanted as well. If `stop` is set, the tap stops the stage
    /// after the last wanted site.
    pub(crate) fn observing(
        mut self,
        wanted: BTreeMap<usize, StatSet>,
        kept: impl IntoIterator<Item = usize>,
        changes: BTreeMap<usize, InputChange>,
        stop: bool,
    ) -> Self {
        (self.changes, self.stop) = (changes, stop);
        let kept = kept.into_iter().map(|s| (s, Vec::new())).collect();
        self.state = Mutex::new(State { wanted, kept, ..State::default() });
        self
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Returns whether the tap asked the network to stop.
    pub(crate) fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// Returns the statistics and the kept inputs of a run of the stage of index `stage`. Errors with [`Error::Missing`], with the name of the site,
    /// if a wanted site has not been observed.
    pub(crate) fn finish(&self, stage: usize) -> Result<Seen> {
        let mut state = self.state();
        if let Some(site) = state.wanted.keys().next() {
            return Err(self.never(*site, stage));
        }
        Ok(Seen { stats: std::mem::take(&mut state.seen), inputs: std::mem::take(&mut state.kept) })
    }

    /// Checks that each matrix of the sites of the indices `sites` was asked for in the stage of index `stage`. Errors with [`Error::Missing`], with
    /// the name of the site, if one was not.
    pub(crate) fn check_complete(&self, network: &dyn Network, sites: &[usize], stage: usize) -> Result<()> {
        let state = self.state();
        for &site in sites {
            let all = network.sites()[site].consumers.len();
            if (0..all).any(|c| !state.calls.contains(&(site, c))) {
                return Err(self.never(site, stage));
            }
        }
        Ok(())
    }

    fn never(&self, site: usize, stage: usize) -> Error {
        let place = format!("the products of stage {stage}; the network must call its tap for each matrix of the site");
        Error::missing(&self.names[site], place)
    }

    /// Adds the inputs of a site to what is observed of it.
    fn observe(&self, site: usize, x: &Input<'_>, exec: &Exec) -> Result<()> {
        let mut state = self.state();
        let Some(mut stats) = state.wanted.remove(&site) else { return Ok(()) };
        let [_, features] = x.shape();
        match self.changes.get(&site) {
            None => stats.observe(&MatView::new(x.data(), x.shape())?)?,
            Some(change) => {
                let mut changed = x.data().to_vec();
                change.apply(&mut changed, features, exec)?;
                stats.observe(&MatView::new(&changed, x.shape())?)?;
            }
        }
        if let Some(kept) = state.kept.get_mut(&site) {
            kept.extend_from_slice(x.data());
        }
        state.seen.insert(site, stats);
        Ok(())
    }
}

impl Tap for Recorder {
    fn apply(&self, site: usize, first: usize, x: &Input<'_>, y: &mut [MatViewMut<'_>], exec: &Exec) -> Result<()> {
        let ops = self.ops.of(site);
        let ops = ops.get(first..first + y.len()).filter(|ops| !ops.is_empty()).ok_or_else(|| no_such(site, first))?;
        let in_site = |e: Error| e.in_tensor(&format!("input of {}", self.names[site]));
        for index in first..first + y.len() {
            if !self.state().calls.insert((site, index)) {
                let rule = "one for each matrix and batch";
                return Err(Error::order("products of a site", rule, &self.names[site]));
            }
        }
        if x.shape()[1] != ops[0].shape()[1] {
            return Err(in_site(Error::shape("features of an input", ops[0].shape()[1], x.shape()[1])));
        }
        self.observe(site, x, exec).map_err(in_site)?;
        if self.stop && self.state().wanted.is_empty() {
            self.state().stopped = true;
            return Err(Error::Stopped);
        }
        if let ([op], [y]) = (ops, &mut *y) {
            return op.apply(x, y.reborrow(), Write::Set, exec).map_err(in_site);
        }
        let ops: Vec<&dyn LinearOp> = ops.iter().map(|op| &**op).collect();
        let views = y.iter_mut().map(|y| y.reborrow()).collect();
        operator::apply_all(&ops, x, views, exec).map_err(in_site)
    }
}
