//! The block types: their sizes and how their blocks are decoded. Layouts are those of llama.cpp's `ggml-quants.c`.

use half::{bf16, f16};
use tersor_core::{Error, Result};

/// The stored type of a GGUF tensor (`ggml_type`). `F32`, `F16` and `BF16` store floats, each of which counts as a block of one element.
/// The other types store blocks of consecutive elements of a row, each with integer codes and the scales that they share: `Q4_0`, `Q4_1`,
/// `Q5_0`, `Q5_1` and `Q8_0` have blocks of 32 elements, `Q2_K`, `Q3_K`, `Q4_K`, `Q5_K` and `Q6_K` blocks of 256. The digit after `Q` is
/// the number of bits of a code. There is no default type.
///
/// ```
/// use tersor_formats::gguf::BlockType;
/// let x: Vec<f32> = (0..32).map(|i| i as f32 / 8.0).collect();
/// let mut block = vec![0u8; BlockType::Q8_0.bytes()];
/// BlockType::Q8_0.encode(&x, &mut block).unwrap();
/// let mut y = vec![0f32; 32];
/// BlockType::Q8_0.decode(&block, &mut y).unwrap();
/// assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 0.02));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(non_camel_case_types)]
pub enum BlockType {
    /// 32-bit floats.
    F32,
    /// IEEE half-precision floats.
    F16,
    /// bfloat16 floats.
    BF16,
    /// 4-bit codes in blocks of 32: `d * (code - 8)` with an f16 scale `d`.
    Q4_0,
    /// 4-bit codes in blocks of 32: `d * code + m` with an f16 scale `d` and minimum `m`.
    Q4_1,
    /// 5-bit codes in blocks of 32: `d * (code - 16)` with an f16 scale `d`.
    Q5_0,
    /// 5-bit codes in blocks of 32: `d * code + m` with an f16 scale `d` and minimum `m`.
    Q5_1,
    /// 8-bit signed codes in blocks of 32: `d * code` with an f16 scale `d`.
    Q8_0,
    /// 2-bit codes in blocks of 256, with a 4-bit scale and a 4-bit minimum for each 16 elements.
    Q2_K,
    /// 3-bit codes in blocks of 256, with a 6-bit scale for each 16 elements.
    Q3_K,
    /// 4-bit codes in blocks of 256, with a 6-bit scale and a 6-bit minimum for each 32 elements.
    Q4_K,
    /// 5-bit codes in blocks of 256, with a 6-bit scale and a 6-bit minimum for each 32 elements.
    Q5_K,
    /// 6-bit codes in blocks of 256, with an 8-bit scale for each 16 elements.
    Q6_K,
}

use BlockType::*;

impl BlockType {
    /// All 13 block types. [`BlockType::decode`] handles each of them, [`BlockType::encode`] all but Q2_K and Q3_K.
    pub const ALL: [BlockType; 13] = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];

    /// Returns the number of this type in GGUF files (`ggml_type`), such as 2 for Q4_0.
    pub const fn id(self) -> u32 {
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q2_K => 10,
            Q3_K => 11,
            Q4_K => 12,
            Q5_K => 13,
            Q6_K => 14,
            BF16 => 30,
        }
    }

    /// Returns the type whose number in GGUF files (`ggml_type`) is `id`. Errors if it is the number of none of [`BlockType::ALL`].
    pub fn from_id(id: u32) -> Result<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id).ok_or_else(|| Error::Unsupported {
            what: "GGUF tensor type",
            value: format!("number {id} (supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K)"),
        })
    }

    /// Returns the type's name as llama.cpp prints it, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
        }
    }

    /// Returns the number of elements of one block: 1 for F32, F16 and BF16; 32 for Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0; 256 for the types that
    /// end in `_K`.
    pub const fn elements(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            _ => 256,
        }
    }

    /// Returns the number of stored bytes of one block, codes and scales together: 18 for the 32 elements of a Q4_0 block, 4 for one F32.
    pub const fn bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }

    /// Decodes the blocks in `bytes`, which are stored one after the other, into f32 values in `out`, one value for each element. Errors
    /// unless `out.len()` is a multiple of [`BlockType::elements`] and `bytes.len()` is [`BlockType::bytes`] times the number of blocks. A
    /// stored float or scale that is NaN or infinite is no error: it gives values that are NaN or infinite.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let blocks = out.len() / self.elements();
        if !out.len().is_multiple_of(self.elements()) || blocks.checked_mul(self.bytes()) != Some(bytes.len()) {
            return Err(Error::shape("bytes of GGUF blocks", blocks * self.bytes(), bytes.len()));
        }
        let one: fn(&[u8], &mut [f32]) = match self {
            F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            F16 => |b, y| y[0] = half_at(b, 0),
            BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Q4_0 => q4_0,
            Q4_1 => q4_1,
            Q5_0 => q5_0,
            Q5_1 => q5_1,
            Q8_0 => q8_0,
            Q2_K => q2_k,
            Q3_K => q3_k,
            Q4_K => q4_k,
            Q5_K => q5_k,
            Q6_K => q6_k,
        };
        for (b, y) in bytes.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.elements())) {
            one(b, y);
        }
        Ok(())
    }
}

