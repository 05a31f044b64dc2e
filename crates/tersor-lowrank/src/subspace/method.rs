//! [`Subspaces`]: runs of columns by methods of their own.

use std::ops::Range;
use std::time::Instant;

use tersor_core::method::ROW_UNIT;
use tersor_core::{
    Check, Compressed, Context, Element, Error, Extent, IntoMat, Layout, LinearOp, Mask, Masked, MatView, Method,
    ParamError, Prepared, Report, Result, RowSource, StatNeeds, StatSet, read_masked,
};
use tersor_linalg::{Gram, inverse_factor, matmul};
use tersor_operators::{Split, split_layout};

/// Parameters, unchecked: no runs yet, of all features together, damping 0.01.
///
/// ```
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
/// use tersor_core::*;
/// use tersor_groupwise::Rtn;
/// use tersor_lowrank::{Blocks, Subspaces, principal_rotation};
///
/// # fn main() -> Result<()> {
/// // Inputs of 64 features that vary most along two directions.
/// let (tokens, k) = (100, 64);
/// let x: Vec<f32> = (0..tokens * k).map(|i| ((i % k + 1) as f32 * (i / k) as f32).sin() * if i % k < 2 { 9.0 } else { 1.0 }).collect();
/// let mut stats = StatSet::new(k, StatNeeds { gram: true, ..StatNeeds::default() }, 0, 0)?;
/// stats.observe(&MatView::new(&x, [tokens, k])?)?;
/// // An eighth of the directions, the last, at 8 bits.
/// let rotation = principal_rotation(stats.require_gram()?, &Blocks::random(&[56, 8], &mut ChaCha8Rng::seed_from_u64(0))?)?;
/// let rtn = |bits| Ok::<_, Error>(Box::new(Rtn::new().bits(bits).check()?));
/// let method = Subspaces::new().part(0.875, rtn(4)?).part(0.125, rtn(8)?);
/// let mut weights: Vec<f32> = (0..32 * k).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
/// rotation.forward(tersor_core::Isa::detect(), &mut weights);
/// let (op, _) = method.quantize(&MatView::new(&weights, [32, k])?, &StatSet::none())?;
/// // For inputs that are not rotated.
/// let op = tersor_operators::Rotated::new(rotation, op)?;
/// assert_eq!(op.shape(), [32, k]);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Subspaces {
    parts: Vec<(f64, Box<dyn Method>)>,
    heads: Option<usize>,
    damping: Option<f64>,
}

impl Subspaces {
    /// No runs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next run of columns: this share of all, by this method. Shares are above 0 and add to 1.
    pub fn part(mut self, share: f64, method: Box<dyn Method>) -> Self {
        self.parts.push((share, method));
        self
    }

    /// Features are those of so many heads, the first run of each of them first: shares are of a head, in whole features.
    pub fn heads(self, heads: usize) -> Self {
        Self { heads: Some(heads), ..self }
    }

    /// What is added to the diagonal of the Hessian before what later runs can make up for is found, as a share of its mean; above 0, finite.
    pub fn damping(self, damping: f64) -> Self {
        Self { damping: Some(damping), ..self }
    }

    /// Checks the parameters and quantizes a matrix `[out_features, in_features]` for inputs with these statistics; where no part needs them,
    /// [`StatSet::none`] serves. Errors on a wrong parameter, statistics that lack what is needed, or a value that is not finite.
    pub fn quantize<T: Element>(self, w: &impl IntoMat<T>, stats: &StatSet) -> Result<(Box<dyn LinearOp>, Report)> {
        crate::typed(&self.check()?, w, stats)
    }
}

/// Checked parameters: the method. Where its parts know the Gram matrix of the inputs, each run is compressed for what the runs after it cannot
/// make up for, and these are moved by what was lost, before they are compressed: with GPTQ in all parts, GPTQ over all columns with a grid for
/// each run (section 4.1).
pub struct CheckedSubspaces {
    parts: Vec<(f64, Box<dyn Method>)>,
    heads: usize,
    damping: f64,
}

impl Check for Subspaces {
    type Checked = CheckedSubspaces;
    fn check(self) -> Result<CheckedSubspaces, ParamError> {
        let shares: Vec<f64> = self.parts.iter().map(|p| p.0).collect();
        let rule = "must be above 0 and add to 1";
        let sum: f64 = shares.iter().sum();
        if shares.iter().any(|s| !s.is_finite() || *s <= 0.0) || (sum - 1.0).abs() > 1e-6 {
            return Err(ParamError::new("shares", format!("{shares:?}"), rule));
        }
        let damping = self.damping.unwrap_or(0.01);
        if !damping.is_finite() || damping <= 0.0 {
            return Err(ParamError::new("damping", damping, "must be finite and above 0"));
        }
        let heads = self.heads.unwrap_or(1);
        if heads == 0 {
            return Err(ParamError::new("heads", heads, "must be at least 1"));
        }
        Ok(CheckedSubspaces { parts: self.parts, heads, damping })
    }
}

