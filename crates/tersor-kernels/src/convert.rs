//! f16 and bf16 to f32 and back, with the processor's own conversions where it has them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Widens f16 over the shorter of the two slices.
pub fn f16_to_f32(x: &[f16], out: &mut [f32]) {
    let n = x.len().min(out.len());
    x[..n].convert_to_f32_slice(&mut out[..n]);
}

/// Widens bf16 over the shorter of the two slices.
pub fn bf16_to_f32(x: &[bf16], out: &mut [f32]) {
    let n = x.len().min(out.len());
    x[..n].convert_to_f32_slice(&mut out[..n]);
}

/// Rounds to the nearest f16, ties to even; too large becomes infinite.
pub fn f32_to_f16(x: &[f32], out: &mut [f16]) {
    let n = x.len().min(out.len());
    out[..n].convert_from_f32_slice(&x[..n]);
}

/// Rounds to the nearest bf16, ties to even; too large becomes infinite.
pub fn f32_to_bf16(x: &[f32], out: &mut [bf16]) {
    let n = x.len().min(out.len());
    out[..n].convert_from_f32_slice(&x[..n]);
}
