//! Unfolding (im2col).

use std::ops::Range;

use super::{Geometry, check_len};
use crate::Fault;

/// Writes the pixels that the kernel covers at the positions `positions` to `out`, `[positions, columns]` row-major, in the order of the columns of the
/// weight matrix: the product of these rows with the rows of the weights of group `group`, counted from 0, is the convolution. Positions are numbered
/// row by row. Pixels of the padding are 0. `image` is `[channels, height, width]`.
///
/// Errors, and writes nothing, if there is no such group or position, or if `image` or `out` has another length.
pub fn unfold(
    geometry: &Geometry,
    image: &[f32],
    group: usize,
    positions: Range<usize>,
    out: &mut [f32],
) -> Result<(), Fault> {
    let g = geometry;
    let ([channels, height, width], [_, _, out_width]) = (g.input, g.output());
    if group >= g.groups {
        return Err(Fault::Range { what: "group of a convolution", limit: g.groups, found: group });
    }
    if positions.end > g.positions() || positions.start > positions.end {
        return Err(Fault::Range { what: "position of a kernel", limit: g.positions(), found: positions.end });
    }
    check_len("image of a convolution", channels * height * width, image.len())?;
    check_len("unfolded rows", positions.len() * g.columns(), out.len())?;
    let in_group = channels / g.groups;
    let planes = &image[group * in_group * height * width..(group + 1) * in_group * height * width];
    let [kernel_height, kernel_width] = g.kernel;
    for (at, row) in positions.zip(out.chunks_exact_mut(g.columns())) {
        let (top, left) = (g.start(0, at / out_width), g.start(1, at % out_width));
        let kernels = row.chunks_exact_mut(kernel_height * kernel_width);
        for (plane, kernel) in planes.chunks_exact(height * width).zip(kernels) {
            for (i, line) in kernel.chunks_exact_mut(kernel_width).enumerate() {
                let y = top + (i * g.dilation[0]) as isize;
                let Some(pixels) = usize::try_from(y).ok().filter(|y| *y < height) else {
                    line.fill(0.0);
                    continue;
                };
                let pixels = &plane[pixels * width..(pixels + 1) * width];
                let inside = left >= 0 && left as usize + kernel_width <= width;
                if inside && g.dilation[1] == 1 {
                    line.copy_from_slice(&pixels[left as usize..left as usize + kernel_width]);
                    continue;
                }
                for (j, value) in line.iter_mut().enumerate() {
                    let x = usize::try_from(left + (j * g.dilation[1]) as isize).ok();
                    *value = x.and_then(|x| pixels.get(x)).copied().unwrap_or(0.0);
                }
            }
        }
    }
    Ok(())
}