/// How many of so many features each of these shares has: all of them together, none of them more than one away from what it asks for.
pub fn widths(shares: impl IntoIterator<Item = f64>, features: usize) -> Vec<usize> {
    let (mut sum, mut before) = (0f64, 0);
    let width = |share: f64| {
        sum += share;
        let end = ((sum * features as f64).round() as usize).clamp(before, features);
        end - std::mem::replace(&mut before, end)
    };
    shares.into_iter().map(width).collect()
}

impl CheckedSubspaces {
    /// Number of each part and its columns; a share of no column is left out. Error unless there are as many features for every head.
    fn runs(&self, features: usize) -> Result<Vec<(usize, Range<usize>)>> {
        if !features.is_multiple_of(self.heads) {
            return Err(Error::shape("features of heads", format!("a multiple of {}", self.heads), features));
        }
        let widths = widths(self.parts.iter().map(|p| p.0), features / self.heads);
        let (mut at, mut runs) = (0, Vec::new());
        for (part, width) in widths.into_iter().enumerate().filter(|(_, width)| *width > 0) {
            let end = at + width * self.heads;
            runs.push((part, at..end));
            at = end;
        }
        Ok(runs)
    }
}

impl Method for CheckedSubspaces {
    fn name(&self) -> String {
        let part = |(share, m): &(f64, Box<dyn Method>)| format!("{share} {}", m.name());
        format!("subspaces ({})", self.parts.iter().map(part).collect::<Vec<_>>().join(", "))
    }
    fn needs(&self) -> StatNeeds {
        self.parts.iter().fold(StatNeeds::default(), |needs, (_, m)| needs.union(m.needs()))
    }
    fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        let part = |(part, run): &(usize, Range<usize>)| self.parts[*part].1.layout([shape[0], run.len()]);
        Ok(split_layout(self.runs(shape[1])?.iter().map(part).collect::<Result<Vec<_>>>()?))
    }

    fn extent(&self) -> Extent {
        self.parts.iter().fold(Extent::Blocks, |extent, (_, m)| extent.union(m.extent()))
    }

    fn prepare<'s>(&'s self, stats: &StatSet, cx: &Context) -> Result<Box<dyn Prepared + 's>> {
        if !self.needs().any_data() || stats.tokens() == 0 {
            // A part that needs data names what it misses.
            let part = |(_, method): &'s (f64, Box<dyn Method>)| {
                Ok(Some(Part { prepared: method.prepare(stats, cx)?, moves: None }))
            };
            let parts = self.parts.iter().map(part).collect::<Result<_>>()?;
            return Ok(Box::new(Ready { method: self, parts, gram: None }));
        }
        let mut parts: Vec<Option<Part<'s>>> = Vec::new();
        parts.resize_with(self.parts.len(), || None);
        for (number, run) in self.runs(stats.features())? {
            let mut own = stats.columns(run.clone())?;
            let mut moves = None;
            if let Some(gram) = stats.gram()
                && run.end < stats.features()
            {
                let (rest, coupling) = couple(gram, stats.features(), run, self.damping)?;
                own = own.with_gram(rest)?;
                moves = Some(coupling);
            }
            parts[number] = Some(Part { prepared: self.parts[number].1.prepare(&own, cx)?, moves });
        }
        let gram = stats.gram().map(|gram| Gram::new(gram, stats.features(), 1.0)).transpose()?;
        Ok(Box::new(Ready { method: self, parts, gram }))
    }
}

