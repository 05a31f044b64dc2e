//! One transformer layer.

use std::sync::Arc;

use tersor_core::{Error, Exec, Input, KvCache, KvStep, LinearOp, MatViewMut, Result, Write};
use tersor_kernels::{par, vector};

use crate::{DecoderConfig, Weights};

/// An operator and the bias beside it.
pub struct Linear {
    /// `[out_features, in_features]`.
    pub op: Arc<dyn LinearOp>,
    /// `[out_features]`.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// `x Wᵀ + b`, `[tokens, out_features]`.
    pub fn apply(&self, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        apply(&*self.op, self.bias.as_deref(), x, exec)
    }

    /// `y += x Wᵀ + b`, `[tokens, out_features]`.
    pub(crate) fn add_to(&self, x: &Input<'_>, y: &mut [f32], exec: &Exec) -> Result<()> {
        let shape = [x.shape()[0], self.op.shape()[0]];
        self.op.apply(x, MatViewMut::new(y, shape)?, Write::Add, exec)?;
        add_bias(y, self.bias.as_deref());
        Ok(())
    }
}

/// Of several that share an input.
pub(crate) fn apply_all<const N: usize>(linears: [&Linear; N], x: &Input<'_>, exec: &Exec) -> Result<[Vec<f32>; N]> {
    let tokens = x.shape()[0];
    let mut out = linears.map(|l| vec![0f32; tokens * l.op.shape()[0]]);
    let views = out.iter_mut().zip(linears).map(|(y, l)| MatViewMut::new(y, [tokens, l.op.shape()[0]]));
    tersor_core::operator::apply_all(&linears.map(|l| &*l.op), x, views.collect::<Result<_>>()?, exec)?;
    for (y, linear) in out.iter_mut().zip(linears) {
        add_bias(y, linear.bias.as_deref());
    }
    Ok(out)
}

