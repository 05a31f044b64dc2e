//! The network in candle's autograd.

use std::collections::HashMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{loss, ops};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

/// Number of tokens in the vocabulary.
pub const VOCAB: usize = 2048;
/// Number of features of the residual stream.
pub const HIDDEN: usize = 192;
/// Number of inner features of a feed-forward block.
pub const INTERMEDIATE: usize = 384;
/// Number of layers.
pub const LAYERS: usize = 4;
/// Number of query heads.
pub const HEADS: usize = 6;
/// Number of key/value heads.
pub const KV_HEADS: usize = 2;
/// Number of features of an attention head.
pub const HEAD_DIM: usize = 32;
/// Number of tokens of a training window.
pub const CONTEXT: usize = 256;
/// Base of the rotary embedding.
pub const ROPE_THETA: f64 = 10_000.0;
/// Epsilon of the RMS norms, added to the mean square.
pub const EPS: f64 = 1e-5;

/// The network, with every parameter as a candle variable.
pub struct Model {
    /// The parameters, by Hugging Face name.
    pub vars: HashMap<String, Var>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

/// Returns name and shape of every parameter; the output head is the embedding.
pub fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let p = format!("model.layers.{layer}");
        let mut add = |name: &str, shape: Vec<usize>| all.push((format!("{p}.{name}.weight"), shape));
        add("input_layernorm", vec![HIDDEN]);
        add("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]);
        add("post_attention_layernorm", vec![HIDDEN]);
        add("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]);
    }
    all.push(("model.norm.weight".to_string(), vec![HIDDEN]));
    all
}

impl Model {
    /// Returns a network with initial weights drawn from `rng`. Errors if candle does.
    pub fn new(rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let mut vars = HashMap::new();
        for (name, shape) in shapes() {
            let n: usize = shape.iter().product();
            let values: Vec<f32> = if shape.len() == 1 {
                vec![1.0; n]
            } else {
                let residual = name.contains("o_proj") || name.contains("down_proj");
                let std = if residual { 0.04 / (2.0 * LAYERS as f32).sqrt() } else { 0.04 };
                let normal = Normal::new(0.0f32, std).map_err(candle_core::Error::wrap)?;
                (0..n).map(|_| normal.sample(rng)).collect()
            };
            vars.insert(name, Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?);
        }
        let inv: Vec<f32> =
            (0..HEAD_DIM / 2).map(|i| (ROPE_THETA.powf(-2.0 * i as f64 / HEAD_DIM as f64)) as f32).collect();
        let angles: Vec<f32> = (0..CONTEXT).flat_map(|t| inv.iter().map(move |f| t as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (CONTEXT, HEAD_DIM / 2), device)?;
        let mask: Vec<f32> =
            (0..CONTEXT).flat_map(|q| (0..CONTEXT).map(move |k| if k > q { f32::NEG_INFINITY } else { 0.0 })).collect();
        let mask = Tensor::from_vec(mask, (CONTEXT, CONTEXT), device)?;
        Ok(Self { vars, cos: angles.cos()?, sin: angles.sin()?, mask })
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.vars
            .get(name)
            .map(|v| v.as_tensor())
            .ok_or_else(|| candle_core::Error::Msg(format!("no parameter {name}")))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (b, t, k) = x.dims3()?;
        let w = self.get(&format!("{name}.weight"))?;
        x.reshape((b * t, k))?.matmul(&w.t()?)?.reshape((b, t, w.dim(0)?))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(self.get(&format!("{name}.weight"))?)
    }

    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let half = HEAD_DIM / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let left = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let right = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[left, right], D::Minus1)
    }

    /// Returns the mean cross-entropy, in nats, of predicting `tokens[:, 1..]`; `tokens` is `[batch, CONTEXT + 1]`. Errors if candle does.
    pub fn loss(&self, tokens: &Tensor) -> Result<Tensor> {
        let b = tokens.dim(0)?;
        let ids = tokens.narrow(1, 0, CONTEXT)?.contiguous()?.flatten_all()?;
        let target = tokens.narrow(1, 1, CONTEXT)?.contiguous()?.flatten_all()?;
        let embed = self.get("model.embed_tokens.weight")?;
        let mut h = embed.index_select(&ids, 0)?.reshape((b, CONTEXT, HIDDEN))?;
        for layer in 0..LAYERS {
            let p = format!("model.layers.{layer}");
            let x = self.norm(&h, &format!("{p}.input_layernorm"))?;
            let heads = |name: &str, n: usize| -> Result<Tensor> {
                self.linear(&x, &format!("{p}.self_attn.{name}"))?
                    .reshape((b, CONTEXT, n, HEAD_DIM))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let repeat = |t: Tensor| -> Result<Tensor> {
                let n = HEADS / KV_HEADS;
                t.unsqueeze(2)?
                    .broadcast_as((b, KV_HEADS, n, CONTEXT, HEAD_DIM))?
                    .contiguous()?
                    .reshape((b, HEADS, CONTEXT, HEAD_DIM))
            };
            let q = self.rope(&heads("q_proj", HEADS)?)?;
            let k = repeat(self.rope(&heads("k_proj", KV_HEADS)?)?)?;
            let v = repeat(heads("v_proj", KV_HEADS)?)?;
            let scores = (q.matmul(&k.t()?)? / (HEAD_DIM as f64).sqrt())?.broadcast_add(&self.mask)?;
            let attn_output = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
            let attn_output = attn_output.transpose(1, 2)?.contiguous()?.reshape((b, CONTEXT, HEADS * HEAD_DIM))?;
            h = (h + self.linear(&attn_output, &format!("{p}.self_attn.o_proj"))?)?;
            let x = self.norm(&h, &format!("{p}.post_attention_layernorm"))?;
            let gate = ops::silu(&self.linear(&x, &format!("{p}.mlp.gate_proj"))?)?;
            let up = self.linear(&x, &format!("{p}.mlp.up_proj"))?;
            h = (h + self.linear(&(gate * up)?, &format!("{p}.mlp.down_proj"))?)?;
        }
        let h = self.norm(&h, "model.norm")?;
        let logits = h.reshape((b * CONTEXT, HIDDEN))?.matmul(&embed.t()?)?;
        loss::cross_entropy(&logits, &target)
    }
}
