//! [`State`]: the moments of one tensor.

use serde::{Deserialize, Serialize};
use tersor_core::little_endian::to_bytes;
use tersor_core::tensors::{join, read_expected, read_floats};
use tersor_core::{DType, Error, Result, TensorInfo, TensorSink, TensorSource};

use super::{CheckedConfig, Rule};
use crate::{Map, check_finite};

/// Number of past gradient norms that percentile clipping uses.
pub(super) const NORMS: usize = 100;

/// One moment of all parameters of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Moment {
    /// Values in f32.
    Full(Vec<f32>),
    /// 8-bit codes, and the largest magnitude of each block.
    Blocks { map: Map, codes: Vec<u8>, absmax: Vec<f32> },
}

/// The state of an optimizer for one tensor: its moments (running means or sums of gradients and squared gradients, one value for each
/// element) and the number of steps done. [`CheckedConfig::state`] makes it, [`CheckedConfig::step`] updates it. A state that was saved and
/// loaded continues bit for bit.
///
/// ```
/// use tersor_blockwise::{Check, MemTensors, optimizer::{OptimizerConfig, State}};
///
/// # fn main() -> tersor_blockwise::Result<()> {
/// let adam = OptimizerConfig::adam().check()?;
/// let mut state = adam.state(3)?;
/// adam.step(&mut state, &mut [1.0f32, 2.0, 3.0], &[0.1f32, 0.0, -0.1])?;
/// let mut file = MemTensors::new();
/// state.save("w", &mut file)?;
/// assert_eq!(State::load("w", &file)?, state);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub(super) rule: Rule,
    pub(super) len: usize,
    pub(super) block: usize,
    pub(super) step: u64,
    pub(super) moments: Vec<Moment>,
    /// Squares of the last 100 norms of the gradient; empty without percentile clipping.
    pub(super) norms: Vec<f32>,
}

/// The numbers of a saved state, as JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    rule: String,
    len: usize,
    block: usize,
    step: u64,
    bits: u32,
    norms: usize,
}

impl CheckedConfig {
    /// Returns the bits in which each moment of a tensor of `len` elements is stored: 32 (f32) if `len` is below
    /// `OptimizerConfig::min_8bit_size`, otherwise the configured bits, 8 or 32.
    pub fn bits_of(&self, len: usize) -> u32 {
        if len < self.0.min_8bit_size { 32 } else { self.0.bits }
    }

    /// Returns the state of a tensor of `len` elements before its first step: all moments are zero, and no step is counted. Errors if `len`
    /// is above `isize::MAX / 8`.
    pub fn state(&self, len: usize) -> Result<State> {
        let how = &self.0;
        if len > isize::MAX as usize / 8 {
            return Err(Error::Overflow { what: format!("a state of {len} parameters") });
        }
        let moment = |i: usize| match self.bits_of(len) {
            32 => Moment::Full(vec![0.0; len]),
            _ => {
                let map = self.map(i).clone();
                // With the scale 0 every code decodes to 0; the code of zero is the natural choice.
                Moment::Blocks { codes: vec![map.zero(); len], absmax: vec![0.0; len.div_ceil(how.block)], map }
            }
        };
        let moments = (0..how.rule.moments().len()).map(moment).collect();
        let norms = if how.percentile < 100 { vec![0.0; NORMS] } else { Vec::new() };
        Ok(State { rule: how.rule, len, block: how.block, step: 0, moments, norms })
    }

    /// Returns the map of moment number `moment`: the unsigned one for a square that follows another moment.
    pub(super) fn map(&self, moment: usize) -> &Map {
        let names = self.0.rule.moments();
        &self.0.maps[usize::from(moment > 0 && names[moment] == "square")]
    }