fn add_bias(y: &mut [f32], bias: Option<&[f32]>) {
    let Some(bias) = bias else { return };
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

pub(crate) fn apply(op: &dyn LinearOp, bias: Option<&[f32]>, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
    let shape = [x.shape()[0], op.shape()[0]];
    let mut y = vec![0f32; tersor_core::view::elements(shape)?];
    op.apply(x, MatViewMut::new(&mut y, shape)?, Write::Set, exec)?;
    add_bias(&mut y, bias);
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
    /// Layer `index` of a model. Error when a tensor is missing, misshapen or not finite.
    pub fn read<'w>(weights: impl Into<Weights<'w>>, c: &DecoderConfig, index: usize) -> Result<Self> {
        let weights: Weights<'_> = weights.into();
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str, out: usize, inp: usize| -> Result<Linear> {
            let bias = name(&format!("{part}.bias"));
            let bias = if weights.has(&bias) { Some(weights.vector(&bias, out)?) } else { None };
            Ok(Linear { op: weights.matrix(&name(&format!("{part}.weight")), [out, inp])?.into(), bias })
        };
        let norm = |part: &str, n: usize| weights.vector(&name(&format!("{part}.weight")), n);
        let head_norm = |part: &str| c.qk_norm.then(|| norm(part, c.head_dim)).transpose();
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Ok(Self {
            input_layernorm: norm("input_layernorm", c.hidden)?,
            q_proj: linear("self_attn.q_proj", q, c.hidden)?,
            k_proj: linear("self_attn.k_proj", kv, c.hidden)?,
            v_proj: linear("self_attn.v_proj", kv, c.hidden)?,
            o_proj: linear("self_attn.o_proj", c.hidden, q)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            post_attention_layernorm: norm("post_attention_layernorm", c.hidden)?,
            gate_proj: linear("mlp.gate_proj", c.intermediate, c.hidden)?,
            up_proj: linear("mlp.up_proj", c.intermediate, c.hidden)?,
            down_proj: linear("mlp.down_proj", c.hidden, c.intermediate)?,
        })
    }

    /// Adds the layer's two parts to the stream `[tokens, hidden]`, in place. Error when a length does not fit.
    pub fn forward(
        &self,
        config: &DecoderConfig,
        stream: &mut [f32],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &Exec,
        observe: Observer<'_>,
    ) -> Result<()> {
        let tokens = positions.len();
        if stream.len() != tokens * config.hidden {
            return Err(Error::shape("residual stream", tokens * config.hidden, stream.len()));
        }
        let shape = [tokens, config.hidden];
        let normed = rms_norm(stream, &self.input_layernorm, config.eps, exec);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::Qkv, &x)?;
        let attn_output = self.attn_output(config, &x, positions, cache, exec)?;
        let x = Input::new(&attn_output, [tokens, config.heads * config.head_dim])?;
        observe(SiteKind::O, &x)?;
        self.o_proj.add_to(&x, stream, exec)?;

        let normed = rms_norm(stream, &self.post_attention_layernorm, config.eps, exec);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::GateUp, &x)?;
        let gated = self.gated(&x, exec)?;
        let x = Input::new(&gated, [tokens, config.intermediate])?;
        observe(SiteKind::Down, &x)?;
        self.down_proj.add_to(&x, stream, exec)
    }

    /// Returns the attention output `[tokens, heads * head_dim]` of an input, and appends its tokens to the cache.
    pub(crate) fn attn_output(
        &self,
        config: &DecoderConfig,
        x: &Input<'_>,
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        let qkv = apply_all([&self.q_proj, &self.k_proj, &self.v_proj], x, exec)?;
        self.attend(config, qkv, positions, cache, exec)
    }

    /// What gate and up make of their input: `[tokens, intermediate]`.
    pub(crate) fn gated(&self, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let [mut gated, up] = apply_all([&self.gate_proj, &self.up_proj], x, exec)?;
        gate(&mut gated, &up, exec);
        Ok(gated)
    }

    /// Returns the attention output `[tokens, heads * head_dim]` of queries, keys and values, behind the norms that the model has.
    pub(crate) fn attend(
        &self,
        config: &DecoderConfig,
        [mut q, k, v]: [Vec<f32>; 3],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        if let Some(norm) = &self.q_norm {
            q = rms_norm(&q, norm, config.eps, exec);
        }
        let k = self.normed_keys(config, k, exec);
        let mut attn_output = vec![0f32; positions.len() * config.heads * config.head_dim];
        cache.step(KvStep { keys: &k, values: &v, queries: &q, positions }, &mut attn_output, exec)?;
        Ok(attn_output)
    }

    /// Returns keys behind their norm, if the model has one.
    pub(crate) fn normed_keys(&self, config: &DecoderConfig, keys: Vec<f32>, exec: &Exec) -> Vec<f32> {
        match &self.k_norm {
            Some(norm) => rms_norm(&keys, norm, config.eps, exec),
            None => keys,
        }
    }
}

/// [`vector::rms_norm`] of tokens, in the current pool where it is worth it.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, exec: &Exec) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    let step = CHUNK.next_multiple_of(weight.len().max(1));
    let part = |i: usize, out: &mut [f32], _: &mut [()]| {
        vector::rms_norm(exec.isa(), &x[i * step..], weight, eps, out);
    };
    par::pairs(&mut out, step, &mut vec![(); x.len().div_ceil(step)], 1, exec.parallel(), part);
    out
}

/// `g = silu(g) * u`, likewise.
pub(crate) fn gate(g: &mut [f32], u: &[f32], exec: &Exec) {
    let parts = g.len().div_ceil(CHUNK);
    let part = |i: usize, g: &mut [f32], _: &mut [()]| vector::gated_silu(exec.isa(), g, &u[i * CHUNK..]);
    par::pairs(g, CHUNK, &mut vec![(); parts], 1, exec.parallel(), part);
}

/// Values of a unit of work on vectors.
pub(crate) const CHUNK: usize = 1 << 14;
