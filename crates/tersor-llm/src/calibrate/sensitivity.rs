//! Sensitivity of the predictions to the compression of single matrices: a text is passed through concurrent networks that each differ from the
//! original in one matrix, with one layer in memory at a time.

use std::sync::Arc;

use tersor_core::{Cancel, Error, Exec, LinearOp, Result, metrics};
use tersor_kernels::par;

use super::steps::{self, Steps, Window};
use super::{Calibration, ReadRow};
use crate::layer::{apply, rms_norm};
use crate::{Architecture, Checkpoint, SiteKind};

/// Number of tokens whose logits are in memory at once.
const BLOCK: usize = 64;

/// Number of networks whose hidden states [`Sensitivity::layer`] passes through a layer together; it bounds the memory for intermediate results.
pub const CONCURRENT_NETWORKS: usize = 16;

/// A matrix of a layer that a network of [`Sensitivity`] replaces by another operator.
pub struct Substitution {
    /// The input of the replaced matrix, as one of the [sites](SiteKind) of its layer.
    pub site: SiteKind,
    /// Index of the replaced matrix among those that read the site, in the order of [`Site::consumers`](tersor_core::Site::consumers).
    pub index: usize,
    /// Tensor name of the replaced matrix, which identifies the network in the result.
    pub name: String,
    /// The operator that takes the place of the matrix, of the same shape `[out_features, in_features]`.
    pub op: Arc<dyn LinearOp>,
}

/// Measures how much each of several single-matrix substitutions changes a network's predictions on a text. It holds the hidden states of the
/// original network and of one network for each substitution, and passes all of them through the layers in order.
///
/// ```
/// use tersor_core::{Cancel, DType, LinearOp};
/// use tersor_llm::{Checkpoint, Sensitivity, SiteKind, Substitution};
/// use tersor_operators::Dense;
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let windows: [&[u32]; 1] = [&[1, 2, 3, 4]];
/// let mut read = |name: &str, row: usize, out: &mut [f32]| checkpoint.model().rows(name)?.read_rows(row..row + 1, out);
/// let mut networks = Sensitivity::new(&checkpoint, &windows, 4, &mut read)?;
/// let config = checkpoint.architecture().decoder()?;
/// for layer in 0..config.layers {
///     let mut substitutions = Vec::new();
///     if layer == 0 {
///         let shape = SiteKind::Down.shapes(config)[0];
///         let zero = std::sync::Arc::new(Dense::new(vec![0.0; shape[0] * shape[1]], shape, DType::F32)?);
///         substitutions.push(Substitution { site: SiteKind::Down, index: 0, name: "layer 0, down".into(), op: zero });
///     }
///     networks.layer(layer, substitutions, &Cancel::new())?;
/// }
/// let divergences = networks.finish(&Cancel::new())?;
/// assert!(divergences[0].1 > 0.0);
/// # Ok(())
/// # }
/// ```
pub struct Sensitivity<'a> {
    calibration: Calibration<'a>,
    /// Hidden states of the original network, `[tokens, hidden]`.
    original: Vec<f32>,
    networks: Vec<Network>,
}

/// A network that differs from the original in one matrix.
struct Network {
    /// Name of the replaced matrix.
    name: String,
    /// Its hidden states, `[tokens, hidden]`.
    stream: Vec<f32>,
    /// Its output head, if that is another one.
    head: Option<Arc<dyn LinearOp>>,
}

impl<'a> Sensitivity<'a> {
    /// Starts with the original network alone, in front of the first layer, on `windows` of at most `ctx` tokens; `read` reads rows of the embedding
    /// tables. Errors as [`Calibration::new`] and [`Calibration::embed`] do.
    pub fn new(checkpoint: &'a Checkpoint, windows: &[&[u32]], ctx: usize, read: ReadRow<'_>) -> Result<Self> {
        let calibration = Calibration::new(checkpoint, windows, 0..windows.len(), ctx, None)?;
        let mut all = Self { calibration, original: Vec::new(), networks: Vec::new() };
        all.original = all.embedded(read)?;
        Ok(all)
    }

    /// Returns the hidden states in front of the first layer.
    fn embedded(&mut self, read: ReadRow<'_>) -> Result<Vec<f32>> {
        self.calibration.embed(read)?;
        let len = self.calibration.tokens.len() * self.calibration.hidden();
        Ok(self.calibration.stream.read(0..len)?.to_vec())
    }

    /// Adds a network, called `name`, with another embedding, whose rows `read` reads, and with another output head if `head` is given (for a head
    /// that shares the embedding's matrix), `[vocab, hidden]`. To be called before the first layer, which is not checked. Errors if a row cannot be
    /// read, or the head has another shape.
    pub fn add_embedding(&mut self, name: &str, head: Option<Arc<dyn LinearOp>>, read: ReadRow<'_>) -> Result<()> {
        if let Some(head) = &head {
            self.check_head(name, &**head)?;
        }
        let stream = self.embedded(read)?;
        self.networks.push(Network { name: name.into(), stream, head });
        Ok(())
    }

