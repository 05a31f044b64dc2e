//! What a recipe names: from a matrix and statistics to an operator.

use crate::{Context, DType, Error, LinearOp, Result, RowSource, StatNeeds, StatSet, TensorInfo, metrics};
use std::ops::Range;
use std::time::Duration;

/// Blocks of a matrix start at multiples of this many rows.
pub const ROW_UNIT: usize = 64;

/// The tensors that a compressed matrix will store, by the suffix of their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Suffix (empty: the matrix' own name), type and shape.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Whether the sizes are exact; otherwise they are the most that it can be.
    pub exact: bool,
}

impl Layout {
    /// An exact layout.
    pub fn exact(tensors: impl IntoIterator<Item = (&'static str, DType, Vec<usize>)>) -> Self {
        let tensors =
            tensors.into_iter().map(|(n, dtype, shape)| (n.to_string(), TensorInfo { dtype, shape })).collect();
        Self { tensors, exact: true }
    }

    /// The same tensors one level deeper: those of a part called `name`.
    pub fn nested(mut self, name: &str) -> Self {
        for (suffix, _) in &mut self.tensors {
            *suffix = if suffix.is_empty() { name.to_string() } else { format!("{name}.{suffix}") };
        }
        self
    }

    /// Bits of all tensors. Error on overflow.
    pub fn bits(&self) -> Result<u64> {
        self.tensors.iter().try_fold(0u64, |sum, (_, t)| {
            let bits = (t.bytes()? as u64).checked_mul(8).and_then(|b| b.checked_add(sum));
            bits.ok_or_else(|| Error::Overflow { what: "a layout".into() })
        })
    }
}

/// A way to compress, with its parameters already checked.
pub trait Method: Send + Sync {
    /// A short name for reports: `rtn`, `gptq`.
    fn name(&self) -> String;
    /// What it must know about the inputs.
    fn needs(&self) -> StatNeeds;
    /// What it will store for a matrix of this shape.
    fn layout(&self, shape: [usize; 2]) -> Result<Layout>;
    /// Work that all matrices of a site share (factoring a Hessian, say).
    fn prepare<'s>(&'s self, stats: Option<&StatSet>, cx: &Context) -> Result<Box<dyn Prepared + 's>>;
}

/// A method that has seen the statistics of a site.
pub trait Prepared: Send + Sync {
    /// Compresses rows of `w`: all of them, or a block that starts at a multiple of [`ROW_UNIT`]. Error on
    /// values that are not finite, with row and column.
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed>;
}

/// An operator and how it came out.
pub struct Compressed {
    /// The rows that were asked for, as an operator of their own.
    pub op: Box<dyn LinearOp>,
    /// Figures for the report.
    pub report: Report,
}

/// How a matrix, or a block of its rows, came out. Reports of blocks add.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// `Σ (w - ŵ)²`.
    pub squared_error: f64,
    /// `Σ w²`.
    pub energy: f64,
    /// `tr (W - Ŵ) H (W - Ŵ)ᵀ` with the Gram matrix of the inputs, where there was one.
    pub data_error: Option<f64>,
    /// `tr W H Wᵀ`, beside `data_error`.
    pub data_energy: Option<f64>,
    /// Damping that the factorization ended with, as a share of the mean diagonal.
    pub damping: Option<f64>,
    /// Input features that were always zero.
    pub dead_columns: usize,
    /// Weights that were not finite and were replaced, where the caller allowed that.
    pub replaced: u64,
    /// What did not go as planned, in words.
    pub fallbacks: Vec<String>,
    /// Seconds of work, over all threads.
    pub seconds: f64,
}

impl Report {
    /// Of values, what they came back as, and the time it took.
    pub fn of(values: &[f32], back: &[f32], took: Duration) -> Self {
        Self {
            squared_error: metrics::squared_error(values, back),
            energy: metrics::energy(values),
            seconds: took.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Adds the report of another block of the same matrix.
    pub fn merge(&mut self, other: &Report) {
        let add = |a: Option<f64>, b: Option<f64>| {
            if a.is_none() && b.is_none() { None } else { Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)) }
        };
        self.squared_error += other.squared_error;
        self.energy += other.energy;
        self.data_error = add(self.data_error, other.data_error);
        self.data_energy = add(self.data_energy, other.data_energy);
        self.damping = match (self.damping, other.damping) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.dead_columns = self.dead_columns.max(other.dead_columns);
        self.replaced += other.replaced;
        for f in &other.fallbacks {
            if !self.fallbacks.contains(f) {
                self.fallbacks.push(f.clone());
            }
        }
        self.seconds += other.seconds;
    }

    /// `sqrt(Σ (w - ŵ)² / Σ w²)`; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { (self.squared_error / self.energy).sqrt() } else { 0.0 }
    }
}
