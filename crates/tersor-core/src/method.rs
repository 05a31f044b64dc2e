//! [`Method`]: the compression of a weight matrix, by its rows and the statistics of its inputs, to an operator.

use std::ops::Range;
use std::time::Duration;

use crate::{ColumnCoder, Context, DType, Error, LinearOp, Result, RowSource, StatNeeds, StatSet, TensorInfo, metrics};

/// The unit of row blocks: the blocks of rows in which a matrix is compressed start at multiples of this many rows.
pub const ROW_UNIT: usize = 64;

/// The tensors that a compressed matrix will be stored in, known from its shape alone.
///
/// ```
/// use tersor_core::{DType, Layout};
/// # fn main() -> tersor_core::Result<()> {
/// // Packed codes of 4 bits and one scale for each of 2 rows of 16 columns.
/// let layout = Layout::exact([("codes", DType::U8, vec![2, 8]), ("scales", DType::F16, vec![2, 1])]);
/// assert_eq!(layout.bits()?, 2 * 16 * 4 + 2 * 16);
/// assert_eq!(layout.nested("base").tensors[0].0, "base.codes");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// The tensors of a layout: suffix of the name (empty for the matrix's own name), type and shape.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Whether the sizes of the layout are exact; otherwise they are upper bounds.
    pub exact: bool,
}

impl Layout {
    /// Returns a layout of exact sizes, from suffix, type and shape of each tensor.
    pub fn exact(tensors: impl IntoIterator<Item = (&'static str, DType, Vec<usize>)>) -> Self {
        let tensors =
            tensors.into_iter().map(|(n, dtype, shape)| (n.to_string(), TensorInfo { dtype, shape })).collect();
        Self { tensors, exact: true }
    }

    /// Returns the layout of a matrix of which this one is the part `name`: each suffix becomes `name.suffix`, an empty one `name`.
    pub fn nested(mut self, name: &str) -> Self {
        for (suffix, _) in &mut self.tensors {
            *suffix = if suffix.is_empty() { name.to_string() } else { format!("{name}.{suffix}") };
        }
        self
    }

    /// Returns the number of bits of all tensors. Errors if a size overflows.
    pub fn bits(&self) -> Result<u64> {
        self.tensors.iter().try_fold(0u64, |sum, (_, t)| {
            let bits = (t.bytes()? as u64).checked_mul(8).and_then(|b| b.checked_add(sum));
            bits.ok_or_else(|| Error::Overflow { what: "a layout".into() })
        })
    }
}

/// The rows of a matrix that a method needs at once: a block, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// Blocks of rows are compressed independently.
    #[default]
    Blocks,
    /// All rows are needed together.
    Whole,
}

impl Extent {
    /// Returns [`Extent::Whole`] if either of the two is.
    pub fn union(self, other: Self) -> Self {
        if self == Extent::Whole { self } else { other }
    }

    /// Errors with [`Error::Range`] if the extent is [`Extent::Whole`] and `rows` are not all of the matrix's `total` rows.
    pub fn check(self, rows: &Range<usize>, total: usize) -> Result<()> {
        if self == Extent::Whole && *rows != (0..total) {
            return Err(Error::range("rows of a matrix that is compressed as a whole", 0..total, rows.clone()));
        }
        Ok(())
    }
}

