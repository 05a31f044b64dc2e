//! One layer of a BERT-family encoder.

use std::sync::Arc;

use tersor_core::{Exec, Input, Result};
use tersor_kernels::{attention, par, vector};

use super::config::Activation;
use crate::layer::CHUNK;
use crate::{EncoderConfig, Linear, SiteKind, Weights};

/// Weight and bias of a layer norm.
pub(crate) struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    /// Reads the norm called `name`, of `features` features.
    pub(crate) fn read(weights: Weights<'_>, name: &str, features: usize) -> Result<Self> {
        let vector = |part: &str| weights.vector(&format!("{name}.{part}"), features);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")? })
    }

    /// Reads the norm called `name`, of `features` features, from the weights of any network.
    pub(crate) fn of(weights: &dyn tersor_core::Weights, name: &str, features: usize) -> Result<Self> {
        let vector = |part: &str| weights.vector(&format!("{name}.{part}"), features);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")? })
    }

    /// Computes `(x - mean) / sqrt(variance + eps) * weight + bias` in place, for each token of `x` `[tokens, features]`.
    pub(crate) fn apply(&self, x: &mut [f32], eps: f32, exec: &Exec) {
        vector::layer_norm(exec.isa(), x, &self.weight, &self.bias, eps);
    }
}

/// The weights of a layer, in memory.
pub(crate) struct EncoderLayer {
    config: EncoderConfig,
    /// Matrices by site: query, key and value; attention output; first and second matrix of the feed-forward block.
    pub(crate) linears: [Vec<Linear>; 4],
    attention_norm: Norm,
    output_norm: Norm,
}

impl EncoderLayer {
    /// Reads layer `layer`. Errors if a tensor is missing, has another shape, or holds a value that is not finite.
    pub(crate) fn read(weights: Weights<'_>, config: &EncoderConfig, layer: usize) -> Result<Self> {
        let mut linears = [const { Vec::new() }; 4];
        for (kind, linears) in SiteKind::ALL.into_iter().zip(&mut linears) {
            for (part, shape) in config.consumers(kind) {
                let name = config.part(layer, part);
                let op = Arc::from(weights.matrix(&format!("{name}.weight"), shape)?);
                linears.push(Linear { op, bias: Some(weights.vector(&format!("{name}.bias"), shape[0])?) });
            }
        }
        let norm = |part: &str| Norm::read(weights, &config.part(layer, part), config.hidden);
        let (attention_norm, output_norm) = (norm("attention.output.LayerNorm")?, norm("output.LayerNorm")?);
        Ok(Self { config: config.clone(), linears, attention_norm, output_norm })
    }

