//! One error type, split by who is at fault: the parameters, the data, the file, the limits, the system.

use std::path::PathBuf;

use tersor_kernels::Fault;

/// The result of everything in the workspace that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the offending values and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another error, with the tensor that it happened in.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// Name of the tensor, as in the model file.
        tensor: String,
        /// What happened.
        #[source]
        source: Box<Error>,
    },
    /// A parameter out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A NaN or infinite value where only finite ones have a meaning.
    #[error("value {value} at row {row}, column {col}: every value must be finite")]
    NonFinite {
        /// Row of the first such value.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        value: f32,
    },
    /// Sizes that must agree and do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// What was looked at.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        found: String,
    },
    /// An index or a range of indices outside of what there is.
    #[error("{what}: {found} is not inside {inside}")]
    Range {
        /// What was indexed.
        what: &'static str,
        /// The indices that there are.
        inside: String,
        /// The index or range that was given.
        found: String,
    },
    /// Things in an order that they must not have: positions that do not ascend, an index list that is no permutation.
    #[error("{what}: {rule}, found {found}")]
    Order {
        /// What was looked at.
        what: &'static str,
        /// The order that it must have.
        rule: String,
        /// What breaks it.
        found: String,
    },
    /// A scale that the chosen type cannot hold.
    #[error(
        "the scale {value:e} of row {row}, group {group} cannot be stored as {dtype}; choose wider scales (`scales = \"f32\"`)"
    )]
    ScaleRange {
        /// Row of the group.
        row: usize,
        /// Index of the group inside its row.
        group: usize,
        /// The scale before rounding.
        value: f32,
        /// The type of the scales.
        dtype: &'static str,
    },
    /// A size computation that does not fit the machine.
    #[error("{what} overflows the address space")]
    Overflow {
        /// The size that was computed.
        what: String,
    },
    /// Something larger than the configured [`Limits`](crate::Limits).
    #[error("{what} is {found}, above the limit of {limit}; raise it in `Limits` if the source is trusted")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What was found.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A file or directory whose content breaks its format.
    #[error("{file}: {what}")]
    Format {
        /// The file, or the part of it.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Something valid that this version does not handle.
    #[error("{what} is not supported: {value}")]
    Unsupported {
        /// The kind of thing.
        what: &'static str,
        /// Its value, and the way out where there is one.
        value: String,
    },
    /// A tensor or entry that should be there.
    #[error("`{name}` is missing from {place}")]
    Missing {
        /// Its name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// A matrix that a Cholesky factorization needs positive definite, and that is not.
    #[error(
        "the matrix is not positive definite at pivot {pivot}{}",
        if damping_tried.is_empty() { String::new() } else { format!(" (damping tried: {damping_tried:?})") }
    )]
    NotPositiveDefinite {
        /// The first pivot that is not positive.
        pivot: usize,
        /// Shares of the mean diagonal that were added to the diagonal, in vain.
        damping_tried: Vec<f64>,
    },
    /// A numerical procedure that could not finish.
    #[error("{0}")]
    Numerical(String),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
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

impl Error {
    /// The same error with a flat index, which it has as the column, as row and column of a matrix with so many columns.
    pub fn in_columns(self, cols: usize) -> Self {
        match self {
            Error::NonFinite { row: 0, col, value } if cols > 0 => {
                Error::NonFinite { row: col / cols, col: col % cols, value }
            }
            other => other,
        }
    }

    /// The same error with the name of the tensor it happened in; a name that is there already stays.
    pub fn in_tensor(self, tensor: &str) -> Self {
        match self {
            Error::Tensor { .. } | Error::Cancelled | Error::Io { .. } => self,
            other => Error::Tensor { tensor: tensor.to_string(), source: Box::new(other) },
        }
    }

    /// An [`Error::Format`] of a file.
    pub fn format(file: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Format { file: file.into(), what: what.into() }
    }

    /// An [`Error::Shape`] from displayable sizes.
    pub fn shape(what: &'static str, expected: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Error::Shape { what, expected: format!("{expected:?}"), found: format!("{found:?}") }
    }

    /// An [`Error::Range`] from displayable indices.
    pub fn range(what: &'static str, inside: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Error::Range { what, inside: format!("{inside:?}"), found: format!("{found:?}") }
    }

    /// An [`Error::Order`].
    pub fn order(what: &'static str, rule: impl Into<String>, found: impl std::fmt::Debug) -> Self {
        Error::Order { what, rule: rule.into(), found: format!("{found:?}") }
    }

    /// An [`Error::Missing`] of something that statistics of inputs should have.
    pub fn missing(name: impl Into<String>, place: impl Into<String>) -> Self {
        Error::Missing { name: name.into(), place: place.into() }
    }

    /// The same error with rows counted from `first` on: for errors in a block of rows of a matrix.
    pub fn in_rows_from(self, first: usize) -> Self {
        match self {
            Error::NonFinite { row, col, value } => Error::NonFinite { row: first + row, col, value },
            Error::ScaleRange { row, group, value, dtype } => {
                Error::ScaleRange { row: first + row, group, value, dtype }
            }
            other => other,
        }
    }

    /// An [`Error::Io`] of a path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// Whether the caller is at fault (exit code 2 of the command) rather than files or data.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Param(_) => true,
            Error::Tensor { source, .. } => source.is_usage(),
            _ => false,
        }
    }
}

/// A parameter that was checked and found wanting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("parameter `{name}` is {value}: {rule}")]
pub struct ParamError {
    /// Name of the parameter.
    pub name: &'static str,
    /// The value that was given.
    pub value: String,
    /// What is allowed.
    pub rule: String,
}

impl ParamError {
    /// Says that `name` may not be `value`, and what it may be.
    pub fn new(name: &'static str, value: impl std::fmt::Display, rule: impl Into<String>) -> Self {
        Self { name, value: value.to_string(), rule: rule.into() }
    }
}
