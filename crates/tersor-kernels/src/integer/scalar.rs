//! The integer product in plain Rust, which defines the results of the vector versions.

use std::ops::Range;

use super::{LANES, Panels, TokenBlock, TokenView};
use crate::gemm_task::{Cells, Write};

/// Computes the product with some panels of the weights.
///
/// # Safety
/// The cells of `panels` up to `cells.end` for all tokens may be written and are not accessed by anyone else.
pub(super) unsafe fn product(x: &TokenView<'_>, w: &Panels, panels: Range<usize>, write: Write, cells: Cells) {
    let padding = w.padding();
    let quads = padding.block / 4;
    for panel in panels {
        for token in 0..x.x.tokens() {
            let planes = x.x.planes();
            // For groups with integer scales: sums over the whole row.
            let mut rows = vec![[0i32; LANES]; planes];
            let mut sums = [0f32; LANES];
            let mut first = 0;
            for group in 0..padding.groups() {
                let blocks = first..first + padding.blocks(group);
                first = blocks.end;
                let scales = w.scales(panel).to_f32(group);
                let mut value = [0f32; LANES];
                for plane in (0..planes).rev() {
                    let block = TokenBlock { first: token, tokens: 1 };
                    let offset = x.offsets(block)[plane * padding.groups() + group];
                    let mut dots = match w.same_zero() {
                        Some(_) => [offset; LANES],
                        None => w.zeros(panel)[group].map(|z| i32::from(z).wrapping_mul(offset)),
                    };
                    let row = x.x.row(token, plane);
                    for block in blocks.clone() {
                        for quad in 0..quads {
                            let codes = Panels::quad(w.lines(panel), w.bits(), block, quad);
                            let x = &row[(block * quads + quad) * 4..][..4];
                            for (i, c) in codes.iter().enumerate() {
                                dots[i / 4] = dots[i / 4].wrapping_add(i32::from(*c) * i32::from(x[i % 4]));
                            }
                        }
                    }
                    for i in 0..LANES {
                        rows[plane][i] = rows[plane][i].wrapping_add((scales[i] as i32).wrapping_mul(dots[i]));
                    }
                    value = std::array::from_fn(|i| value[i].mul_add(256.0, dots[i] as f32));
                }
                sums = std::array::from_fn(|i| scales[i].mul_add(value[i], sums[i]));
            }
            if let Some(scales) = w.row_scales(panel) {
                let join = |i: usize| rows.iter().rev().fold(0f32, |v, r| v.mul_add(256.0, r[i] as f32));
                sums = std::array::from_fn(|i| scales[i] * join(i));
            }
            let sums = sums.map(|v| v * x.x.scale(token));
            // SAFETY: the caller vouches for these cells.
            unsafe { cells.put(token, panel * LANES, &sums, write) };
        }
    }
}
