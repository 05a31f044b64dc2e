//! Statistics of what flows into each site, a layer at a time: behind layers that are already compressed, or behind those of
//! the original.

use std::ops::Range;
use std::sync::Arc;

use tersor_core::{Cancel, Error, Exec, Input, LinearOp, MatView, Result, StatNeeds, StatSet};

use crate::layer::{gate, rms_norm};
use crate::{Checkpoint, DecoderConfig, DenseCache, Layer, Linear, Rope, SiteKind};

/// Windows of one shard of statistics. Shards are summed in order, whoever gathered them.
pub const SHARD_WINDOWS: usize = 16;

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

/// The residual stream of all calibration windows, on its way through the layers.
pub struct Calibration<'a> {
    checkpoint: &'a Checkpoint,
    rope: Arc<Rope>,
    ctx: usize,
    tokens: Vec<u32>,
    stream: Vec<f32>,
}

impl<'a> Calibration<'a> {
    /// A stream for windows of equal length, without its embeddings yet: see [`Calibration::embed`]. Error when there is no
    /// window, or a token is outside the vocabulary.
    pub fn new(checkpoint: &'a Checkpoint, windows: &[&[u32]]) -> Result<Self> {
        let config = checkpoint.config();
        let ctx = windows.first().map_or(0, |w| w.len());
        if ctx == 0 || windows.iter().any(|w| w.len() != ctx) {
            return Err(Error::shape("calibration windows", "at least one, of equal length", windows.len()));
        }
        let tokens = windows.concat();
        if let Some(t) = tokens.iter().find(|t| **t as usize >= config.vocab) {
            return Err(Error::shape("token", format!("below {}", config.vocab), t));
        }
        let stream = vec![0f32; tersor_core::view::elements([tokens.len(), config.hidden])?];
        Ok(Self { checkpoint, rope: Arc::new(Rope::new(config)), ctx, tokens, stream })
    }

    /// Fills in the embeddings of the tokens in `rows`, of which `read` gives one row at a time.
    pub fn embed(&mut self, rows: Range<usize>, read: &mut dyn FnMut(usize, &mut [f32]) -> Result<()>) -> Result<()> {
        for (&t, out) in self.tokens.iter().zip(self.stream.chunks_exact_mut(self.checkpoint.config().hidden)) {
            if rows.contains(&(t as usize)) {
                read(t as usize, out)?;
            }
        }
        Ok(())
    }

    /// What flows into the head once the stream has passed every layer. Error when the last norm is missing.
    pub fn head(&self, needs: StatNeeds, seed: u64, cancel: &Cancel) -> Result<StatSet> {
        let config = self.config();
        let norm = self.checkpoint.vector("model.norm.weight", config.hidden)?;
        let window = self.ctx * config.hidden;
        let mut x = |w: usize| Ok(rms_norm(&self.stream[w * window..(w + 1) * window], &norm, config.eps));
        gather(config.hidden, needs, seed, self.stream.len() / window, cancel, &mut x)
    }

