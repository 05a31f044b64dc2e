//! The two-phase search (DGQ, arXiv 2310.04836, section 3.2): first the range of each group, then, with these fixed, the scale of each row.

use std::ops::Range;

use tersor_core::method::ROW_UNIT;
use tersor_core::{DType, Isa, Result};
use tersor_kernels::{affine, par};
use tersor_operators::{DualLinear, MAX_EXPANDED, round_scale};

use super::CheckedDgq;
use crate::search::GramBlocks;

/// Number of ranges that are tried for each group.
const GROUP_STEPS: usize = 20;

/// Number of ranges that are tried for each row.
const ROW_STEPS: usize = 80;

/// Returns the share of a group's range in trial `i`: from 1.009 down to 0.8.
fn group_share(i: usize) -> f32 {
    1.02 - 0.22 * (i + 1) as f32 / GROUP_STEPS as f32
}

/// Returns the share of a row's range in trial `i`: from 1.01 down to 0.2.
fn row_share(i: usize) -> f32 {
    1.02 - 0.82 * (i + 1) as f32 / ROW_STEPS as f32
}

/// Scale and zero point of a group before its scale is rounded to an integer.
#[derive(Clone, Copy)]
struct FloatGrid {
    scale: f32,
    zero: u8,
}

impl FloatGrid {
    /// Returns the grid over `share` of the range `(lo, hi)` of a group's values, extended to include zero.
    fn of((lo, hi): (f32, f32), share: f32) -> Self {
        let (lo, hi) = (lo.min(0.0) * share, hi.max(0.0) * share);
        let scale = (hi - lo) / 15.0;
        if scale < f32::MIN_POSITIVE {
            return Self { scale: f32::MIN_POSITIVE, zero: 0 };
        }
        Self { scale, zero: (-lo / scale).round_ties_even().clamp(0.0, 15.0) as u8 }
    }

    /// Returns the weight `w` rounded to the grid.
    fn rounded(self, w: f32) -> f32 {
        let zero = f32::from(self.zero);
        self.scale * ((w / self.scale).round_ties_even().clamp(-zero, 15.0 - zero))
    }
}

/// Returns the integer scale of a group under the row scale `row`, and the range of `code - zero` whose expanded weights are at most 127 in
/// magnitude.
fn integer_scale(grid: FloatGrid, row: f32) -> (u8, Range<f32>) {
    let scale = (grid.scale / row).round_ties_even().clamp(1.0, MAX_EXPANDED as f32);
    let (zero, span) = (i32::from(grid.zero), MAX_EXPANDED / scale as i32);
    let min = (zero - span).max(0) - zero;
    let max = (zero + span).min(15) - zero;
    (scale as u8, min as f32..max as f32)
}

/// Returns `code - zero` of a weight, given the row scale and what [`integer_scale`] returned for its group.
fn code(w: f32, row: f32, (scale, range): &(u8, Range<f32>)) -> f32 {
    let clamped = w.clamp(-(MAX_EXPANDED as f32) * row, MAX_EXPANDED as f32 * row);
    (clamped / (f32::from(*scale) * row)).round_ties_even().clamp(range.start, range.end)
}

impl CheckedDgq {
    /// Quantizes `w`, `[rows, features]`, whose first row has the index `first` in the matrix. Returns the operator and `tr E H Eᵀ` of the error
    /// `E`, with `H` the mean Gram matrix of the inputs. Errors if a row scale does not grid f16.
    pub(super) fn search(&self, w: &[f32], gram: &GramBlocks, first: usize, isa: Isa) -> Result<(DualLinear, f64)> {
        let cols = gram.features();
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let (groups, width) = (self.group.count(cols), self.group.width(cols).max(1));
        let ranges: Vec<(f32, f32)> =
            (w.chunks_exact(cols.max(1))).flat_map(|row| row.chunks(width).map(|g| affine::min_max(isa, g))).collect();
        // First phase: the grid of each group by itself.
        let shares = gram.best_of(w, GROUP_STEPS, |i, r, g, w, out| {
            let grid = FloatGrid::of(ranges[r * groups + g], group_share(i));
            w.iter().zip(out).for_each(|(w, o)| *o = grid.rounded(*w));
        })?;
        let grids: Vec<FloatGrid> =
            ranges.iter().zip(&shares).map(|(r, i)| FloatGrid::of(*r, group_share(usize::from(*i)))).collect();
        // Second phase: the scale of the row, with the grids of its groups fixed.
        let scale = |row: usize, max: f32, i: usize| -> Result<f32> {
            let scale = row_share(i) * max / MAX_EXPANDED as f32;
            // Rows of tiny weights are quantized coarsely, to the smallest scale of f16.
            let scale = scale.max(half::f16::MIN_POSITIVE_SUBNORMAL.to_f32());
            if max == 0.0 { Ok(1.0) } else { round_scale(DType::F16, scale, [row, 0]) }
        };
        let unit = |block: usize, scratch: &mut Vec<f32>| -> Result<(Vec<f32>, f64)> {
            let span = block * ROW_UNIT..rows.min((block + 1) * ROW_UNIT);
            let w = &w[span.start * cols..span.end * cols];
            let max: Vec<f32> = w.chunks_exact(cols).map(|row| row.iter().fold(0f32, |m, v| m.max(v.abs()))).collect();
            let (mut best, mut chosen) = (vec![f64::INFINITY; span.len()], vec![1f32; span.len()]);
            let (mut d, mut scales) = (vec![0f32; w.len()], vec![1f32; span.len()]);
            for i in 0..ROW_STEPS {
                for (r, row) in span.clone().enumerate() {
                    scales[r] = scale(first + row, max[r], i)?;
                    let (w, d) = (&w[r * cols..][..cols], &mut d[r * cols..][..cols]);
                    for (g, (w, d)) in w.chunks(width).zip(d.chunks_mut(width)).enumerate() {
                        let group = integer_scale(grids[row * groups + g], scales[r]);
                        let step = f32::from(group.0) * scales[r];
                        w.iter().zip(d).for_each(|(w, d)| *d = w - step * code(*w, scales[r], &group));
                    }
                }
                for (r, loss) in gram.losses(&d, scratch)?.into_iter().enumerate() {
                    if loss < best[r] {
                        (best[r], chosen[r]) = (loss, scales[r]);
                    }
                }
            }
            Ok((chosen, best.into_iter().sum()))
        };
        let units = par::map(rows.div_ceil(ROW_UNIT), true, Vec::new, unit);
        let (mut row_scales, mut loss) = (Vec::with_capacity(rows), 0f64);
        for done in units {
            let (scales, lost) = done?;
            row_scales.extend(scales);
            loss += lost;
        }
        let mut codes = vec![0u8; w.len()];
        let (mut group_scales, mut zeros) = (vec![1u8; rows * groups], vec![0u8; rows * groups]);
        for (at, grid) in grids.iter().enumerate() {
            let (r, g) = (at / groups, at % groups);
            let group = integer_scale(*grid, row_scales[r]);
            (group_scales[at], zeros[at]) = (group.0, grid.zero);
            let span = r * cols + g * width..r * cols + ((g + 1) * width).min(cols);
            for (w, c) in w[span.clone()].iter().zip(&mut codes[span]) {
                *c = (code(*w, row_scales[r], &group) + f32::from(grid.zero)) as u8;
            }
        }
        let op = DualLinear::new([rows, cols], self.group, &codes, group_scales, zeros, row_scales)?;
        Ok((op, loss))
    }
}
