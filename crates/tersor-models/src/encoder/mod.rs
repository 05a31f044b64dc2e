//! A BERT-family encoder with mean pooling (Devlin et al. 2018, arXiv 1810.04805; Reimers and Gurevych 2019, arXiv 1908.10084).

mod config;
mod layer;

use std::sync::Arc;

use tersor_core::{Error, Exec, LinearOp, Result};

pub(crate) use config::ENCODERS;
pub use config::{Activation, EncoderConfig};
pub(crate) use layer::{EncoderLayer, Norm};

use crate::Checkpoint;

/// Reads the layer norm that is applied to the sum of the three embeddings.
pub(crate) fn embedding_norm(checkpoint: &Checkpoint, config: &EncoderConfig) -> Result<Norm> {
    Norm::read(checkpoint.into(), &format!("{}embeddings.LayerNorm", config.prefix), config.hidden)
}

/// A BERT encoder with mean pooling, whose weight matrices are dense or compressed operators, all in memory.
///
/// Its tokens come from [`Tokenizer::encode_with_special_tokens`](crate::Tokenizer::encode_with_special_tokens).
///
/// ```
/// use tersor_core::Exec;
/// use tersor_models::{Checkpoint, Encoder};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-encoders/bert");
/// let encoder = Encoder::load(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let embedding = encoder.embed(&[1, 2, 3], &Exec::new())?;
/// assert_eq!(embedding.len(), encoder.config().hidden);
/// # Ok(())
/// # }
/// ```
pub struct Encoder {
    config: EncoderConfig,
    tables: [Arc<dyn LinearOp>; 3],
    norm: Norm,
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    /// Loads all weights of a checkpoint into memory. Errors if the model is no encoder, or a tensor is missing, has another shape, or
    /// holds a value that is not finite.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.architecture()?.encoder()?.clone();
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

    /// Returns the encoder's sizes and options.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Returns the last layer's output for each token of one text, `[tokens, hidden]` row-major. All tokens have the token type 0. Errors
    /// if `tokens` is empty or has more than the configuration's `max_positions` tokens, if a token is outside of the vocabulary, or if an
    /// input of a matrix is not finite.
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

    /// Returns the embedding of one text: the mean of the last layer's outputs for its tokens, `[hidden]`, not normalized. Errors if
    /// `tokens` is empty or has more than the configuration's `max_positions` tokens, if a token is outside of the vocabulary, or if an
    /// input of a matrix is not finite.
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
