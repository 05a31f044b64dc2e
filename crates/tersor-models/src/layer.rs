//! One decoder layer.

use std::sync::Arc;

use tersor_core::{Error, Exec, Input, KvCache, KvStep, LinearOp, MatViewMut, Result, Write};
use tersor_kernels::{par, vector};

use crate::{DecoderConfig, Weights};

/// A linear layer `y = x Wᵀ + b`: its weight matrix, dense or compressed, and an optional bias.
pub struct Linear {
    /// The weight matrix `W` of the linear layer as an operator, `[out_features, in_features]`.
    pub op: Arc<dyn LinearOp>,
    /// The bias `b` of the linear layer, `[out_features]`; None if the layer has no bias. With a bias of another length, the application of
    /// the layer errors.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Returns `x Wᵀ + b`, `[tokens, out_features]` row-major, for an input `x`, `[tokens, in_features]`. Errors if `x` has another number
    /// of features, a value of `x` is not finite, or the length of the bias is not `out_features`.
    pub fn apply(&self, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        apply(&*self.op, self.bias.as_deref(), x, exec)
    }

    /// Adds `x Wᵀ + b` to `y`, `[tokens, out_features]`.
    pub(crate) fn add_to(&self, x: &Input<'_>, y: &mut [f32], exec: &Exec) -> Result<()> {
        let shape = [x.shape()[0], self.op.shape()[0]];
        self.op.apply(x, MatViewMut::new(y, shape)?, Write::Add, exec)?;
        add_bias(y, self.op.shape()[0], self.bias.as_deref())?;
        Ok(())
    }
}

/// Returns `x Wᵀ + b` of several linear layers that share the input `x`.
pub(crate) fn apply_all<const N: usize>(linears: [&Linear; N], x: &Input<'_>, exec: &Exec) -> Result<[Vec<f32>; N]> {
    let tokens = x.shape()[0];
    let mut out = linears.map(|l| vec![0f32; tokens * l.op.shape()[0]]);
    let views = out.iter_mut().zip(linears).map(|(y, l)| MatViewMut::new(y, [tokens, l.op.shape()[0]]));
    tersor_core::operator::apply_all(&linears.map(|l| &*l.op), x, views.collect::<Result<_>>()?, exec)?;
    for (y, linear) in out.iter_mut().zip(linears) {
        add_bias(y, linear.op.shape()[0], linear.bias.as_deref())?;
    }
    Ok(out)
}

/// Adds a bias to each row of `y`, `[tokens, features]`. Errors if the bias has another length than a row.
pub(crate) fn add_bias(y: &mut [f32], features: usize, bias: Option<&[f32]>) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.len() != features {
        return Err(Error::shape("bias of a linear layer", features, bias.len()));
    }
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    Ok(())
}

/// Returns `x Wᵀ + b`, `[tokens, out_features]`.
pub(crate) fn apply(op: &dyn LinearOp, bias: Option<&[f32]>, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
    let shape = [x.shape()[0], op.shape()[0]];
    let mut y = vec![0f32; tersor_core::view::elements(shape)?];
    op.apply(x, MatViewMut::new(&mut y, shape)?, Write::Set, exec)?;
    add_bias(&mut y, shape[1], bias)?;
    Ok(y)
}

/// The four sites of a transformer layer, in the order of execution: `Qkv`, `O`, `GateUp` and `Down`. A site is an input of the layer
/// together with the weight matrices that read it; its name is that of these matrices. There is no default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SiteKind {
    /// The input of the query, key and value matrices, `[tokens, hidden]`: the hidden states, in a decoder after the norm in front of
    /// attention.
    Qkv,
    /// The attention output that the output matrix (`o_proj`) reads, `[tokens, heads * head_dim]`.
    O,
    /// The input of the gate and up matrices (in an encoder, of the first feed-forward matrix), `[tokens, hidden]`: the hidden states after
    /// attention, in a decoder after the norm in front of the feed-forward block.
    GateUp,
    /// The inner activations of the feed-forward block that the down matrix (in an encoder, the second feed-forward matrix) reads,
    /// `[tokens, intermediate]`.
    Down,
}

/// The precision of the inputs of a network's matrices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Precision {
    /// As they are computed.
    F32,
    /// Rounded to the nearest bf16, ties to even.
    Bf16,
}

