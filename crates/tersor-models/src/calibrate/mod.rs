//! Calibration: statistics of the inputs of each site, gathered one layer at a time, with compressed or original layers upstream.

mod hooks;
mod sensitivity;
mod steps;
mod store;

use std::ops::Range;
use std::path::{Path, PathBuf};

use tersor_core::rewrite::KeysAndValues;
use tersor_core::{Cancel, Error, Exec, Fold, Heads, Input, LinearOp, MatView, Result, Site, StatNeeds, StatSet};
use tersor_kernels::par;

use crate::layer::rms_norm;
use crate::{Architecture, Checkpoint, SiteKind};
pub use hooks::{Hooks, ObservedSite, ReadRow, Replacements, SiteChanges, Upstream};
pub use sensitivity::{CONCURRENT_NETWORKS, Sensitivity, Substitution};
use steps::{Effect, Steps, Window, effect};
use store::{Filling, Rewriting, Store};

/// Maximum number of tokens that one shard of statistics covers. Shards are summed in order, so that the result does not depend on which process
/// gathered which shard.
const SHARD_TOKENS: usize = 8192;

/// Maximum number of tokens of the windows that are processed together.
const BATCH_TOKENS: usize = 2048;

/// Returns the number of windows (token sequences) in a shard, for windows of at most `ctx` tokens: `8192 / ctx` rounded down, at least 1.
/// A `ctx` of 0 counts as 1. A shard is a run of consecutive windows whose statistics [`Calibration`] sums before it adds them to the sums
/// of earlier shards. One calibration on all windows therefore gives the same bits as one calibration for each shard (for example in
/// several processes) whose [`StatSet`]s are [merged](StatSet::merge) in order, if all of them run the
/// network with the same weights.
pub fn shard_windows(ctx: usize) -> usize {
    (SHARD_TOKENS / ctx.max(1)).max(1)
}

/// Returns the largest number of tokens whose activations [`Calibration`] has in memory together, for windows of at most `ctx` tokens: the
/// largest multiple of `ctx` up to 2048, or `ctx` itself if it is above 2048. Returns 0 for a `ctx` of 0.
pub fn batch_tokens(ctx: usize) -> usize {
    (BATCH_TOKENS / ctx.max(1)).max(1) * ctx
}

/// Receives the inputs of several sites for each window, in order.
type Observe<'f> = dyn FnMut(&[Vec<f32>]) + 'f;

/// Computes the inputs of several sites for one window.
type Inputs<'f> = dyn Fn(&Window<'_>, &Exec) -> Result<Vec<Vec<f32>>> + Sync + 'f;

/// The hidden states of calibration windows (token sequences), moved through the network one layer at a time while statistics of the
/// layers' inputs are gathered and matrices compressed. After [`Calibration::new`], call [`Calibration::embed`], then
/// [`Calibration::layer`] for each layer in order, then, for a decoder, [`Calibration::head`].
///
/// ```
/// use tersor_core::{Cancel, Site, StatNeeds, StatSet};
/// use tersor_models::{Calibration, Checkpoint, Hooks, Upstream};
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
    network: &'a Architecture,
    heads: Option<Heads>,
    tokens: Vec<u32>,
    /// Range of each window in `tokens`.
    spans: Vec<Range<usize>>,
    /// Number of windows in a shard.
    shard: usize,
    /// Number of tokens whose activations are in memory together.
    batch: usize,
    /// Index of the first token among the tokens of all windows.
    first_token: u64,
    scratch: Option<PathBuf>,
    stream: Store,
}

impl<'a> Calibration<'a> {
    /// Prepares the calibration on the token sequences `windows[part]`; [`Calibration::embed`] or [`Calibration::resume`] must follow. Each
    /// window has 1 to `ctx` tokens. The windows before `part` only determine the index of the first token, counted over all windows,
    /// because random samples depend on the indices of tokens; those after `part` are ignored. An empty `part` is valid: statistics are
    /// then those of no tokens. If `scratch` is given, hidden states are stored in files in this directory, which must exist and which no
    /// other calibration may use at the same time; otherwise they are stored in memory.
    ///
    /// Errors if `windows` is empty, if a window, in `part` or not, is empty or longer than `ctx`, if `part` is reversed or ends beyond
    /// `windows`, or if a token in `windows[part]` is outside of the vocabulary.
    pub fn new(
        checkpoint: &'a Checkpoint,
        windows: &[&[u32]],
        part: Range<usize>,
        ctx: usize,
        scratch: Option<&Path>,
    ) -> Result<Self> {
        let (network, mut at) = (checkpoint.architecture()?, 0);
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
        let (shard, batch, first_token) = (shard_windows(ctx), batch_tokens(ctx), before as u64);
        Ok(Self { checkpoint, network, heads, tokens, spans, shard, batch, first_token, scratch, stream })
    }

