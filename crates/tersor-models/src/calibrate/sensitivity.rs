//! Sensitivity of the predictions to the compression of single matrices: a text is passed through concurrent networks that each differ from the
//! original in one matrix, with one layer in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tersor_core::{Cancel, Error, Exec, LinearOp, Result, metrics};
use tersor_kernels::par;

use super::steps::{self, Steps, Window};
use super::store::{Store, le_bytes};
use super::{Calibration, ReadRow};
use crate::layer::{apply, rms_norm};
use crate::{Architecture, Checkpoint, SiteKind};

/// Number of tokens whose logits are in memory at once.
const BLOCK: usize = 64;

/// Maximum number of networks whose hidden states [`Sensitivity::layer`] passes through a layer together. More networks pass the layer in
/// several groups, which bounds the memory for intermediate results. A network is the original with one matrix replaced.
pub const CONCURRENT_NETWORKS: usize = 16;

/// A matrix of a decoder or encoder layer, and the operator that takes its place in one network of [`Sensitivity`].
pub struct Substitution {
    /// The input that the replaced matrix reads, as one of the four sites of its layer (the inputs of q, k and v; of o; of gate and up; of
    /// down).
    pub site: SiteKind,
    /// Index, counted from 0, of the replaced matrix among those that read the site, in the order of
    /// [`Site::consumers`](tersor_core::Site::consumers): 1 for k among q, k and v.
    pub index: usize,
    /// Name of the network in the result of [`Sensitivity::finish`], by convention the tensor name of the replaced matrix. It is not used
    /// to find the matrix.
    pub name: String,
    /// The operator that takes the place of the matrix. [`Sensitivity::layer`] errors unless it has the same shape
    /// `[out_features, in_features]`.
    pub op: Arc<dyn LinearOp>,
}