    /// Returns the number of features of the hidden states.
    pub(crate) fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Wraps hidden states `[tokens, hidden]` as an input of matrices.
    pub(crate) fn block<'v>(&self, values: &'v [f32]) -> Result<Input<'v>> {
        Input::new(values, [values.len() / self.config.hidden, self.config.hidden])
    }

    /// Returns the self-attention output `[tokens, hidden]` of one text from its hidden states `[tokens, hidden]`.
    pub(crate) fn attend(&self, x: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let [q, k, v] = [0, 1, 2].map(|i| self.linears[0][i].apply(x, exec));
        self.attend_qkv([q?, k?, v?], exec)
    }

    /// Returns the attention output `[tokens, hidden]` from queries, keys and values, `[tokens, hidden]` each.
    pub(crate) fn attend_qkv(&self, qkv: [Vec<f32>; 3], exec: &Exec) -> Result<Vec<f32>> {
        self.config.attend(qkv, exec)
    }

    /// Updates the hidden states after attention: `stream = norm(stream + attn_output Wᵀ)`.
    pub(crate) fn join(&self, stream: &mut [f32], attn_output: &Input<'_>, exec: &Exec) -> Result<()> {
        self.linears[1][0].add_to(attn_output, stream, exec)?;
        self.attention_norm.apply(stream, self.config.eps, exec);
        Ok(())
    }

    /// Returns the inner activations of the feed-forward block, `[tokens, intermediate]`.
    pub(crate) fn inner(&self, stream: &Input<'_>, exec: &Exec) -> Result<Vec<f32>> {
        let mut inner = self.linears[2][0].apply(stream, exec)?;
        self.activate(&mut inner, exec);
        Ok(inner)
    }

    /// Applies the activation function of the feed-forward block in place.
    pub(crate) fn activate(&self, inner: &mut [f32], exec: &Exec) {
        self.config.activate(inner, exec);
    }

    /// Updates the hidden states after the feed-forward block: `stream = norm(stream + inner Wᵀ)`.
    pub(crate) fn finish(&self, stream: &mut [f32], inner: &Input<'_>, exec: &Exec) -> Result<()> {
        self.linears[3][0].add_to(inner, stream, exec)?;
        self.output_norm.apply(stream, self.config.eps, exec);
        Ok(())
    }

    /// Applies the whole layer to the hidden states `[tokens, hidden]` in place.
    pub(crate) fn forward(&self, stream: &mut [f32], tokens: usize, exec: &Exec) -> Result<()> {
        let shape = [tokens, self.config.hidden];
        let attn_output = self.attend(&Input::new(stream, shape)?, exec)?;
        self.join(stream, &Input::new(&attn_output, shape)?, exec)?;
        let inner = self.inner(&Input::new(stream, shape)?, exec)?;
        self.finish(stream, &Input::new(&inner, [tokens, self.config.intermediate])?, exec)
    }
}

impl EncoderConfig {
    /// Returns the attention output `[tokens, hidden]` from queries, keys and values, `[tokens, hidden]` each.
    pub(crate) fn attend(&self, [q, k, v]: [Vec<f32>; 3], exec: &Exec) -> Result<Vec<f32>> {
        let (hidden, heads, dim) = (self.hidden, self.heads, self.head_dim());
        let tokens = q.len() / hidden;
        let of = |m: &[f32], h: usize| -> Vec<f32> {
            m.chunks_exact(hidden).flat_map(|row| row[h * dim..(h + 1) * dim].iter().copied()).collect()
        };
        let isa = exec.isa();
        let scale = (dim as f32).sqrt().recip();
        let head = |h: usize, probs: &mut Vec<f32>| -> Result<Vec<f32>> {
            let (mut q, k, v) = (of(&q, h), of(&k, h), of(&v, h));
            vector::scale(isa, scale, &mut q);
            let mut attn_output = vec![0f32; tokens * dim];
            attention::attend(isa, [&q, &k, &v], dim, &vec![0..tokens; tokens], probs, &mut attn_output)?;
            Ok(attn_output)
        };
        let fork = exec.parallel() && par::worth(heads * tokens * tokens * dim, tersor_core::cache::FORK);
        let mut out = vec![0f32; tokens * hidden];
        for (h, attn_output) in par::map(heads, fork, Vec::new, head).into_iter().enumerate() {
            for (row, attn_output) in out.chunks_exact_mut(hidden).zip(attn_output?.chunks_exact(dim)) {
                row[h * dim..(h + 1) * dim].copy_from_slice(attn_output);
            }
        }
        Ok(out)
    }

    /// Applies the activation function of the feed-forward block in place.
    pub(crate) fn activate(&self, inner: &mut [f32], exec: &Exec) {
        let parts = inner.len().div_ceil(CHUNK);
        let part = |_, x: &mut [f32], _: &mut [()]| match self.activation {
            Activation::Gelu => vector::gelu(exec.isa(), x),
            Activation::GeluTanh => vector::gelu_tanh(exec.isa(), x),
            Activation::Relu => x.iter_mut().for_each(|v| *v = v.max(0.0)),
        };
        par::pairs(inner, CHUNK, &mut vec![(); parts], 1, exec.parallel(), part);
    }
}
