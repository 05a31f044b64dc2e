//! Two-dimensional convolutions: their geometry, the unfolding of an image to the rows of a matrix product, and direct depthwise convolution.
//!
//! An image is `[channels, height, width]`, row-major. The weights of a convolution are the matrix `[out_channels, channels / groups * kh * kw]`: the
//! columns are the channels of a group, then the rows of the kernel, then its columns. As in deep learning, the kernel is not mirrored.
//!
//! ```
//! use tersor_kernels::Isa;
//! use tersor_kernels::convolution::{Geometry, depthwise, unfold};
//! // One channel of 3 × 3 pixels, and a kernel of 2 × 2.
//! let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
//! let geometry = Geometry::new([1, 3, 3], 1, [2, 2])?;
//! let mut rows = [0f32; 16];
//! unfold(&geometry, &image, 0, 0..4, &mut rows)?;
//! assert_eq!(rows[..4], [1.0, 2.0, 4.0, 5.0]);
//! let mut out = [0f32; 4];
//! depthwise(Isa::detect(), &geometry, &image, &[1.0, 0.0, 0.0, 1.0], &mut out)?;
//! assert_eq!(out, [6.0, 8.0, 12.0, 14.0]);
//! # Ok::<(), tersor_kernels::Fault>(())
//! ```

mod depthwise;
mod unfold;

pub use depthwise::depthwise;
pub use unfold::unfold;

use crate::Fault;

/// The sizes of a two-dimensional convolution, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    input: [usize; 3],
    out_channels: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

impl Geometry {
    /// Returns the geometry of a convolution of an image `[channels, height, width]` to `out_channels` channels by kernels `[kh, kw]`, with stride 1,
    /// without padding, dilation or groups. Errors if a size is 0, if the image is smaller than the kernel, or if a size overflows.
    pub fn new(input: [usize; 3], out_channels: usize, kernel: [usize; 2]) -> Result<Self, Fault> {
        let one = [1, 1];
        Self { input, out_channels, kernel, stride: one, padding: [0, 0], dilation: one, groups: 1 }.checked()
    }

    /// Returns this geometry with the distance `[rows, columns]` between neighbouring positions of the kernel. Errors if one is 0.
    pub fn with_stride(self, stride: [usize; 2]) -> Result<Self, Fault> {
        Self { stride, ..self }.checked()
    }

    /// Returns this geometry with `[rows, columns]` of zeros around the image, on each side. Errors if a size overflows.
    pub fn with_padding(self, padding: [usize; 2]) -> Result<Self, Fault> {
        Self { padding, ..self }.checked()
    }

    /// Returns this geometry with the distance `[rows, columns]` between the pixels that neighbouring weights of a kernel multiply. Errors if one is 0,
    /// or if the padded image is smaller than the dilated kernel.
    pub fn with_dilation(self, dilation: [usize; 2]) -> Result<Self, Fault> {
        Self { dilation, ..self }.checked()
    }

    /// Returns this geometry with channels divided into `groups`: the output channels of a group see the input channels of the same group alone. Errors
    /// unless `groups` divides both numbers of channels.
    pub fn with_groups(self, groups: usize) -> Result<Self, Fault> {
        Self { groups, ..self }.checked()
    }

