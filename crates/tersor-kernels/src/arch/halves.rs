//! f16 to f32 and back, with F16C and AVX-512 F.

use std::arch::x86_64::*;

use half::f16;

/// Converts f16 to f32, eight values a register. Slices are equally long.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn widen_8(x: &[[f16; 16]], out: &mut [[f32; 16]]) {
    for (x, out) in x.iter().zip(out) {
        for i in [0, 8] {
            // SAFETY: eight of 16 values of two bytes, and eight of 16 floats.
            unsafe {
                let v = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(i).cast()));
                _mm256_storeu_ps(out.as_mut_ptr().add(i), v);
            }
        }
    }
}

/// Converts f16 to f32, 16 values a register. Slices are equally long.
#[target_feature(enable = "avx512f")]
pub(crate) fn widen_16(x: &[[f16; 16]], out: &mut [[f32; 16]]) {
    for (x, out) in x.iter().zip(out) {
        // SAFETY: 16 values of two bytes, and 16 floats.
        unsafe {
            let v = _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), v);
        }
    }
}

/// Rounds f32 to f16, eight values a register. Slices are equally long.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn narrow_8(x: &[[f32; 16]], out: &mut [[f16; 16]]) {
    for (x, out) in x.iter().zip(out) {
        for i in [0, 8] {
            // SAFETY: eight of 16 floats, and eight of 16 values of two bytes.
            unsafe {
                let v = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr().add(i)));
                _mm_storeu_si128(out.as_mut_ptr().add(i).cast(), v);
            }
        }
    }
}

/// Rounds f32 to f16, 16 values a register. Slices are equally long.
#[target_feature(enable = "avx512f")]
pub(crate) fn narrow_16(x: &[[f32; 16]], out: &mut [[f16; 16]]) {
    for (x, out) in x.iter().zip(out) {
        // SAFETY: 16 floats, and 16 values of two bytes.
        unsafe {
            let v = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_loadu_ps(x.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v);
        }
    }
}
