//! [`Method`]: from a matrix and statistics to an operator.

use std::ops::Range;
use std::time::Duration;

use crate::{ColumnCoder, Context, DType, Error, LinearOp, Result, RowSource, StatNeeds, StatSet, TensorInfo, metrics};

/// Blocks of a matrix start at multiples of this many rows.
pub const ROW_UNIT: usize = 64;

/// The tensors that a compressed matrix will store, by the suffix of their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Suffix (empty: the name of the matrix itself), type and shape.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Whether the sizes are exact; otherwise they are upper limits.
    pub exact: bool,
}

impl Layout {
    /// Returns an exact layout.
    pub fn exact(tensors: impl IntoIterator<Item = (&'static str, DType, Vec<usize>)>) -> Self {
        let tensors =
            tensors.into_iter().map(|(n, dtype, shape)| (n.to_string(), TensorInfo { dtype, shape })).collect();
        Self { tensors, exact: true }
    }

    /// Returns the same tensors one level deeper: those of a part called `name`.
    pub fn nested(mut self, name: &str) -> Self {
        for (suffix, _) in &mut self.tensors {
            *suffix = if suffix.is_empty() { name.to_string() } else { format!("{name}.{suffix}") };
        }
        self
    }

    /// Returns the bits of all tensors. Errors on overflow.
    pub fn bits(&self) -> Result<u64> {
        self.tensors.iter().try_fold(0u64, |sum, (_, t)| {
            let bits = (t.bytes()? as u64).checked_mul(8).and_then(|b| b.checked_add(sum));
            bits.ok_or_else(|| Error::Overflow { what: "a layout".into() })
        })
    }
}

/// How many rows of a matrix a method needs at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// Blocks of rows, each on its own.
    #[default]
    Blocks,
    /// All rows together.
    Whole,
}

impl Extent {
    /// Returns the larger of the two.
    pub fn union(self, other: Self) -> Self {
        if self == Extent::Whole { self } else { other }
    }

    /// Errors if the whole matrix is needed and `rows` are not all of its `total` rows.
    pub fn check(self, rows: &Range<usize>, total: usize) -> Result<()> {
        if self == Extent::Whole && *rows != (0..total) {
            return Err(Error::range("rows of a matrix that is compressed as a whole", 0..total, rows.clone()));
        }
        Ok(())
    }
}

/// A way to compress a weight matrix, with its parameters already checked.
pub trait Method: Send + Sync {
    /// Returns a short name for reports: `rtn`, `gptq`.
    fn name(&self) -> String;
    /// Returns the statistics of the inputs that it needs.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are compressed in blocks or all at once.
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Returns the tensors that a matrix of this shape will be stored in. Errors if the shape cannot be stored.
    fn layout(&self, shape: [usize; 2]) -> Result<Layout>;
    /// Does the work that all matrices of a site share (the factorization of a Hessian, say). Errors if the statistics lack what is needed;
    /// methods without needs take [`StatSet::none`].
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>>;
    /// Returns the method without data that has the same stored form: for trials, and for quantizing again. None if there is no such method.
    fn plain(&self) -> Option<&dyn Method> {
        None
    }
    /// Lends its grid for the rows `rows` of `w` to the shared column sweep. None if it cannot be asked column by column.
    fn coder<'s>(
        &'s self,
        w: &'s dyn RowSource,
        rows: Range<usize>,
        cx: &Context,
    ) -> Option<Result<Box<dyn ColumnCoder + 's>>> {
        let _ = (w, rows, cx);
        None
    }
}

/// A method that has seen the statistics of a site.
pub trait Prepared: Send + Sync {
    /// Compresses rows of `w`: all of them, or a block that starts at a multiple of [`ROW_UNIT`]. Weights that the mask of `w` does not keep
    /// come out as zero. Errors on values that are not finite, with row and column.
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
    /// `tr (W - Ŵ) H (W - Ŵ)ᵀ` with the Gram matrix `H` of the inputs, where there was one.
    pub data_error: Option<f64>,
    /// `tr W H Wᵀ`, beside `data_error`.
    pub data_energy: Option<f64>,
    /// Damping that the factorization ended with, as a share of the mean diagonal.
    pub damping: Option<f64>,
    /// Number of input features that were always zero.
    pub dead_columns: usize,
    /// Number of weights that were not finite and were replaced, where the caller allowed that.
    pub replaced: u64,
    /// What did not go as planned, in words.
    pub fallbacks: Vec<String>,
    /// Seconds of work, over all threads.
    pub seconds: f64,
}

impl Report {
    /// Returns the report of values that decompress to `back`, after work that took so long.
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

    /// Returns `sqrt(Σ (w - ŵ)² / Σ w²)`; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { (self.squared_error / self.energy).sqrt() } else { 0.0 }
    }
}
