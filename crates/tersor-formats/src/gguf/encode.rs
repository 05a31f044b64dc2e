//! Encodes values into blocks by the reference rules of llama.cpp (`quantize_row_*_ref`), which use no importance data.

use half::{bf16, f16};
use tersor_core::{Error, Result};

use super::BlockType::{self, *};

impl BlockType {
    /// Returns whether [`BlockType::encode`] can write this type: true for all types but Q2_K and Q3_K.
    pub const fn can_encode(self) -> bool {
        !matches!(self, Q2_K | Q3_K)
    }

    /// Quantizes the values `x` into blocks of this type by llama.cpp's reference rules (`quantize_row_*_ref`, without an importance
    /// matrix), and writes the blocks to `out`, one after the other.
    ///
    /// Errors, with `out` unchanged, if `x.len()` is not a multiple of [`BlockType::elements`], if `out.len()` is not [`BlockType::bytes`]
    /// times the number of blocks, or if this type is Q2_K or Q3_K. Errors, with a part of `out` written, if a value is NaN or infinite, or
    /// if a value or the scale of a block exceeds the range of the float type that stores it.
    pub fn encode(self, x: &[f32], out: &mut [u8]) -> Result<()> {
        let blocks = x.len() / self.elements();
        if !x.len().is_multiple_of(self.elements()) || blocks.checked_mul(self.bytes()) != Some(out.len()) {
            return Err(Error::shape("bytes of GGUF blocks", blocks * self.bytes(), out.len()));
        }
        let one: fn(&[f32], &mut [u8]) -> bool = match self {
            F32 => |x, b| {
                b.copy_from_slice(&x[0].to_le_bytes());
                true
            },
            F16 => |x, b| put_half(b, 0, x[0]).is_some(),
            BF16 => |x, b| {
                b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes());
                bf16::from_f32(x[0]).is_finite()
            },
            Q4_0 => |x, b| symmetric::<4>(x, b),
            Q5_0 => |x, b| symmetric::<5>(x, b),
            Q4_1 => |x, b| ranged::<4>(x, b),
            Q5_1 => |x, b| ranged::<5>(x, b),
            Q8_0 => q8_0,
            Q4_K => |x, b| scales_and_minimums::<4>(x, b),
            Q5_K => |x, b| scales_and_minimums::<5>(x, b),
            Q6_K => q6_k,
            Q2_K | Q3_K => {
                let value = format!(
                    "{} (supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)",
                    self.name()
                );
                return Err(Error::Unsupported { what: "GGUF type to write", value });
            }
        };
        for (i, (x, b)) in x.chunks_exact(self.elements()).zip(out.chunks_exact_mut(self.bytes())).enumerate() {
            let max = x.iter().fold(0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
            // The bound keeps squares finite and is far above what half-precision scales can represent.
            let fits = max <= if matches!(self, F32 | BF16) { f32::MAX } else { 1e15 };
            if !fits || !one(x, b) {
                return Err(Error::ScaleRange { row: 0, group: i, value: max, dtype: self.name() });
            }
        }
        Ok(())
    }

    /// Writes one block with the 32 given codes to `out`, which has [`BlockType::bytes`] bytes; nothing is quantized. The block decodes to
    /// `d * (code - zero)` for Q4_0, Q5_0 and Q8_0, whose zeros are 8, 16 and 128, and to `d * code + m` for Q4_1 and Q5_1. `d` and `m` are
    /// rounded to f16; Q4_0, Q5_0 and Q8_0 ignore `m`.
    ///
    /// Returns Some if the block was written. Returns None, with the content of `out` unspecified, if this is another type, if there are
    /// not exactly 32 codes, if `out` has another length, if a code is above 15 (Q4_0, Q4_1) or 31 (Q5_0, Q5_1), or if `d` is not finite in
    /// f16. Returns None for Q4_1 and Q5_1 also if `m` is not finite in f16.
    pub fn pack_codes(self, d: f32, m: f32, codes: &[u8], out: &mut [u8]) -> Option<()> {
        let max = match self {
            Q4_0 | Q4_1 => 15,
            Q5_0 | Q5_1 => 31,
            Q8_0 => 255,
            _ => return None,
        };
        if codes.len() != 32 || out.len() != self.bytes() || codes.iter().any(|c| *c > max) {
            return None;
        }
        put_half(out, 0, d)?;
        match self {
            Q4_0 => nibbles(codes, &mut out[2..]),
            Q4_1 => {
                put_half(out, 2, m)?;
                nibbles(codes, &mut out[4..]);
            }
            Q5_0 => fifths(codes, &mut out[2..]),
            Q5_1 => {
                put_half(out, 2, m)?;
                fifths(codes, &mut out[4..]);
            }
            _ => out[2..].iter_mut().zip(codes).for_each(|(o, c)| *o = c.wrapping_sub(128)),
        }
        Some(())
    }
}

/// Writes `v` as a little-endian f16 at byte `at` and returns the rounded value. None if it is not finite.
fn put_half(b: &mut [u8], at: usize, v: f32) -> Option<f32> {
    let half = f16::from_f32(v);
    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.is_finite().then(|| half.to_f32())
}