    fn config(&self) -> &'a DecoderConfig {
        self.checkpoint.config()
    }

    /// Takes the stream through one layer, in place, site by site: the inputs of a site are gathered, its consumers
    /// compressed, and the stream goes on through what `hooks` chose.
    pub fn layer(&mut self, index: usize, hooks: &mut Hooks<'_>, exec: &mut Exec) -> Result<()> {
        let config = self.config();
        let (ctx, hidden, width) = (self.ctx, config.hidden, config.heads * config.head_dim);
        let windows = self.stream.len() / (ctx * hidden);
        let span = |w: usize| w * ctx * hidden..(w + 1) * ctx * hidden;
        let part = |w: usize| w * ctx * width..(w + 1) * ctx * width;
        let mut layer = self.checkpoint.layer(index)?;

        let normed = |stream: &[f32], l: &Layer, w: usize| rms_norm(&stream[span(w)], &l.input_layernorm, config.eps);
        let stats = hooks.gather(config, SiteKind::Qkv, windows, &mut |w| Ok(normed(&self.stream, &layer, w)))?;
        hooks.replace(&mut layer, SiteKind::Qkv, &stats)?;
        let mut mixed = Vec::with_capacity(windows * ctx * width);
        let positions: Vec<u32> = (0..ctx as u32).collect();
        for w in 0..windows {
            hooks.cancel.check()?;
            let x = normed(&self.stream, &layer, w);
            let x = Input::new(&x, [ctx, hidden])?;
            let qkv = [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(|l| l.apply(&x, exec));
            let mut cache = DenseCache::new(config, self.rope.clone());
            mixed.extend(layer.attend(config, qkv, &positions, &mut cache, exec)?);
        }

        let stats = hooks.gather(config, SiteKind::O, windows, &mut |w| Ok(mixed[part(w)].to_vec()))?;
        hooks.replace(&mut layer, SiteKind::O, &stats)?;
        for w in 0..windows {
            hooks.cancel.check()?;
            let x = Input::new(&mixed[part(w)], [ctx, width])?;
            layer.add(&layer.o_proj, &x, &mut self.stream[span(w)], exec)?;
        }
        drop(mixed);

        let normed =
            |stream: &[f32], l: &Layer, w: usize| rms_norm(&stream[span(w)], &l.post_attention_layernorm, config.eps);
        let stats = hooks.gather(config, SiteKind::GateUp, windows, &mut |w| Ok(normed(&self.stream, &layer, w)))?;
        hooks.replace(&mut layer, SiteKind::GateUp, &stats)?;
        // The gated product is as wide as the feed-forward part: made anew for the statistics and for the stream rather
        // than kept for all windows.
        let gated = |stream: &[f32], l: &Layer, w: usize, exec: &mut Exec| -> Result<Vec<f32>> {
            let x = normed(stream, l, w);
            let x = Input::new(&x, [ctx, hidden])?;
            let mut g = l.gate_proj.apply(&x, exec)?;
            gate(&mut g, &l.up_proj.apply(&x, exec)?, exec);
            Ok(g)
        };
        let stats = hooks.gather(config, SiteKind::Down, windows, &mut |w| gated(&self.stream, &layer, w, exec))?;
        hooks.replace(&mut layer, SiteKind::Down, &stats)?;
        for w in 0..windows {
            hooks.cancel.check()?;
            let x = gated(&self.stream, &layer, w, exec)?;
            let x = Input::new(&x, [ctx, config.intermediate])?;
            layer.add(&layer.down_proj, &x, &mut self.stream[span(w)], exec)?;
        }
        Ok(())
    }
}

/// What [`Calibration::layer`] asks its caller.
pub struct Hooks<'h> {
    /// Which weights the stream goes through.
    pub behind: Behind,
    /// Stops the work.
    pub cancel: &'h Cancel,
    /// Seed of the samples.
    pub seed: u64,
    /// The statistics that the consumers of a site need.
    pub needs: &'h dyn Fn(SiteKind) -> StatNeeds,
    /// Compresses the consumers of a site.
    pub compress: &'h mut dyn FnMut(SiteKind, &StatSet) -> Result<Replacements>,
}

impl Hooks<'_> {
    fn gather(
        &self,
        config: &DecoderConfig,
        kind: SiteKind,
        windows: usize,
        x: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<StatSet> {
        gather(kind.shapes(config)[0][1], (self.needs)(kind), self.seed, windows, self.cancel, x)
    }

    fn replace(&mut self, layer: &mut Layer, kind: SiteKind, stats: &StatSet) -> Result<()> {
        let made = (self.compress)(kind, stats)?;
        if self.behind == Behind::Original {
            return Ok(());
        }
        let consumers: Vec<&mut Linear> = match kind {
            SiteKind::Qkv => vec![&mut layer.q_proj, &mut layer.k_proj, &mut layer.v_proj],
            SiteKind::O => vec![&mut layer.o_proj],
            SiteKind::GateUp => vec![&mut layer.gate_proj, &mut layer.up_proj],
            SiteKind::Down => vec![&mut layer.down_proj],
        };
        for (linear, op) in consumers.into_iter().zip(made) {
            if let Some(op) = op {
                linear.op = op;
            }
        }
        Ok(())
    }
}

/// Statistics of the inputs that `x` gives for each window, in shards that are summed in order.
fn gather(
    features: usize,
    needs: StatNeeds,
    seed: u64,
    windows: usize,
    cancel: &Cancel,
    x: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<StatSet> {
    let mut total = StatSet::new(features, needs, seed, 0)?;
    if !needs.any_data() {
        return Ok(total);
    }
    let mut first_token = 0;
    for first in (0..windows).step_by(SHARD_WINDOWS) {
        let mut shard = StatSet::new(features, needs, seed, first_token)?;
        for w in first..windows.min(first + SHARD_WINDOWS) {
            cancel.check()?;
            let values = x(w)?;
            shard.observe(&MatView::new(&values, [values.len() / features, features])?)?;
        }
        first_token += shard.tokens();
        total.merge(&shard)?;
    }
    Ok(total)
}
