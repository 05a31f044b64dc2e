//! One transformer layer.

use std::sync::Arc;

use tersor_core::cache::Queries;
use tersor_core::{Error, Exec, Input, KvBlock, KvCache, LinearOp, MatViewMut, Result};
use tersor_kernels::{par, vector};

use crate::DecoderConfig;

/// An operator and the bias beside it.
pub struct Linear {
    /// `[out_features, in_features]`.
    pub op: Arc<dyn LinearOp>,
    /// `[out_features]`.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// `x Wᵀ + b`, `[tokens, out_features]`.
    pub fn apply(&self, x: &Input<'_>, exec: &mut Exec) -> Result<Vec<f32>> {
        apply(&*self.op, self.bias.as_deref(), x, exec)
    }
}

pub(crate) fn apply(op: &dyn LinearOp, bias: Option<&[f32]>, x: &Input<'_>, exec: &mut Exec) -> Result<Vec<f32>> {
    let shape = [x.shape()[0], op.shape()[0]];
    let mut y = vec![0f32; tersor_core::view::elements(shape)?];
    op.apply(x, MatViewMut::new(&mut y, shape)?, exec)?;
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    Ok(y)
}

/// The inputs of a layer that matrices read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SiteKind {
    /// The normed stream, read by q, k and v.
    Qkv,
    /// The attention output, read by o.
    O,
    /// The normed stream, read by gate and up.
    GateUp,
    /// The gated product, read by down.
    Down,
}

/// Weights of a layer, named as in Hugging Face's files.
#[allow(missing_docs)]
pub struct Layer {
    pub input_layernorm: Vec<f32>,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub post_attention_layernorm: Vec<f32>,
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

/// Hears the input of each site as a layer runs.
pub type Observer<'a> = &'a mut dyn FnMut(SiteKind, &Input<'_>) -> Result<()>;

impl Layer {
    /// Adds the layer's two parts to the stream `[tokens, hidden]`, in place. Error when a length does not fit.
    pub fn forward(
        &self,
        config: &DecoderConfig,
        stream: &mut [f32],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &mut Exec,
        observe: Observer<'_>,
    ) -> Result<()> {
        let tokens = positions.len();
        if stream.len() != tokens * config.hidden {
            return Err(Error::shape("residual stream", tokens * config.hidden, stream.len()));
        }
        let shape = [tokens, config.hidden];
        let normed = rms_norm(stream, &self.input_layernorm, config.eps);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::Qkv, &x)?;
        let qkv = [&self.q_proj, &self.k_proj, &self.v_proj].map(|l| l.apply(&x, exec));
        let mixed = self.attend(config, qkv, positions, cache, exec)?;
        let x = Input::new(&mixed, [tokens, config.heads * config.head_dim])?;
        observe(SiteKind::O, &x)?;
        self.add(&self.o_proj, &x, stream, exec)?;

        let normed = rms_norm(stream, &self.post_attention_layernorm, config.eps);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::GateUp, &x)?;
        let mut gated = self.gate_proj.apply(&x, exec)?;
        let up = self.up_proj.apply(&x, exec)?;
        gate(&mut gated, &up, exec);
        let x = Input::new(&gated, [tokens, config.intermediate])?;
        observe(SiteKind::Down, &x)?;
        self.add(&self.down_proj, &x, stream, exec)
    }

    pub(crate) fn add(&self, linear: &Linear, x: &Input<'_>, stream: &mut [f32], exec: &mut Exec) -> Result<()> {
        let shape = [x.shape()[0], linear.op.shape()[0]];
        linear.op.apply_add(x, MatViewMut::new(stream, shape)?, exec)?;
        if let Some(bias) = &linear.bias {
            for row in stream.chunks_exact_mut(bias.len().max(1)) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }

    /// Norms of q and k where the model has them, the cache, attention: `[tokens, heads * head_dim]`.
    pub(crate) fn attend(
        &self,
        config: &DecoderConfig,
        [q, k, v]: [Result<Vec<f32>>; 3],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &mut Exec,
    ) -> Result<Vec<f32>> {
        let (mut q, mut k, v) = (q?, k?, v?);
        if let Some(norm) = &self.q_norm {
            q = rms_norm(&q, norm, config.eps);
        }
        if let Some(norm) = &self.k_norm {
            k = rms_norm(&k, norm, config.eps);
        }
        cache.append(KvBlock { keys: &k, values: &v, positions }, exec)?;
        let mut mixed = vec![0f32; positions.len() * config.heads * config.head_dim];
        cache.attend(Queries { data: &q, positions }, &mut mixed, None, exec)?;
        Ok(mixed)
    }
}

/// `x / rms(x) * weight` for each run of `weight.len()` values.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    let isa = tersor_kernels::Isa::detect();
    for row in x.chunks_exact(weight.len().max(1)) {
        let mean = vector::dot(isa, row, row) / row.len() as f32;
        let scale = (mean + eps).sqrt().recip();
        out.extend(row.iter().zip(weight).map(|(v, w)| v * scale * w));
    }
    out
}

/// `g = silu(g) * u`.
pub(crate) fn gate(g: &mut [f32], u: &[f32], exec: &Exec) {
    const CHUNK: usize = 1 << 14;
    let chunks: Vec<std::sync::Mutex<&mut [f32]>> = g.chunks_mut(CHUNK).map(std::sync::Mutex::new).collect();
    par::map(
        chunks.len(),
        exec.parallel(),
        || (),
        |i, ()| {
            let mut g = chunks[i].lock().unwrap_or_else(|e| e.into_inner());
            for (g, u) in g.iter_mut().zip(&u[i * CHUNK..]) {
                *g = *g / (1.0 + (-*g).exp()) * u;
            }
        },
    );
}