impl Precision {
    /// Rounds values in place. A value beyond the range of bf16 becomes infinite.
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            for v in values.iter_mut().filter(|v| v.is_finite()) {
                let bits = v.to_bits();
                *v = f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
            }
        }
    }
}

/// The weights of one decoder layer in memory. Fields have the names that Hugging Face's files use.
///
/// ```
/// use tersor_models::{Checkpoint, Layer};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let config = checkpoint.architecture()?.decoder()?;
/// let layer = Layer::read(&checkpoint, config, 0)?;
/// assert_eq!(layer.down_proj.op.shape(), [config.hidden, config.intermediate]);
/// # Ok(())
/// # }
/// ```
pub struct Layer {
    /// Weight of the RMS norm in front of attention, `[hidden]`.
    pub input_layernorm: Vec<f32>,
    /// Query matrix, `[heads * head_dim, hidden]`, with an optional bias.
    pub q_proj: Linear,
    /// Key matrix, `[kv_heads * head_dim, hidden]`, with an optional bias.
    pub k_proj: Linear,
    /// Value matrix, `[kv_heads * head_dim, hidden]`, with an optional bias.
    pub v_proj: Linear,
    /// Output matrix of attention, `[hidden, heads * head_dim]`, with an optional bias.
    pub o_proj: Linear,
    /// Weight of the RMS norm that is applied to each query head before rotary embedding, `[head_dim]` (Qwen3); None for models without
    /// this norm.
    pub q_norm: Option<Vec<f32>>,
    /// Weight of the RMS norm that is applied to each key head before rotary embedding, `[head_dim]` (Qwen3); None for models without this
    /// norm.
    pub k_norm: Option<Vec<f32>>,
    /// Weight of the RMS norm in front of the feed-forward block, `[hidden]`.
    pub post_attention_layernorm: Vec<f32>,
    /// Gate matrix of the feed-forward block, `[intermediate, hidden]`, with an optional bias.
    pub gate_proj: Linear,
    /// Up matrix of the feed-forward block, `[intermediate, hidden]`, with an optional bias.
    pub up_proj: Linear,
    /// Down matrix of the feed-forward block, `[hidden, intermediate]`, with an optional bias.
    pub down_proj: Linear,
}

/// Callback that [`Layer::forward`] calls with the input `[tokens, features]` of each of the layer's four sites (the inputs that its
/// matrices read), in the order of execution. An error stops the layer, which returns it.
pub type Observer<'a> = &'a mut dyn FnMut(SiteKind, &Input<'_>) -> Result<()>;

impl Layer {
    /// Reads layer `index`, counted from 0, of a decoder with the configuration `c` into memory. `weights` is a `&Checkpoint`, or a
    /// [`Weights`], which applies [`Fold`](tersor_core::Fold)s (changes of the rows or columns of stored weights) as rows are read. A bias
    /// is read if the checkpoint has it; every other tensor is required. Errors if a required tensor is missing, as for an `index` beyond
    /// the last layer. Errors if a tensor has a shape that does not follow from `c`, or holds a value that is not finite. Errors if a
    /// compressed matrix cannot be loaded, or a fold cannot be applied for the reasons that [`Weights::matrix`] states.
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

    /// Applies the layer to the hidden states `stream`, `[tokens, hidden]` row-major, in place: attention, then the feed-forward block,
    /// each added to the residual stream. `config` is the configuration that the layer was read with. `positions` has the position of each
    /// token in its text, strictly ascending and above those of the cached tokens. The tokens' keys and values are appended to `cache`, the
    /// cache of this layer. `observe` receives the input `[tokens, features]` of each [site](SiteKind) (of q, k and v; of o; of gate and
    /// up; of down), in this order. Errors if `stream` does not have `positions.len() * hidden` values, an input of a matrix is not finite,
    /// the cache refuses the tokens (for example because of their positions), or `observe` errors; `stream` and `cache` may have changed
    /// then.
    pub fn forward(
        &self,
        config: &DecoderConfig,
        stream: &mut [f32],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &Exec,
        observe: Observer<'_>,
    ) -> Result<()> {
        self.forward_in(Precision::F32, config, stream, positions, cache, exec, observe)
    }

    /// [`Layer::forward`] with the input of every site in the given precision; `observe` receives the rounded input.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward_in(
        &self,
        precision: Precision,
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
        let mut normed = rms_norm(stream, &self.input_layernorm, config.eps, exec);
        precision.round(&mut normed);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::Qkv, &x)?;
        let mut attn_output = self.attn_output(config, &x, positions, cache, exec)?;
        precision.round(&mut attn_output);
        let x = Input::new(&attn_output, [tokens, config.heads * config.head_dim])?;
        observe(SiteKind::O, &x)?;
        self.o_proj.add_to(&x, stream, exec)?;

        let mut normed = rms_norm(stream, &self.post_attention_layernorm, config.eps, exec);
        precision.round(&mut normed);
        let x = Input::new(&normed, shape)?;
        observe(SiteKind::GateUp, &x)?;
        let mut gated = self.gated(&x, exec)?;
        precision.round(&mut gated);
        let x = Input::new(&gated, [tokens, config.intermediate])?;
        observe(SiteKind::Down, &x)?;
        self.down_proj.add_to(&x, stream, exec)
    }

    /// Returns the attention output `[tokens, heads * head_dim]` of the normed hidden states `x`, and appends their keys and values to the cache.
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

    /// Returns `silu(x Wgateᵀ) * (x Wupᵀ)`, `[tokens, intermediate]`.
    pub(crate) fn gated(&self, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let [mut gated, up] = apply_all([&self.gate_proj, &self.up_proj], x, exec)?;
        gate(&mut gated, &up, exec);
        Ok(gated)
    }

    /// Applies the per-head norms of queries and keys, if the model has them, and returns the attention output `[tokens, heads * head_dim]`.
    pub(crate) fn attend(
        &self,
        config: &DecoderConfig,
        qkv: [Vec<f32>; 3],
        positions: &[u32],
        cache: &mut dyn KvCache,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        attend([self.q_norm.as_deref(), self.k_norm.as_deref()], config, qkv, positions, cache, exec)
    }

    /// Returns the keys after their per-head norm, if the model has one.
    pub(crate) fn normed_keys(&self, config: &DecoderConfig, keys: Vec<f32>, exec: &Exec) -> Vec<f32> {
        normed(self.k_norm.as_deref(), config, keys, exec)
    }
}