    fn hidden(&self) -> usize {
        self.network.hidden()
    }

    /// Computes the hidden states in front of the first layer: the token embeddings; in an encoder, the layer norm of the sum of token,
    /// position and token-type embeddings, with token type 0. `read` reads rows of the embedding tables that [`Architecture::embeddings`]
    /// names. Errors if `read` does, if a tensor of an encoder's embedding norm is missing or invalid, or if the hidden states cannot be
    /// stored.
    pub fn embed(&mut self, read: ReadRow<'_>) -> Result<()> {
        let hidden = self.hidden();
        let network = self.network;
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

    /// Saves the current hidden states to the file `path`, in place of an older file, as little-endian f32 `[tokens, hidden]`, for
    /// [`Calibration::resume`]. Before [`Calibration::embed`] or [`Calibration::resume`] there are no hidden states, and an empty file is
    /// written. If hidden states are stored in a scratch directory, their file is not copied but moved to `path`, which must be on the same
    /// file system. The calibration reads it there until the next layer is processed, and a second call before that moves it again. Errors
    /// if the file cannot be written or moved.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.stream.save(path)
    }

    /// Replaces the hidden states by those in the file `path`, which [`Calibration::save`] wrote for the same windows. The file does not
    /// hold the number of the layer: the caller continues with the layer that was next when the file was saved. With a scratch directory,
    /// the file is not read at once but used in place, and must not change, until the next layer is processed. Errors if the file cannot be
    /// read, or does not have four bytes for each of the `[tokens, hidden]` values of this calibration.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.stream = Store::open(path, self.tokens.len() * self.hidden(), self.scratch.is_some())?;
        Ok(())
    }

    /// Gathers and returns the statistics `needs` of the inputs of a decoder's output head: the current hidden states after the last norm,
    /// `[tokens, hidden]`. To be called after the last layer; an earlier call does not error, but gives statistics of the hidden states at
    /// that point. `seed` is the seed of the random token samples in the statistics; equal seeds choose equal tokens.
    ///
    /// Errors if the network is an encoder, or the last norm is missing or invalid. If `needs` requests no statistics, the result is empty
    /// and nothing else is checked. Otherwise, errors if [`StatNeeds::windows`] is set, an input is not finite, the work is cancelled, or
    /// neither [`Calibration::embed`] nor [`Calibration::resume`] has been called.
    pub fn head(&mut self, needs: StatNeeds, seed: u64, cancel: &Cancel) -> Result<StatSet> {
        let (hidden, config) = (self.hidden(), self.network.decoder()?);
        let norm = self.checkpoint.vector("model.norm.weight", hidden)?;
        self.gather(hidden, needs, seed, cancel, None, &|w, exec| Ok(rms_norm(w.stream, &norm, config.eps, exec)))
    }

    /// Processes layer `index`, counted from 0. If `hooks.rewriting` is set, first computes the folds (changes of stored weights) that
    /// rewrite the layer. Then, for each of the layer's four sites (inputs with the linear layers that read them) in order, gathers the
    /// statistics of the site's inputs, calls `hooks.compress`, and computes the hidden states after the site through the matrices that
    /// `hooks.upstream` selects.
    ///
    /// The caller processes each layer once, in order: a call out of order does not error, but gives the layer the hidden states of another
    /// place in the network. Errors if the layer does not exist or cannot be read, a callback fails, an operator that `hooks.compress`
    /// returns is used and has another shape than its matrix, statistics of windows ([`StatNeeds::windows`]) are requested, an input of a
    /// matrix is not finite, the work is cancelled, or neither [`Calibration::embed`] nor [`Calibration::resume`] has been called. After an
    /// error the hidden states may be those of the middle of the layer; [`Calibration::embed`] or [`Calibration::resume`] replaces them.
    pub fn layer(&mut self, index: usize, hooks: &mut Hooks<'_>) -> Result<()> {
        let sites = self.network.sites();
        let sites: Vec<&Site> = sites.iter().filter(|s| s.layer == Some(index)).collect();
        if let Some(rewriting) = &mut hooks.rewriting {
            let layer = steps::layer(self.checkpoint, &hooks.folds, self.heads.as_ref(), index)?;
            hooks.folds.extend(self.rewrite(&*layer, &sites, rewriting, hooks.seed, hooks.cancel)?);
        }
        let mut layer = steps::layer(self.checkpoint, &hooks.folds, self.heads.as_ref(), index)?;
        let mut attn_output = None;
        if hooks.upstream == Upstream::CompressedLayers {
            return self.layer_at_once(&mut *layer, &sites, hooks);
        }
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
                layer.replace(kind, made).map_err(|e| e.in_tensor(&site.name))?;
            }
            self.advance(kind, &*layer, &mut attn_output, hooks.cancel)?;
        }
        Ok(())
    }

    /// Gathers the statistics of all sites of a layer in one pass through its original matrices, then compresses them, then passes the hidden states
    /// through the operators that replace them.
    fn layer_at_once(&mut self, layer: &mut dyn Steps, sites: &[&Site], hooks: &mut Hooks<'_>) -> Result<()> {
        let needs: Vec<StatNeeds> = sites.iter().map(|s| (hooks.needs)(s)).collect();
        let features: Vec<usize> = sites.iter().map(|s| s.features).collect();
        let changes = sites.iter().map(|s| (hooks.change)(s)).collect::<Result<Vec<_>>>()?;
        let inputs = |w: &Window<'_>, exec: &Exec| -> Result<Vec<Vec<f32>>> {
            let mut all = steps::inputs(&*layer, w, exec)?;
            for ((x, change), features) in all.iter_mut().zip(&changes).zip(&features) {
                change.iter().try_for_each(|c| c.apply(x, *features, exec))?;
            }
            Ok(all)
        };
        let stats = self.gather_all(&features, &needs, hooks.seed, hooks.cancel, None, &inputs, None);
        let stats = stats.map_err(|e| e.in_tensor(&format!("inputs of {}", sites.first().map_or("", |s| &s.name))))?;
        for ((kind, site), stats) in SiteKind::ALL.into_iter().zip(sites).zip(&stats) {
            let made = (hooks.compress)(site, stats)?;
            layer.replace(kind, made).map_err(|e| e.in_tensor(&site.name))?;
        }
        let mut attn_output = None;
        SiteKind::ALL.into_iter().try_for_each(|kind| self.advance(kind, layer, &mut attn_output, hooks.cancel))
    }

    /// Returns the ranges of windows that are processed together. No range crosses the boundary of a shard.
    fn batches(&self) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        for (w, span) in self.spans.iter().enumerate() {
            match out.last_mut() {
                Some(b) if w % self.shard != 0 && span.end - self.spans[b.start].start <= self.batch => {
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
                let width = self.network.attention_width();
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
        let inputs = |w: &Window<'_>, exec: &Exec| steps::inputs(layer, w, exec);
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
        let observe = (windows > 0).then_some(&mut observe as &mut Observe<'_>);
        let stats = self.gather_all(&features, &plain, seed, cancel, None, &inputs, observe)?;
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
        let mut all = self.gather_all(&[features], &[needs], seed, cancel, attn_output, &one, None)?;
        all.pop().ok_or_else(|| Error::shape("inputs of a site", 1, 0))
    }

    /// Like [`Calibration::gather`], for several inputs at once; calls `observe`, if it is given, with the inputs of each window, in order.
    #[allow(clippy::too_many_arguments)]
    fn gather_all(
        &mut self,
        features: &[usize],
        needs: &[StatNeeds],
        seed: u64,
        cancel: &Cancel,
        mut attn_output: Option<&mut Store>,
        inputs: &Inputs<'_>,
        mut observe: Option<&mut Observe<'_>>,
    ) -> Result<Vec<StatSet>> {
        let empty = |first: u64| -> Result<Vec<StatSet>> {
            features.iter().zip(needs).map(|(f, n)| StatSet::new(*f, *n, seed, first)).collect()
        };
        let merge = |total: &mut Vec<StatSet>, done: Vec<StatSet>| {
            total.iter_mut().zip(&done).try_for_each(|(t, d)| t.merge(d))
        };
        let mut total = empty(self.first_token)?;
        if observe.is_none() && !needs.iter().any(|n| n.any_data()) {
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
            observe.iter_mut().for_each(|f| windows.iter().for_each(|w| f(w)));
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
        let network = self.network;
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
