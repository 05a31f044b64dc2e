//! [`ModelNetwork`]: the supported networks as a [`Network`], whose products go through a tap.

mod decoder;
mod encoder;

use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stage, Stream};
use tersor_core::{Error, Exec, Input, MatViewMut, Network, Result, RowSource, Site, Tap, Weights as CoreWeights};

use crate::{Architecture, Checkpoint, batch_tokens, shard_windows};
use decoder::DecoderNetwork;
use encoder::EncoderNetwork;

/// Name of the hidden states in the stream.
const HIDDEN: &str = "hidden";

/// A supported decoder or encoder as a [`Network`]: one stage for each layer, and in a decoder one for the last norm and the output head.
/// [`Calibration`](crate::Calibration) computes the same statistics faster, with the layer's activations kept between sites; this form serves what
/// takes any network.
///
/// A decoder is scored by the logits of each token but the last of a window, against the token that follows, and against the original's. An encoder has no
/// labels: the embeddings of windows are compared with the original's ([`Scores::cosine`]).
///
/// ```
/// use tersor_core::Network;
/// use tersor_models::{Checkpoint, ModelNetwork};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let network = ModelNetwork::new(checkpoint.architecture()?)?;
/// assert_eq!(network.stages(), checkpoint.architecture()?.layers() + 1);
/// tersor_core::network::check_network(&network, &checkpoint)?;
/// # Ok(())
/// # }
/// ```
pub struct ModelNetwork(Box<dyn Network>);

impl ModelNetwork {
    /// Returns the network of this architecture. Errors if the attention heads of a decoder are invalid
    /// ([`DecoderConfig::attention_heads`](crate::DecoderConfig::attention_heads)).
    pub fn new(architecture: &Architecture) -> Result<Self> {
        Ok(Self(match architecture {
            Architecture::Decoder(config) => Box::new(DecoderNetwork::new(config)?),
            Architecture::Encoder(config) => Box::new(EncoderNetwork::new(config)),
        }))
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
        self.0.sites()
    }
    fn stages(&self) -> usize {
        self.0.stages()
    }
    fn waves(&self, stage: usize) -> Vec<Vec<usize>> {
        self.0.waves(stage)
    }
    fn enter(&self, batch: &Batch, weights: &dyn CoreWeights, exec: &Exec) -> Result<Stream> {
        self.0.enter(batch, weights, exec)
    }
    fn stage<'n>(&'n self, index: usize, weights: &dyn CoreWeights) -> Result<Box<dyn Stage + 'n>> {
        self.0.stage(index, weights)
    }
    fn score(
        &self,
        out: &Stream,
        reference: Option<&Stream>,
        batch: &Batch,
        weights: &dyn CoreWeights,
    ) -> Result<Scores> {
        self.0.score(out, reference, batch, weights)
    }
}

/// Returns the sums of the rows of embedding tables for the tokens of a batch, as a stream with one window for each sequence: the rows of the tokens in
/// the first table, of their positions in the second, and row 0 of the third.
fn embed(batch: &Batch, tables: &[String], vocab: usize, hidden: usize, weights: &dyn CoreWeights) -> Result<Stream> {
    let tables = tables.iter().map(|name| weights.rows(name)).collect::<Result<Vec<_>>>()?;
    let (mut values, mut windows, mut row) = (Vec::new(), Vec::new(), vec![0f32; hidden]);
    for tokens in &batch.tokens {
        let first = values.len();
        values.resize(first + tokens.len() * hidden, 0.0);
        for (i, (t, out)) in tokens.iter().zip(values[first..].chunks_exact_mut(hidden)).enumerate() {
            let t = *t as usize;
            if t >= vocab {
                return Err(Error::shape("token", format!("below {vocab}"), t));
            }
            for (table, at) in tables.iter().zip([t, i, 0]) {
                table.read_rows(at..at + 1, &mut row)?;
                out.iter_mut().zip(&row).for_each(|(o, v)| *o += v);
            }
        }
        windows.push(first / hidden..values.len() / hidden);
    }
    let mut stream = Stream::of(HIDDEN, vec![values.len() / hidden, hidden], values)?;
    (stream.windows, stream.tag) = (windows, batch.tag);
    Ok(stream)
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