    /// Errors unless `state` has the rule, bits, block size, maps and norms of these parameters.
    pub(super) fn check_state(&self, state: &State) -> Result<()> {
        let how = &self.0;
        if state.rule != how.rule {
            return Err(Error::shape("rule of the state", how.rule.name(), state.rule.name()));
        }
        let eight = self.bits_of(state.len) == 8;
        let found = if state.is_full() { 32 } else { 8 };
        if eight == state.is_full() && state.len > 0 {
            return Err(Error::shape("bits of the state", self.bits_of(state.len), found));
        }
        if eight && state.block != how.block {
            return Err(Error::shape("block of the state", how.block, state.block));
        }
        for (i, moment) in state.moments.iter().enumerate() {
            if let Moment::Blocks { map, .. } = moment
                && map != self.map(i)
            {
                return Err(Error::shape("map of the state", self.map(i).kind().name(), map.kind().name()));
            }
        }
        match (how.percentile < 100, state.norms.is_empty()) {
            (true, true) => Err(Error::shape("norms of the state", NORMS, 0)),
            _ => Ok(()),
        }
    }
}

impl State {
    /// Returns the number of elements of the tensor that the state belongs to.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the tensor that the state belongs to has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of steps done with this state; 0 before the first step.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Returns whether moments are stored in f32.
    fn is_full(&self) -> bool {
        matches!(self.moments.first(), Some(Moment::Full(_)))
    }