/// Reads the little-endian f16 at byte `at`.
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for j in 0..16 {
        y[j] = (f32::from(b[2 + j] & 15) - 8.0) * d;
        y[j + 16] = (f32::from(b[2 + j] >> 4) - 8.0) * d;
    }
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for j in 0..16 {
        y[j] = f32::from(b[4 + j] & 15) * d + m;
        y[j + 16] = f32::from(b[4 + j] >> 4) * d + m;
    }
}

/// Returns the fifth bits of codes `j` and `j + 16`, as 0 or 16. The fifth bits of all 32 codes form one little-endian word at byte `at`.
fn fifth(b: &[u8], at: usize, j: usize) -> [u8; 2] {
    let word = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    [((word >> j) & 1) as u8 * 16, ((word >> (j + 16)) & 1) as u8 * 16]
}

fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for j in 0..16 {
        let high = fifth(b, 2, j);
        y[j] = (f32::from(b[6 + j] & 15 | high[0]) - 16.0) * d;
        y[j + 16] = (f32::from(b[6 + j] >> 4 | high[1]) - 16.0) * d;
    }
}

fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for j in 0..16 {
        let high = fifth(b, 4, j);
        y[j] = f32::from(b[8 + j] & 15 | high[0]) * d + m;
        y[j + 16] = f32::from(b[8 + j] >> 4 | high[1]) * d + m;
    }
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    y.iter_mut().zip(&b[2..]).for_each(|(y, &q)| *y = f32::from(q as i8) * d);
}

/// Block layout: 16 bytes of scales and minimums, 64 bytes of 2-bit codes, `d`, `dmin`.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.chunks_exact_mut(16).enumerate() {
        // 128 elements share 32 bytes: sub-block `i` takes two bits of 16 of them.
        let (half, shift, side) = (i / 8, i % 8 / 2 * 2, i % 2);
        let (dl, ml) = (d * f32::from(scales[i] & 15), dmin * f32::from(scales[i] >> 4));
        let q = &qs[32 * half + 16 * side..][..16];
        y.iter_mut().zip(q).for_each(|(y, &q)| *y = dl * f32::from((q >> shift) & 3) - ml);
    }
}

/// Block layout: 32 bytes of high bits, 64 bytes of the two low bits, 12 bytes of 6-bit scales, `d`.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (high, qs, packed) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half_at(b, 108);
    for (i, y) in y.chunks_exact_mut(16).enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let top = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
        let dl = d * (f32::from(low | top << 4) - 32.0);
        let (half, shift, side) = (i / 8, i % 8 / 2 * 2, i % 2);
        let mask = 1u8 << (i / 2);
        for (l, y) in y.iter_mut().enumerate() {
            let q = (qs[32 * half + 16 * side + l] >> shift) & 3;
            let sub = if high[16 * side + l] & mask == 0 { 4.0 } else { 0.0 };
            *y = dl * (f32::from(q) - sub);
        }
    }
}

/// Returns the 6-bit scale and minimum of sub-block `j` from the twelve bytes `s` of a Q4_K or Q5_K block.
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (sc, m) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
    };
    (f32::from(sc), f32::from(m))
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(j, scales);
        let (scale, min) = (d * sc, dmin * m);
        for (y, &q) in y.iter_mut().zip(&qs[32 * (j / 2)..]) {
            *y = scale * f32::from((q >> (4 * (j % 2))) & 15) - min;
        }
    }
}

fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, high, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48], &b[48..176]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(j, scales);
        let (scale, min) = (d * sc, dmin * m);
        for ((y, &q), &h) in y.iter_mut().zip(&qs[32 * (j / 2)..]).zip(high) {
            *y = scale * f32::from((q >> (4 * (j % 2))) & 15 | (h >> j & 1) << 4) - min;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (half, y) in y.chunks_exact_mut(128).enumerate() {
        for (e, y) in y.iter_mut().enumerate() {
            let (quarter, l) = (e / 32, e % 32);
            let nibble = (low[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2))) & 15;
            let top = (high[32 * half + l] >> (2 * quarter)) & 3;
            let scale = f32::from(scales[8 * half + e / 16] as i8);
            *y = d * scale * (f32::from(nibble | top << 4) - 32.0);
        }
    }
}
