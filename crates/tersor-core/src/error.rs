//! [`Error`]: the error type of the workspace, with variants for parameters, data, files, limits and the system.

use std::path::PathBuf;

use tersor_kernels::Fault;

/// The result of a fallible function: Ok with a `T`, or an error, which is an [`Error`] unless another type is given for `E`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error type of the workspace. Its variants are invalid parameters, values, shapes, ranges and orders, violated file formats and
/// limits, missing and unsupported input, numerical failures, errors of the operating system, and cancellation. The message has the
/// offending values and, where there is one, the remedy.
///
/// ```
/// use tersor_core::{Error, MatView};
/// let error = MatView::new(&[1.0f32; 5], [2, 3]).unwrap_err().in_tensor("w");
/// assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "w"));
/// assert_eq!(error.to_string(), "tensor `w`: elements of a matrix: expected 6, found 5");
/// assert!(!error.is_usage());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error with the name of the tensor that it concerns.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// The name of the tensor, as in the model file.
        tensor: String,
        /// The error that concerns the tensor.
        #[source]
        source: Box<Error>,
    },
    /// An invalid value of a parameter.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A NaN or infinite value in data that must be finite.
    #[error("value {value} at row {row}, column {col}: every value must be finite")]
    NonFinite {
        /// Row of the first value that is not finite, counted from 0.
        row: usize,
        /// Column of the first value that is not finite, counted from 0.
        col: usize,
        /// The value that is not finite.
        value: f32,
    },
    /// Sizes that do not match.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The thing whose size is wrong.
        what: &'static str,
        /// The size that it must have.
        expected: String,
        /// The size that it has.
        found: String,
    },
    /// An index or a range of indices that is out of range.
    #[error("{what}: {found} is not inside {inside}")]
    Range {
        /// The thing that is indexed.
        what: &'static str,
        /// The valid indices.
        inside: String,
        /// The index or range that was given.
        found: String,
    },
    /// A list in an invalid order: positions that do not ascend, an index list that is no permutation.
    #[error("{what}: {rule}, found {found}")]
    Order {
        /// The list.
        what: &'static str,
        /// The order that it must have.
        rule: String,
        /// The element that violates the order.
        found: String,
    },
    /// A quantization scale that its storage type cannot represent.
    #[error(
        "the scale {value:e} of row {row}, group {group} cannot be stored as {dtype}; choose wider scales (`scales = \"f32\"`)"
    )]
    ScaleRange {
        /// Row of the group whose scale cannot be stored, counted from 0.
        row: usize,
        /// Index of the group inside of its row, counted from 0.
        group: usize,
        /// The scale before rounding.
        value: f32,
        /// The storage type of the scales.
        dtype: &'static str,
    },
    /// A size that exceeds the address space.
    #[error("{what} overflows the address space")]
    Overflow {
        /// The thing whose size was computed.
        what: String,
    },
    /// A size above one of the configured [`Limits`](crate::Limits).
    #[error("{what} is {found}, above the limit of {limit}; raise it in `Limits` if the source is trusted")]
    Limit {
        /// The thing that is limited.
        what: &'static str,
        /// The size that was found.
        found: u64,
        /// The size that is allowed.
        limit: u64,
    },
    /// A file or directory whose content violates its format.
    #[error("{file}: {what}")]
    Format {
        /// The file, or the part of it.
        file: String,
        /// The violation, as a phrase that follows the file's name.
        what: String,
    },
    /// Valid input that this version cannot handle.
    #[error("{what} is not supported: {value}")]
    Unsupported {
        /// The kind of thing that is not supported.
        what: &'static str,
        /// The value that is not supported, and the remedy where there is one.
        value: String,
    },
    /// A tensor or entry that is missing.
    #[error("`{name}` is missing from {place}")]
    Missing {
        /// The name of the missing tensor or entry.
        name: String,
        /// The place where it was expected.
        place: String,
    },
    /// A matrix that is not positive definite, where a Cholesky factorization needs one.
    #[error(
        "the matrix is not positive definite at pivot {pivot}{}",
        if damping_tried.is_empty() { String::new() } else { format!(" (damping tried: {damping_tried:?})") }
    )]
    NotPositiveDefinite {
        /// Index of the first pivot that is not positive, counted from 0.
        pivot: usize,
        /// The dampings that were tried without success, as fractions of the mean diagonal.
        damping_tried: Vec<f64>,
    },
    /// A computation that failed numerically, with a sentence that says how.
    #[error("{0}")]
    Numerical(String),
    /// An error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory that the system call was about.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The caller [cancelled](crate::Cancel) the work.
    #[error("cancelled")]
    Cancelled,
    /// A [`Tap`](crate::Tap) asked the network to stop: what it wanted is computed. Networks pass it on; whoever made the tap takes it for
    /// success.
    #[error("stopped by the tap of the network")]
    Stopped,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Length { what, expected, found } => Error::shape(what, expected, found),
            Fault::Range { what, limit, found } => Error::range(what, format_args!("the limit {limit}"), found),
            Fault::Overflow { what } => Error::Overflow { what: what.into() },
            Fault::NonFinite { index, value } => Error::NonFinite { row: 0, col: index, value },
            Fault::Order { what, index } => Error::order(what, "ascending", format_args!("value {index} that is not")),
            other => Error::Numerical(other.to_string()),
        }
    }
}

