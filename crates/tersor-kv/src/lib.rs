#![doc = include_str!("../README.md")]

mod integers;

pub use integers::{CheckedIntegers, IntCache, Integers};
pub use tersor_core::{Check, Error, KvCache, ParamError, Result};
