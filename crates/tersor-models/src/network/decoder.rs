//! A decoder as a network.

use std::ops::Range;
use std::sync::Arc;

use tersor_core::network::{Batch, Part, Scores, Stage, Stream};
use tersor_core::{Error, Exec, Heads, Network, Result, Site, Tap, Weights, bias_name};
use tersor_kernels::par;
use tersor_operators::DenseCaches;

use super::{HIDDEN, embed, products};
use crate::layer::{add_bias, attend, gate, rms_norm};
use crate::{DecoderConfig, SiteKind};

/// Name of the logits in the stream.
const LOGITS: &str = "logits";

/// A decoder: one stage for each layer, and one for the last norm and the output head.
pub(super) struct DecoderNetwork {
    config: DecoderConfig,
    sites: Vec<Site>,
    heads: Heads,
}

impl DecoderNetwork {
    pub fn new(config: &DecoderConfig) -> Result<Self> {
        Ok(Self { config: config.clone(), sites: config.sites(), heads: config.attention_heads()? })
    }
}

impl Network for DecoderNetwork {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn enter(&self, batch: &Batch, weights: &dyn Weights, _: &Exec) -> Result<Stream> {
        embed(batch, &["model.embed_tokens.weight".into()], self.config.vocab, self.config.hidden, weights)
    }

    fn stage<'n>(&'n self, index: usize, weights: &dyn Weights) -> Result<Box<dyn Stage + 'n>> {
        let c = &self.config;
        if index == c.layers {
            return Ok(Box::new(Head { network: self, norm: weights.vector("model.norm.weight", c.hidden)? }));
        }
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let norm = |part: &str, len: usize| weights.vector(&name(part), len);
        let head_norm = |part: &str| c.qk_norm.then(|| norm(part, c.head_dim)).transpose();
        let first = index * SiteKind::ALL.len();
        let mut biases = Vec::new();
        for site in self.sites.get(first..first + SiteKind::ALL.len()).unwrap_or_default() {
            let mut of_site = Vec::new();
            for consumer in &site.consumers {
                let bias = bias_name(&consumer.weight).filter(|name| weights.has(name));
                of_site.push(bias.map(|name| weights.vector(&name, consumer.shape[0])).transpose()?);
            }
            biases.push(of_site);
        }
        Ok(Box::new(LayerStage {
            network: self,
            first,
            attention_norm: norm("input_layernorm", c.hidden)?,
            mlp_norm: norm("post_attention_layernorm", c.hidden)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            biases,
        }))
    }

    /// The logits of each token but the last of a window are scored against the token that follows.
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, _: &dyn Weights) -> Result<Scores> {
        let mut sum = Scores::default();
        for (window, tokens) in out.windows.iter().zip(&batch.tokens) {
            let scored = window.start..window.end.saturating_sub(1);
            let part = |stream: &Stream| rows_of(stream, LOGITS, scored.clone());
            let original = reference.map(part).transpose()?;
            sum = sum.plus(Scores::of_logits(&part(out)?, original.as_ref(), tokens.get(1..).unwrap_or_default())?);
        }
        Ok(sum)
    }
}

/// Returns rows of a tensor of a stream. Errors if there are none.
fn rows_of(stream: &Stream, name: &str, rows: Range<usize>) -> Result<Part> {
    let part = stream.part(name)?;
    let [all, width] = part.rows();
    let values = part.values.get(rows.start * width..rows.end * width);
    let values = values.ok_or_else(|| Error::range("rows of the logits", 0..all, &rows))?;
    Ok(Part { shape: vec![rows.len(), width], values: values.to_vec() })
}

/// A layer without its matrices.
struct LayerStage<'n> {
    network: &'n DecoderNetwork,
    /// Index of the layer's first site.
    first: usize,
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    /// Norms of each query head and each key head, if the model has them.
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    /// Biases by site and matrix.
    biases: Vec<Vec<Option<Vec<f32>>>>,
}

impl LayerStage<'_> {
    /// Returns the outputs of the matrices of a site, with their biases, for inputs `[tokens, features]`.
    fn apply(&self, kind: usize, x: &[f32], tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Vec<Vec<f32>>> {
        let site = &self.network.sites[self.first + kind];
        let mut all = products(site, self.first + kind, x, tap, exec)?;
        for (y, (consumer, bias)) in all.iter_mut().zip(site.consumers.iter().zip(&self.biases[kind])) {
            add_bias(y, consumer.shape[0], bias.as_deref())?;
        }
        Ok(all)
    }
}

impl Stage for LayerStage<'_> {
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
        let c = &self.network.config;
        let part = stream.take(HIDDEN)?;
        let (shape, mut hidden) = (part.shape, part.values);
        let x = rms_norm(&hidden, &self.attention_norm, c.eps, exec);
        let qkv: [Vec<f32>; 3] = self.apply(0, &x, tap, exec)?.try_into().unwrap_or_default();
        let of_window = |i: usize, (): &mut ()| -> Result<Vec<f32>> {
            let window = &stream.windows[i];
            let part = |all: &[f32], heads: usize| {
                let width = heads * c.head_dim;
                all[window.start * width..window.end * width].to_vec()
            };
            let own = [part(&qkv[0], c.heads), part(&qkv[1], c.kv_heads), part(&qkv[2], c.kv_heads)];
            let positions: Vec<u32> = (0..window.len() as u32).collect();
            let mut cache = DenseCaches::f32().layer(&self.network.heads)?;
            let norms = [self.q_norm.as_deref(), self.k_norm.as_deref()];
            attend(norms, c, own, &positions, &mut cache, &Exec::new())
        };
        let parts = par::map(stream.windows.len(), exec.parallel(), || (), of_window);
        let attn_output = parts.into_iter().collect::<Result<Vec<_>>>()?.concat();
        let add = |x: &[f32], kind: usize, hidden: &mut [f32]| -> Result<()> {
            let index = self.first + kind;
            // In the order of a layer that runs without taps: the product, then the bias.
            for (y, bias) in products(&self.network.sites[index], index, x, tap, exec)?.iter().zip(&self.biases[kind]) {
                hidden.iter_mut().zip(y).for_each(|(h, y)| *h += y);
                add_bias(hidden, c.hidden, bias.as_deref())?;
            }
            Ok(())
        };
        add(&attn_output, 1, &mut hidden)?;
        let x = rms_norm(&hidden, &self.mlp_norm, c.eps, exec);
        let [mut gated, up]: [Vec<f32>; 2] = self.apply(2, &x, tap, exec)?.try_into().unwrap_or_default();
        gate(&mut gated, &up, exec);
        add(&gated, 3, &mut hidden)?;
        stream.set(HIDDEN, shape, hidden)?;
        Ok(stream)
    }
}

/// The last norm and the output head.
struct Head<'n> {
    network: &'n DecoderNetwork,
    norm: Vec<f32>,
}

impl Stage for Head<'_> {
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
        let c = &self.network.config;
        let hidden = stream.take(HIDDEN)?;
        let x = rms_norm(&hidden.values, &self.norm, c.eps, exec);
        let index = self.network.sites.len() - 1;
        let logits = products(&self.network.sites[index], index, &x, tap, exec)?.pop().unwrap_or_default();
        stream.set(LOGITS, vec![hidden.shape[0], c.vocab], logits)?;
        Ok(stream)
    }
}
