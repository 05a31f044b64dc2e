//! Depthwise convolution, without unfolding.

use std::ops::Range;

use super::{Geometry, check_len};
use crate::isa::versions;
use crate::{Fault, Isa};

/// Convolves each channel with kernels of its own: writes `[out_channels, height, width]` to `out` for an image `[channels, height, width]` and weights
/// `[out_channels, kh * kw]`, where each group has one input channel. Products are added by fused multiply-add in the order of the kernel's rows, then
/// its columns, so results have the same bits on every instruction set.
///
/// Errors, and writes nothing, if a group of `geometry` has more than one input channel, or if a slice has another length.
pub fn depthwise(isa: Isa, geometry: &Geometry, image: &[f32], weights: &[f32], out: &mut [f32]) -> Result<(), Fault> {
    let g = geometry;
    let ([channels, height, width], [out_channels, oh, ow]) = (g.input, g.output());
    check_len("groups of a depthwise convolution", channels, g.groups)?;
    check_len("image of a convolution", channels * height * width, image.len())?;
    check_len("weights of a depthwise convolution", out_channels * g.columns(), weights.len())?;
    check_len("output of a convolution", out_channels * oh * ow, out.len())?;
    let per_channel = out_channels / channels;
    let planes = out.chunks_exact_mut(oh * ow).zip(weights.chunks_exact(g.columns()));
    for (o, (out, kernel)) in planes.enumerate() {
        let first = o / per_channel * height * width;
        plane(isa, g, &image[first..first + height * width], kernel, out);
    }
    Ok(())
}

/// Returns the output columns at which kernel column `j` covers a pixel of the image.
fn covered(g: &Geometry, j: usize, out_width: usize) -> Range<usize> {
    let (width, stride, shift) =
        (g.input[2] as isize, g.stride[1] as isize, (j * g.dilation[1]) as isize - g.padding[1] as isize);
    // The smallest x with x * stride + shift >= 0, and the smallest with x * stride + shift >= width.
    let reach = |limit: isize| ((limit - shift + stride - 1).div_euclid(stride)).clamp(0, out_width as isize) as usize;
    reach(0)..reach(width)
}

versions! {
    /// Convolves one channel.
    fn plane(isa: Isa, g: &Geometry, image: &[f32], kernel: &[f32], out: &mut [f32]) {
        let ([_, height, width], [_, _, out_width]) = (g.input, g.output());
        out.fill(0.0);
        for (y, line) in out.chunks_exact_mut(out_width).enumerate() {
            for (i, weights) in kernel.chunks_exact(g.kernel[1]).enumerate() {
                let row = g.start(0, y) + (i * g.dilation[0]) as isize;
                if row < 0 || row >= height as isize {
                    continue;
                }
                let pixels = &image[row as usize * width..(row as usize + 1) * width];
                for (j, &w) in weights.iter().enumerate() {
                    let at = covered(g, j, out_width);
                    if at.is_empty() {
                        continue;
                    }
                    let first = g.start(1, at.start) + (j * g.dilation[1]) as isize;
                    let pixels = &pixels[first as usize..];
                    let line = &mut line[at];
                    if g.stride[1] == 1 {
                        line.iter_mut().zip(pixels).for_each(|(o, p)| *o = w.mul_add(*p, *o));
                    } else {
                        line.iter_mut().zip(pixels.iter().step_by(g.stride[1])).for_each(|(o, p)| *o = w.mul_add(*p, *o));
                    }
                }
            }
        }
    }
}
