//! [`LowRank`]: weights replaced by factors.

use std::ops::Range;
use std::time::Instant;

use tersor_core::{
    Check, Compressed, Context, DType, Element, Extent, IntoMat, Layout, LinearOp, Method, ParamError, Prepared,
    Report, Result, RowSource, StatNeeds, StatSet,
};
use tersor_operators::Cast;

use super::decompose::{Weights, bits_of, compress_factors, decompose, factor_layout};
use super::{Norm, Rank};

/// A weight as a product of two thin matrices, unchecked.
pub struct LowRank {
    norm: Norm,
    rank: Rank,
    factors: Option<Box<dyn Method>>,
}

impl LowRank {
    /// Returns the factorization by singular values, factors in f16.
    pub fn new(rank: Rank) -> Self {
        Self { norm: Norm::Plain, rank, factors: None }
    }

    /// The norm of the error that is minimized.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// How the factors are stored, by a method that needs no data.
    pub fn factors(self, factors: Box<dyn Method>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    /// Checks the parameters and factors a matrix `[out_features, in_features]` for inputs with these statistics; without a norm that needs them,
    /// [`StatSet::none`] serves. Errors on a wrong parameter, statistics that lack what the norm needs, or a value that is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

impl Check for LowRank {
    type Checked = CheckedLowRank;
    fn check(self) -> Result<CheckedLowRank, ParamError> {
        self.rank.check()?;
        let factors = storage(self.factors)?;
        Ok(CheckedLowRank { norm: self.norm, rank: self.rank, factors })
    }
}

/// Returns the method that stores factors: f16 unless given.
pub(crate) fn storage(factors: Option<Box<dyn Method>>) -> Result<Box<dyn Method>, ParamError> {
    let factors = match factors {
        Some(factors) => factors,
        None => Box::new(Cast::new(DType::F16)?),
    };
    if factors.needs().any_data() {
        return Err(ParamError::new("factors", factors.name(), "must be stored by a method that needs no data"));
    }
    Ok(factors)
}

/// Checked parameters.
pub struct CheckedLowRank {
    norm: Norm,
    rank: Rank,
    factors: Box<dyn Method>,
}

impl Method for CheckedLowRank {
    fn name(&self) -> String {
        "low-rank".into()
    }
    fn needs(&self) -> StatNeeds {
        self.norm.needs()
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        factor_layout(&*self.factors, self.rank, shape)
    }
    fn extent(&self) -> Extent {
        Extent::Whole
    }
    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn Prepared + 's>> {
        Ok(Box::new(Ready { method: self, weights: Weights::of(self.norm, stats)? }))
    }
    fn plain(&self) -> Option<&dyn Method> {
        (!self.norm.needs().any_data()).then_some(self as &dyn Method)
    }
}

struct Ready<'s> {
    method: &'s CheckedLowRank,
    weights: Weights,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        cx.cancel.check()?;
        let (shape, start, how) = (whole(w, &rows)?, Instant::now(), self.method);
        let values = crate::read_unmasked(w, rows, "low-rank")?;
        let bits = bits_of(&*how.factors)?;
        let found = cx.run(|| decompose(&values, shape, &self.weights, how.rank, bits, cx))?;
        let op = compress_factors(&*how.factors, &found, shape, cx)?;
        let mut back = vec![0f32; values.len()];
        op.decompress_rows(0..shape[0], &mut back, &cx.exec)?;
        Ok(Compressed { op, report: Report::of(&values, &back, start.elapsed()) })
    }
}

/// Returns the shape of a matrix. Errors unless all of its rows were asked for.
pub(crate) fn whole(w: &dyn RowSource, rows: &Range<usize>) -> Result<[usize; 2]> {
    Extent::Whole.check(rows, w.shape()[0]).map(|()| w.shape())
}
