//! Conversions between f32 and the 16-bit float types f16 and bf16, with the same bits on every instruction set.
//!
//! ```
//! use half::f16;
//! use tersor_kernels::{Isa, convert};
//! let mut half = [f16::ZERO; 2];
//! convert::f32_to_f16(Isa::detect(), &[0.1, 1e6], &mut half);
//! let mut back = [0f32; 2];
//! convert::f16_to_f32(Isa::detect(), &half, &mut back);
//! assert_eq!(back, [0.099975586, f32::INFINITY]);
//! ```

use half::{bf16, f16};

use crate::Isa;
use crate::isa::versions;

/// Converts f16 to f32, exactly. Works on as many values as the shorter of `x` and `out` has; later elements of `out` are unchanged. A NaN
/// becomes a quiet NaN with the same sign and payload.
pub fn f16_to_f32(isa: Isa, x: &[f16], out: &mut [f32]) {
    let n = x.len().min(out.len());
    let (mut x, mut out) = (&x[..n], &mut out[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        let ((body, rest), (whole, last)) = (x.as_chunks::<16>(), out.as_chunks_mut::<16>());
        // SAFETY: `isa` proves the instructions.
        unsafe {
            match isa.has_avx512_vnni() {
                true => crate::arch::halves::widen_16(body, whole),
                false => crate::arch::halves::widen_8(body, whole),
            }
        }
        (x, out) = (rest, last);
    }
    let _ = isa;
    out.iter_mut().zip(x).for_each(|(o, x)| *o = x.to_f32_const());
}

/// Rounds f32 to the nearest f16, ties to even. Works on as many values as the shorter of `x` and `out` has; later elements of `out` are
/// unchanged. Values too large for f16 become infinite; a NaN becomes a quiet NaN with the same sign and the highest bits of its payload.
pub fn f32_to_f16(isa: Isa, x: &[f32], out: &mut [f16]) {
    let n = x.len().min(out.len());
    let (mut x, mut out) = (&x[..n], &mut out[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        let ((body, rest), (whole, last)) = (x.as_chunks::<16>(), out.as_chunks_mut::<16>());
        // SAFETY: `isa` proves the instructions.
        unsafe {
            match isa.has_avx512_vnni() {
                true => crate::arch::halves::narrow_16(body, whole),
                false => crate::arch::halves::narrow_8(body, whole),
            }
        }
        (x, out) = (rest, last);
    }
    let _ = isa;
    out.iter_mut().zip(x).for_each(|(o, x)| *o = f16::from_f32_const(*x));
}

versions! {
    /// Converts bf16 to f32, exactly. Works on as many values as the shorter of `x` and `out` has; later elements of `out` are unchanged. A
    /// NaN becomes a quiet NaN with the same sign and payload.
    pub fn bf16_to_f32(isa: Isa, x: &[bf16], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x) {
            let bits = u32::from(x.to_bits());
            let quiet = if bits & 0x7fff > 0x7f80 { 0x40 } else { 0 };
            *o = f32::from_bits((bits | quiet) << 16);
        }
    }

    /// Rounds f32 to the nearest bf16, ties to even. Works on as many values as the shorter of `x` and `out` has; later elements of `out`
    /// are unchanged. Values too large for bf16 become infinite; a NaN becomes a quiet NaN with the same sign and the highest bits of its
    /// payload.
    pub fn f32_to_bf16(isa: Isa, x: &[f32], out: &mut [bf16]) {
        for (o, x) in out.iter_mut().zip(x) {
            let bits = x.to_bits();
            // Half a unit in the last place, or a little less where a tie goes down. The carry may make it infinite.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let nan = bits & 0x7fff_ffff > 0x7f80_0000;
            *o = bf16::from_bits(if nan { bits >> 16 | 0x40 } else { rounded } as u16);
        }
    }
}

/// Returns the value of an f16 given by its bits, in plain Rust.
pub(crate) fn f16_value(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// Returns the bits of the f16 nearest to `value`, in plain Rust.
pub(crate) fn f16_bits(value: f32) -> u16 {
    f16::from_f32_const(value).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn widening_is_the_same_on_every_level_for_every_value() {
        let all: Vec<u16> = (0..=u16::MAX).step_by(if cfg!(miri) { 251 } else { 1 }).collect();
        let halves: Vec<f16> = all.iter().map(|b| f16::from_bits(*b)).collect();
        let bfloats: Vec<bf16> = all.iter().map(|b| bf16::from_bits(*b)).collect();
        for isa in Isa::available() {
            // An odd length, so that values are also converted one by one.
            for skip in [0, 1] {
                let mut out = vec![0f32; all.len() - skip];
                f16_to_f32(isa, &halves[skip..], &mut out);
                assert!(out.iter().zip(&halves[skip..]).all(|(o, x)| o.to_bits() == x.to_f32_const().to_bits()));
                bf16_to_f32(isa, &bfloats[skip..], &mut out);
                assert!(out.iter().zip(&bfloats[skip..]).all(|(o, x)| o.to_bits() == x.to_f32().to_bits()));
            }
        }
    }

    fn narrowed(isa: Isa, x: &[f32]) -> (Vec<u16>, Vec<u16>) {
        let (mut halves, mut bfloats) = (vec![f16::ZERO; x.len()], vec![bf16::ZERO; x.len()]);
        f32_to_f16(isa, x, &mut halves);
        f32_to_bf16(isa, x, &mut bfloats);
        (halves.iter().map(|h| h.to_bits()).collect(), bfloats.iter().map(|b| b.to_bits()).collect())
    }

    fn check(x: &[f32]) {
        let halves = x.iter().map(|x| f16::from_f32_const(*x).to_bits()).collect::<Vec<u16>>();
        let bfloats = x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect::<Vec<u16>>();
        for isa in Isa::available() {
            assert!(narrowed(isa, x) == (halves.clone(), bfloats.clone()), "{}", isa.name());
        }
    }

    proptest! {
        #[test]
        fn narrowing_is_the_same_on_every_level(bits in prop::collection::vec(any::<u32>(), 0..100)) {
            check(&bits.into_iter().map(f32::from_bits).collect::<Vec<f32>>());
        }
    }

    #[test]
    fn narrowing_is_the_same_around_every_half_and_its_middles() {
        let mut x = Vec::new();
        for base in (0..=u16::MAX).step_by(if cfg!(miri) { 1021 } else { 1 }) {
            let (half, bfloat) = (f16::from_bits(base).to_f32_const().to_bits(), u32::from(base) << 16);
            for bits in [half, half.wrapping_add(0x1000), bfloat, bfloat.wrapping_add(0x8000)] {
                x.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(f32::from_bits));
            }
        }
        check(&x);
    }
}