/// Measures how much the replacement of one matrix changes a network's predictions on a text, for several such replacements, of the same
/// matrix or of different ones. It holds the hidden states of the original network and of one network for each replacement, and passes all
/// of them through the layers in order, with one layer in memory at a time.
///
/// ```
/// use tersor_core::{Cancel, DType, LinearOp};
/// use tersor_models::{Checkpoint, Sensitivity, SiteKind, Substitution};
/// use tersor_operators::Dense;
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let checkpoint = Checkpoint::open(path.as_ref(), &tersor_operators::registry())?;
/// let windows: [&[u32]; 1] = [&[1, 2, 3, 4]];
/// let mut read = |name: &str, row: usize, out: &mut [f32]| checkpoint.model().rows(name)?.read_rows(row..row + 1, out);
/// let mut networks = Sensitivity::new(&checkpoint, &windows, 4, &mut read)?;
/// let config = checkpoint.architecture()?.decoder()?;
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
    /// Computes the hidden states of the original network, that of `checkpoint`, in front of its first layer, for the token sequences
    /// `windows`, each of 1 to `ctx` tokens. The result holds no other network yet. `read` reads rows of the embedding tables. Errors if
    /// there is no window, one is empty or longer than `ctx`, a token is outside of the vocabulary, `read` errors, or a tensor of an
    /// encoder's embedding norm is missing or invalid.
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

    /// Adds a network called `name` that differs from the original in its embedding, whose rows `read` reads. If `head` is given, the
    /// network also has the output head `head`, `[vocab, hidden]` (for a head that shares the embedding's matrix). To be called before the
    /// first layer: after a layer was processed, a call does not error, but the network skips that layer, so that the divergence from the
    /// original that [`finish`](Self::finish) returns for it is meaningless. Errors if `read` errors, if a tensor of an encoder's embedding
    /// norm is missing or invalid, or if `head` is given and has another shape or the network is an encoder.
    pub fn add_embedding(&mut self, name: &str, head: Option<Arc<dyn LinearOp>>, read: ReadRow<'_>) -> Result<()> {
        if let Some(head) = &head {
            self.check_head(name, &**head)?;
        }
        let stream = self.embedded(read)?;
        self.networks.push(Network { name: name.into(), stream, head });
        Ok(())
    }

    /// Passes the hidden states of the original network and of every network added so far through layer `index`, counted from 0. Also adds
    /// one network for each of `substitutions`, which differs from the original in one matrix of this layer and has passed the layer, too,
    /// after the call. The caller processes each layer once, in order: a call out of order does not error, but makes the divergences from
    /// the original that [`finish`](Self::finish) returns meaningless.
    ///
    /// Errors if the layer does not exist or cannot be read, the index of a substitution is not below the number of matrices of its site
    /// (the matrices that read the same input, such as q, k and v), the shape of its operator is not that of the replaced matrix, an input of a matrix is not finite, or the work is cancelled. After an
    /// error, only some of the networks may have passed the layer: this value is of no further use.
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

    /// Adds a network called `name` that differs from the original decoder in its output head `op`, `[vocab, hidden]`. To be called after
    /// the last layer; after an earlier call the result is the same, but the network takes the time and memory of passing the remaining
    /// layers. Errors if the head has another shape, or the original network is an encoder.
    pub fn add_head(&mut self, name: &str, op: Arc<dyn LinearOp>) -> Result<()> {
        self.check_head(name, &*op)?;
        self.networks.push(Network { name: name.into(), stream: self.original.clone(), head: Some(op) });
        Ok(())
    }

    /// Returns the name of each network, in the order in which they were added.
    pub fn names(&self) -> Vec<String> {
        self.networks.iter().map(|n| n.name.clone()).collect()
    }

    /// Saves the hidden states of the original network and of every other, in the order of [`names`](Self::names), to a file at `path`, which
    /// is synced and appears under its name when it is complete. Output heads of networks are not saved. Errors if the file cannot be
    /// written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = tersor_formats::AtomicFile::create(path)?;
        for stream in [&self.original].into_iter().chain(self.networks.iter().map(|n| &n.stream)) {
            for part in stream.chunks(1 << 18) {
                file.write(&le_bytes(part))?;
            }
        }
        file.finish()
    }

    /// Replaces the hidden states by those in the file `path`, which [`save`](Self::save) wrote for the same windows, and the networks by
    /// those called `names`, in order. `heads` has the output head of each network that has one of its own, by name. The caller continues
    /// with the layer that was next when the file was saved. Errors if the file cannot be read or has another length than these networks
    /// have, or if a head has another shape than `[vocab, hidden]`.
    pub fn resume(
        &mut self,
        path: &Path,
        names: Vec<String>,
        mut heads: BTreeMap<String, Arc<dyn LinearOp>>,
    ) -> Result<()> {
        for (name, head) in &heads {
            self.check_head(name, &**head)?;
        }
        let len = self.original.len();
        let mut all = Store::open(path, len * (names.len() + 1), true)?;
        let mut part = |i: usize| Ok::<_, Error>(all.read(i * len..(i + 1) * len)?.into_owned());
        self.original = part(0)?;
        let network = |(i, name): (usize, String)| {
            let head = heads.remove(&name);
            Ok(Network { stream: part(i + 1)?, name, head })
        };
        self.networks = names.into_iter().enumerate().map(network).collect::<Result<_>>()?;
        Ok(())
    }

    /// Errors unless an output head has the shape `[vocab, hidden]`.
    fn check_head(&self, name: &str, op: &dyn LinearOp) -> Result<()> {
        let config = self.calibration.network.decoder()?;
        let shape = [config.vocab, config.hidden];
        if op.shape() != shape {
            Err(Error::shape("shape of a head", shape, op.shape()).in_tensor(name))
        } else {
            Ok(())
        }
    }

    /// Returns, for each network, its name and the divergence of its predictions from those of the original, in the order in which
    /// [`layer`](Self::layer), [`add_embedding`](Self::add_embedding) and [`add_head`](Self::add_head) added them. To be called after the
    /// last layer; an earlier call does not error, but compares what the last norm and the head make of the hidden states at that point.
    ///
    /// For a decoder, the divergence is the mean KL divergence `KL(original ‖ network)` of the next-token distributions over all tokens, in
    /// nats. For an encoder, it is the sum of the squared differences of the last layer's outputs divided by the sum of the original's
    /// squared outputs. Never errors for an encoder. For a decoder, errors if the last norm or the head of the checkpoint is missing or
    /// invalid, a logit is not finite, or the work is cancelled.
    pub fn finish(self, cancel: &Cancel) -> Result<Vec<(String, f64)>> {
        let checkpoint = self.calibration.checkpoint;
        let config = match checkpoint.architecture()? {
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
