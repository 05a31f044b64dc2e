//! From values to blocks, by the rules that llama.cpp's own quantizer has where it knows nothing of the data.

use half::{bf16, f16};
use tersor_core::{Error, Result};

use super::BlockType::{self, *};

impl BlockType {
    /// Whether [`BlockType::encode`] writes it.
    pub const fn is_written(self) -> bool {
        !matches!(self, Q2_K | Q3_K)
    }

    /// Encodes whole blocks of finite values. Error when the lengths do not match, the type is only read, or a value or scale does not fit into
    /// the half-precision numbers of the type.
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
                    "{} (written are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)",
                    self.name()
                );
                return Err(Error::Unsupported { what: "GGUF type to write", value });
            }
        };
        for (i, (x, b)) in x.chunks_exact(self.elements()).zip(out.chunks_exact_mut(self.bytes())).enumerate() {
            let max = x.iter().fold(0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
            // Squares stay finite, far above what half-precision scales reach.
            let fits = max <= if matches!(self, F32 | BF16) { f32::MAX } else { 1e15 };
            if !fits || !one(x, b) {
                return Err(Error::ScaleRange { row: 0, group: i, value: max, dtype: self.name() });
            }
        }
        Ok(())
    }

    /// A block of codes as they are: `d * (code - zero)` of the types with a scale, `d * code + m` of those with a minimum. For grids that are the
    /// type's own. None when the type is none of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, there are not 32 codes, one is too large, or a number does not
    /// fit into half precision.
    pub fn pack(self, d: f32, m: f32, codes: &[u8], out: &mut [u8]) -> Option<()> {
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

/// Writes a half; what it is when read. None when it is not finite.
fn put_half(b: &mut [u8], at: usize, v: f32) -> Option<f32> {
    let half = f16::from_f32(v);
    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.is_finite().then(|| half.to_f32())
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first 16 codes in the low halves.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    for (j, o) in out.iter_mut().take(16).enumerate() {
        *o = (codes[j] & 15) | (codes[j + 16] & 15) << 4;
    }
}

/// The fifth bits in a word, then the rest.
fn fifths(codes: &[u8], out: &mut [u8]) {
    let word = codes.iter().enumerate().fold(0u32, |w, (j, c)| w | u32::from(c >> 4 & 1) << j);
    out[..4].copy_from_slice(&word.to_le_bytes());
    nibbles(codes, &mut out[4..]);
}

/// The element of largest magnitude, the first of equals, with its sign, becomes the lowest code.
fn symmetric<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let half = (1u32 << (BITS - 1)) as f32;
    let max = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = max / -half;
    let id = inverse(d);
    let codes: [u8; 32] = std::array::from_fn(|j| ((x[j] * id + half + 0.5) as i32).clamp(0, (1 << BITS) - 1) as u8);
    let kind = if BITS == 4 { Q4_0 } else { Q5_0 };
    kind.pack(d, 0.0, &codes, b).is_some()
}

/// Steps from the smallest element to the largest.
fn ranged<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let (low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let d = (high - low) / ((1 << BITS) - 1) as f32;
    let id = inverse(d);
    let codes: [u8; 32] = std::array::from_fn(|j| (((x[j] - low) * id + 0.5) as i32).clamp(0, (1 << BITS) - 1) as u8);
    let kind = if BITS == 4 { Q4_1 } else { Q5_1 };
    kind.pack(d, low, &codes, b).is_some()
}

fn q8_0(x: &[f32], b: &mut [u8]) -> bool {
    let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    // Halves go away from zero.
    let codes: [u8; 32] = std::array::from_fn(|j| ((x[j] * id).round() as i32 + 128).clamp(0, 255) as u8);
    Q8_0.pack(d, 0.0, &codes, b).is_some()
}

/// Scale and minimum (not negative) of a sub-block, by weighted least squares over steps of several sizes.
fn fit<const MOST: i32>(x: &[f32], weights: &[f32], first: f32, steps: i32) -> (f32, f32, [u8; 32]) {
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
    let code = |inverse: f32, v: f32, low: f32| (inverse * (v - low)).round_ties_even().clamp(0.0, MOST as f32);
    let error = |codes: &[u8; 32], scale: f32, low: f32| -> f32 {
        let each = |((v, w), c): ((&f32, &f32), &u8)| w * (scale * f32::from(*c) + low - v).powi(2);
        x.iter().zip(weights).zip(codes).map(each).sum()
    };
    let inverse = MOST as f32 / (high - low);
    let mut codes: [u8; 32] = std::array::from_fn(|j| code(inverse, x[j], low) as u8);
    let mut scale = 1.0 / inverse;
    let mut best = error(&codes, scale, low);
    for step in 0..=steps {
        let inverse = (first + 0.1 * step as f32 + MOST as f32) / (high - low);
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

/// Q4_K and Q5_K: eight sub-blocks with 6-bit scales and minimums.
fn scales_and_minimums<const BITS: u32>(x: &[f32], b: &mut [u8]) -> bool {
    let (mut scales, mut lows, mut codes) = ([0f32; 8], [0f32; 8], [[0u8; 32]; 8]);
    for (j, x) in x.chunks_exact(32).enumerate() {
        let mean = (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt();
        let weights: [f32; 32] = std::array::from_fn(|l| mean + x[l].abs());
        (scales[j], lows[j], codes[j]) =
            if BITS == 4 { fit::<15>(x, &weights, -1.0, 20) } else { fit::<31>(x, &weights, -0.5, 15) };
    }
    let max = |v: &[f32; 8]| v.iter().fold(0f32, |m, v| m.max(*v));
    let (most_scale, most_low) = (max(&scales), max(&lows));
    let six = |v: f32, max: f32| if max > 0.0 { (63.0 / max * v).round_ties_even().clamp(0.0, 63.0) as u8 } else { 0 };
    let sc: [u8; 8] = std::array::from_fn(|j| six(scales[j], most_scale));
    let m: [u8; 8] = std::array::from_fn(|j| six(lows[j], most_low));
    let (Some(d), Some(dmin)) = (put_half(b, 0, most_scale / 63.0), put_half(b, 2, most_low / 63.0)) else {
        return false;
    };
    b[4..16].copy_from_slice(&pack_scales(&sc, &m));
    // The codes that are best for what the scales have become.
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

/// Eight scales and eight minimums of 6 bits in twelve bytes.
fn pack_scales(sc: &[u8; 8], m: &[u8; 8]) -> [u8; 12] {
    let mut out = [0u8; 12];
    for j in 0..4 {
        out[j] = sc[j] | (sc[j + 4] >> 4) << 6;
        out[j + 4] = m[j] | (m[j + 4] >> 4) << 6;
        out[j + 8] = (sc[j + 4] & 15) | (m[j + 4] & 15) << 4;
    }
    out
}

/// A signed scale of 16 values: of steps of several sizes the one that keeps most of their energy.
fn fit_signed(x: &[f32]) -> f32 {
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

fn q6_k(x: &[f32], b: &mut [u8]) -> bool {
    let mut scales = [0f32; 16];
    x.chunks_exact(16).zip(&mut scales).for_each(|(x, s)| *s = fit_signed(x));
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
