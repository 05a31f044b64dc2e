//! [`Map`]: the codebook of block-wise quantization, with the value of each code relative to the largest magnitude of its block.

use std::fmt;
use std::sync::{Arc, LazyLock};

use tersor_core::{Isa, ParamError};
use tersor_kernels::blockwise;
use tersor_kernels::codebook::{Codebook, Table};

/// The values of QLoRA's NormalFloat (arXiv 2305.14314, appendix E): quantiles of the normal distribution, with an exact zero.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Magnitudes of FP4 (a sign, two bits of exponent, one of fraction) in twelfths, by the lower three bits of the code.
const FP4: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

/// The kind of a [`Map`] (the codebook of block-wise quantization): the signed or the unsigned dynamic map, the signed or the unsigned
/// linear map, NF4, FP4, or any other map ([`MapKind::Custom`]). There is no default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MapKind {
    /// The signed 8-bit map of [`Map::dynamic`].
    Dynamic,
    /// The unsigned 8-bit map of [`Map::dynamic`].
    DynamicUnsigned,
    /// The signed 8-bit map of [`Map::linear`].
    Linear,
    /// The unsigned 8-bit map of [`Map::linear`].
    LinearUnsigned,
    /// The 4-bit map of [`Map::nf4`].
    Nf4,
    /// The 4-bit map of [`Map::fp4`].
    Fp4,
    /// Any other values: [`Map::custom`] or [`Map::quantile`].
    Custom,
}

impl MapKind {
    /// Returns the name of this kind in stored descriptions: `dynamic`, `dynamic-unsigned`, `linear`, `linear-unsigned`, `nf4`, `fp4` or
    /// `custom`.
    pub const fn name(self) -> &'static str {
        match self {
            MapKind::Dynamic => "dynamic",
            MapKind::DynamicUnsigned => "dynamic-unsigned",
            MapKind::Linear => "linear",
            MapKind::LinearUnsigned => "linear-unsigned",
            MapKind::Nf4 => "nf4",
            MapKind::Fp4 => "fp4",
            MapKind::Custom => "custom",
        }
    }
}

/// A codebook of 2 to 256 values, in which code `c` stands for value number `c`, counted from 0. Values are relative to the largest
/// magnitude of a block, so they usually lie between -1 and 1. Clones share memory.
///
/// ```
/// use tersor_operators::{Isa, Map};
/// let map = Map::nf4();
/// let mut codes = [0u8; 3];
/// map.encode(Isa::detect(), &[-4.0, 0.1, 2.0], 0.25, &mut codes);
/// assert_eq!((map.values()[0], map.values()[7]), (-1.0, 0.0));
/// assert_eq!(codes, [0, 7, 12]);
/// ```
#[derive(Clone)]
pub struct Map(Arc<Inner>);

/// A codebook and its search tables.
struct Inner {
    kind: MapKind,
    /// Value of each code.
    values: Vec<f32>,
    /// Sorted values, for the search of the nearest one; equal values are separated by one unit in the last place.
    search: Codebook,
    /// Code of each sorted value; `None` if values are sorted by code.
    codes: Option<[u8; 256]>,
    /// Values of 4-bit codes.
    first: [f32; 16],
    /// Values of all 256 bytes.
    look_up: Table,
}

