//! Calibration: statistics of the inputs of each site, gathered one layer at a time, with compressed or original layers upstream.

mod sensitivity;
mod steps;
mod store;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tersor_core::rewrite::{KeysAndValues, MakesKeysAndValues, ModuleOutput};
use tersor_core::{
    Cancel, Error, Exec, Fold, Heads, Input, InputChange, LinearOp, MatView, Method, Result, SeenSite, Site, StatNeeds,
    StatSet,
};
use tersor_kernels::par;

use crate::layer::rms_norm;
use crate::{Architecture, Checkpoint, SiteKind};
pub use sensitivity::{CONCURRENT_NETWORKS, Sensitivity, Substitution};
use steps::{Effect, Steps, Window, effect};
use store::{Filling, Rewriting, Store};

/// Maximum number of tokens that one shard of statistics covers. Shards are summed in order, so that the result does not depend on which process
/// gathered which shard.
const SHARD_TOKENS: usize = 8192;

/// Maximum number of tokens of the windows that are processed together.
const BATCH_TOKENS: usize = 2048;

/// Returns the number of windows whose statistics are gathered as one shard, for windows of at most `ctx` tokens: `8192 / ctx` rounded down,
/// at least one; a `ctx` of 0 counts as 1. Shards are summed in order, so that the sums do not depend on which process gathered which shard.
pub fn shard_windows(ctx: usize) -> usize {
    (SHARD_TOKENS / ctx.max(1)).max(1)
}

/// Returns the maximum number of tokens whose activations are in memory together, for windows of at most `ctx` tokens: the largest multiple of
/// `ctx` up to 2048, or `ctx` itself if it is larger.
pub fn batch_tokens(ctx: usize) -> usize {
    (BATCH_TOKENS / ctx.max(1)).max(1) * ctx
}

/// Whether the weights upstream of a [site](Site) are the compressed or the original ones when its calibration inputs are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upstream {
    /// Earlier matrices are the compressed ones, so that each site can compensate for the errors before it (sequential calibration).
    Compressed,
    /// Earlier matrices are the original ones, so that sites are independent of each other.
    Original,
}

/// The operator that replaces each matrix of a site after compression, in the order of [`Site::consumers`]; none for a matrix that stays as it is.
pub type Replacements = Vec<Option<Arc<dyn LinearOp>>>;

/// Callback that reads one row of an embedding table into a buffer: tensor name, row index, values `[hidden]`.
pub type ReadRow<'r> = &'r mut dyn FnMut(&str, usize, &mut [f32]) -> Result<()>;

/// Settings and callbacks of [`Calibration::layer`].
pub struct Hooks<'h> {
    /// Whether the hidden states continue through the compressed or the original matrices of the layer.
    pub upstream: Upstream,
    /// Cancellation of calibration, checked between batches of windows.
    pub cancel: &'h Cancel,
    /// Seed of the random samples in the statistics.
    pub seed: u64,
    /// Returns the statistics to gather for a [site](Site); [`StatNeeds::none`] for a site that needs no data or whose matrices are already
    /// compressed.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// Returns the transform that is applied at run time to the inputs of a [site](Site) in front of its matrices, or none. The statistics are those
    /// of the transformed inputs.
    pub change: &'h dyn Fn(&Site) -> Result<Option<InputChange>>,
    /// Compresses the matrices of a [site](Site) from the statistics of its inputs and returns their [`Replacements`]. Called once for every site
    /// of the layer, in the order of execution.
    pub compress: &'h mut dyn FnMut(&Site, &StatSet) -> Result<Replacements>,
    /// Callbacks that rewrite the [sites](Site) of the layer (smoothing, for example) before they are compressed; none to compress them as they
    /// are.
    pub rewriting: Option<SiteChanges<'h>>,
    /// [Folds](Fold) to apply to the layer's weights when they are read. [`Calibration::layer`] appends those that `rewriting` returns.
    pub folds: Vec<Fold>,
}

/// Computes the inputs of several sites for one window.
type Inputs<'f> = dyn Fn(&Window<'_>, &Exec) -> Result<Vec<Vec<f32>>> + Sync + 'f;

