//! [`Method`]: the compression of a weight matrix, by its rows and the statistics of its inputs, to an operator.

use std::ops::Range;
use std::time::Duration;

use crate::{ColumnCoder, Context, DType, Error, LinearOp, Result, RowSource, StatNeeds, StatSet, TensorInfo, metrics};

/// Matrices are compressed in blocks of rows; the first row of a block, counted from 0, is a multiple of this number.
pub const ROW_UNIT: usize = 64;

/// The tensors that a compressed matrix will be stored in, by name suffix, element type and shape. A method knows them from the shape of
/// the matrix alone, before it reads any weight.
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
    /// The tensors: for each, the suffix that follows the matrix's name and a dot (empty for a tensor with the matrix's own name), and the
    /// element type and shape.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Whether the shapes of the tensors are exact. If false, they are upper bounds, for example because the rank of a factorization
    /// depends on the weights.
    pub exact: bool,
}

impl Layout {
    /// Returns a layout with exact sizes. `tensors` gives, for each tensor, the suffix of its name, its element type and its shape.
    pub fn exact(tensors: impl IntoIterator<Item = (&'static str, DType, Vec<usize>)>) -> Self {
        let tensors =
            tensors.into_iter().map(|(n, dtype, shape)| (n.to_string(), TensorInfo { dtype, shape })).collect();
        Self { tensors, exact: true }
    }

    /// Returns this layout for an operator that is a part, with the name `name`, of another operator: the suffix `s` of a tensor's name
    /// becomes `name.s`, an empty suffix `name`.
    pub fn nested(mut self, name: &str) -> Self {
        for (suffix, _) in &mut self.tensors {
            *suffix = if suffix.is_empty() { name.to_string() } else { format!("{name}.{suffix}") };
        }
        self
    }

    /// Returns the number of bits of all tensors together, 8 for each byte. Errors if a size overflows.
    pub fn bits(&self) -> Result<u64> {
        self.tensors.iter().try_fold(0u64, |sum, (_, t)| {
            let bits = (t.bytes()? as u64).checked_mul(8).and_then(|b| b.checked_add(sum));
            bits.ok_or_else(|| Error::Overflow { what: "a layout".into() })
        })
    }
}

/// Which rows of a matrix a method needs at once: a block of rows, independent of all others (`Blocks`, the default), or all rows
/// (`Whole`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// Blocks of rows are compressed independently of each other.
    #[default]
    Blocks,
    /// All rows of the matrix are needed together.
    Whole,
}

impl Extent {
    /// Returns [`Extent::Whole`] if `self` or `other` is [`Extent::Whole`], [`Extent::Blocks`] otherwise.
    pub fn union(self, other: Self) -> Self {
        if self == Extent::Whole { self } else { other }
    }

    /// Errors with [`Error::Range`] if this is [`Extent::Whole`] and `rows`, the rows to compress, are not `0..total`, all rows of the
    /// matrix. With [`Extent::Blocks`] the result is always Ok.
    pub fn check(self, rows: &Range<usize>, total: usize) -> Result<()> {
        if self == Extent::Whole && *rows != (0..total) {
            return Err(Error::range("rows of a matrix that is compressed as a whole", 0..total, rows.clone()));
        }
        Ok(())
    }
}

/// A way to compress a weight matrix `[out_features, in_features]`, such as round-to-nearest or GPTQ, with its parameters already checked.
///
/// A compression has three steps. [`needs`](Self::needs) says which statistics of the matrix's inputs are gathered.
/// [`prepare`](Self::prepare) does the work that all matrices of a [site](crate::Site) share (the linear layers that read the same input,
/// such as q, k and v). [`Prepared::compress`] compresses a matrix, one block of rows at a time, to operators. [`layout`](Self::layout)
/// tells the stored tensors beforehand.
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
    /// Returns which statistics of the matrix's inputs [`prepare`](Self::prepare) needs; [`StatNeeds::none`] if it needs no data.
    fn needs(&self) -> StatNeeds;
    /// Returns whether rows are compressed in independent blocks (the default) or all together.
    fn extent(&self) -> Extent {
        Extent::Blocks
    }
    /// Returns the tensors that a matrix of this shape, `[out_features, in_features]`, will be stored in. Errors if the method cannot store
    /// the shape.
    fn layout(&self, shape: [usize; 2]) -> Result<Layout>;
    /// Does the work that all matrices of a site (the linear layers that read the same input) share, such as the factorization of a
    /// Hessian, from the statistics of their inputs. The caller passes statistics that meet [`needs`](Self::needs), or [`StatSet::none`] if
    /// nothing is needed. Errors if the statistics lack something that is needed.
    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>>;
    /// Returns a method with the same stored form that needs no data; None, the default, if there is none. Callers use it for trials, as a
    /// fallback after a failed factorization, and to quantize a matrix again.
    fn plain(&self) -> Option<&dyn Method> {
        None
    }
    /// Returns a [`ColumnCoder`] for the rows `rows` of `w` `[out_features, in_features]`, with which a column sweep with error feedback
    /// (as in GPTQ) quantizes these rows on the method's grid. None, the default, if the method cannot code column by column; an error if
    /// the coder cannot be set up for these rows.
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