/// Returns the debug form of a value, text without its quotes.
fn plain(value: impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    match text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => inner.to_string(),
        _ => text,
    }
}

impl Error {
    /// Returns this error with the flat index in an [`Error::NonFinite`] converted to a row and a column. If the row of the `NonFinite` is
    /// 0, its column is taken as an index into a row-major matrix of `cols` columns: the result has the row `index / cols` and the column
    /// `index % cols`. A `NonFinite` with another row or inside of an [`Error::Tensor`] is returned unchanged, and so is every other error.
    /// If `cols` is 0, every error is returned unchanged.
    pub fn in_columns(self, cols: usize) -> Self {
        match self {
            Error::NonFinite { row: 0, col, value } if cols > 0 => {
                Error::NonFinite { row: col / cols, col: col % cols, value }
            }
            other => other,
        }
    }

    /// Wraps this error in an [`Error::Tensor`] with the name of the tensor that it concerns. An [`Error::Tensor`],
    /// [`Error::Cancelled`], [`Error::Stopped`] or [`Error::Io`] is returned unchanged.
    pub fn in_tensor(self, tensor: &str) -> Self {
        match self {
            Error::Tensor { .. } | Error::Cancelled | Error::Stopped | Error::Io { .. } => self,
            other => Error::Tensor { tensor: tensor.to_string(), source: Box::new(other) },
        }
    }

    /// Returns an [`Error::Format`]: the content of the file `file` violates its format. `what` says how, as a phrase that follows the
    /// file's name in the message.
    pub fn format(file: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Format { file: file.into(), what: what.into() }
    }

    /// Returns an [`Error::Shape`]: the size of `what` must be `expected` and is `found`. Both sizes are formatted by `Debug`, strings
    /// without their quotes.
    pub fn shape(what: &'static str, expected: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Error::Shape { what, expected: plain(expected), found: plain(found) }
    }

    /// Returns an [`Error::Range`]: `found`, an index or a range of indices of `what`, is not inside the valid range `inside`. Both are
    /// formatted by `Debug`, strings without their quotes.
    pub fn range(what: &'static str, inside: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Error::Range { what, inside: plain(inside), found: plain(found) }
    }

    /// Returns an [`Error::Order`]: the list `what` is in an invalid order. `rule` is the order that it must have, `found` the element that
    /// violates it, formatted by `Debug`, strings without their quotes.
    pub fn order(what: &'static str, rule: impl Into<String>, found: impl std::fmt::Debug) -> Self {
        Error::Order { what, rule: rule.into(), found: plain(found) }
    }

    /// Returns an [`Error::Missing`]: the tensor or entry `name` is missing from `place`, for example from a file.
    pub fn missing(name: impl Into<String>, place: impl Into<String>) -> Self {
        Error::Missing { name: name.into(), place: place.into() }
    }

    /// Returns this error with `first` added to its row number. It converts the row of a block of rows, which begins at row `first` of a
    /// matrix, to the row of the matrix. Only [`Error::NonFinite`] and [`Error::ScaleRange`] have a row number; all other errors are
    /// returned unchanged, also these two inside of an [`Error::Tensor`].
    pub fn in_rows_from(self, first: usize) -> Self {
        match self {
            Error::NonFinite { row, col, value } => Error::NonFinite { row: first + row, col, value },
            Error::ScaleRange { row, group, value, dtype } => {
                Error::ScaleRange { row: first + row, group, value, dtype }
            }
            other => other,
        }
    }

    /// Returns an [`Error::Io`]: a system call on the file or directory `path` failed with the error `source`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// Returns whether the caller gave an invalid parameter: true for [`Error::Param`], also inside of an [`Error::Tensor`], false for all
    /// other errors. The command `tersor` then exits with status 2, and with 1 on other errors.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Param(_) => true,
            Error::Tensor { source, .. } => source.is_usage(),
            _ => false,
        }
    }
}

/// The error that a parameter has an invalid value: the name of the parameter, the value, and the rule that it violates.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("parameter `{name}` is {value}: {rule}")]
pub struct ParamError {
    /// The name of the invalid parameter, such as `bits`.
    pub name: &'static str,
    /// The invalid value, as text.
    pub value: String,
    /// The rule that the value violates, as a phrase such as `must be 1 to 8`.
    pub rule: String,
}

impl ParamError {
    /// Returns the error that the parameter `name` has the invalid value `value`. `rule` says which values are valid, as a phrase such as
    /// `must be at least 1`.
    pub fn new(name: &'static str, value: impl std::fmt::Display, rule: impl Into<String>) -> Self {
        Self { name, value: value.to_string(), rule: rule.into() }
    }
}
