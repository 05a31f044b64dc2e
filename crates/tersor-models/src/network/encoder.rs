//! An encoder as a network.

use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stage, Stream};
use tersor_core::{Exec, Network, Result, Site, Tap, Weights, metrics};

use super::{HIDDEN, embed, products};
use crate::encoder::{EncoderConfig, Norm};
use crate::layer::add_bias;

/// An encoder: one stage for each layer.
pub(super) struct EncoderNetwork {
    config: EncoderConfig,
    sites: Vec<Site>,
}

impl EncoderNetwork {
    pub fn new(config: &EncoderConfig) -> Self {
        Self { config: config.clone(), sites: config.sites() }
    }
}

impl Network for EncoderNetwork {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn enter(&self, batch: &Batch, weights: &dyn Weights, exec: &Exec) -> Result<Stream> {
        let c = &self.config;
        batch.tokens.iter().try_for_each(|tokens| c.check_len(tokens.len()))?;
        let mut stream = embed(batch, &c.embeddings(), c.vocab, c.hidden, weights)?;
        let mut hidden = stream.take(HIDDEN)?;
        let norm = Norm::of(weights, &format!("{}embeddings.LayerNorm", c.prefix), c.hidden)?;
        norm.apply(&mut hidden.values, c.eps, exec);
        stream.set(HIDDEN, hidden.shape, hidden.values)?;
        Ok(stream)
    }

    fn stage<'n>(&'n self, index: usize, weights: &dyn Weights) -> Result<Box<dyn Stage + 'n>> {
        let c = &self.config;
        let norm = |part: &str| Norm::of(weights, &c.part(index, part), c.hidden);
        let (first, mut biases) = (index * 4, Vec::new());
        for site in self.sites.get(first..first + 4).unwrap_or_default() {
            let mut of_site = Vec::new();
            for consumer in &site.consumers {
                let bias = tersor_core::bias_name(&consumer.weight).unwrap_or_default();
                of_site.push(weights.vector(&bias, consumer.shape[0])?);
            }
            biases.push(of_site);
        }
        let (attention_norm, output_norm) = (norm("attention.output.LayerNorm")?, norm("output.LayerNorm")?);
        Ok(Box::new(LayerStage { network: self, first, attention_norm, output_norm, biases }))
    }

    fn score(&self, out: &Stream, reference: Option<&Stream>, _: &Batch, _: &dyn Weights) -> Result<Scores> {
        let mut scores = Scores::default();
        let Some(reference) = reference else { return Ok(scores) };
        for window in &out.windows {
            let mean = |stream: &Stream| -> Result<Vec<f32>> {
                let (part, hidden) = (stream.part(HIDDEN)?, self.config.hidden);
                let rows = part.values.get(window.start * hidden..window.end * hidden).unwrap_or_default();
                let mut mean = vec![0f32; hidden];
                for row in rows.chunks_exact(hidden) {
                    mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / window.len() as f32);
                }
                Ok(mean)
            };
            scores.compared += 1;
            scores.cosines += metrics::cosine(&mean(out)?, &mean(reference)?);
        }
        Ok(scores)
    }
}

/// A layer without its matrices.
struct LayerStage<'n> {
    network: &'n EncoderNetwork,
    /// Index of the layer's first site.
    first: usize,
    attention_norm: Norm,
    output_norm: Norm,
    /// Biases by site and matrix.
    biases: Vec<Vec<Vec<f32>>>,
}

impl LayerStage<'_> {
    /// Returns the outputs of the matrices of a site, with their biases, for inputs `[tokens, features]`.
    fn apply(&self, kind: usize, x: &[f32], tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Vec<Vec<f32>>> {
        let site = &self.network.sites[self.first + kind];
        let mut all = products(site, self.first + kind, x, tap, exec)?;
        for (y, (consumer, bias)) in all.iter_mut().zip(site.consumers.iter().zip(&self.biases[kind])) {
            add_bias(y, consumer.shape[0], Some(bias))?;
        }
        Ok(all)
    }
}

impl Stage for LayerStage<'_> {
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
        let c = &self.network.config;
        let part = stream.take(HIDDEN)?;
        let (shape, mut hidden) = (part.shape, part.values);
        let qkv = self.apply(0, &hidden, tap, exec)?;
        let mut attn_output = Vec::with_capacity(hidden.len());
        for window in &stream.windows {
            let part = |i: usize| -> Vec<f32> {
                let all = qkv.get(i).map_or(&[][..], Vec::as_slice);
                all.get(window.start * c.hidden..window.end * c.hidden).unwrap_or_default().to_vec()
            };
            attn_output.extend(c.attend([part(0), part(1), part(2)], exec)?);
        }
        let add = |x: &[f32], kind: usize, hidden: &mut [f32]| -> Result<()> {
            let index = self.first + kind;
            // In the order of a layer that runs without taps: the product, then the bias.
            for (y, bias) in products(&self.network.sites[index], index, x, tap, exec)?.iter().zip(&self.biases[kind]) {
                hidden.iter_mut().zip(y).for_each(|(h, y)| *h += y);
                add_bias(hidden, c.hidden, Some(bias))?;
            }
            Ok(())
        };
        add(&attn_output, 1, &mut hidden)?;
        self.attention_norm.apply(&mut hidden, c.eps, exec);
        let mut inner = self.apply(2, &hidden, tap, exec)?.pop().unwrap_or_default();
        c.activate(&mut inner, exec);
        add(&inner, 3, &mut hidden)?;
        self.output_norm.apply(&mut hidden, c.eps, exec);
        stream.set(HIDDEN, shape, hidden)?;
        Ok(stream)
    }
}
