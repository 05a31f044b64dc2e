//! Statistics of what flows into each site, a layer at a time: behind layers that are already compressed, or behind those of
//! the original.

mod forks;
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
pub use forks::{ABREAST, Forks, Replaced};
use steps::{Effect, Steps, Window, effect};
use store::{Filling, Rewriting, Store};

/// Tokens of the windows that one shard of statistics covers at most. Shards are summed in order, whoever gathered them.
const SHARD_TOKENS: usize = 8192;

/// Tokens of the windows that are worked on at once.
const BATCH_TOKENS: usize = 2048;

/// Windows of one shard of statistics, for windows of at most `ctx` tokens.
pub fn shard_windows(ctx: usize) -> usize {
    (SHARD_TOKENS / ctx.max(1)).max(1)
}

/// Tokens whose activations are in memory at once, for windows of at most `ctx` tokens.
pub fn batch_tokens(ctx: usize) -> usize {
    (BATCH_TOKENS / ctx.max(1)).max(1) * ctx
}

/// Which weights a site's inputs come through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// Those that are already compressed: each site makes up for the errors before it.
    Compressed,
    /// The original's: sites do not depend on each other.
    Original,
}

/// What compressing a site's consumers gave: an operator each, or none for one that was left as it is.
pub type Replacements = Vec<Option<Arc<dyn LinearOp>>>;

/// Reads a row of a table: name of the weight, row, values.
pub type ReadRow<'r> = &'r mut dyn FnMut(&str, usize, &mut [f32]) -> Result<()>;

/// What [`Calibration::layer`] asks its caller.
pub struct Hooks<'h> {
    /// Which weights the stream goes through.
    pub behind: Behind,
    /// Stops the work.
    pub cancel: &'h Cancel,
    /// Seed of the samples.
    pub seed: u64,
    /// The statistics that the consumers of a site need; none where it needs no data, or its consumers are compressed already.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// What happens to the inputs of a site in front of its consumers, if anything does: statistics are of what they become.
    pub change: &'h dyn Fn(&Site) -> Result<Option<InputChange>>,
    /// Compresses the consumers of a site.
    pub compress: &'h mut dyn FnMut(&Site, &StatSet) -> Result<Replacements>,
    /// Changes the sites of a layer before they are compressed.
    pub rewriting: Option<SiteChanges<'h>>,
    /// Changes that are known already: the layer is read with them.
    pub folds: Vec<Fold>,
}

/// What flows into several sites, of one window.
type Inputs<'f> = dyn Fn(&Window<'_>, &Exec) -> Result<Vec<Vec<f32>>> + Sync + 'f;

/// How the sites of a layer are changed.
pub struct SiteChanges<'h> {
    /// What it takes to know of a site; `sample` tokens of whole windows, from the first on.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// All sites of the layer, as they are behind the layers before it, in order; gives the folds.
    pub rewrite: &'h mut dyn FnMut(&[Seen<'_>]) -> Result<Vec<Fold>>,
}

/// A site of a layer that has not been changed yet.
pub struct Seen<'s> {
    /// The site.
    pub site: &'s Site,
    /// What flows into it.
    pub stats: StatSet,
    /// Inputs of whole windows, `[tokens, features]`.
    pub sample: Vec<f32>,
    /// The output of the module on the sample.
    pub output: Box<ModuleOutput<'s>>,
    /// Keys and values of the sample, where the site makes them.
    pub keys_and_values: Box<MakesKeysAndValues<'s>>,
}

impl Seen<'_> {
    /// Returns what a rewrite sees of the site; `plain` are the methods without data that stand for what its consumers will become.
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

/// The stream of a run of calibration windows, on its way through the layers.
pub struct Calibration<'a> {
    checkpoint: &'a Checkpoint,
    heads: Option<Heads>,
    tokens: Vec<u32>,
    /// Tokens of each window.
    spans: Vec<Range<usize>>,
    /// Windows of a shard.
    shard: usize,
    /// Number of the first token among those of all windows.
    first_token: u64,
    scratch: Option<PathBuf>,
    stream: Store,
}

