//! A layer as a list of steps, one for each site: the site's input, and the output of its module.

use tersor_core::{Error, Exec, Fold, Heads, Input, LayerCache, LinearOp, Result};

use tersor_core::rewrite::KeysAndValues;

use tersor_operators::DenseCaches;

use super::Replacements;
use crate::encoder::EncoderLayer;
use crate::layer::{apply, apply_all, rms_norm};
use crate::{Architecture, Checkpoint, DecoderConfig, Layer, Linear, SiteKind, Weights};

/// The activations of one window between two steps.
pub(super) struct Window<'w> {
    /// The hidden states (residual stream), `[tokens, hidden]`.
    pub stream: &'w [f32],
    /// The attention output, `[tokens, heads * head_dim]`, from its computation until the output matrix has read it; empty at other times.
    pub attn_output: &'w [f32],
}

/// What the output of a step updates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The attention output.
    AttnOutput,
    /// The hidden states; the attention output is no longer needed.
    Stream,
    /// Nothing: the next step starts from the same hidden states.
    Nothing,
}

/// Returns what the step of a site updates.
pub(super) fn effect(kind: SiteKind) -> Effect {
    match kind {
        SiteKind::Qkv => Effect::AttnOutput,
        SiteKind::O | SiteKind::Down => Effect::Stream,
        SiteKind::GateUp => Effect::Nothing,
    }
}