/// Callbacks that rewrite the [sites](Site) of a layer before compression.
pub struct SiteChanges<'h> {
    /// Returns the statistics that the rewrite needs of a [site](Site). [`ObservedSite::sample`] then consists of the first windows that together
    /// have at most [`StatNeeds::sample`] tokens (the largest number for any site of the layer), at least one window; it is empty if that number is
    /// 0 for the site.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// Receives the observations of all sites of the layer, in the order of execution, and returns the [folds](Fold) to apply to the layer's
    /// weights.
    pub rewrite: &'h mut dyn FnMut(&[ObservedSite<'_>]) -> Result<Vec<Fold>>,
}

/// A [site](Site) of a layer with the calibration data that a rewrite needs: statistics, sample inputs, and the output of the site's module (its
/// matrices and what follows up to the next site) for those inputs.
pub struct ObservedSite<'s> {
    /// The site whose inputs were observed.
    pub site: &'s Site,
    /// Statistics of the site's inputs over all calibration windows.
    pub stats: StatSet,
    /// Inputs of the site for the first calibration windows, whole windows only, `[tokens, features]`; empty if the rewrite needs no sample of the
    /// site.
    pub sample: Vec<f32>,
    /// Computes the output of the site's module with other matrices in place of the site's own, from inputs of the same tokens as `sample`,
    /// `[tokens, features]`; see [`ModuleOutput`]. Errors if a shape does not fit.
    pub output: Box<ModuleOutput<'s>>,
    /// Computes keys and values, `[tokens, kv_heads * head_dim]` each, from inputs of the same tokens as `sample`, `[tokens, features]`; see
    /// [`MakesKeysAndValues`]. Gives none unless the site feeds key and value matrices of a decoder.
    pub keys_and_values: Box<MakesKeysAndValues<'s>>,
}

impl ObservedSite<'_> {
    /// Returns the site in the form that a [`Rewrite`](tersor_core::Rewrite) takes. `plain` has one entry for each of [`Site::consumers`] (the
    /// number is not checked): a data-free method with the grid that the matrix will be quantized to, or none if there is no such
    /// method, which the searches of AWQ and QQQ refuse.
    pub fn as_site<'a>(&'a self, plain: &'a [Option<&'a dyn Method>]) -> SeenSite<'a> {
        SeenSite {
            site: self.site,
            stats: &self.stats,
            sample: &self.sample,
            output: &*self.output,
            keys_and_values: &*self.keys_and_values,
            plain,
        }
    }
}

/// The hidden states of calibration windows, moved through the network one layer at a time while statistics are gathered and matrices compressed.
///
/// ```
/// use tersor_core::{Cancel, Site, StatNeeds, StatSet};
/// use tersor_llm::{Calibration, Checkpoint, Hooks, Upstream};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let windows: [&[u32]; 2] = [&[1, 2, 3, 4], &[5, 6, 7, 8]];
/// let mut calibration = Calibration::new(&checkpoint, &windows, 0..2, 4, None)?;
/// calibration.embed(&mut |name, row, out| checkpoint.model().rows(name)?.read_rows(row..row + 1, out))?;
/// let mut sites = Vec::new();
/// let mut hooks = Hooks {
///     upstream: Upstream::Original,
///     cancel: &Cancel::new(),
///     seed: 0,
///     needs: &|_| StatNeeds { gram: true, ..StatNeeds::default() },
///     change: &|_| Ok(None),
///     compress: &mut |site: &Site, stats: &StatSet| {
///         assert_eq!(stats.require_gram()?.len(), site.features * site.features);
///         sites.push(site.name.clone());
///         Ok(vec![None; site.consumers.len()])
///     },
///     rewriting: None,
///     folds: Vec::new(),
/// };
/// calibration.layer(0, &mut hooks)?;
/// assert_eq!(sites.len(), 4);
/// # Ok(())
/// # }
/// ```
pub struct Calibration<'a> {
    checkpoint: &'a Checkpoint,
    heads: Option<Heads>,
    tokens: Vec<u32>,
    /// Range of each window in `tokens`.
    spans: Vec<Range<usize>>,
    /// Number of windows in a shard.
    shard: usize,
    /// Index of the first token among the tokens of all windows.
    first_token: u64,
    scratch: Option<PathBuf>,
    stream: Store,
}