/// A way to compress a weight matrix, with its parameters already checked.
///
/// A compression has three steps: [`needs`](Self::needs) says which statistics of the inputs are gathered, [`prepare`](Self::prepare) does
/// the work that all matrices of a [site](crate::Site) (those that read the same input) share, [`Prepared::compress`] compresses blocks of
/// rows.
///
/// ```
/// use std::ops::Range;
/// use tersor_core::*;
///
/// /// Stores a matrix as the mean of its weights.
/// struct Mean;
///
/// # struct Constant(f32, [usize; 2]);
/// # impl LinearOp for Constant {
/// #     fn shape(&self) -> [usize; 2] {
/// #         self.1
/// #     }
/// #     fn storage_bits(&self) -> u64 {
/// #         32
/// #     }
/// #     fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
/// #         rows::check_range(self.1, &rows, out.len())?;
/// #         out.fill(self.0);
/// #         Ok(())
/// #     }
/// #     fn spec_block(&self, at: RowSlot) -> OpSpec {
/// #         OpSpec::new("constant", [at.total, self.1[1]])
/// #     }
/// #     fn save_block(&self, prefix: &str, _: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
/// #         tensors::write_floats(sink, &tensors::join(prefix, "value"), &[1], &[self.0])
/// #     }
/// # }
/// impl Method for Mean {
///     fn name(&self) -> String {
///         "mean".into()
///     }
///     fn needs(&self) -> StatNeeds {
///         StatNeeds::none()
///     }
///     fn extent(&self) -> Extent {
///         Extent::Whole
///     }
///     fn layout(&self, _shape: [usize; 2]) -> Result<Layout> {
///         Ok(Layout::exact([("value", DType::F32, vec![1])]))
///     }
///     fn prepare<'s>(&'s self, _stats: &StatSet, _cx: &Context) -> Result<Box<dyn Prepared + 's>> {
///         Ok(Box::new(Mean))
///     }
/// }
///
/// impl Prepared for Mean {
///     fn compress(&self, w: &dyn RowSource, rows: Range<usize>, _cx: &Context) -> Result<Compressed> {
///         Extent::Whole.check(&rows, w.shape()[0])?;
///         let values = read_finite(w, rows)?;
///         let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
///         // `Constant` is the operator of the front page.
///         let op = Constant(mean, w.shape());
///         let report = Report::of(&values, &op.decompress()?, std::time::Duration::ZERO);
///         Ok(Compressed { op: Box::new(op), report })
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let data = [1.0f32, 3.0];
/// let cx = Context::new();
/// let done = Mean.prepare(&StatSet::none(), &cx)?.compress(&MatView::new(&data, [1, 2])?, 0..1, &cx)?;
/// assert_eq!((done.op.decompress()?, done.report.squared_error), (vec![2.0, 2.0], 2.0));
/// assert_eq!(Mean.layout([1, 2])?.bits()?, done.op.storage_bits());
/// # Ok(())
/// # }
/// ```
pub trait Method: Send + Sync {
    /// Returns a short name for reports, such as `rtn` or `gptq`.
    fn name(&self) -> String;
    /// Returns which statistics of the inputs the method needs.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are compressed in independent blocks or all together.
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Returns the tensors that a matrix of this shape, `[out_features, in_features]`, will be stored in. Errors if the method cannot store
    /// the shape.
    fn layout(&self, shape: [usize; 2]) -> Result<Layout>;
    /// Does the work that all matrices of a site share, such as the factorization of a Hessian, from the statistics of their inputs.
    /// Methods without [needs](Self::needs) take [`StatSet::none`]. Errors if the statistics lack something that is needed.
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>>;
    /// Returns a method with the same stored form that needs no data, for trials, for the fallback after a failed factorization, and for
    /// quantizing again; None if there is none.
    fn plain(&self) -> Option<&dyn Method> {
        None
    }
    /// Returns a coder for the rows `rows` of `w`, which lends the method's grid to the shared column sweep; None if the method cannot code
    /// column by column. The coder errors if it cannot be set up for these rows.
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

/// A [`Method`] after the work that all matrices of a [site](crate::Site) (those that read the same input) share; made by
/// [`Method::prepare`].
pub trait Prepared: Send + Sync {
    /// Compresses the rows of a range of `w`: all of them, or a block that starts at a multiple of [`ROW_UNIT`]. Weights that the mask of
    /// `w` prunes are zero in the result. Errors if a value is not finite, with its row and column, if the range is invalid, or if `cx` is
    /// cancelled.
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed>;
}

/// The result of compressing some rows of a matrix: an operator of these rows and a report.
pub struct Compressed {
    /// The compressed rows, as an operator of their own.
    pub op: Box<dyn LinearOp>,
    /// The error and cost figures of the compressed rows.
    pub report: Report,
}

/// Error and cost figures of a compressed matrix, or of a block of its rows. Reports of blocks add, see [`merge`](Self::merge).
///
/// ```
/// use std::time::Duration;
/// use tersor_core::Report;
/// let mut report = Report::of(&[3.0, 4.0], &[3.0, 3.0], Duration::from_secs(1));
/// assert_eq!((report.squared_error, report.energy, report.relative_error()), (1.0, 25.0, 0.2));
/// report.merge(&Report::of(&[1.0], &[1.0], Duration::from_secs(2)));
/// assert_eq!((report.squared_error, report.seconds), (1.0, 3.0));
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// The squared error of the weights, `Σ (w - ŵ)²` over original weights `w` and compressed ones `ŵ`.
    pub squared_error: f64,
    /// The sum of squares of the original weights, `Σ w²`.
    pub energy: f64,
    /// The squared error of the outputs, `tr (W - Ŵ) H (W - Ŵ)ᵀ` with the original weights `W`, the compressed ones `Ŵ` and the Gram matrix
    /// `H` of the inputs; None if there was no Gram matrix.
    pub data_error: Option<f64>,
    /// The squared outputs, `tr W H Wᵀ` with the original weights `W` and the Gram matrix `H` of the inputs, which `data_error` is relative
    /// to; None if there was no Gram matrix.
    pub data_energy: Option<f64>,
    /// The damping of the Hessian with which its factorization succeeded, as a fraction of the mean diagonal; None without a factorization.
    pub damping: Option<f64>,
    /// The number of input features that were zero in all calibration data.
    pub dead_columns: usize,
    /// The number of weights that were NaN or infinite and were replaced, if the caller allowed that.
    pub replaced: u64,
    /// Sentences about deviations from the plan, such as a failed factorization.
    pub fallbacks: Vec<String>,
    /// Measured seconds that the compression took, summed over its blocks of rows (not the elapsed time of the whole).
    pub seconds: f64,
}

impl Report {
    /// Returns the report of weights `values` that decompress to `back`, after work of the given duration. If the lengths differ,
    /// `squared_error` covers the shorter one and `energy` all of `values`.
    pub fn of(values: &[f32], back: &[f32], took: Duration) -> Self {
        Self {
            squared_error: metrics::squared_error(values, back),
            energy: metrics::energy(values),
            seconds: took.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Adds the report of another block of the same matrix: errors, energies, counts of replaced weights and times add; of damping and dead
    /// columns the larger one is taken; fallbacks are joined without repetition.
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

    /// Returns `sqrt(Σ (w - ŵ)² / Σ w²)`, the root of `squared_error / energy`; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { (self.squared_error / self.energy).sqrt() } else { 0.0 }
    }
}
