//! Which rotations: random ones, and principal directions of keys and values.

use tersor_core::{Context, MatView, Result, Rotation, StatNeeds, StatSet};
use tersor_linalg::{orthogonal, rotation};

use super::parts::{LayerParts, Parts};
use super::{By, CheckedRotate};
use crate::{Blocks, principal_rotation, widths};

/// The rotations of a network.
pub(super) struct Rotations {
    /// Rotation of the features of the residual stream, `[hidden, hidden]`.
    pub stream: Rotation,
    /// For each layer the rotations of the values (the outputs of the value projection), each `[head_dim, head_dim]`: one that serves all
    /// heads, or one for each key/value head.
    pub values: Vec<Vec<Rotation>>,
    /// For each layer one rotation of the keys of all heads, `[head_dim, head_dim]`, which is applied after the rotary embedding; empty if
    /// keys are not rotated.
    pub keys: Vec<Rotation>,
}

impl CheckedRotate {
    /// Returns the rotations inside the subspaces of `features` features; the draws depend on the seed and on `features` alone.
    pub(super) fn blocks(&self, features: usize, cx: &Context) -> Result<Blocks> {
        let sizes = widths(self.shares.iter().copied(), features);
        match self.by {
            By::Principal { mix: false } => Ok(Blocks::identity(&sizes)),
            _ => Blocks::random(&sizes, &mut cx.stream(&format!("blocks of {features} features"))),
        }
    }

    /// Returns the order of the features of the attention output in which the first subspace of every head comes first, then the second of every
    /// head.
    pub(super) fn order(&self, layer: &LayerParts<'_>) -> Vec<u32> {
        let (dim, mut at, mut order) = (layer.head_dim, 0, Vec::new());
        for width in widths(self.shares.iter().copied(), dim) {
            for head in 0..layer.heads {
                order.extend((head * dim + at..head * dim + at + width).map(|i| i as u32));
            }
            at += width;
        }
        order
    }

    /// Returns random rotations of the stream and of values, by the kind and the seed. Errors if a width has no Hadamard matrix or overflows.
    pub(super) fn random(&self, parts: &Parts<'_>, cx: &Context) -> Result<Rotations> {
        let made = |name: &str, dim: usize| -> Result<Rotation> {
            let rng = &mut cx.stream(name);
            if self.by == By::Hadamard {
                return rotation(dim, rng);
            }
            let q: Vec<f32> = orthogonal(dim, rng)?.into_iter().map(|v| v as f32).collect();
            Rotation::dense(&q)
        };
        let dim = parts.layers.first().map_or(1, |l| l.head_dim);
        Ok(Rotations {
            stream: made("rotation of the stream", parts.hidden)?,
            values: vec![vec![made("rotation of values", dim)?]; parts.layers.len()],
            keys: Vec::new(),
        })
    }
}

/// Returns the rotation of `rows`, `[n, dim]`, into their principal directions, with `blocks` for the subspaces. Errors as [`principal_rotation`].
pub(super) fn principal_of_rows(rows: &[f32], dim: usize, blocks: &Blocks) -> Result<Rotation> {
    let mut stats = StatSet::new(dim, StatNeeds::none().with_gram(), 0, 0)?;
    stats.observe(&MatView::new(rows, [rows.len() / dim, dim])?)?;
    principal_rotation(stats.require_gram()?, blocks)
}
