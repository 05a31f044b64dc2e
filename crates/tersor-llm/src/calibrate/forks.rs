//! What one matrix changes in the predictions: the same text through networks that differ from the original in one matrix each, side by side, a
//! layer in memory at a time.

use std::sync::Arc;

use tersor_core::{Cancel, Error, Exec, LinearOp, Result, metrics};
use tersor_kernels::par;

use super::steps::{self, Steps, Window};
use super::{Calibration, ReadRow};
use crate::layer::{apply, rms_norm};
use crate::{Architecture, Checkpoint, SiteKind};

/// Tokens whose logits are in memory at once.
const BLOCK: usize = 64;

/// Streams that pass a layer at once.
pub const ABREAST: usize = 16;

/// A matrix to be replaced: its site, its place among the site's matrices, its name, and by what.
pub type Replaced = (SiteKind, usize, String, Arc<dyn LinearOp>);

/// Streams of networks with one matrix replaced, beside the original's.
pub struct Forks<'a> {
    calibration: Calibration<'a>,
    original: Vec<f32>,
    forks: Vec<Fork>,
}

struct Fork {
    name: String,
    stream: Vec<f32>,
    head: Option<Arc<dyn LinearOp>>,
}

impl<'a> Forks<'a> {
    /// The original alone, its embeddings looked up by `read`. Error as for [`Calibration::new`] and [`Calibration::embed`].
    pub fn new(checkpoint: &'a Checkpoint, windows: &[&[u32]], ctx: usize, read: ReadRow<'_>) -> Result<Self> {
        let calibration = Calibration::new(checkpoint, windows, 0..windows.len(), ctx, None)?;
        let mut forks = Self { calibration, original: Vec::new(), forks: Vec::new() };
        forks.original = forks.embedded(read)?;
        Ok(forks)
    }

    fn embedded(&mut self, read: ReadRow<'_>) -> Result<Vec<f32>> {
        self.calibration.embed(read)?;
        let len = self.calibration.tokens.len() * self.calibration.hidden();
        Ok(self.calibration.stream.read(0..len)?.to_vec())
    }

    /// A network with other embeddings, by `read`, and, where the head is the same matrix, another head.
    pub fn embedding(&mut self, name: &str, head: Option<Arc<dyn LinearOp>>, read: ReadRow<'_>) -> Result<()> {
        let stream = self.embedded(read)?;
        self.forks.push(Fork { name: name.into(), stream, head });
        Ok(())
    }

    /// Takes every stream through a layer, and adds a network for each of `replaced`. Error when the layer cannot be read, or a matrix does not
    /// fit.
    pub fn layer(&mut self, index: usize, replaced: Vec<Replaced>, cancel: &Cancel) -> Result<()> {
        let (calibration, before) = (&self.calibration, self.forks.len());
        let mut layer = steps::layer(calibration.checkpoint, &[], calibration.heads.as_ref(), index)?;
        for (kind, place, name, op) in replaced {
            let mut linears = layer.linears(kind);
            let count = linears.len();
            let linear = linears.get_mut(place);
            let linear = linear.ok_or_else(|| Error::shape("matrix of a site", format!("below {count}"), place))?;
            if linear.op.shape() != op.shape() {
                return Err(Error::shape("shape of a matrix", linear.op.shape(), op.shape()).in_tensor(&name));
            }
            let own = std::mem::replace(&mut linear.op, op);
            let stream = pass(calibration, &*layer, &[&self.original], cancel)?.remove(0);
            if let Some(linear) = layer.linears(kind).get_mut(place) {
                linear.op = own;
            }
            self.forks.push(Fork { name, stream, head: None });
        }
        // Those that were added here have passed it. So many at a time, as both sides of the layer are in memory.
        for few in self.forks[..before].chunks_mut(ABREAST) {
            let streams: Vec<&[f32]> = few.iter().map(|f| f.stream.as_slice()).collect();
            let passed = pass(calibration, &*layer, &streams, cancel)?;
            // In place: buffers that come and go among those that stay would leave holes.
            few.iter_mut().zip(passed).for_each(|(fork, stream)| fork.stream.copy_from_slice(&stream));
        }
        self.original = pass(calibration, &*layer, &[&self.original], cancel)?.remove(0);
        Ok(())
    }

