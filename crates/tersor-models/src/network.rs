//! [`ModelNetwork`]: a supported decoder as a [`Network`], whose products go through a tap.

use std::ops::Range;
use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stage, Stream};
use tersor_core::{
    Error, Exec, Heads, Input, MatViewMut, Network, Result, RowSource, Site, Tap, Weights as CoreWeights, bias_name,
};
use tersor_kernels::par;
use tersor_operators::DenseCaches;

use crate::layer::{add_bias, attend, gate, rms_norm};
use crate::{Checkpoint, DecoderConfig, SiteKind, batch_tokens, shard_windows};

/// Names of the tensors of the stream.
const HIDDEN: &str = "hidden";
const LOGITS: &str = "logits";

/// A Llama-family decoder as a [`Network`]: one stage for each layer, and one for the last norm and the output head. [`Calibration`](crate::Calibration)
/// computes the same statistics faster, with the layer's activations kept between sites; this form serves what takes any network.
///
/// ```
/// use tersor_core::Network;
/// use tersor_models::{Checkpoint, ModelNetwork};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let network = ModelNetwork::new(checkpoint.architecture()?.decoder()?)?;
/// assert_eq!(network.stages(), checkpoint.architecture()?.layers() + 1);
/// tersor_core::network::check_network(&network, &checkpoint)?;
/// # Ok(())
/// # }
/// ```
pub struct ModelNetwork {
    config: DecoderConfig,
    sites: Vec<Site>,
    heads: Heads,
}

impl ModelNetwork {
    /// Returns the network of a decoder with this configuration. Errors if its attention heads are invalid ([`DecoderConfig::attention_heads`]).
    pub fn new(config: &DecoderConfig) -> Result<Self> {
        Ok(Self { config: config.clone(), sites: config.sites(), heads: config.attention_heads()? })
    }

    /// Returns token sequences of at most `ctx` tokens as batches, in the sizes in which [`Calibration`](crate::Calibration) processes them, so that
    /// statistics of the batches are those of a calibration to the last bit.
    pub fn batches(windows: &[&[u32]], ctx: usize) -> Vec<Batch> {
        let (of_shard, tokens) = (shard_windows(ctx), batch_tokens(ctx));
        let mut all: Vec<Batch> = Vec::new();
        let mut len = 0;
        for (i, window) in windows.iter().enumerate() {
            match all.last_mut() {
                Some(batch) if i % of_shard != 0 && len + window.len() <= tokens => {
                    batch.tokens.push(window.to_vec());
                    len += window.len();
                }
                _ => {
                    all.push(Batch::of_tokens(vec![window.to_vec()]));
                    len = window.len();
                }
            }
        }
        all
    }
}

/// The stored weights of a checkpoint, without those that are compressed.
impl CoreWeights for Checkpoint {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        self.model().rows(name)
    }
    fn has(&self, name: &str) -> bool {
        self.model().tensor(name).is_ok()
    }
}

impl Network for ModelNetwork {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn enter(&self, batch: &Batch, weights: &dyn CoreWeights, _: &Exec) -> Result<Stream> {
        let hidden = self.config.hidden;
        let table = weights.rows("model.embed_tokens.weight")?;
        let (mut values, mut windows) = (Vec::new(), Vec::new());
        for tokens in &batch.tokens {
            let first = values.len();
            values.resize(first + tokens.len() * hidden, 0.0);
            for (t, row) in tokens.iter().zip(values[first..].chunks_exact_mut(hidden)) {
                let t = *t as usize;
                if t >= self.config.vocab {
                    return Err(Error::shape("token", format!("below {}", self.config.vocab), t));
                }
                table.read_rows(t..t + 1, row)?;
            }
            windows.push(first / hidden..values.len() / hidden);
        }
        let mut stream = Stream::of(HIDDEN, vec![values.len() / hidden, hidden], values)?;
        (stream.windows, stream.tag) = (windows, batch.tag);
        Ok(stream)
    }

    fn stage<'n>(&'n self, index: usize, weights: &dyn CoreWeights) -> Result<Box<dyn Stage + 'n>> {
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
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, _: &dyn CoreWeights) -> Result<Scores> {
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
fn rows_of(stream: &Stream, name: &str, rows: Range<usize>) -> Result<tersor_core::network::Part> {
    let part = stream.part(name)?;
    let [all, width] = part.rows();
    let values = part.values.get(rows.start * width..rows.end * width);
    let values = values.ok_or_else(|| Error::range("rows of the logits", 0..all, &rows))?;
    Ok(tersor_core::network::Part { shape: vec![rows.len(), width], values: values.to_vec() })
}

/// A layer without its matrices.
struct LayerStage<'n> {
    network: &'n ModelNetwork,
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

/// Returns the products of inputs `[tokens, features]` with the matrices of a site.
fn products(site: &Site, index: usize, x: &[f32], tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Vec<Vec<f32>>> {
    let tokens = x.len() / site.features.max(1);
    let x = Input::new(x, [tokens, site.features])?;
    let mut all = Vec::new();
    for consumer in &site.consumers {
        all.push(vec![0f32; tersor_core::view::elements([tokens, consumer.shape[0]])?]);
    }
    let views = all.iter_mut().zip(&site.consumers).map(|(y, c)| MatViewMut::new(y, [tokens, c.shape[0]]));
    tap.apply(index, 0, &x, &mut views.collect::<Result<Vec<_>>>()?, exec)?;
    Ok(all)
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
            for y in self.apply(kind, x, tap, exec)? {
                hidden.iter_mut().zip(&y).for_each(|(h, y)| *h += y);
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
    network: &'n ModelNetwork,
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