/// Returns `1 / d`, or 0 for a zero `d`.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Packs 32 4-bit codes into 16 bytes: codes 0 to 15 in the low halves, codes 16 to 31 in the high halves.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    for (j, o) in out.iter_mut().take(16).enumerate() {
        *o = (codes[j] & 15) | (codes[j + 16] & 15) << 4;
    }
}

/// Packs 32 5-bit codes: the fifth bits as one little-endian word, then the low four bits as in [`nibbles`].
fn fifths(codes: &[u8], out: &mut [u8]) {
    let word = codes.iter().enumerate().fold(0u32, |w, (j, c)| w | u32::from(c >> 4 & 1) << j);
    out[..4].copy_from_slice(&word.to_le_bytes());
    nibbles(codes, &mut out[4..]);
}

/// Encodes a block of Q4_0 or Q5_0. The element of largest magnitude (the first, if several are equal) gets code 0, and its sign that of the
/// scale.
fn symmetric<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let half = (1u32 << (BITS - 1)) as f32;
    let max = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = max / -half;
    let id = inverse(d);
    let codes: [u8; 32] = std::array::from_fn(|j| ((x[j] * id + half + 0.5) as i32).clamp(0, (1 << BITS) - 1) as u8);
    let kind = if BITS == 4 { Q4_0 } else { Q5_0 };
    kind.pack_codes(d, 0.0, &codes, b).is_some()
}

/// Encodes a block of Q4_1 or Q5_1 with evenly spaced values from the smallest element to the largest.
fn ranged<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let (low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let d = (high - low) / ((1 << BITS) - 1) as f32;
    let id = inverse(d);
    let codes: [u8; 32] = std::array::from_fn(|j| (((x[j] - low) * id + 0.5) as i32).clamp(0, (1 << BITS) - 1) as u8);
    let kind = if BITS == 4 { Q4_1 } else { Q5_1 };
    kind.pack_codes(d, low, &codes, b).is_some()
}

/// Encodes a block of Q8_0 with the scale `max |x| / 127`.
fn q8_0(x: &[f32], b: &mut [u8]) -> bool {
    let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    // llama.cpp rounds halves away from zero here.
    let codes: [u8; 32] = std::array::from_fn(|j| ((x[j] * id).round() as i32 + 128).clamp(0, 255) as u8);
    Q8_0.pack_codes(d, 0.0, &codes, b).is_some()
}

/// Returns scale, minimum (not negative, subtracted) and codes of a sub-block by weighted least squares over several trial scales
/// (llama.cpp's `make_qkx2_quants`). `MAX` is the largest code.
fn least_squares<const MAX: i32>(x: &[f32], weights: &[f32], first: f32, steps: i32) -> (f32, f32, [u8; 32]) {
    let (mut low, mut high) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (0f32, 0f32);
    for (v, w) in x.iter().zip(weights) {
        (low, high) = (low.min(*v), high.max(*v));
        (sum_w, sum_x) = (sum_w + w, sum_x + w * v);
    }
    low = low.min(0.0);
    if high == low {
        return (0.0, -low, [0; 32]);
    }
    let code = |inverse: f32, v: f32, low: f32| (inverse * (v - low)).round_ties_even().clamp(0.0, MAX as f32);
    let error = |codes: &[u8; 32], scale: f32, low: f32| -> f32 {
        let each = |((v, w), c): ((&f32, &f32), &u8)| w * (scale * f32::from(*c) + low - v).powi(2);
        x.iter().zip(weights).zip(codes).map(each).sum()
    };
    let inverse = MAX as f32 / (high - low);
    let mut codes: [u8; 32] = std::array::from_fn(|j| code(inverse, x[j], low) as u8);
    let mut scale = 1.0 / inverse;
    let mut best = error(&codes, scale, low);
    for step in 0..=steps {
        let inverse = (first + 0.1 * step as f32 + MAX as f32) / (high - low);
        let tried: [u8; 32] = std::array::from_fn(|j| code(inverse, x[j], low) as u8);
        let (mut l, mut l2, mut xl) = (0f32, 0f32, 0f32);
        for ((v, w), c) in x.iter().zip(weights).zip(&tried) {
            let c = f32::from(*c);
            (l, l2, xl) = (l + w * c, l2 + w * c * c, xl + w * c * v);
        }
        let determinant = sum_w * l2 - l * l;
        if determinant > 0.0 {
            let mut this = (sum_w * xl - sum_x * l) / determinant;
            let mut this_low = (l2 * sum_x - l * xl) / determinant;
            if this_low > 0.0 {
                (this_low, this) = (0.0, xl / l2);
            }
            let now = error(&tried, this, this_low);
            if now < best {
                (best, scale, low, codes) = (now, this, this_low, tried);
            }
        }
    }
    (scale, -low, codes)
}

