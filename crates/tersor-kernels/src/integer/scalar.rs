//! The meaning of the product.

use std::ops::Range;

use super::{Activations, Cells, LANES, Panels};
use crate::dense::Write;

/// # Safety
/// The cells of `panels` for all tokens may be written and are not touched by anyone else.
pub(super) unsafe fn product(
    x: &Activations,
    w: &Panels,
    panels: Range<usize>,
    write: Write,
    cells: Cells,
    _: &mut Vec<f32>,
) {
    let padding = w.padding();
    let quads = padding.block / 4;
    for panel in panels {
        let lines = w.lines(panel);
        for token in 0..x.tokens() {
            let mut sums = [0f32; LANES];
            let mut first = 0;
            for group in 0..padding.groups() {
                let (scales, zeros) = w.grid(panel, group);
                let scales = scales.to_f32();
                let mut value = [0f32; LANES];
                for plane in (0..x.planes()).rev() {
                    let (row, sum) = (x.row(token, plane), x.sum(token, plane, group));
                    let mut dots = zeros.map(|z| i32::from(z).wrapping_mul(sum).wrapping_neg());
                    for block in first..first + padding.blocks(group) {
                        for quad in 0..quads {
                            let codes = Panels::quad(lines, w.bits(), block, quad);
                            let x = &row[(block * quads + quad) * 4..][..4];
                            for (i, c) in codes.iter().enumerate() {
                                dots[i / 4] += i32::from(*c) * i32::from(x[i % 4]);
                            }
                        }
                    }
                    value = std::array::from_fn(|i| value[i].mul_add(256.0, dots[i] as f32));
                }
                sums = std::array::from_fn(|i| scales[i].mul_add(value[i], sums[i]));
                first += padding.blocks(group);
            }
            let sums = sums.map(|v| v * x.scale(token));
            // SAFETY: the caller vouches for these cells.
            unsafe { cells.put(token, panel * LANES, w.rows(), &sums, write) };
        }
    }
}