    fn checked(self) -> Result<Self, Fault> {
        let sizes = self.input.into_iter().chain([self.out_channels, self.groups]).chain(self.kernel);
        if sizes.chain(self.stride).chain(self.dilation).any(|n| n == 0) {
            return Err(Fault::Range { what: "size of a convolution, at least", limit: 1, found: 0 });
        }
        for channels in [self.input[0], self.out_channels] {
            if !channels.is_multiple_of(self.groups) {
                return Err(Fault::Range {
                    what: "groups of channels, a divisor of",
                    limit: channels,
                    found: self.groups,
                });
            }
        }
        let overflow = Fault::Overflow { what: "size of a convolution" };
        for axis in 0..2 {
            let span = (self.kernel[axis] - 1)
                .checked_mul(self.dilation[axis])
                .and_then(|n| n.checked_add(1))
                .ok_or(overflow)?;
            let padded =
                self.padding[axis].checked_mul(2).and_then(|n| n.checked_add(self.input[axis + 1])).ok_or(overflow)?;
            if padded < span {
                return Err(Fault::Length { what: "padded image of a convolution", expected: span, found: padded });
            }
        }
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).ok_or(overflow);
        let [_, oh, ow] = self.output();
        product(&self.input)?;
        product(&[self.out_channels, oh, ow])?;
        product(&[self.input[0], self.kernel[0], self.kernel[1], self.out_channels])?;
        product(&[oh, ow, self.columns()])?;
        Ok(self)
    }

    /// Returns the size of the image, `[channels, height, width]`.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// Returns the size of the output, `[out_channels, height, width]`.
    pub fn output(&self) -> [usize; 3] {
        let size = |axis: usize| {
            let span = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
            (self.input[axis + 1] + 2 * self.padding[axis] - span) / self.stride[axis] + 1
        };
        [self.out_channels, size(0), size(1)]
    }

    /// Returns the number of positions of the kernel, which is the number of pixels of an output channel.
    pub fn positions(&self) -> usize {
        let [_, height, width] = self.output();
        height * width
    }

    /// Returns the number of groups of channels.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Returns the number of columns of the weight matrix, `channels / groups * kh * kw`.
    pub fn columns(&self) -> usize {
        self.input[0] / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Returns the first pixel, counted from the edge of the image, that kernel position `at` covers along an axis (0 rows, 1 columns); it is negative
    /// in the padding.
    fn start(&self, axis: usize, at: usize) -> isize {
        (at * self.stride[axis]) as isize - self.padding[axis] as isize
    }
}