    /// A network with another head.
    pub fn head(&mut self, name: &str, op: Arc<dyn LinearOp>) {
        self.forks.push(Fork { name: name.into(), stream: self.original.clone(), head: Some(op) });
    }

    /// How far each network's predictions are from the original's, in the order in which they were added. Of a decoder the mean divergence
    /// over all tokens, in nats; of an encoder the squared distance of its outputs as a share of their squares. Error when the last norm or
    /// the head is missing, or an output is not finite.
    pub fn finish(self, cancel: &Cancel) -> Result<Vec<(String, f64)>> {
        let checkpoint = self.calibration.checkpoint;
        let config = match checkpoint.architecture() {
            Architecture::Decoder(c) => c,
            Architecture::Encoder(_) => {
                let energy = metrics::energy(&self.original).max(f64::MIN_POSITIVE);
                let far = |f: &Fork| metrics::squared_error(&self.original, &f.stream) / energy;
                return Ok(self.forks.iter().map(|f| (f.name.clone(), far(f))).collect());
            }
        };
        let shape = [config.vocab, config.hidden];
        let own = if config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let own: Arc<dyn LinearOp> = checkpoint.matrix(own, shape)?.into();
        let norm = checkpoint.vector("model.norm.weight", config.hidden)?;
        let mut sums = vec![0f64; self.forks.len()];
        let exec = &Exec::new();
        let logits = |head: &dyn LinearOp, stream: &[f32]| -> Result<Vec<f32>> {
            let x = rms_norm(stream, &norm, config.eps, exec);
            let x = tersor_core::Input::new(&x, [stream.len() / config.hidden, config.hidden])?;
            let out = apply(head, None, &x, exec)?;
            tersor_core::check_finite(&out, config.vocab, 0).map(|()| out)
        };
        let step = BLOCK * config.hidden;
        for (i, original) in self.original.chunks(step).enumerate() {
            let p = logits(&*own, original)?;
            for (sum, fork) in sums.iter_mut().zip(&self.forks) {
                cancel.check()?;
                let stream = &fork.stream[i * step..][..original.len()];
                let q = logits(&**fork.head.as_ref().unwrap_or(&own), stream).map_err(|e| e.in_tensor(&fork.name))?;
                let rows = par::map(
                    original.len() / config.hidden,
                    true,
                    || (),
                    |t, ()| {
                        let row = t * config.vocab..(t + 1) * config.vocab;
                        metrics::kl_checked(&p[row.clone()], &q[row])
                    },
                );
                *sum += rows.into_iter().sum::<Result<f64>>().map_err(|e| e.in_tensor(&fork.name))?;
            }
        }
        let tokens = self.calibration.tokens.len().max(1) as f64;
        Ok(self.forks.into_iter().map(|f| f.name).zip(sums.into_iter().map(|s| s / tokens)).collect())
    }
}

/// Streams through a layer, window by window.
fn pass(
    calibration: &Calibration<'_>,
    layer: &dyn Steps,
    streams: &[&[f32]],
    cancel: &Cancel,
) -> Result<Vec<Vec<f32>>> {
    cancel.check()?;
    let (spans, hidden) = (&calibration.spans, calibration.hidden());
    let unit = |i: usize, (): &mut ()| -> Result<Vec<f32>> {
        let span = &spans[i % spans.len()];
        let exec = &Exec::new();
        let stream = &streams[i / spans.len()][span.start * hidden..span.end * hidden];
        let attn_output = layer.output(SiteKind::Qkv, &Window { stream, attn_output: &[] }, exec)?;
        let stream = layer.output(SiteKind::O, &Window { stream, attn_output: &attn_output }, exec)?;
        layer.output(SiteKind::Down, &Window { stream: &stream, attn_output: &[] }, exec)
    };
    let parts = par::map(streams.len() * spans.len(), true, || (), unit);
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(parts.chunks(spans.len()).map(|p| p.concat()).collect())
}