    /// Returns the memory of the state in bytes: for each moment 4 bytes an element in f32, or in 8 bits 1 byte an element and 4 bytes for
    /// the scale of each block; with percentile clipping also 400 bytes for the last 100 gradient norms. Codebooks are not counted.
    pub fn bytes(&self) -> usize {
        let moment = |m: &Moment| match m {
            Moment::Full(v) => 4 * v.len(),
            Moment::Blocks { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
        };
        self.moments.iter().map(moment).sum::<usize>() + 4 * self.norms.len()
    }

    /// Returns the values of the moment `name`, one for each element of the tensor, dequantized if they are stored in 8 bits. The names are
    /// `mean`, `slow` and `square`; [`Rule::moments`] lists those of a rule. `None` if the rule has no such moment.
    pub fn moment(&self, name: &str) -> Option<Vec<f32>> {
        let at = self.rule.moments().iter().position(|n| *n == name)?;
        Some(match &self.moments[at] {
            Moment::Full(v) => v.clone(),
            Moment::Blocks { map, codes, absmax } => {
                let mut out = vec![0f32; self.len];
                let blocks = codes.chunks(self.block).zip(out.chunks_mut(self.block)).zip(absmax);
                blocks.for_each(|((codes, out), max)| map.decode(tersor_core::Isa::detect(), codes, *max, out));
                out
            }
        })
    }

    /// Returns the 8-bit codes of the moment `name` (`mean`, `slow` or `square`), one for each element of the tensor: indices into the
    /// moment's codebook. `None` if the moment is stored in f32 or the rule has no such moment.
    pub fn codes(&self, name: &str) -> Option<&[u8]> {
        let at = self.rule.moments().iter().position(|n| *n == name)?;
        match &self.moments[at] {
            Moment::Blocks { codes, .. } => Some(codes),
            Moment::Full(_) => None,
        }
    }

    /// Writes the state as tensors whose names begin with `prefix` and a dot: `state` (u8, JSON with the update rule and the numbers of
    /// elements, of elements in a block, of steps, of bits and of norms); for each moment, such as `mean`, either `mean` (f32,
    /// `[elements]`) or, in 8 bits, `mean.codes` (u8, `[elements]`), `mean.absmax` (f32, `[blocks]`, the scale of each block) and
    /// `mean.map` (f32, the codebook: its value for a code, times the scale of the block, is the value of the moment); with percentile
    /// clipping `norms` (f32, `[100]`, squares of the last norms of the gradient). Errors only if `sink` errors.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let header = Header {
            rule: self.rule.name().into(),
            len: self.len,
            block: self.block,
            step: self.step,
            bits: if self.is_full() { 32 } else { 8 },
            norms: self.norms.len(),
        };
        let header = serde_json::to_vec(&header).map_err(|e| Error::format(prefix, e.to_string()))?;
        let mut write = |name: &str, dtype: DType, len: usize, bytes: &[u8]| {
            sink.write_rows(&join(prefix, name), &TensorInfo { dtype, shape: vec![len] }, 0, bytes)
        };
        write("state", DType::U8, header.len(), &header)?;
        for (moment, name) in self.moments.iter().zip(self.rule.moments()) {
            match moment {
                Moment::Full(v) => write(name, DType::F32, v.len(), &to_bytes(v))?,
                Moment::Blocks { map, codes, absmax } => {
                    write(&join(name, "codes"), DType::U8, codes.len(), codes)?;
                    write(&join(name, "absmax"), DType::F32, absmax.len(), &to_bytes(absmax))?;
                    write(&join(name, "map"), DType::F32, map.values().len(), &to_bytes(map.values()))?;
                }
            }
        }
        if self.norms.is_empty() { Ok(()) } else { write("norms", DType::F32, NORMS, &to_bytes(&self.norms)) }
    }

    /// Reads the state that [`State::save`] wrote as tensors whose names begin with `prefix` and a dot. Errors if a tensor is missing or
    /// has another type or size, the JSON description is malformed or longer than 4096 bytes, or a value is not finite. Errors also if one
    /// of these is negative: the scale of a block, the norm of a gradient, or a value of the moment `square` (the running mean or the sum
    /// of squared gradients).
    pub fn load(prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let name = join(prefix, "state");
        let info = source.info(&name)?;
        if info.bytes()? > 4096 {
            return Err(Error::Limit {
                what: "bytes of a state's description",
                found: info.bytes()? as u64,
                limit: 4096,
            });
        }
        let bytes = read_expected(source, &name, DType::U8, &info.shape)?;
        let header: Header = serde_json::from_slice(&bytes).map_err(|e| Error::format(&name, e.to_string()))?;
        let rules = [Rule::Adam, Rule::AdEmaMix, Rule::Momentum, Rule::Lion, Rule::RmsProp, Rule::Adagrad];
        let rule = rules.into_iter().find(|r| r.name() == header.rule);
        let rule = rule.ok_or(Error::Unsupported { what: "rule of a state", value: header.rule })?;
        let fits = header.block > 0 && matches!(header.bits, 8 | 32) && [0, NORMS].contains(&header.norms);
        if !fits {
            return Err(Error::format(&name, "block must be at least 1, bits 8 or 32, and norms 0 or 100"));
        }
        let floats = |part: &str, len: usize| -> Result<Vec<f32>> {
            let name = join(prefix, part);
            let values = read_floats(source, &name, &[len])?;
            check_finite(&values, 0).map_err(|e| e.in_tensor(&name))?;
            Ok(values)
        };
        let negative = |part: &str, value: f32| {
            Error::format(
                join(prefix, part),
                format!("holds {value}, where no value may be negative; the state is damaged"),
            )
        };
        let unsigned = |part: &str, len: usize| -> Result<Vec<f32>> {
            let values = floats(part, len)?;
            match values.iter().find(|v| **v < 0.0) {
                Some(v) => Err(negative(part, *v)),
                None => Ok(values),
            }
        };
        let mut moments = Vec::new();
        for part in rule.moments() {
            let square = *part == "square";
            moments.push(if header.bits == 32 {
                Moment::Full(if square { unsigned(part, header.len)? } else { floats(part, header.len)? })
            } else {
                let codes = read_expected(source, &join(prefix, &join(part, "codes")), DType::U8, &[header.len])?;
                let absmax = unsigned(&join(part, "absmax"), header.len.div_ceil(header.block))?;
                let map = join(part, "map");
                let count = source.info(&join(prefix, &map))?.shape.iter().product::<usize>().min(257);
                let map = Map::known(&floats(&map, count)?)?;
                if let Some(c) = codes.iter().find(|c| usize::from(**c) >= map.values().len()) {
                    return Err(
                        Error::shape("code of a moment", format!("below {}", map.values().len()), c).in_tensor(part)
                    );
                }
                let value = |(i, c): (usize, &u8)| map.values()[usize::from(*c)] * absmax[i / header.block];
                if square && let Some(v) = codes.iter().enumerate().map(value).find(|v| *v < 0.0) {
                    return Err(negative(&join(part, "codes"), v));
                }
                Moment::Blocks { map, codes, absmax }
            });
        }
        let norms = if header.norms > 0 { unsigned("norms", NORMS)? } else { Vec::new() };
        Ok(Self { rule, len: header.len, block: header.block, step: header.step, moments, norms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::MemTensors;

    #[test]
    fn numbers_are_saved_little_endian() {
        let map = Map::dynamic(true);
        let blocks = Moment::Blocks { codes: vec![map.zero(); 2], absmax: vec![-2.5], map: map.clone() };
        let state = State {
            rule: Rule::Adam,
            len: 2,
            block: 2,
            step: 1,
            moments: vec![Moment::Full(vec![1.0, -2.5]), blocks],
            norms: vec![1.0; NORMS],
        };
        let mut file = MemTensors::new();
        state.save("w", &mut file).unwrap();
        let names = Rule::Adam.moments();
        assert_eq!(file.get(&join("w", names[0])).unwrap(), [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
        assert_eq!(file.get(&join("w", &join(names[1], "absmax"))).unwrap(), [0, 0, 0x20, 0xc0]);
        assert_eq!(file.get("w.norms").unwrap(), [0, 0, 0x80, 0x3f].repeat(NORMS));
        let values: Vec<u8> = map.values().iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(file.get(&join("w", &join(names[1], "map"))).unwrap(), values);
    }

    #[test]
    fn damaged_states_are_refused_and_the_last_step_is_the_last() {
        use crate::optimizer::OptimizerConfig;
        use tersor_core::Check;
        let refused = |state: &State| {
            let mut file = MemTensors::new();
            state.save("w", &mut file).unwrap();
            match State::load("w", &file) {
                Err(Error::Format { what, .. }) => assert!(what.contains("negative"), "{what}"),
                other => panic!("{other:?}"),
            }
        };
        let state = |moments| State { rule: Rule::Adam, len: 2, block: 2, step: 1, moments, norms: Vec::new() };
        refused(&state(vec![Moment::Full(vec![1.0, -2.5]), Moment::Full(vec![1.0, -1e-9])]));
        let blocks = |map: &Map, code: u8, max: f32| Moment::Blocks {
            codes: vec![code; 2],
            absmax: vec![max],
            map: map.clone(),
        };
        let (signed, unsigned) = (Map::dynamic(true), Map::dynamic(false));
        let fine = blocks(&signed, 3, 1.0);
        refused(&state(vec![fine.clone(), blocks(&unsigned, 3, -1.0)]));
        refused(&state(vec![fine.clone(), blocks(&signed, 3, 1.0)]));
        refused(&state(vec![blocks(&signed, 3, -1.0), blocks(&unsigned, 3, 1.0)]));
        refused(&State { norms: vec![-1.0; NORMS], ..state(vec![fine.clone(), blocks(&unsigned, 3, 1.0)]) });
        let mut file = MemTensors::new();
        let sound = state(vec![fine, blocks(&unsigned, 3, 1.0)]);
        sound.save("w", &mut file).unwrap();
        assert_eq!(State::load("w", &file).unwrap(), sound);

        let how = OptimizerConfig::adam().check().unwrap();
        let mut last = State { step: u64::MAX, ..how.state(2).unwrap() };
        let (before, mut param) = (last.clone(), [1f32, 2.0]);
        let e = how.step(&mut last, &mut param, &[0.1f32, 0.2]).unwrap_err();
        assert!(matches!(e, Error::Overflow { .. }), "{e}");
        assert_eq!((last, param), (before, [1.0, 2.0]));
    }
}