impl<'a> Calibration<'a> {
    /// A stream for those of the `windows` in `part`, without embeddings yet: see [`Calibration::embed`]. Windows are of at most
    /// `ctx` tokens. With `scratch`, hidden states lie in files there. Error when there is no window, one is empty or too long, or a
    /// token is outside the vocabulary.
    pub fn new(
        checkpoint: &'a Checkpoint,
        windows: &[&[u32]],
        part: Range<usize>,
        ctx: usize,
        scratch: Option<&Path>,
    ) -> Result<Self> {
        let (network, mut at) = (checkpoint.architecture(), 0);
        if windows.is_empty() || windows.iter().any(|w| w.is_empty() || w.len() > ctx) || part.end > windows.len() {
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

    /// Fills in the embeddings of the tokens; `read` gives rows of the tables that the architecture names.
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

    /// Writes the stream to a file, from which [`Calibration::resume`] goes on.
    pub fn keep(&mut self, path: &Path) -> Result<()> {
        self.stream.keep(path)
    }

    /// Takes the stream from a file that [`Calibration::keep`] wrote. Error when it has another length.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.stream = Store::open(path, self.tokens.len() * self.hidden(), self.scratch.is_some())?;
        Ok(())
    }

    /// What flows into the head once the stream has passed every layer. Error when the last norm is missing, or the network has no head.
    pub fn head(&mut self, needs: StatNeeds, seed: u64, cancel: &Cancel) -> Result<StatSet> {
        let (hidden, config) = (self.hidden(), self.checkpoint.architecture().decoder()?);
        let norm = self.checkpoint.vector("model.norm.weight", hidden)?;
        self.gather(hidden, needs, seed, cancel, None, &|w, exec| Ok(rms_norm(w.stream, &norm, config.eps, exec)))
    }

    /// Takes the stream through one layer, site by site: the inputs of a site are gathered, its consumers compressed, and the stream
    /// goes on through what `hooks` chose.
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
            if hooks.behind == Behind::Compressed {
                layer.replace(kind, made);
            }
            self.advance(kind, &*layer, &mut attn_output, hooks.cancel)?;
        }
        Ok(())
    }

    /// Runs of windows that are worked on at once; none reaches across shards.
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

    /// `f` of each window of a batch, in the current pool, results in order.
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
                let width = self.checkpoint.architecture().attention();
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

    /// Shows all sites of a layer, as they are, to a rewrite.
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
        // Whole windows, at least one.
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
        let mut keep = |inputs: &[Vec<f32>]| {
            if number < windows {
                let asked = samples.iter_mut().zip(inputs).zip(&needs).filter(|(_, n)| n.sample > 0);
                asked.for_each(|((s, x), _): ((&mut Vec<f32>, _), _)| s.extend(x));
            }
            number += 1;
        };
        let stats = self.gather_all(&features, &plain, seed, cancel, None, &inputs, &mut keep)?;
        let spans = &self.spans[..windows];
        let seen = sites.iter().zip(SiteKind::ALL).zip(stats.into_iter().zip(samples));
        let seen: Vec<Seen<'_>> = seen
            .map(|((site, kind), (stats, sample))| {
                let output = move |x: &[f32], ops: &[&dyn LinearOp], through: bool| -> Result<Vec<f32>> {
                    let tokens = spans.last().map_or(0, |s| s.end);
                    let width = x.len() / tokens.max(1);
                    let window = |i: usize, (): &mut ()| {
                        let x = &x[spans[i].start * width..spans[i].end * width];
                        layer.module(kind, &Input::new(x, [spans[i].len(), width])?, ops, through, &Exec::new())
                    };
                    let parts = par::map(spans.len(), true, || (), window);
                    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
                };
                let keys_and_values = move |x: &[f32]| -> Result<Option<KeysAndValues>> {
                    let (mut rows, width) = (KeysAndValues::default(), site.features);
                    for span in spans.iter().filter(|_| kind == SiteKind::Qkv) {
                        let x = Input::new(&x[span.start * width..span.end * width], [span.len(), width])?;
                        let Some(more) = layer.keys_and_values(&x, &Exec::new())? else { return Ok(None) };
                        rows.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
                    }
                    Ok((kind == SiteKind::Qkv).then_some(rows))
                };
                Seen { site, stats, sample, output: Box::new(output), keys_and_values: Box::new(keys_and_values) }
            })
            .collect();
        (rewriting.rewrite)(&seen)
    }

    /// Statistics of what `input` makes of each window, in shards that are summed in order.
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

    /// [`Calibration::gather`] of several inputs at once; `keep` sees those of each window, in order.
    #[allow(clippy::too_many_arguments)]
    fn gather_all(
        &mut self,
        features: &[usize],
        needs: &[StatNeeds],
        seed: u64,
        cancel: &Cancel,
        mut attn_output: Option<&mut Store>,
        inputs: &Inputs<'_>,
        keep: &mut dyn FnMut(&[Vec<f32>]),
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
            windows.iter().for_each(|w| keep(w));
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

    /// The stream, or the attention output, after a site.
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
                let len = self.tokens.len() * network.attention();
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
