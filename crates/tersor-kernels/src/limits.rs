//! Peak rates of the machine for benchmarks to compare with: loops that only read memory or only compute.
//!
//! ```
//! use tersor_kernels::{Isa, limits};
//! assert_eq!(limits::read(&[1, 2, 3]), 6);
//! let done = limits::arithmetic(Isa::detect(), limits::Arithmetic::F32, 1000);
//! assert!(done.is_none_or(|(operations, _)| operations > 0));
//! ```

use crate::Isa;

/// Returns the wrapping sum of 64-bit words. The loop is bound by memory bandwidth, so that its time tells how fast the machine reads.
#[must_use]
pub fn read(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    let chunks = words.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (l, w) in lanes.iter_mut().zip(chunk) {
            *l = l.wrapping_add(*w);
        }
    }
    lanes.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// The kinds of multiply-adds whose peak rate [`arithmetic`] measures: of f32, or of bytes that are summed in 32 or in 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// Fused multiply-adds of f32.
    F32,
    /// Products of bytes, summed in 32 bits.
    Bytes32,
    /// Products of bytes, summed in 16 bits with saturation.
    Bytes16,
}

/// Runs `steps` rounds of a loop of independent multiply-adds in registers on the calling thread. Returns the number of multiply-adds
/// performed, of which a vector instruction does many, to be divided by the time of the call, and a number without meaning that depends on
/// all of them, so that the compiler keeps them. Returns None at [`Isa::SCALAR`], which has no vector instructions.
#[must_use]
pub fn arithmetic(isa: Isa, kind: Arithmetic, steps: u64) -> Option<(u64, i32)> {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves the instructions.
        return unsafe {
            Some(match kind {
                Arithmetic::F32 => crate::arch::peaks::f32(steps),
                Arithmetic::Bytes32 if isa.has_avx512_vnni() => crate::arch::peaks::vnni(steps),
                Arithmetic::Bytes32 => crate::arch::peaks::bytes32(steps),
                Arithmetic::Bytes16 => crate::arch::peaks::bytes16(steps),
            })
        };
    }
    let _ = (isa, kind, steps);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_run_and_count() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(read(&words), 499_500);
        for isa in Isa::available() {
            for kind in [Arithmetic::F32, Arithmetic::Bytes32, Arithmetic::Bytes16] {
                let done = arithmetic(isa, kind, 1000);
                assert_eq!(done.is_some(), isa != Isa::SCALAR);
                assert!(done.is_none_or(|d| d.0 >= 80_000 && d.0 % 1000 == 0));
            }
        }
    }
}