/// A [`Method`] with the work done that all matrices of a [site](crate::Site) share (the linear layers that read the same input, such as q,
/// k and v), for example the factorization of a Hessian. Made by [`Method::prepare`].
pub trait Prepared: Send + Sync {
    /// Compresses the rows `rows` of `w` `[out_features, in_features]`. The caller passes all rows or, if [`Method::extent`] is
    /// [`Extent::Blocks`], a block that starts at a multiple of [`ROW_UNIT`]. The operator in the result holds these rows only, and weights
    /// that the mask of `w` prunes are zero in it. Errors if a value is not finite, with its row and column in `w`, if the range is
    /// invalid, or if `cx` is cancelled.
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed>;
}

/// The result of compressing some rows of a matrix: an operator of these rows, and a report of errors and cost.
pub struct Compressed {
    /// The compressed rows as an operator of their own, `[number of rows, in_features]`. Its row 0 is the first of the compressed rows.
    pub op: Box<dyn LinearOp>,
    /// Errors and cost of these rows, such as the squared error of the weights and the seconds taken.
    pub report: Report,
}

/// Errors and cost of a compressed matrix, or of a block of its rows: errors of the weights and of the outputs, damping of the Hessian,
/// numbers of dead columns (input features that were 0 in all calibration data) and of replaced NaN and infinite weights, sentences about
/// deviations from what was requested, and seconds. [`merge`](Self::merge) adds the report of another block. In the default report, all
/// fields are None, 0 or empty.
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
    /// The squared error of the outputs over the calibration data, `tr (W - Ŵ) H (W - Ŵ)ᵀ`, for the original weights `W`, the compressed
    /// ones `Ŵ` and the Gram matrix `H = XᵀX` of the inputs; None if it was not measured.
    pub data_error: Option<f64>,
    /// The sum of squares of the original outputs over the calibration data, `tr W H Wᵀ`, for the original weights `W` and the Gram matrix
    /// `H = XᵀX` of the inputs. The squared error of the outputs divided by it is a relative error. None if it was not measured.
    pub data_energy: Option<f64>,
    /// The number that was added to the diagonal of the Hessian so that its factorization succeeded, divided by the mean of the diagonal
    /// elements that are not 0. If blocks of rows were merged ([`Report::merge`]), it is the largest of all blocks. None if no Hessian was
    /// factored, or the factorization failed with every damping that was tried.
    pub damping: Option<f64>,
    /// The number of input features that were 0 in all calibration data; 0 for methods that do not use a Hessian.
    pub dead_columns: usize,
    /// The number of NaN and infinite weights that were replaced before compression, by a caller that allows that
    /// ([`Repaired`](crate::Repaired)). Methods leave it at 0.
    pub replaced: u64,
    /// Sentences about deviations from what was requested, such as weights that were rounded to nearest because a factorization failed.
    /// Empty if there were none.
    pub fallbacks: Vec<String>,
    /// The time that the compression took, in seconds. The times of blocks are summed, so that the total of blocks that ran in parallel can
    /// exceed the elapsed time.
    pub seconds: f64,
}

impl Report {
    /// Returns the report of the weights `values`, which decompress to `back` after compression that took `took`. It has the squared error,
    /// `Σ (values[i] - back[i])²`, the energy, `Σ values[i]²`, and the seconds; the other fields are None, 0 or empty. If the lengths
    /// differ, the squared error covers the elements that both have, the energy all of `values`.
    pub fn of(values: &[f32], back: &[f32], took: Duration) -> Self {
        Self {
            squared_error: metrics::squared_error(values, back),
            energy: metrics::energy(values),
            seconds: took.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Adds the report `other` of another block of rows of the same matrix to this report. Squared errors and energies (sums of squares) of
    /// the weights, counts of replaced weights and seconds are summed. Squared errors and energies of the outputs (`data_error` and
    /// `data_energy`) are summed too; a None counts as 0, but two None give None. The number of input features that were 0 in all
    /// calibration data (`dead_columns`) becomes the larger of the two. The damping of the Hessian becomes the larger of the two, or the
    /// only one if the other is None. The sentences of `other` about deviations from what was requested (`fallbacks`) are appended, except
    /// those that this report has already.
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

    /// Returns the relative error of the weights, `sqrt(Σ (w - ŵ)² / Σ w²)`: the root of `squared_error / energy`; 0 if the energy is
    /// 0, and NaN if one of the two is.
    pub fn relative_error(&self) -> f64 {
        if self.energy == 0.0 { 0.0 } else { (self.squared_error / self.energy).sqrt() }
    }
}
