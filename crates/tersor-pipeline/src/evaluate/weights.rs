//! [`weights`]: the matrices of a model, compared with those of another.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tersor_core::{Context, Error, LinearOp, Result};
use tersor_models::Checkpoint;

use super::peak_rss;
use crate::kinds::Kinds;

/// Number of f32 values of a matrix that are in memory at once.
const BLOCK: usize = 1 << 20;

/// The errors of the matrices of a model against those of its original, as [`weights`] returns them, with size and memory.
#[derive(Clone, Debug, Serialize)]
pub struct WeightEvaluation {
    /// The relative error `‖W - Ŵ‖ / ‖W‖` over all compared matrices together, for the original weights `W` and the weights `Ŵ` of the model; `‖·‖`
    /// is the root of the sum of all squares. 0 if there is no error, infinite if only `W` is 0.
    pub relative_error: f64,
    /// The relative error of each compared matrix, computed in the same way, by the name of the matrix.
    pub matrices: BTreeMap<String, f64>,
    /// The stored bits per element over all two-dimensional tensors of the model.
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables and output head, which are recognised by their names.
    pub body_bits_per_weight: f64,
    /// The total length of all weight files of the model in bytes.
    pub weight_bytes: u64,
    /// The peak resident memory of this process so far in bytes ([`peak_rss`]); None on other systems than Linux.
    pub peak_rss_bytes: Option<u64>,
}

/// Compares the matrices of the model at `model` with those of the same names in the model at `original`: every compressed matrix, or, if the model
/// has none, every two-dimensional tensor. Both are paths of a model directory, a `.gguf` file, or an output directory of
/// [`compress`](crate::compress()), of any architecture; no data is needed. A change of weights before compression, such as a rotation or a
/// smoothing, counts as an error. `kinds` loads the operators; `cx` has threads, progress and cancellation.
///
/// Errors with [`Error::Io`], [`Error::Format`] or [`Error::Limit`] if a model cannot be opened. Errors with [`Error::Missing`] if there is no matrix
/// to compare, or if a matrix is not in `original`. Errors with [`Error::Tensor`], with the name of the matrix, if it has another shape there, or if
/// a value in one of the models is not finite. Errors with [`Error::Cancelled`] if the work is cancelled.
pub fn weights(model: &Path, original: &Path, kinds: &Kinds, cx: &Context) -> Result<WeightEvaluation> {
    let (found, original) = (Checkpoint::open(model, &kinds.operators)?, Checkpoint::open(original, &kinds.operators)?);
    let compressed = found.manifest().map(|m| &m.specs).filter(|specs| !specs.is_empty());
    let compared = found.weights().into_iter().filter(|w| compressed.is_none_or(|specs| specs.contains_key(&w.name)));
    let compared: Vec<_> = compared.collect();
    if compared.is_empty() {
        return Err(Error::missing("a matrix", model.display().to_string()));
    }
    cx.progress.begin("compare", compared.len() as u64);
    let (mut all, mut matrices) = ((0f64, 0f64), BTreeMap::new());
    for weight in compared {
        cx.cancel.check()?;
        let [ours, theirs] = [&found, &original].map(|c| c.matrix(&weight.name, weight.shape));
        let (error, energy) = difference(&*ours?, &*theirs?, cx).map_err(|e| e.in_tensor(&weight.name))?;
        all = (all.0 + error, all.1 + energy);
        matrices.insert(weight.name.clone(), relative(error, energy));
        cx.progress.advance(1, &weight.name);
    }
    cx.progress.end();
    let (bits_per_weight, body_bits_per_weight) = found.bits_per_weight();
    Ok(WeightEvaluation {
        relative_error: relative(all.0, all.1),
        matrices,
        bits_per_weight,
        body_bits_per_weight,
        weight_bytes: found.model().weight_bytes(),
        peak_rss_bytes: peak_rss(),
    })
}

fn relative(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / energy).sqrt() }
}

/// Returns `Σ (w - ŵ)²` and `Σ w²` over the elements of two operators of the same shape; `w` are those of `original`.
fn difference(op: &dyn LinearOp, original: &dyn LinearOp, cx: &Context) -> Result<(f64, f64)> {
    let [rows, cols] = op.shape();
    let step = (BLOCK / cols.max(1)).max(1);
    let (mut error, mut energy) = (0f64, 0f64);
    for first in (0..rows).step_by(step) {
        let block = first..(first + step).min(rows);
        let read = |op: &dyn LinearOp| -> Result<Vec<f32>> {
            let mut values = vec![0f32; block.len() * cols];
            op.decompress_rows(block.clone(), &mut values, &cx.exec)?;
            tersor_core::check_finite(&values, cols, block.start).map(|()| values)
        };
        for (a, b) in read(op)?.into_iter().zip(read(original)?) {
            error += (f64::from(b) - f64::from(a)).powi(2);
            energy += f64::from(b).powi(2);
        }
    }
    Ok((error, energy))
}