impl Map {
    /// Returns the 8-bit dynamic map (arXiv 2110.02861, section 2.1) of 256 values in ascending order. Its magnitudes lie in seven decades
    /// between 1e-7 and 1; they are equally spaced inside a decade, and each decade has twice as many as the one below. The signed map has
    /// 127 values of each sign besides 0 and 1, the unsigned one 254 positive values besides 0 and 1.
    pub fn dynamic(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for exponent in 0..7 {
            let cells = 1usize << (exponent + usize::from(!signed));
            // As `torch.linspace` computes it: in fused f32, from the nearer end.
            let step = (1.0f32 - 0.1) / cells as f32;
            let bound = |i: usize| {
                let lower = i < cells.div_ceil(2);
                if lower { step.mul_add(i as f32, 0.1) } else { step.mul_add(-((cells - i) as f32), 1.0) }
            };
            let scale = 10f64.powi(exponent as i32 - 6) as f32;
            for i in 0..cells {
                let value = scale * ((bound(i) + bound(i + 1)) / 2.0);
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        Self::build(if signed { MapKind::Dynamic } else { MapKind::DynamicUnsigned }, values)
    }

    /// Returns the 8-bit map of equal steps, in ascending order: the 255 values `k / 127` for `k` from -127 to 127 if `signed`, otherwise
    /// the 256 values `k / 255` for `k` from 0 to 255.
    pub fn linear(signed: bool) -> Self {
        let values = |low: i32, high: i32| (low..=high).map(|k| k as f32 / high as f32).collect();
        match signed {
            true => Self::build(MapKind::Linear, values(-127, 127)),
            false => Self::build(MapKind::LinearUnsigned, values(0, 255)),
        }
    }

    /// Returns QLoRA's 4-bit NormalFloat (arXiv 2305.14314, section 3): 16 quantiles of the normal distribution in ascending order, from -1
    /// (code 0) to 1 (code 15), with an exact zero (code 7).
    pub fn nf4() -> Self {
        Self::build(MapKind::Nf4, NF4.to_vec())
    }

    /// Returns QLoRA's 4-bit float map of 16 values. Bit 3 of a code is the sign; the lower three bits, from 0 to 7, stand for the
    /// magnitudes 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6 and 1/4. Code 8, a negative zero, stands for 0.
    pub fn fp4() -> Self {
        let value = |code: usize| (FP4[code & 7] / 12.0) * if code > 8 { -1.0 } else { 1.0 };
        Self::build(MapKind::Fp4, (0..16).map(|c| if c == 8 { 0.0 } else { value(c) }).collect())
    }

    /// Returns the map in which code `c` stands for `values[c]`. Values may have any order; they are relative to the largest magnitude of a
    /// block and should cover the range from -1 to 1. If several codes have the same value, encoding chooses the first of them for inputs
    /// up to the value and the last for inputs above it. Errors unless there are 2 to 256 values, each finite and at most half of the
    /// largest f32 in magnitude.
    pub fn custom(values: &[f32]) -> Result<Self, ParamError> {
        if !(2..=256).contains(&values.len()) {
            return Err(ParamError::new("values of a map", values.len(), "must be 2 to 256"));
        }
        if let Some(v) = values.iter().find(|v| !v.is_finite() || v.abs() > f32::MAX / 2.0) {
            return Err(ParamError::new("value of a map", v, "must be finite and at most half of the largest f32"));
        }
        Ok(Self::build(MapKind::Custom, values.to_vec()))
    }

    /// Returns the named map, such as [`Map::nf4`], whose codes stand for exactly these values in this order; if there is none, the map
    /// that [`Map::custom`] makes of them. Errors unless there are 2 to 256 values, each finite and at most half of the largest f32 in
    /// magnitude.
    pub fn known(values: &[f32]) -> Result<Self, ParamError> {
        // Made once: their tables take longer to make than a matrix to load.
        static NAMED: LazyLock<[Map; 6]> = LazyLock::new(|| {
            [Map::dynamic(true), Map::dynamic(false), Map::linear(true), Map::linear(false), Map::nf4(), Map::fp4()]
        });
        match NAMED.iter().find(|m| m.values() == values) {
            Some(map) => Ok(map.clone()),
            None => Self::custom(values),
        }
    }

    /// Returns a map of `count` quantiles of `data` (quantile quantization, arXiv 2110.02861, section 1.2). Each `block` consecutive values
    /// of `data` are first divided by their largest magnitude; the last block may be shorter. Value `i` of the map, for `i` from 0 to
    /// `count - 1`, is then the midpoint of the quantiles `i / (count + 1)` and `(i + 1) / (count + 1)`; the value nearest to 0 is replaced
    /// by 0. Errors unless `count` is 2 to 256, `block` is at least 1, and `data` has more than `count` values, all finite.
    pub fn quantile(data: &[f32], block: usize, count: usize) -> Result<Self, ParamError> {
        if !(2..=256).contains(&count) || block == 0 {
            return Err(ParamError::new("values of a map", count, "must be 2 to 256, with blocks of at least 1 value"));
        }
        if data.len() <= count {
            return Err(ParamError::new("data", data.len(), format!("must be more than {count} values")));
        }
        if let Some(v) = data.iter().find(|v| !v.is_finite()) {
            return Err(ParamError::new("data", v, "must be finite"));
        }
        let mut parts = Vec::with_capacity(data.len());
        for block in data.chunks(block) {
            let max = block.iter().fold(0f32, |m, v| m.max(v.abs())).max(f32::MIN_POSITIVE);
            parts.extend(block.iter().map(|v| v / max));
        }
        parts.sort_by(f32::total_cmp);
        let quantile = |i: usize| {
            let at = i as f64 / (count + 1) as f64 * (parts.len() - 1) as f64;
            let (low, part) = (at as usize, at.fract());
            let (a, b) = (f64::from(parts[low]), f64::from(parts[(low + 1).min(parts.len() - 1)]));
            a + (b - a) * part
        };
        let mut values: Vec<f32> = (0..count).map(|i| ((quantile(i) + quantile(i + 1)) / 2.0) as f32).collect();
        let smallest = (0..count).min_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
        if let Some(i) = smallest {
            values[i] = 0.0;
        }
        Ok(Self::build(MapKind::Custom, values))
    }

    /// Builds the map and its search tables from 2 to 256 finite values.
    fn build(kind: MapKind, values: Vec<f32>) -> Self {
        let mut order: Vec<u8> = (0..values.len()).map(|c| c as u8).collect();
        order.sort_by(|a, b| (values[usize::from(*a)] + 0.0).total_cmp(&(values[usize::from(*b)] + 0.0)));
        let mut sorted: Vec<f32> = order.iter().map(|c| values[usize::from(*c)] + 0.0).collect();
        for i in 1..sorted.len() {
            if sorted[i] <= sorted[i - 1] {
                sorted[i] = sorted[i - 1].next_up();
            }
        }
        let ordered = order.iter().enumerate().all(|(i, c)| i == usize::from(*c));
        let codes = (!ordered).then(|| std::array::from_fn(|i| order.get(i).copied().unwrap_or(0)));
        let last = values.last().copied().unwrap_or(0.0);
        let value = |c: usize| values.get(c).copied().unwrap_or(last);
        let (first, look_up) = (std::array::from_fn(value), Table::new(std::array::from_fn(value)));
        // There are 2 to 256 finite values, sorted and distinct.
        let search = Codebook::new(&sorted).unwrap_or_else(|e| unreachable!("sorted finite values: {e}"));
        Self(Arc::new(Inner { kind, values, search, codes, first, look_up }))
    }

    /// Returns which named codebook this map is; [`MapKind::Custom`] if it is none.
    pub fn kind(&self) -> MapKind {
        self.0.kind
    }

    /// Returns the 2 to 256 values of the codebook: code `c` stands for the value at index `c`.
    pub fn values(&self) -> &[f32] {
        &self.0.values
    }

    /// Returns the number of bits that a stored code takes: 4 if the map has at most 16 values, otherwise 8.
    pub fn bits(&self) -> u32 {
        if self.0.values.len() <= 16 { 4 } else { 8 }
    }

    /// Returns the code of the value that is nearest to 0; of two that are equally near, that of the lower value.
    pub fn zero(&self) -> u8 {
        let mut code = [0];
        self.encode(Isa::SCALAR, &[0.0], 1.0, &mut code);
        code[0]
    }

    /// Returns the largest difference between neighbours among the values in ascending order: twice the largest rounding error of an input
    /// between the smallest and the largest value.
    pub fn widest_gap(&self) -> f32 {
        self.0.search.values().windows(2).map(|w| w[1] - w[0]).fold(0.0, f32::max)
    }

    /// Writes to `codes[i]` the code, one a byte, of the value that is nearest to `x[i] * scale`; of two that are equally near, that of the
    /// lower value. `isa` is the instruction set to compute with. The code of a NaN is unspecified. If the slices differ in length, the
    /// shorter one counts and further elements of `codes` are left unchanged.
    pub fn encode(&self, isa: Isa, x: &[f32], scale: f32, codes: &mut [u8]) {
        self.0.search.nearest(isa, x, scale, codes);
        let written = x.len().min(codes.len());
        self.relabel(isa, &mut codes[..written]);
    }

    /// Writes to `codes[i]` the code, one a byte, of the value that is nearest to `x[i] * scales[i / block]`; of two that are equally near,
    /// that of the lower value. A `block` of 0 counts as 1. `isa` is the instruction set to compute with. The code of a NaN is unspecified.
    /// Elements of `codes` for which there is no input or no scale are left unchanged; inputs for which there is no code are ignored.
    pub fn encode_blocks(&self, isa: Isa, x: &[f32], scales: &[f32], block: usize, codes: &mut [u8]) {
        self.0.search.nearest_blocks(isa, x, scales, block, codes);
        let written = x.len().min(codes.len()).min(scales.len().saturating_mul(block.max(1)));
        self.relabel(isa, &mut codes[..written]);
    }

    /// Writes to `codes[i]` the code, one a byte, of `x[i] * scale` by stochastic rounding: of the two values of the map that are next to
    /// `x[i] * scale`, one is chosen at random, so that the expected value is `x[i] * scale`. `draw(i)` returns a random number for index
    /// `i`, uniform in `[0, 1)`. `isa` is the instruction set to compute with. If `x[i] * scale` is below the smallest or above the largest
    /// value of the map, that value is chosen. The code of a NaN is unspecified. If `x` and `codes` differ in length, the shorter one
    /// counts and further elements of `codes` are left unchanged.
    pub fn encode_stochastic(&self, isa: Isa, x: &[f32], scale: f32, draw: impl Fn(usize) -> f32, codes: &mut [u8]) {
        self.0.search.nearest(isa, x, scale, codes);
        let values = self.0.search.values();
        for (i, (code, x)) in codes.iter_mut().zip(x).enumerate() {
            let (x, at) = (x * scale, usize::from(*code));
            let other = if x > values[at] { at + 1 } else { at.wrapping_sub(1) };
            if let Some(next) = values.get(other)
                && draw(i) < (x - values[at]) / (next - values[at])
            {
                *code = other as u8;
            }
        }
        let written = x.len().min(codes.len());
        self.relabel(isa, &mut codes[..written]);
    }

    /// Replaces indices of sorted values by their codes.
    fn relabel(&self, isa: Isa, codes: &mut [u8]) {
        if let Some(labels) = &self.0.codes {
            blockwise::relabel(isa, labels, self.bits() == 4, codes);
        }
    }

    /// Writes `out[i] = values[c] * scales[i / block]`, where `values` are those of this map and `c` is the code number `first + i` of
    /// `packed`, counted from 0. Codes have 4 bits: two a byte, the first in the high half. `isa` is the instruction set to compute with. A
    /// code above the last one of the map counts as the last; of a map with more than 16 values only the first 16 are used. A `block` of 0
    /// counts as 1. Elements of `out` without a code or a scale are left unchanged.
    pub fn decode_packed(&self, isa: Isa, packed: &[u8], first: usize, scales: &[f32], block: usize, out: &mut [f32]) {
        blockwise::look_up_nibbles(isa, &self.0.first, packed, first, scales, block, out);
    }

    /// Writes `out[i] = values[codes[i]] * scale`, where `values` are those of this map, for codes of one byte. `isa` is the instruction
    /// set to compute with. A code above the last one of the map counts as the last. If the slices differ in length, the shorter one counts
    /// and further elements of `out` are left unchanged.
    pub fn decode(&self, isa: Isa, codes: &[u8], scale: f32, out: &mut [f32]) {
        self.0.look_up.look_up(isa, codes, scale, out);
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind == other.0.kind && self.0.values == other.0.values
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({}, {} values)", self.0.kind.name(), self.0.values.len())
    }
}
