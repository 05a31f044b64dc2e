//! The matrices of a model, compared with those of another.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tersor_core::{Context, Error, LinearOp, Result};
use tersor_models::Checkpoint;

use super::peak_rss;
use crate::kinds::Kinds;

/// Number of f32 values of a matrix that are in memory at once.
const BLOCK: usize = 1 << 20;

/// How far the matrices of a model are from those of its original. It needs no data and no known architecture.
#[derive(Clone, Debug, Serialize)]
pub struct WeightEvaluation {
    /// The relative error over all compared matrices together, `‖W - Ŵ‖ / ‖W‖` with the root of the sum of all squares.
    pub relative_error: f64,
    /// The relative error of each compared matrix, by its name; 0 for a matrix of zeros that stays so.
    pub matrices: BTreeMap<String, f64>,
    /// Stored bits per weight of all matrices.
    pub bits_per_weight: f64,
    /// The same without embedding tables and output head, which are recognised by their names.
    pub body_bits_per_weight: f64,
    /// Total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// Peak resident memory of the process in bytes, on Linux.
    pub peak_rss_bytes: Option<u64>,
}

/// Compares every compressed matrix of the model `model` with the matrix of the same name in `original`; if `model` is not compressed, every matrix of
/// two axes. The models may have any architecture. Matrices that a rotation or a smoothing changed before compression differ by this change too.
/// `kinds` loads the operators; progress and cancellation are those of `cx`.
///
/// Errors if a model cannot be opened, a matrix is missing from `original` or has another shape there (the error names it), if there is no matrix to
/// compare, if a value is not finite, or if the work is cancelled.
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