/// A layer in memory.
pub(super) trait Steps: Sync {
    /// Returns the input of a site, `[tokens, features]`.
    fn input(&self, kind: SiteKind, window: &Window<'_>, exec: &Exec) -> Result<Vec<f32>>;
    /// Returns the attention output or the new hidden states after a site's module, as [`effect`] says.
    fn output(&self, kind: SiteKind, window: &Window<'_>, exec: &Exec) -> Result<Vec<f32>>;
    /// Returns the output of the site's module for one window `x`, with `ops` in place of its matrices; if `through`, after the next matrix as well.
    /// See [`tersor_core::rewrite::ModuleOutput`].
    fn module(
        &self,
        kind: SiteKind,
        x: &Input<'_>,
        ops: &[&dyn LinearOp],
        through: bool,
        exec: &Exec,
    ) -> Result<Vec<f32>>;
    /// Returns the keys (after rotary embedding) and values of one window's inputs of the first site; none if the layer has no key-value cache.
    fn keys_and_values(&self, x: &Input<'_>, exec: &Exec) -> Result<Option<KeysAndValues>> {
        let _ = (x, exec);
        Ok(None)
    }
    /// Returns the site's matrices.
    fn linears(&mut self, kind: SiteKind) -> Vec<&mut Linear>;

    /// Replaces the site's matrices by the given operators. Errors, with nothing replaced, if one has another shape.
    fn replace(&mut self, kind: SiteKind, made: Replacements) -> Result<()> {
        let mut linears = self.linears(kind);
        for (linear, op) in linears.iter().zip(&made) {
            if let Some(op) = op.as_ref().filter(|op| op.shape() != linear.op.shape()) {
                return Err(Error::shape("operator that replaces a matrix", linear.op.shape(), op.shape()));
            }
        }
        for (linear, op) in linears.iter_mut().zip(made) {
            if let Some(op) = op {
                linear.op = op;
            }
        }
        Ok(())
    }
}

/// Returns the inputs of all sites of a layer for one window, in the order of [`SiteKind::ALL`].
pub(super) fn inputs(layer: &dyn Steps, w: &Window<'_>, exec: &Exec) -> Result<Vec<Vec<f32>>> {
    let qkv = layer.input(SiteKind::Qkv, w, exec)?;
    let attn_output = layer.output(SiteKind::Qkv, w, exec)?;
    let stream = layer.output(SiteKind::O, &Window { stream: w.stream, attn_output: &attn_output }, exec)?;
    let after = Window { stream: &stream, attn_output: &[] };
    let [gate_up, down] = [SiteKind::GateUp, SiteKind::Down].map(|k| layer.input(k, &after, exec));
    Ok(vec![qkv, attn_output, gate_up?, down?])
}

/// Reads layer `index` with folds applied; `heads` are those of a decoder, if they are known.
pub(super) fn layer(
    checkpoint: &Checkpoint,
    folds: &[Fold],
    heads: Option<&Heads>,
    index: usize,
) -> Result<Box<dyn Steps>> {
    let weights = Weights::folded(checkpoint, folds);
    Ok(match checkpoint.architecture()? {
        Architecture::Encoder(config) => Box::new(EncoderLayer::read(weights, config, index)?),
        Architecture::Decoder(config) => {
            let heads = heads.map_or_else(|| config.attention_heads(), |h| Ok(h.clone()))?;
            Box::new(DecoderSteps { config: config.clone(), heads, layer: Layer::read(weights, config, index)? })
        }
    })
}

struct DecoderSteps {
    config: DecoderConfig,
    heads: Heads,
    layer: Layer,
}

impl DecoderSteps {
    fn cache(&self) -> Result<LayerCache> {
        DenseCaches::f32().layer(&self.heads)
    }
}

impl Steps for DecoderSteps {
    fn input(&self, kind: SiteKind, w: &Window<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let (l, eps) = (&self.layer, self.config.eps);
        Ok(match kind {
            SiteKind::Qkv => rms_norm(w.stream, &l.input_layernorm, eps, exec),
            SiteKind::O => w.attn_output.to_vec(),
            SiteKind::GateUp => rms_norm(w.stream, &l.post_attention_layernorm, eps, exec),
            SiteKind::Down => {
                let x = self.input(SiteKind::GateUp, w, exec)?;
                let x = Input::new(&x, [x.len() / self.config.hidden, self.config.hidden])?;
                l.gated(&x, exec)?
            }
        })
    }

    fn output(&self, kind: SiteKind, w: &Window<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let (c, l) = (&self.config, &self.layer);
        let tokens = w.stream.len() / c.hidden;
        let x = self.input(kind, w, exec)?;
        let x = Input::new(&x, [tokens, x.len() / tokens.max(1)])?;
        let add_to_stream = |linear: &Linear, exec: &Exec| {
            let mut stream = w.stream.to_vec();
            linear.add_to(&x, &mut stream, exec)?;
            Ok(stream)
        };
        match kind {
            SiteKind::Qkv => {
                let positions: Vec<u32> = (0..tokens as u32).collect();
                l.attn_output(c, &x, &positions, &mut self.cache()?, exec)
            }
            SiteKind::O => add_to_stream(&l.o_proj, exec),
            SiteKind::Down => add_to_stream(&l.down_proj, exec),
            SiteKind::GateUp => Ok(Vec::new()),
        }
    }

    fn module(
        &self,
        kind: SiteKind,
        x: &Input<'_>,
        ops: &[&dyn LinearOp],
        through: bool,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        let (c, l) = (&self.config, &self.layer);
        let made = l.module(c, kind, x, ops, &mut self.cache()?, exec)?;
        let next = match kind {
            SiteKind::Qkv if through => &l.o_proj,
            SiteKind::GateUp if through => &l.down_proj,
            _ => return Ok(made),
        };
        next.apply(&Input::new(&made, [x.shape()[0], next.op.shape()[1]])?, exec)
    }

    fn keys_and_values(&self, x: &Input<'_>, exec: &Exec) -> Result<Option<KeysAndValues>> {
        let (c, l) = (&self.config, &self.layer);
        let [keys, values] = apply_all([&l.k_proj, &l.v_proj], x, exec)?;
        let mut keys = l.normed_keys(c, keys, exec);
        if let Some(rotary) = self.heads.rotary() {
            for (t, token) in keys.chunks_exact_mut(c.kv_heads * c.head_dim).enumerate() {
                rotary.angles(t as u32).apply(exec.isa(), token, c.head_dim);
            }
        }
        Ok(Some([keys, values]))
    }

    fn linears(&mut self, kind: SiteKind) -> Vec<&mut Linear> {
        let l = &mut self.layer;
        match kind {
            SiteKind::Qkv => vec![&mut l.q_proj, &mut l.k_proj, &mut l.v_proj],
            SiteKind::O => vec![&mut l.o_proj],
            SiteKind::GateUp => vec![&mut l.gate_proj, &mut l.up_proj],
            SiteKind::Down => vec![&mut l.down_proj],
        }
    }
}

impl Steps for EncoderLayer {
    fn input(&self, kind: SiteKind, w: &Window<'_>, exec: &Exec) -> Result<Vec<f32>> {
        Ok(match kind {
            SiteKind::Qkv | SiteKind::GateUp => w.stream.to_vec(),
            SiteKind::O => w.attn_output.to_vec(),
            SiteKind::Down => self.inner(&self.block(w.stream)?, exec)?,
        })
    }

    fn output(&self, kind: SiteKind, w: &Window<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let mut stream = w.stream.to_vec();
        match kind {
            SiteKind::Qkv => return self.attend(&self.block(w.stream)?, exec),
            SiteKind::O => self.join(&mut stream, &self.block(w.attn_output)?, exec)?,
            SiteKind::Down => {
                let inner = self.input(kind, w, exec)?;
                let shape = [w.stream.len() / self.hidden(), inner.len() * self.hidden() / w.stream.len().max(1)];
                self.finish(&mut stream, &Input::new(&inner, shape)?, exec)?;
            }
            SiteKind::GateUp => {}
        }
        Ok(stream)
    }

    fn module(
        &self,
        kind: SiteKind,
        x: &Input<'_>,
        ops: &[&dyn LinearOp],
        through: bool,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        let at = SiteKind::ALL.iter().position(|k| *k == kind).unwrap_or(0);
        let expected: Vec<_> = self.linears[at].iter().map(|l| l.op.shape()).collect();
        let found: Vec<_> = ops.iter().map(|op| op.shape()).collect();
        if found != expected {
            return Err(Error::shape("matrices of a site", expected, found));
        }
        let own = self.linears[at].iter().zip(ops);
        let mut made: Vec<Vec<f32>> =
            own.map(|(l, op)| apply(*op, l.bias.as_deref(), x, exec)).collect::<Result<_>>()?;
        let (mut out, next) = match (kind, &mut made[..]) {
            (SiteKind::Qkv, [q, k, v]) => (self.attend_qkv([q, k, v].map(std::mem::take), exec)?, 1),
            (_, [one, ..]) => (std::mem::take(one), 3),
            (_, []) => (Vec::new(), 3),
        };
        if kind == SiteKind::GateUp {
            self.activate(&mut out, exec);
        }
        if !through || matches!(kind, SiteKind::O | SiteKind::Down) {
            return Ok(out);
        }
        let next = &self.linears[next][0];
        next.apply(&Input::new(&out, [x.shape()[0], next.op.shape()[1]])?, exec)
    }

    fn linears(&mut self, kind: SiteKind) -> Vec<&mut Linear> {
        let at = SiteKind::ALL.iter().position(|k| *k == kind).unwrap_or(0);
        self.linears[at].iter_mut().collect()
    }
}