/// Errors unless a slice has the expected length.
fn check_len(what: &'static str, expected: usize, found: usize) -> Result<(), Fault> {
    if expected == found { Ok(()) } else { Err(Fault::Length { what, expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    /// The definition, in f64: `out[o, y, x] = Σ image[c, y * stride + i * dilation - padding, …] * w[o, c, i, j]`.
    fn naive(g: &Geometry, image: &[f32], w: &[f32]) -> Vec<f64> {
        let ([c, h, width], [oc, oh, ow]) = (g.input, g.output());
        let (in_group, out_group) = (c / g.groups, oc / g.groups);
        let mut out = vec![0f64; oc * oh * ow];
        for o in 0..oc {
            for y in 0..oh {
                for x in 0..ow {
                    let mut sum = 0f64;
                    for k in 0..in_group {
                        for i in 0..g.kernel[0] {
                            for j in 0..g.kernel[1] {
                                let row = g.start(0, y) + (i * g.dilation[0]) as isize;
                                let col = g.start(1, x) + (j * g.dilation[1]) as isize;
                                if row < 0 || col < 0 || row >= h as isize || col >= width as isize {
                                    continue;
                                }
                                let channel = o / out_group * in_group + k;
                                let pixel = image[(channel * h + row as usize) * width + col as usize];
                                let weight = w[((o * in_group + k) * g.kernel[0] + i) * g.kernel[1] + j];
                                sum += f64::from(pixel) * f64::from(weight);
                            }
                        }
                    }
                    out[(o * oh + y) * ow + x] = sum;
                }
            }
        }
        out
    }

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let value = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..n as u32).map(value).collect()
    }

    fn geometry() -> impl Strategy<Value = Geometry> {
        let pair = |r: std::ops::Range<usize>| [r.clone(), r];
        (1usize..4, 1usize..4, 1usize..4, pair(1..13), pair(1..5), pair(1..4), pair(0..3), pair(1..3)).prop_filter_map(
            "the kernel does not fit",
            |(groups, inp, out, size, kernel, stride, padding, dilation)| {
                let input = [groups * inp, size[0], size[1]];
                let g = Geometry { input, out_channels: groups * out, kernel, stride, padding, dilation, groups };
                g.checked().ok()
            },
        )
    }

    proptest! {
        #[test]
        fn unfolded_rows_times_weights_are_the_definition(g in geometry(), seed in 0u32..1000, cut in 1usize..40) {
            let (c, cols, positions) = (g.input[0], g.columns(), g.positions());
            let (image, w) = (values(g.input.iter().product(), seed), values(g.out_channels * cols, seed + 1));
            let want = naive(&g, &image, &w);
            let out_group = g.out_channels / g.groups;
            prop_assert_eq!(cols, c / g.groups * g.kernel[0] * g.kernel[1]);
            for group in 0..g.groups {
                // In blocks of positions.
                for first in (0..positions).step_by(cut) {
                    let block = first..(first + cut).min(positions);
                    let mut rows = vec![f32::NAN; block.len() * cols];
                    unfold(&g, &image, group, block.clone(), &mut rows).unwrap();
                    for (at, row) in block.zip(rows.chunks(cols)) {
                        for o in group * out_group..(group + 1) * out_group {
                            let sum: f64 = row.iter().zip(&w[o * cols..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                            prop_assert!((sum - want[o * positions + at]).abs() < 1e-9);
                        }
                    }
                }
            }
        }

        #[test]
        fn depthwise_is_the_definition_and_the_same_on_every_level(g in geometry(), seed in 0u32..1000) {
            let c = g.input[0];
            let Ok(g) = (Geometry { out_channels: c, groups: c, ..g }).checked() else { return Ok(()) };
            let (image, w) = (values(g.input.iter().product(), seed), values(c * g.columns(), seed + 1));
            let want = naive(&g, &image, &w);
            let mut scalar = vec![f32::NAN; want.len()];
            depthwise(Isa::SCALAR, &g, &image, &w, &mut scalar).unwrap();
            for (a, b) in scalar.iter().zip(&want) {
                prop_assert!((f64::from(*a) - b).abs() < 1e-5 * (1.0 + b.abs()));
            }
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; want.len()];
                depthwise(isa, &g, &image, &w, &mut out).unwrap();
                prop_assert_eq!(&out, &scalar);
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let g = Geometry::new([4, 5, 6], 8, [3, 3]).unwrap();
        assert_eq!((g.output(), g.positions(), g.columns()), ([8, 3, 4], 12, 36));
        assert!(Geometry::new([0, 5, 6], 8, [3, 3]).is_err() && Geometry::new([4, 2, 6], 8, [3, 3]).is_err());
        assert!(g.with_groups(3).is_err() && g.with_stride([0, 1]).is_err() && g.with_dilation([3, 1]).is_err());
        assert!(g.with_padding([usize::MAX, 0]).is_err() && Geometry::new([usize::MAX, 2, 2], 1, [1, 1]).is_err());
        assert_eq!(g.with_groups(4).unwrap().columns(), 9);
        let image = vec![0f32; 120];
        assert!(unfold(&g, &image[1..], 0, 0..1, &mut [0.0; 36]).is_err());
        assert!(unfold(&g, &image, 1, 0..1, &mut [0.0; 36]).is_err());
        assert!(unfold(&g, &image, 0, 12..13, &mut [0.0; 36]).is_err());
        assert!(unfold(&g, &image, 0, 0..1, &mut [0.0; 35]).is_err());
        assert!(depthwise(Isa::SCALAR, &g, &image, &[0.0; 36], &mut [0.0; 96]).is_err());
        let each = Geometry::new([4, 5, 6], 4, [3, 3]).unwrap().with_groups(4).unwrap();
        assert!(depthwise(Isa::SCALAR, &each, &image, &[0.0; 35], &mut [0.0; 48]).is_err());
        assert!(depthwise(Isa::SCALAR, &each, &image, &[0.0; 36], &mut [0.0; 47]).is_err());
    }
}