/// Of a damped Gram matrix `H` the Schur complement `H_ii - H_ir H_rr⁻¹ H_ri` of the columns after the run, and how these move with what the run
/// loses, `H_ir H_rr⁻¹`.
fn couple(gram: &[f64], k: usize, run: Range<usize>, damping: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let mean = (0..k).map(|i| gram[i * k + i]).sum::<f64>() / k as f64;
    // Of inputs that were all zero nothing can be said, and anything is right.
    let added = if mean > 0.0 { damping * mean } else { 1.0 };
    let at = |r: usize, c: usize| gram[r * k + c] + if r == c { added } else { 0.0 };
    let block = |rows: Range<usize>, cols: Range<usize>| -> Vec<f64> {
        rows.flat_map(|r| cols.clone().map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect()
    };
    let (n, after) = (run.len(), run.end..k);
    let m = after.len();
    // H_rr⁻¹ = UᵀU, U upper.
    let u = inverse_factor(&block(after.clone(), after.clone()), m)?;
    let turned: Vec<f64> = (0..m * m).map(|i| u[i % m * m + i / m]).collect();
    let half = matmul(&block(run.clone(), after), [n, m], &turned, m)?;
    let coupling = matmul(&half, [n, m], &u, m)?;
    let turned: Vec<f64> = (0..m * n).map(|i| half[i % n * m + i / n]).collect();
    let explained = matmul(&half, [n, m], &turned, n)?;
    let mut rest = block(run.clone(), run);
    for r in 0..n {
        for c in r..n {
            // Symmetric to the last bit, and the damping is for the parts to choose.
            let v = rest[r * n + c] - explained[r * n + c] - if r == c { added } else { 0.0 };
            rest[r * n + c] = if r == c { v.max(0.0) } else { v };
            rest[c * n + r] = rest[r * n + c];
        }
    }
    Ok((rest, coupling))
}

/// Rows of some columns.
fn columns(values: &[f32], cols: usize, run: &Range<usize>) -> Vec<f32> {
    values.chunks_exact(cols.max(1)).flat_map(|row| &row[run.clone()]).copied().collect()
}

/// A part, and how later columns move with what it loses.
struct Part<'s> {
    prepared: Box<dyn Prepared + 's>,
    moves: Option<Vec<f64>>,
}

/// All parts; those without columns are none.
struct Ready<'s> {
    method: &'s CheckedSubspaces,
    parts: Vec<Option<Part<'s>>>,
    gram: Option<Gram>,
}

impl Prepared for Ready<'_> {
    fn compress(&self, w: &dyn RowSource, rows: Range<usize>, cx: &Context) -> Result<Compressed> {
        let (n, cols, start) = (rows.len(), w.shape()[1], Instant::now());
        if let Some(gram) = &self.gram
            && cols != gram.features()
        {
            return Err(Error::shape("features of the statistics", cols, gram.features()));
        }
        let (values, mask) = read_masked(w, rows)?;
        let mut moved = values.clone();
        let (mut report, mut ops) = (Report::default(), Vec::new());
        for (number, run) in self.method.runs(cols)? {
            let part = self.parts[number].as_ref();
            let part = part.ok_or_else(|| Error::shape("features of the statistics", cols, "other ones"))?;
            let own = columns(&moved, cols, &run);
            let view = MatView::new(&own, [n, run.len()])?;
            // Earlier runs may have moved dropped weights: what these lose by being zero is made up for as any other error.
            let kept = |mask: &Mask| Mask::from_fn([n, run.len()], |r, c| mask.keeps(r, run.start + c));
            let done = match mask.as_ref().map(kept).transpose()? {
                Some(kept) => part.prepared.compress(&Masked::new(&view, &kept)?, 0..n, cx)?,
                None => part.prepared.compress(&view, 0..n, cx)?,
            };
            if let Some(moves) = &part.moves {
                let mut lost = vec![0f32; own.len()];
                done.op.decompress_rows(0..n, &mut lost, &cx.exec)?;
                let lost: Vec<f64> = own.iter().zip(&lost).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
                let rest = cols - run.end;
                // In units, so that the sums are the same whatever the block of rows.
                let units = moved.chunks_mut(ROW_UNIT * cols).zip(lost.chunks(ROW_UNIT * run.len()));
                for (moved, lost) in units {
                    let more = cx.run(|| matmul(lost, [lost.len() / run.len(), run.len()], moves, rest))?;
                    for (row, more) in moved.chunks_exact_mut(cols).zip(more.chunks_exact(rest)) {
                        row[run.end..].iter_mut().zip(more).for_each(|(w, m)| *w = (f64::from(*w) + m) as f32);
                    }
                }
            }
            report.merge(&done.report);
            ops.push(done.op);
        }
        let op = Split::new(ops)?;
        let mut error = vec![0f32; values.len()];
        op.decompress_rows(0..n, &mut error, &cx.exec)?;
        let own = Report::of(&values, &error, start.elapsed());
        (report.squared_error, report.energy, report.seconds) = (own.squared_error, own.energy, own.seconds);
        (report.data_error, report.data_energy) = (None, None);
        if let Some(gram) = &self.gram {
            error.iter_mut().zip(&values).for_each(|(e, w)| *e = w - *e);
            report.data_error = Some(cx.run(|| gram.loss(&error))?);
            report.data_energy = Some(cx.run(|| gram.loss(&values))?);
        }
        Ok(Compressed { op: Box::new(op), report })
    }
}
