//! Values and comparisons that the tests share.
#![allow(dead_code)]

use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor};
use tersor::blockwise::{Blockwise, LlmInt8};
use tersor::core::{Check, LinearOp, StatSet};
use tersor::groupwise::Rtn;
use tersor::lowrank::{Corrected, Rank};
use tersor::operators::{Cast, DType as Stored};
use tersor_candle::{Error, Matrix};

/// Numbers from -1 to 1, the same ones for each seed.
pub fn random(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn tensor(seed: u32, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(random(seed, shape.elem_count()), shape, &Device::Cpu).unwrap()
}

/// The same weights `[40, 96]` in four stored forms: groups of 4 bits, rows of 8 bits, blocks of NF4, and 3 bits with a low-rank correction.
pub fn operators() -> Vec<(&'static str, Arc<dyn LinearOp>)> {
    let w = Matrix::new(&tensor(1, (40, 96))).unwrap();
    let correct = || -> tersor::core::Result<_> {
        let lqer = Corrected::lqer(Box::new(Rtn::new().bits(3).group(32).check()?)).rank(Rank::Fixed(8));
        lqer.factors(Box::new(Cast::new(Stored::F16)?)).quantize(&w, &StatSet::none())
    };
    vec![
        ("grouped", Arc::new(Rtn::new().bits(4).group(32).quantize(&w).unwrap().0)),
        ("int8", Arc::new(LlmInt8::new().quantize(&w).unwrap().0)),
        ("nf4", Arc::new(Blockwise::nf4().quantize(&w).unwrap().0)),
        ("low rank", Arc::from(correct().unwrap().0)),
    ]
}

/// The largest difference of two tensors, relative to the largest value of the second.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    let flat = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (flat(a).unwrap(), flat(b).unwrap());
    let max = b.iter().fold(0f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / max
}

/// The message of an error, which must have all `words`.
pub fn fails<T>(found: Result<T>, words: &[&str]) {
    let said = found.err().unwrap_or_else(|| panic!("no error: {words:?}")).to_string();
    assert!(words.iter().all(|w| said.contains(w)), "{said}: {words:?}");
}

/// The same for errors of this crate.
pub fn refuses<T>(found: tersor_candle::Result<T>, words: &[&str]) {
    fails(found.map_err(|e: Error| e.into()), words);
}
