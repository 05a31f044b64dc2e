//! A BERT-family encoder with mean pooling (Devlin et al. 2018, arXiv 1810.04805; Reimers and Gurevych 2019, arXiv 1908.10084).

mod config;
mod layer;

use std::sync::Arc;

use tersor_core::{Error, Exec, LinearOp, Result};

pub(crate) use config::ENCODERS;
pub use config::{Activation, EncoderConfig};
pub(crate) use layer::{EncoderLayer, Norm};

use crate::Checkpoint;

/// The norm over the sum of the three embeddings.
pub(crate) fn embedding_norm(checkpoint: &Checkpoint, config: &EncoderConfig) -> Result<Norm> {
    Norm::read(checkpoint.into(), &format!("{}embeddings.LayerNorm", config.prefix), config.hidden)
}

/// An encoder over operators, all of it in memory.
pub struct Encoder {
    config: EncoderConfig,
    tables: [Arc<dyn LinearOp>; 3],
    norm: Norm,
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    /// Loads everything. Error when the model is no encoder, or a tensor is missing, misshapen or not finite.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.architecture().encoder()?.clone();
        let [words, positions, types] = config.embeddings();
        let table = |name: &str, rows: usize| -> Result<Arc<dyn LinearOp>> {
            Ok(checkpoint.matrix(name, [rows, config.hidden])?.into())
        };
        let tables =
            [table(&words, config.vocab)?, table(&positions, config.max_positions)?, table(&types, config.types)?];
        let norm = embedding_norm(checkpoint, &config)?;
        let layers =
            (0..config.layers).map(|l| EncoderLayer::read(checkpoint.into(), &config, l)).collect::<Result<_>>()?;
        Ok(Self { config, tables, norm, layers })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The last layer's output for each token, `[tokens, hidden]`. Error when there are none, more than there are positions, or one is
    /// outside the vocabulary.
    pub fn forward(&self, tokens: &[u32], exec: &Exec) -> Result<Vec<f32>> {
        self.config.check_len(tokens.len())?;
        let hidden = self.config.hidden;
        let mut stream = vec![0f32; tokens.len() * hidden];
        let mut row = vec![0f32; hidden];
        for (i, (&t, out)) in tokens.iter().zip(stream.chunks_exact_mut(hidden)).enumerate() {
            let t = t as usize;
            if t >= self.config.vocab {
                return Err(Error::shape("token", format!("below {}", self.config.vocab), t));
            }
            for (table, at) in self.tables.iter().zip([t, i, 0]) {
                table.decompress_rows(at..at + 1, &mut row, exec)?;
                out.iter_mut().zip(&row).for_each(|(o, v)| *o += v);
            }
        }
        self.norm.apply(&mut stream, self.config.eps, exec);
        for layer in &self.layers {
            layer.forward(&mut stream, tokens.len(), exec)?;
        }
        Ok(stream)
    }

    /// The mean of the tokens' outputs, `[hidden]`. Error as for [`Encoder::forward`].
    pub fn embed(&self, tokens: &[u32], exec: &Exec) -> Result<Vec<f32>> {
        let out = self.forward(tokens, exec)?;
        let mut mean = vec![0f32; self.config.hidden];
        for row in out.chunks_exact(self.config.hidden) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
        }
        mean.iter_mut().for_each(|m| *m /= tokens.len() as f32);
        Ok(mean)
    }
}
