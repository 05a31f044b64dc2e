//! The nearest of a sorted set of values.

use crate::Isa;
use crate::isa::versions;

/// Up to 256 values in ascending order, and the middles between neighbours.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    values: Vec<f32>,
    /// `middles[i]` lies between values `i` and `i + 1`; filled up with infinity to a power of two less one.
    middles: Vec<f32>,
}

/// Values up to which all middles are looked at rather than a few of them one after the other.
const FEW: usize = 16;

impl Codebook {
    /// None unless there are 1 to 256 finite values in strictly ascending order.
    pub fn new(values: &[f32]) -> Option<Self> {
        let ascending = values.windows(2).all(|w| w[0] < w[1]) && values.iter().all(|v| v.is_finite());
        if !(1..=256).contains(&values.len()) || !ascending {
            return None;
        }
        // In f64, as the sum of two f32 may be rounded. The middle of neighbours among the floats is one of them: the lower.
        let middle = |w: &[f32]| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32;
        let middle = |w: &[f32]| if middle(w) < w[1] { middle(w) } else { w[0] };
        let mut middles: Vec<f32> = values.windows(2).map(middle).collect();
        middles.resize(values.len().next_power_of_two() - 1, f32::INFINITY);
        Some(Self { values: values.to_vec(), middles })
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// `codes[i]` = number of the value nearest to `x[i]`; of two equally near, the lower one (where the middle between them is an f32). Over the
    /// shorter of the two. A NaN becomes 0.
    pub fn nearest(&self, isa: Isa, x: &[f32], codes: &mut [u8]) {
        if self.values.len() <= FEW {
            count(isa, &self.middles, x, codes);
        } else {
            search(isa, &self.middles, x, codes);
        }
    }

    /// `out[i] = values[codes[i]]`, over the shorter of the two; a code that stands for nothing becomes the last value.
    pub fn look_up(&self, codes: &[u8], out: &mut [f32]) {
        let mut all = [self.values[self.values.len() - 1]; 256];
        all[..self.values.len()].copy_from_slice(&self.values);
        out.iter_mut().zip(codes).for_each(|(o, c)| *o = all[usize::from(*c)]);
    }
}

versions! {
    /// How many middles lie below: 16 values side by side.
    fn count(isa: Isa, middles: &[f32], x: &[f32], codes: &mut [u8]) {
        for (x, codes) in x.chunks(16).zip(codes.chunks_mut(16)) {
            let (mut values, mut below) = ([0f32; 16], [0u32; 16]);
            values[..x.len()].copy_from_slice(x);
            for m in middles {
                for i in 0..16 {
                    below[i] += u32::from(values[i] > *m);
                }
            }
            codes.iter_mut().zip(below).for_each(|(c, b)| *c = b as u8);
        }
    }

    /// Halving without branches, 16 values side by side.
    fn search(isa: Isa, middles: &[f32], x: &[f32], codes: &mut [u8]) {
        for (x, codes) in x.chunks(16).zip(codes.chunks_mut(16)) {
            let (mut values, mut at) = ([0f32; 16], [0usize; 16]);
            values[..x.len()].copy_from_slice(x);
            let mut half = middles.len().div_ceil(2);
            while half > 0 {
                for i in 0..16 {
                    // Below the length: all steps before add up to a multiple of twice this one.
                    let above = values[i] > middles[(at[i] + half - 1).min(middles.len() - 1)];
                    at[i] += if above { half } else { 0 };
                }
                half /= 2;
            }
            codes.iter_mut().zip(at).for_each(|(c, a)| *c = a as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_nearest_on_every_level(
            mut values in prop::collection::vec(-100f32..100.0, 1..=256), x in prop::collection::vec(-120f32..120.0, 0..300)
        ) {
            values.sort_by(f32::total_cmp);
            values.dedup();
            let book = Codebook::new(&values).unwrap();
            let mut want = vec![0u8; x.len()];
            book.nearest(Isa::SCALAR, &x, &mut want);
            for isa in Isa::available() {
                let mut got = vec![0u8; x.len()];
                book.nearest(isa, &x, &mut got);
                prop_assert_eq!(&got, &want);
            }
            let mut back = vec![0f32; x.len()];
            book.look_up(&want, &mut back);
            for (x, found) in x.iter().zip(&back) {
                let least = values.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((found - x).abs() <= least + 1e-5);
            }
            // Each value is its own nearest.
            let mut own = vec![0u8; values.len()];
            book.nearest(Isa::detect(), &values, &mut own);
            prop_assert!(own.iter().enumerate().all(|(i, c)| i == usize::from(*c)));
        }
    }

    #[test]
    fn ties_extremes_and_refusals() {
        for n in [2, 4, 16, 17, 256] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let book = Codebook::new(&values).unwrap();
            let mut codes = [9u8; 5];
            book.nearest(Isa::detect(), &[0.5, -1e30, 1e30, f32::NAN, f32::INFINITY], &mut codes);
            let last = (n - 1) as u8;
            assert_eq!(codes, [0, 0, last, 0, last]);
        }
        assert!(
            Codebook::new(&[]).is_none()
                && Codebook::new(&[1.0, 1.0]).is_none()
                && Codebook::new(&[f32::NAN]).is_none()
        );
        assert!(Codebook::new(&vec![0.0; 257]).is_none());
        let mut codes = [7u8; 2];
        Codebook::new(&[3.0]).unwrap().nearest(Isa::detect(), &[1.0, 5.0], &mut codes);
        assert_eq!(codes, [0, 0]);
    }
}