    /// Passes the hidden states of every network through layer `index`, and adds one network for each substitution in that layer. The caller
    /// processes the layers in order, which is not checked. Errors if the layer cannot be read, a substitution's index or shape does not fit, or
    /// the work is cancelled.
    pub fn layer(&mut self, index: usize, substitutions: Vec<Substitution>, cancel: &Cancel) -> Result<()> {
        let (calibration, before) = (&self.calibration, self.networks.len());
        let mut layer = steps::layer(calibration.checkpoint, &[], calibration.heads.as_ref(), index)?;
        for Substitution { site, index, name, op } in substitutions {
            let mut linears = layer.linears(site);
            let count = linears.len();
            let linear = linears.get_mut(index);
            let linear = linear.ok_or_else(|| Error::shape("matrix of a site", format!("below {count}"), index))?;
            if linear.op.shape() != op.shape() {
                return Err(Error::shape("shape of a matrix", linear.op.shape(), op.shape()).in_tensor(&name));
            }
            let own = std::mem::replace(&mut linear.op, op);
            let stream = pass(calibration, &*layer, &[&self.original], cancel)?.remove(0);
            if let Some(linear) = layer.linears(site).get_mut(index) {
                linear.op = own;
            }
            self.networks.push(Network { name, stream, head: None });
        }
        // Networks added above have already passed this layer. The others pass it in groups, since hidden states before and after the layer are
        // in memory together.
        for few in self.networks[..before].chunks_mut(CONCURRENT_NETWORKS) {
            let streams: Vec<&[f32]> = few.iter().map(|f| f.stream.as_slice()).collect();
            let passed = pass(calibration, &*layer, &streams, cancel)?;
            // Copies into the existing buffers: replacing them would fragment the heap.
            few.iter_mut().zip(passed).for_each(|(network, stream)| network.stream.copy_from_slice(&stream));
        }
        self.original = pass(calibration, &*layer, &[&self.original], cancel)?.remove(0);
        Ok(())
    }

    /// Adds a network, called `name`, with the output head `op` of a decoder, `[vocab, hidden]`. To be called after the last layer, which is not
    /// checked. Errors if the head has another shape.
    pub fn add_head(&mut self, name: &str, op: Arc<dyn LinearOp>) -> Result<()> {
        self.check_head(name, &*op)?;
        self.networks.push(Network { name: name.into(), stream: self.original.clone(), head: Some(op) });
        Ok(())
    }

    /// Errors unless an output head has the shape `[vocab, hidden]`.
    fn check_head(&self, name: &str, op: &dyn LinearOp) -> Result<()> {
        let config = self.calibration.checkpoint.architecture().decoder()?;
        let shape = [config.vocab, config.hidden];
        if op.shape() != shape {
            Err(Error::shape("shape of a head", shape, op.shape()).in_tensor(name))
        } else {
            Ok(())
        }
    }

    /// Returns name and divergence from the original of each network (the original with one matrix replaced), in the order in which
    /// [`layer`](Self::layer), [`add_embedding`](Self::add_embedding) and [`add_head`](Self::add_head) added them; to be called after the last layer,
    /// which is not checked. For
    /// a decoder, the divergence is the mean KL divergence `KL(original ‖ network)` of the next-token distributions over all tokens, in nats; for
    /// an encoder, the sum of the squared differences of the outputs over that of the original's squared outputs. Errors, for a decoder, if the checkpoint
    /// lacks the last norm or the head, a logit is not finite, or the work is cancelled.
    pub fn finish(self, cancel: &Cancel) -> Result<Vec<(String, f64)>> {
        let checkpoint = self.calibration.checkpoint;
        let config = match checkpoint.architecture() {
            Architecture::Decoder(c) => c,
            Architecture::Encoder(_) => {
                let energy = metrics::energy(&self.original).max(f64::MIN_POSITIVE);
                let relative = |n: &Network| metrics::squared_error(&self.original, &n.stream) / energy;
                return Ok(self.networks.iter().map(|n| (n.name.clone(), relative(n))).collect());
            }
        };
        let shape = [config.vocab, config.hidden];
        let own = if config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let own: Arc<dyn LinearOp> = checkpoint.matrix(own, shape)?.into();
        let norm = checkpoint.vector("model.norm.weight", config.hidden)?;
        let mut sums = vec![0f64; self.networks.len()];
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
            for (sum, network) in sums.iter_mut().zip(&self.networks) {
                cancel.check()?;
                let stream = &network.stream[i * step..][..original.len()];
                let head = network.head.as_ref().unwrap_or(&own);
                let q = logits(&**head, stream).map_err(|e| e.in_tensor(&network.name))?;
                let rows = par::map(
                    original.len() / config.hidden,
                    true,
                    || (),
                    |t, ()| {
                        let row = t * config.vocab..(t + 1) * config.vocab;
                        metrics::kl_checked(&p[row.clone()], &q[row])
                    },
                );
                *sum += rows.into_iter().sum::<Result<f64>>().map_err(|e| e.in_tensor(&network.name))?;
            }
        }
        let tokens = self.calibration.tokens.len().max(1) as f64;
        Ok(self.networks.into_iter().map(|n| n.name).zip(sums.into_iter().map(|s| s / tokens)).collect())
    }
}

/// Passes several networks' hidden states through a layer, window by window, and returns them in order.
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