/// Returns queries or keys after their per-head norm, if there is one.
fn normed(norm: Option<&[f32]>, config: &DecoderConfig, heads: Vec<f32>, exec: &Exec) -> Vec<f32> {
    match norm {
        Some(norm) => rms_norm(&heads, norm, config.eps, exec),
        None => heads,
    }
}

/// Applies the per-head norms of queries and keys, if there are any, and returns the attention output `[tokens, heads * head_dim]`.
pub(crate) fn attend(
    [q_norm, k_norm]: [Option<&[f32]>; 2],
    config: &DecoderConfig,
    [q, k, v]: [Vec<f32>; 3],
    positions: &[u32],
    cache: &mut dyn KvCache,
    exec: &Exec,
) -> Result<Vec<f32>> {
    let (q, k) = (normed(q_norm, config, q, exec), normed(k_norm, config, k, exec));
    let mut attn_output = vec![0f32; positions.len() * config.heads * config.head_dim];
    cache.step(KvStep { keys: &k, values: &v, queries: &q, positions }, &mut attn_output, exec)?;
    Ok(attn_output)
}

/// Returns [`vector::rms_norm`] of each token of `x`, in the current thread pool if the work is large enough.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, exec: &Exec) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    let step = CHUNK.next_multiple_of(weight.len().max(1));
    let part = |i: usize, out: &mut [f32], _: &mut [()]| {
        vector::rms_norm(exec.isa(), &x[i * step..], weight, eps, out);
    };
    par::pairs(&mut out, step, &mut vec![(); x.len().div_ceil(step)], 1, exec.parallel(), part);
    out
}

/// Computes `g = silu(g) * u` in place, in the current thread pool if the work is large enough.
pub(crate) fn gate(g: &mut [f32], u: &[f32], exec: &Exec) {
    let parts = g.len().div_ceil(CHUNK);
    let part = |i: usize, g: &mut [f32], _: &mut [()]| vector::gated_silu(exec.isa(), g, &u[i * CHUNK..]);
    par::pairs(g, CHUNK, &mut vec![(); parts], 1, exec.parallel(), part);
}

/// Number of values in one unit of parallel element-wise work.
pub(crate) const CHUNK: usize = 1 << 14;
