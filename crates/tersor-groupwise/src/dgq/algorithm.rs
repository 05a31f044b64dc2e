//! The two-phase search (section 3.2 of the paper): first the range of each group, then, with these held, the scale of each row.

use std::ops::Range;

use tersor_core::method::ROW_UNIT;
use tersor_core::{DType, Isa, Result};
use tersor_kernels::{affine, par};
use tersor_operators::{DualLinear, MAX_EXPANDED, round_scale};

use super::CheckedDgq;
use crate::search::GramBlocks;

/// Shares of a group's range that are tried.
const GROUP_STEPS: usize = 20;

/// Shares of a row's range that are tried.
const ROW_STEPS: usize = 80;

fn group_share(i: usize) -> f32 {
    1.02 - 0.22 * (i + 1) as f32 / GROUP_STEPS as f32
}

fn row_share(i: usize) -> f32 {
    1.02 - 0.82 * (i + 1) as f32 / ROW_STEPS as f32
}

/// Scale and zero of a group before its scale is an integer.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    zero: u8,
}

impl Fit {
    /// Of a share of the range of values, which takes zero in.
    fn of((lo, hi): (f32, f32), share: f32) -> Self {
        let (lo, hi) = (lo.min(0.0) * share, hi.max(0.0) * share);
        let scale = (hi - lo) / 15.0;
        if scale < f32::MIN_POSITIVE {
            return Self { scale: f32::MIN_POSITIVE, zero: 0 };
        }
        Self { scale, zero: (-lo / scale).round_ties_even().clamp(0.0, 15.0) as u8 }
    }

    fn rounded(self, w: f32) -> f32 {
        let zero = f32::from(self.zero);
        self.scale * ((w / self.scale).round_ties_even().clamp(-zero, 15.0 - zero))
    }
}

/// Returns the integer scale of a group under the scale of its row, and the codes less the zero that it may use.
fn integer_scale(fit: Fit, row: f32) -> (u8, Range<f32>) {
    let scale = (fit.scale / row).round_ties_even().clamp(1.0, MAX_EXPANDED as f32);
    let (zero, span) = (i32::from(fit.zero), MAX_EXPANDED / scale as i32);
    let min = (zero - span).max(0) - zero;
    let max = (zero + span).min(15) - zero;
    (scale as u8, min as f32..max as f32)
}

/// A code less its zero.
fn code(w: f32, row: f32, (scale, range): &(u8, Range<f32>)) -> f32 {
    let clamped = w.clamp(-(MAX_EXPANDED as f32) * row, MAX_EXPANDED as f32 * row);
    (clamped / (f32::from(*scale) * row)).round_ties_even().clamp(range.start, range.end)
}

impl CheckedDgq {
    /// Quantizes rows `w`, of which the first has the number `first` in the matrix. Returns them with their loss for each token. Errors if a scale
    /// does not fit its type.
    pub(super) fn run(&self, w: &[f32], gram: &GramBlocks, first: usize, isa: Isa) -> Result<(DualLinear, f64)> {
        let cols = gram.features();
        let rows = w.len().checked_div(cols).unwrap_or(0);
        let (groups, width) = (self.group.count(cols), self.group.width(cols).max(1));
        let ranges: Vec<(f32, f32)> =
            (w.chunks_exact(cols.max(1))).flat_map(|row| row.chunks(width).map(|g| affine::min_max(isa, g))).collect();
        // First phase: each group by itself.
        let shares = gram.best_of(w, GROUP_STEPS, |i, r, g, w, out| {
            let fit = Fit::of(ranges[r * groups + g], group_share(i));
            w.iter().zip(out).for_each(|(w, o)| *o = fit.rounded(*w));
        })?;
        let fits: Vec<Fit> =
            ranges.iter().zip(&shares).map(|(r, i)| Fit::of(*r, group_share(usize::from(*i)))).collect();
        // Second: the row's scale, with those of the groups held.
        let scale = |row: usize, max: f32, i: usize| -> Result<f32> {
            let scale = row_share(i) * max / MAX_EXPANDED as f32;
            // Rows below what f16 can tell apart come out coarse.
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
                        let group = integer_scale(fits[row * groups + g], scales[r]);
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
        for (at, fit) in fits.iter().enumerate() {
            let (r, g) = (at / groups, at % groups);
            let group = integer_scale(*fit, row_scales[r]);
            (group_scales[at], zeros[at]) = (group.0, fit.zero);
            let span = r * cols + g * width..r * cols + ((g + 1) * width).min(cols);
            for (w, c) in w[span.clone()].iter().zip(&mut codes[span]) {
                *c = (code(*w, row_scales[r], &group) + f32::from(fit.zero)) as u8;
            }
        }
        let op = DualLinear::new([rows, cols], self.group, &codes, group_scales, zeros, row_scales)?;
        Ok((op, loss))
    }
}
