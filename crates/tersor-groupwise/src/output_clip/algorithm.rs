//! The search of the limit of each group.

use tersor_core::{Isa, Result};
use tersor_kernels::affine;
use tersor_operators::GroupSpec;

use crate::search::GramBlocks;

/// Number of limits that are tried: the largest magnitude times `1 - i / (2 * STEPS)`, `i` in `0..STEPS`.
const STEPS: usize = 10;

/// Returns limit number `step` of a group `w`.
fn limit(w: &[f32], step: usize) -> f32 {
    w.iter().fold(0f32, |m, v| m.max(v.abs())) * (1.0 - step as f32 / (2 * STEPS) as f32)
}

/// Clips each group of `w`, `[rows, features]`, at the limit with the smallest error of the outputs after rounding to the grid `spec`. Runs in the
/// current pool.
pub(super) fn clip(spec: &GroupSpec, gram: &GramBlocks, w: &mut [f32], isa: Isa) -> Result<()> {
    let codes = spec.grid().codes(spec.bits());
    let chosen = gram.best_of(w, STEPS, |step, _, _, w, out| {
        let max = limit(w, step);
        w.iter().zip(&mut *out).for_each(|(w, o)| *o = w.clamp(-max, max));
        // A group whose scale does not fit its type is refused by the method that follows.
        if let Ok(params) = spec.quant_params(isa, out) {
            out.iter_mut()
                .for_each(|v| *v = affine::value(affine::code(*v, params, *codes.start(), *codes.end()), params));
        }
    })?;
    let cols = gram.features();
    let (width, groups) = (spec.group().width(cols).max(1), spec.group().count(cols));
    for (r, row) in w.chunks_exact_mut(cols.max(1)).enumerate() {
        for (g, group) in row.chunks_mut(width).enumerate() {
            let max = limit(group, usize::from(chosen[r * groups + g]));
            group.iter_mut().for_each(|v| *v = v.clamp(-max, max));
        }
    }
    Ok(())
}