impl<'a> Calibration<'a> {
    /// Prepares the calibration on the windows `windows[part]`, each of 1 to `ctx` tokens; [`Calibration::embed`] or [`Calibration::resume`] must
    /// follow. The windows before `part` only determine the token numbers that random samples depend on. Hidden states are stored in files in the
    /// directory `scratch` if one is given, otherwise in memory. Errors if `windows` is empty, one of them is empty or longer than `ctx`, `part`
    /// is reversed or ends beyond them, or a token is outside the vocabulary.
    pub fn new(
        checkpoint: &'a Checkpoint,
        windows: &[&[u32]],
        part: Range<usize>,
        ctx: usize,
        scratch: Option<&Path>,
    ) -> Result<Self> {
        let (network, mut at) = (checkpoint.architecture(), 0);
        if windows.is_empty()
            || windows.iter().any(|w| w.is_empty() || w.len() > ctx)
            || part.end > windows.len()
            || part.start > part.end
        {
            let want = format!("at least one, of 1 to {ctx} tokens");
            return Err(Error::shape("calibration windows", want, windows.len()));
        }
        let before: usize = windows[..part.start].iter().map(|w| w.len()).sum();
        let tokens = windows[part.clone()].concat();
        let vocab = match network {
            Architecture::Decoder(c) => c.vocab,
            Architecture::Encoder(c) => c.vocab,
        };
        if let Some(t) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::shape("token", format!("below {vocab}"), t));
        }
        let mut spans = Vec::with_capacity(part.len());
        for w in &windows[part] {
            spans.push(at..at + w.len());
            at += w.len();
        }
        let heads = match network {
            Architecture::Decoder(c) => Some(c.attention_heads()?),
            Architecture::Encoder(_) => None,
        };
        tersor_core::view::elements([tokens.len(), network.hidden()])?;
        let (scratch, stream) = (scratch.map(Path::to_path_buf), Store::Memory(Vec::new()));
        let (shard, first_token) = (shard_windows(ctx), before as u64);
        Ok(Self { checkpoint, heads, tokens, spans, shard, first_token, scratch, stream })
    }

    fn hidden(&self) -> usize {
        self.checkpoint.architecture().hidden()
    }

    /// Computes the hidden states in front of the first layer; `read` reads rows of the embedding tables that [`Architecture::embeddings`] names.
    /// Errors if a row cannot be read or scratch files cannot be written.
    pub fn embed(&mut self, read: ReadRow<'_>) -> Result<()> {
        let hidden = self.hidden();
        let network = self.checkpoint.architecture();
        let tables = network.embeddings();
        let norm = match network {
            Architecture::Encoder(c) => Some((crate::encoder::embedding_norm(self.checkpoint, c)?, c.eps)),
            Architecture::Decoder(_) => None,
        };
        let mut filling = Filling::new(self.tokens.len() * hidden, self.scratch.as_deref(), "embedded")?;
        let mut row = vec![0f32; hidden];
        for span in &self.spans {
            let mut out = vec![0f32; span.len() * hidden];
            for (i, (&t, out)) in self.tokens[span.clone()].iter().zip(out.chunks_exact_mut(hidden)).enumerate() {
                for (table, at) in tables.iter().zip([t as usize, i, 0]) {
                    read(table, at, &mut row)?;
                    out.iter_mut().zip(&row).for_each(|(o, v)| *o += v);
                }
            }
            if let Some((norm, eps)) = &norm {
                norm.apply(&mut out, *eps, &Exec::new());
            }
            filling.push(&out)?;
        }
        self.stream = filling.finish()?;
        Ok(())
    }

    /// Saves the current hidden states to a file, as little-endian f32 `[tokens, hidden]`, for [`Calibration::resume`]. Errors if the file cannot
    /// be written.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.stream.save(path)
    }

    /// Replaces the hidden states by those of a file that [`Calibration::save`] wrote. The file does not hold the number of the layer: the caller
    /// continues with the layer that was next when it was saved. Errors if the file cannot be read, or its length is not that of the hidden
    /// states of this calibration.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.stream = Store::open(path, self.tokens.len() * self.hidden(), self.scratch.is_some())?;
        Ok(())
    }

    /// Gathers and returns the statistics `needs` of the output head's inputs; to be called after the last layer. `seed` is the seed of random
    /// samples. Errors if the network is an encoder, the last norm is missing, a value is not finite, or the work is cancelled.
    pub fn head(&mut self, needs: StatNeeds, seed: u64, cancel: &Cancel) -> Result<StatSet> {
        let (hidden, config) = (self.hidden(), self.checkpoint.architecture().decoder()?);
        let norm = self.checkpoint.vector("model.norm.weight", hidden)?;
        self.gather(hidden, needs, seed, cancel, None, &|w, exec| Ok(rms_norm(w.stream, &norm, config.eps, exec)))
    }

    /// Processes layer `index`: rewrites its sites if `hooks.rewriting` is set; then, for each site in order, gathers the statistics of its inputs,
    /// calls `hooks.compress`, and computes the hidden states after it through the matrices that `hooks.upstream` selects. The caller processes the
    /// layers in order, which is not checked. Errors if the layer cannot be read, a callback fails, statistics of windows ([`StatNeeds::windows`])
    /// are requested, a value is not finite, or the work is cancelled.
    pub fn layer(&mut self, index: usize, hooks: &mut Hooks<'_>) -> Result<()> {
        let sites = self.checkpoint.architecture().sites();
        let sites: Vec<&Site> = sites.iter().filter(|s| s.layer == Some(index)).collect();
        if let Some(rewriting) = &mut hooks.rewriting {
            let layer = steps::layer(self.checkpoint, &hooks.folds, self.heads.as_ref(), index)?;
            hooks.folds.extend(self.rewrite(&*layer, &sites, rewriting, hooks.seed, hooks.cancel)?);
        }
        let mut layer = steps::layer(self.checkpoint, &hooks.folds, self.heads.as_ref(), index)?;
        let mut attn_output = None;
        for (kind, site) in SiteKind::ALL.into_iter().zip(sites) {
            let (needs, change) = ((hooks.needs)(site), (hooks.change)(site)?);
            let stats =
                self.gather(site.features, needs, hooks.seed, hooks.cancel, attn_output.as_mut(), &|w, exec| {
                    let mut x = layer.input(kind, w, exec)?;
                    change.iter().try_for_each(|c| c.apply(&mut x, site.features, exec)).map(|()| x)
                });
            let stats = stats.map_err(|e| e.in_tensor(&format!("input of {}", site.name)))?;
            let made = (hooks.compress)(site, &stats)?;
            drop(stats);
            if hooks.upstream == Upstream::Compressed {
                layer.replace(kind, made);
            }
            self.advance(kind, &*layer, &mut attn_output, hooks.cancel)?;
        }
        Ok(())
    }

    /// Returns the ranges of windows that are processed together. No range crosses the boundary of a shard.
    fn batches(&self) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        for (w, span) in self.spans.iter().enumerate() {
            match out.last_mut() {
                Some(b) if w % self.shard != 0 && span.end - self.spans[b.start].start <= BATCH_TOKENS => {
                    b.end = w + 1;
                }
                _ => out.push(w..w + 1),
            }
        }
        out
    }

    /// Applies `f` to each window of a batch in the current thread pool and returns the results in order.
    fn map<T: Send>(
        &mut self,
        batch: Range<usize>,
        attn_output: Option<&mut Store>,
        f: &(dyn Fn(&Window<'_>, &Exec) -> Result<T> + Sync),
    ) -> Result<Vec<T>> {
        let hidden = self.hidden();
        let (first, last) = (self.spans[batch.start].start, self.spans[batch.end - 1].end);
        let stream = self.stream.read(first * hidden..last * hidden)?;
        let (attn_output, width) = match attn_output {
            Some(store) => {
                let width = self.checkpoint.architecture().attention_width();
                (store.read(first * width..last * width)?, width)
            }
            None => (Default::default(), 0),
        };
        let spans = &self.spans[batch];
        let window = |i: usize, (): &mut ()| {
            let part = |values: &[f32], width: usize| -> Range<usize> {
                let (a, b) = (spans[i].start - first, spans[i].end - first);
                if values.is_empty() { 0..0 } else { a * width..b * width }
            };
            let window =
                Window { stream: &stream[part(&stream, hidden)], attn_output: &attn_output[part(&attn_output, width)] };
            f(&window, &Exec::new())
        };
        par::map(spans.len(), true, || (), window).into_iter().collect()
    }

    /// Gathers the observations of all sites of a layer, passes them to a rewrite, and returns its folds.
    fn rewrite(
        &mut self,
        layer: &dyn Steps,
        sites: &[&Site],
        rewriting: &mut SiteChanges<'_>,
        seed: u64,
        cancel: &Cancel,
    ) -> Result<Vec<Fold>> {
        let needs: Vec<StatNeeds> = sites.iter().map(|s| (rewriting.needs)(s)).collect();
        let want = needs.iter().map(|n| n.sample).max().unwrap_or(0);
        // The sample consists of whole windows, at least one.
        let mut windows = 0;
        while windows < self.spans.len() && want > 0 && (windows == 0 || self.spans[windows].end <= want) {
            windows += 1;
        }
        let plain: Vec<StatNeeds> = needs.iter().map(|n| StatNeeds { sample: 0, ..*n }).collect();
        let inputs = |w: &Window<'_>, exec: &Exec| -> Result<Vec<Vec<f32>>> {
            let qkv = layer.input(SiteKind::Qkv, w, exec)?;
            let attn_output = layer.output(SiteKind::Qkv, w, exec)?;
            let stream = layer.output(SiteKind::O, &Window { stream: w.stream, attn_output: &attn_output }, exec)?;
            let after = Window { stream: &stream, attn_output: &[] };
            let rest = [SiteKind::GateUp, SiteKind::Down].map(|k| layer.input(k, &after, exec));
            let [gate_up, down] = rest;
            Ok(vec![qkv, attn_output, gate_up?, down?])
        };
        let mut samples = vec![Vec::new(); sites.len()];
        let features: Vec<usize> = sites.iter().map(|s| s.features).collect();
        let mut number = 0;
        let mut observe = |inputs: &[Vec<f32>]| {
            if number < windows {
                let sampled = samples.iter_mut().zip(inputs).zip(&needs).filter(|(_, n)| n.sample > 0);
                sampled.for_each(|((s, x), _): ((&mut Vec<f32>, _), _)| s.extend(x));
            }
            number += 1;
        };
        let stats = self.gather_all(&features, &plain, seed, cancel, None, &inputs, &mut observe)?;
        let spans = &self.spans[..windows];
        let observed = sites.iter().zip(SiteKind::ALL).zip(stats.into_iter().zip(samples));
        let observed: Vec<ObservedSite<'_>> = observed
            .map(|((site, kind), (stats, sample))| {
                let output = move |x: &[f32], ops: &[&dyn LinearOp], through: bool| -> Result<Vec<f32>> {
                    let tokens = spans.last().map_or(0, |s| s.end);
                    let width = x.len() / tokens.max(1);
                    if width * tokens != x.len() {
                        return Err(Error::shape(
                            "inputs of the sampled tokens",
                            format!("a multiple of {tokens}"),
                            x.len(),
                        ));
                    }
                    let window = |i: usize, (): &mut ()| {
                        let x = &x[spans[i].start * width..spans[i].end * width];
                        layer.module(kind, &Input::new(x, [spans[i].len(), width])?, ops, through, &Exec::new())
                    };
                    let parts = par::map(spans.len(), true, || (), window);
                    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
                };
                let keys_and_values = move |x: &[f32]| -> Result<Option<KeysAndValues>> {
                    let (mut rows, width) = (KeysAndValues::default(), site.features);
                    if kind != SiteKind::Qkv {
                        return Ok(None);
                    }
                    let expected = spans.last().map_or(0, |s| s.end) * width;
                    if x.len() != expected {
                        return Err(Error::shape("inputs of the sampled tokens", expected, x.len()));
                    }
                    for span in spans {
                        let x = Input::new(&x[span.start * width..span.end * width], [span.len(), width])?;
                        let Some(more) = layer.keys_and_values(&x, &Exec::new())? else { return Ok(None) };
                        rows.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
                    }
                    Ok(Some(rows))
                };
                let (output, keys_and_values) = (Box::new(output), Box::new(keys_and_values));
                ObservedSite { site, stats, sample, output, keys_and_values }
            })
            .collect();
        (rewriting.rewrite)(&observed)
    }

    /// Gathers statistics of the values `[tokens, features]` that `input` computes for each window, in shards that are summed in order.
    fn gather(
        &mut self,
        features: usize,
        needs: StatNeeds,
        seed: u64,
        cancel: &Cancel,
        attn_output: Option<&mut Store>,
        input: &(dyn Fn(&Window<'_>, &Exec) -> Result<Vec<f32>> + Sync),
    ) -> Result<StatSet> {
        let one = |w: &Window<'_>, exec: &Exec| Ok(vec![input(w, exec)?]);
        let mut all = self.gather_all(&[features], &[needs], seed, cancel, attn_output, &one, &mut |_| {})?;
        all.pop().ok_or_else(|| Error::shape("inputs of a site", 1, 0))
    }

    /// Like [`Calibration::gather`], for several inputs at once; calls `observe` with the inputs of each window, in order.
    #[allow(clippy::too_many_arguments)]
    fn gather_all(
        &mut self,
        features: &[usize],
        needs: &[StatNeeds],
        seed: u64,
        cancel: &Cancel,
        mut attn_output: Option<&mut Store>,
        inputs: &Inputs<'_>,
        observe: &mut dyn FnMut(&[Vec<f32>]),
    ) -> Result<Vec<StatSet>> {
        let empty = |first: u64| -> Result<Vec<StatSet>> {
            features.iter().zip(needs).map(|(f, n)| StatSet::new(*f, *n, seed, first)).collect()
        };
        let merge = |total: &mut Vec<StatSet>, done: Vec<StatSet>| {
            total.iter_mut().zip(&done).try_for_each(|(t, d)| t.merge(d))
        };
        let mut total = empty(self.first_token)?;
        if !needs.iter().any(|n| n.any_data()) {
            return Ok(total);
        }
        let mut shard: Option<Vec<StatSet>> = None;
        for batch in self.batches() {
            cancel.check()?;
            if batch.start.is_multiple_of(self.shard)
                && let Some(done) = shard.take()
            {
                merge(&mut total, done)?;
            }
            let windows = self.map(batch.clone(), attn_output.as_deref_mut(), inputs)?;
            windows.iter().for_each(|w| observe(w));
            let first = self.first_token + self.spans[batch.start].start as u64;
            let shard = match &mut shard {
                Some(shard) => shard,
                none => none.insert(empty(first)?),
            };
            for (i, (set, features)) in shard.iter_mut().zip(features).enumerate() {
                let parts: Vec<&[f32]> = windows.iter().filter_map(|w| w.get(i)).map(Vec::as_slice).collect();
                let x = parts.concat();
                set.observe(&MatView::new(&x, [x.len() / features, *features])?)?;
            }
        }
        if let Some(done) = shard {
            merge(&mut total, done)?;
        }
        Ok(total)
    }

    /// Computes the hidden states, or the attention output, after a site for all windows.
    fn advance(
        &mut self,
        kind: SiteKind,
        layer: &dyn Steps,
        attn_output: &mut Option<Store>,
        cancel: &Cancel,
    ) -> Result<()> {
        let network = self.checkpoint.architecture();
        let output = |w: &Window<'_>, exec: &Exec| layer.output(kind, w, exec);
        match effect(kind) {
            Effect::Nothing => {}
            Effect::AttnOutput => {
                let len = self.tokens.len() * network.attention_width();
                let mut filling = Filling::new(len, self.scratch.as_deref(), "attn_output")?;
                for batch in self.batches() {
                    cancel.check()?;
                    for values in self.map(batch, None, &output)? {
                        filling.push(&values)?;
                    }
                }
                *attn_output = Some(filling.finish()?);
            }
            Effect::Stream => {
                let len = self.tokens.len() * network.hidden();
                let name = if kind == SiteKind::O { "attended" } else { "passed" };
                let mut writing = Rewriting::new(&self.stream, len, self.scratch.as_deref(), name)?;
                for batch in self.batches() {
                    cancel.check()?;
                    for values in self.map(batch, attn_output.as_mut(), &output)? {
                        writing.push(&mut self.stream, &values)?;
                    }
                }
                writing.finish(&mut self.stream)?;
                *attn_output = None;
            }
        }
        Ok(())
    }
}