/// Encodes a block of Q4_K or Q5_K: eight sub-blocks with 6-bit scales and minimums.
fn scales_and_minimums<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let (mut scales, mut lows, mut codes) = ([0f32; 8], [0f32; 8], [[0u8; 32]; 8]);
    for (j, x) in x.chunks_exact(32).enumerate() {
        let mean = (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt();
        let weights: [f32; 32] = std::array::from_fn(|l| mean + x[l].abs());
        (scales[j], lows[j], codes[j]) = if BITS == 4 {
            least_squares::<15>(x, &weights, -1.0, 20)
        } else {
            least_squares::<31>(x, &weights, -0.5, 15)
        };
    }
    let max = |v: &[f32; 8]| v.iter().fold(0f32, |m, v| m.max(*v));
    let (max_scale, max_low) = (max(&scales), max(&lows));
    let six = |v: f32, max: f32| if max > 0.0 { (63.0 / max * v).round_ties_even().clamp(0.0, 63.0) as u8 } else { 0 };
    let sc: [u8; 8] = std::array::from_fn(|j| six(scales[j], max_scale));
    let m: [u8; 8] = std::array::from_fn(|j| six(lows[j], max_low));
    let (Some(d), Some(dmin)) = (put_half(b, 0, max_scale / 63.0), put_half(b, 2, max_low / 63.0)) else {
        return false;
    };
    b[4..16].copy_from_slice(&pack_scales(&sc, &m));
    // Codes are computed again for the rounded scales and minimums.
    for (j, (x, codes)) in x.chunks_exact(32).zip(&mut codes).enumerate() {
        let (scale, low) = (d * f32::from(sc[j]), dmin * f32::from(m[j]));
        if scale != 0.0 {
            let code = |v: f32| ((v + low) / scale).round_ties_even().clamp(0.0, ((1 << BITS) - 1) as f32) as u8;
            codes.iter_mut().zip(x).for_each(|(c, v)| *c = code(*v));
        }
    }
    let qs = if BITS == 4 { 16 } else { 48 };
    for l in 0..32 {
        for pair in 0..4 {
            b[qs + 32 * pair + l] = (codes[2 * pair][l] & 15) | (codes[2 * pair + 1][l] & 15) << 4;
        }
        if BITS == 5 {
            b[16 + l] = (0..8).fold(0, |h, j| h | (codes[j][l] >> 4 & 1) << j);
        }
    }
    true
}

/// Packs eight scales and eight minimums of 6 bits into twelve bytes, as Q4_K and Q5_K blocks store them.
fn pack_scales(sc: &[u8; 8], m: &[u8; 8]) -> [u8; 12] {
    let mut out = [0u8; 12];
    for j in 0..4 {
        out[j] = sc[j] | (sc[j + 4] >> 4) << 6;
        out[j + 4] = m[j] | (m[j + 4] >> 4) << 6;
        out[j + 8] = (sc[j + 4] & 15) | (m[j + 4] & 15) << 4;
    }
    out
}

/// Returns the signed scale of 16 values with the smallest weighted squared error among several trial scales (llama.cpp's `make_qx_quants`).
fn signed_scale(x: &[f32]) -> f32 {
    let max = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    if max.abs() < 1e-15 {
        return 0.0;
    }
    let sums = |inverse: f32| {
        x.iter().fold((0f32, 0f32), |(xl, l2), v| {
            let (l, w) = ((inverse * v).round_ties_even().clamp(-32.0, 31.0), v * v);
            (xl + w * v * l, l2 + w * l * l)
        })
    };
    let (xl, l2) = sums(-32.0 / max);
    let mut scale = if l2 > 0.0 { xl / l2 } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|s| *s != 0) {
        let (xl, l2) = sums(-(32.0 + 0.1 * step as f32) / max);
        if l2 > 0.0 && xl * xl > best * l2 {
            scale = xl / l2;
            best = scale * xl;
        }
    }
    scale
}

/// Encodes a block of Q6_K: sixteen sub-blocks with 8-bit signed scales.
fn q6_k(x: &[f32], b: &mut [u8]) -> bool {
    let mut scales = [0f32; 16];
    x.chunks_exact(16).zip(&mut scales).for_each(|(x, s)| *s = signed_scale(x));
    let max = scales.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    b.fill(0);
    if max.abs() < 1e-15 {
        return true;
    }
    let inverse = -128.0 / max;
    let Some(d) = put_half(b, 208, 1.0 / inverse) else { return false };
    let mut codes = [32u8; 256];
    for (i, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let s = (inverse * scales[i]).round_ties_even().clamp(-128.0, 127.0) as i8;
        b[192 + i] = s as u8;
        let scale = d * f32::from(s);
        if scale != 0.0 {
            let code = |v: f32| ((v / scale).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8;
            codes.iter_mut().zip(x).for_each(|(c, v)| *c = code(*v));
        }
    }
    for (half, codes) in codes.chunks_exact(128).enumerate() {
        for l in 0..32 {
            let [a, c, e, g] = [0, 32, 64, 96].map(|k| codes[l + k]);
            b[64 * half + l] = (a & 15) | (e & 15) << 4;
            b[64 * half + 32 + l] = (c & 15) | (g & 15) << 4;
            b[128 + 32 * half + l] = a >> 4 | (c >> 4) << 2 | (e >> 4) << 4 | (g >> 4) << 6;
        }
    }
    true
}
