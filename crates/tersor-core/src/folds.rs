//! [`Fold`]: changes of matrices that a rewrite computes, applied as rows are read.

use std::ops::Range;

use crate::rows::check_range;
use crate::{Error, Exec, FeatureMap, Isa, Mask, Result, Rotation, RowSource};

/// The axis of a weight matrix `[out_features, in_features]` that a [`Fold`] (a change of a stored weight) changes: the columns, which are
/// input features, or the rows, which are output features.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// The columns: the features that the matrix reads.
    Input,
    /// The rows: the features that the matrix produces.
    Output,
}

/// What a [`Fold`] (a change of a stored weight) does along one axis of the weight. The features are the columns or the rows of the weight,
/// whichever the fold's [`Side`] names. A transform multiplies each feature by a factor (`Scale`), reorders, selects or sums features
/// (`Map`), rotates features (`Rotate`), or replaces all values of each feature by one new value (`Set`). [`Fold`] has an example.
#[derive(Clone, Debug)]
pub enum Transform {
    /// Multiplies each feature by its factor.
    Scale(Vec<f32>),
    /// Reorders, selects or combines features; the axis gets as long as the map has new features.
    Map(FeatureMap),
    /// Rotates spans of neighbouring features. All rotations have the same number of features, the length of a span, and each rotates the
    /// same number of consecutive spans: one rotation rotates all spans; one rotation for each head rotates the heads. The length of the
    /// axis must be a multiple of the sum of the sizes of the rotations.
    Rotate(Vec<Rotation>),
    /// Replaces all values of each feature by the feature's value in this list (for the weight of a norm that was folded into the matrices
    /// behind it).
    Set(Vec<f32>),
}

impl Transform {
    /// Returns the transform that permutes `order.len()` features: new feature `i` is the old feature `order[i]`, both counted from 0.
    /// Errors unless `order` holds each of `0..order.len()` exactly once.
    pub fn permute(order: Vec<u32>) -> Result<Self> {
        FeatureMap::permutation(order).map(Transform::Map)
    }

    /// Returns the transform that keeps some of `features` features: new feature `i` is the old feature `kept[i]`, both counted from 0; the
    /// others are dropped. Errors if an index is not below `features` or occurs twice.
    pub fn select(kept: Vec<u32>, features: usize) -> Result<Self> {
        FeatureMap::selection(kept, features).map(Transform::Map)
    }

    fn dim(&self) -> usize {
        match self {
            Transform::Scale(s) => s.len(),
            Transform::Map(m) => m.from(),
            Transform::Rotate(all) => all.iter().map(Rotation::dim).sum(),
            Transform::Set(v) => v.len(),
        }
    }

    /// Returns whether the transform applies to an axis of so many features.
    fn fits(&self, features: usize) -> bool {
        match self {
            Transform::Rotate(all) => rotations_fit(all, features),
            other => other.dim() == features,
        }
    }

    /// Returns the length that an axis of `features` features has after the transform: the number of new features for a [`Transform::Map`],
    /// `features` itself for all others. There is no error if the transform does not accept an axis of this length; [`FoldedRows::new`]
    /// errors then.
    pub fn features_after(&self, features: usize) -> usize {
        if let Transform::Map(m) = self { m.to() } else { features }
    }

    /// Returns the change of a matrix's inputs that makes up for this transform of the matrix's columns: the transformed matrix times the
    /// changed inputs is the original product. For factors, the change divides the inputs by the factors; a factor of 0 gives infinity, not
    /// an error. For a permutation of the columns, it permutes the inputs in the same way. For rotations, it rotates the inputs by the same
    /// rotations.
    ///
    /// Errors with [`Error::Unsupported`] for all other transforms, because no change of the inputs makes up for them: maps that drop or
    /// sum features, and new values. A map made by [`FeatureMap::new`] counts as one that sums features, even if its entries are a
    /// permutation.
    pub fn input_change(&self) -> Result<InputChange> {
        match self {
            Transform::Scale(factors) => Ok(InputChange::Scale(factors.iter().map(|s| s.recip()).collect())),
            Transform::Rotate(all) => Ok(InputChange::Rotate(all.clone())),
            Transform::Map(map) => match map.as_permutation() {
                Some(order) => Ok(InputChange::Permute(order.to_vec())),
                None => Err(not_of_inputs()),
            },
            Transform::Set(_) => Err(not_of_inputs()),
        }
    }

    /// Applies the transform to one row along its features, whose number it keeps.
    fn along(&self, isa: Isa, row: &mut [f32], scratch: &mut Vec<f32>) {
        match self {
            Transform::Scale(s) => row.iter_mut().zip(s).for_each(|(v, s)| *v *= s),
            Transform::Rotate(all) => rotate(isa, all, row),
            Transform::Set(v) => row.copy_from_slice(v),
            Transform::Map(map) => {
                scratch.clear();
                scratch.extend_from_slice(row);
                map.apply(scratch, row);
            }
        }
    }
}

/// Returns whether an axis of so many features can be rotated by these rotations, which must have one width.
fn rotations_fit(all: &[Rotation], features: usize) -> bool {
    let dim: usize = all.iter().map(Rotation::dim).sum();
    let alike = all.windows(2).all(|w| w[0].dim() == w[1].dim());
    alike && !all.is_empty() && features.is_multiple_of(dim.max(1))
}

/// Rotates the spans of a row: each rotation rotates the same number of consecutive spans.
fn rotate(isa: Isa, all: &[Rotation], row: &mut [f32]) {
    let span = row.len() / all.len().max(1);
    row.chunks_exact_mut(span.max(1)).zip(all).for_each(|(span, r)| r.forward(isa, span));
}

/// A change of the inputs of a matrix at run time, before the matrix multiplies them. The change multiplies each input feature by a factor
/// (`Scale`), reorders the features (`Permute`), or rotates neighbouring features (`Rotate`). It makes up for a change of the matrix's
/// columns; [`Transform::input_change`] returns it.
///
/// ```
/// use tersor_core::{Exec, Transform};
/// # fn main() -> tersor_core::Result<()> {
/// // Columns that are multiplied by 2 and 4 need inputs that are divided by them.
/// let mut x = [2.0f32, 4.0];
/// Transform::Scale(vec![2.0, 4.0]).input_change()?.apply(&mut x, 2, &Exec::new())?;
/// assert_eq!(x, [1.0, 1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum InputChange {
    /// Multiplies each feature by its factor.
    Scale(Vec<f32>),
    /// Reorders features: new feature `i` is the old feature whose index, counted from 0, is element `i` of this list.
    Permute(Vec<u32>),
    /// Rotates spans of neighbouring features, as [`Transform::Rotate`] does: the spans are cut and divided among the rotations in the same
    /// way.
    Rotate(Vec<Rotation>),
}

impl InputChange {
    /// Applies this change in place to `inputs`, `[tokens, features]` row-major. Values after the last whole token are left unchanged.
    ///
    /// Errors, with `inputs` unchanged, if `features` is 0 or the change does not apply to `features` features. `Scale` applies if it has
    /// `features` factors. `Permute` applies if it is a permutation of `features` indices. `Rotate` applies if it has at least one
    /// rotation, all its rotations have the same number of features, and `features` is a multiple of the sum of these numbers.
    pub fn apply(&self, inputs: &mut [f32], features: usize, exec: &Exec) -> Result<()> {
        let fits = match self {
            InputChange::Scale(s) => s.len() == features,
            InputChange::Permute(o) => {
                FeatureMap::permutation(o.clone())?;
                o.len() == features
            }
            InputChange::Rotate(all) => rotations_fit(all, features),
        };
        if !fits || features == 0 {
            let expected = match self {
                InputChange::Scale(s) => s.len().to_string(),
                InputChange::Permute(o) => o.len().to_string(),
                InputChange::Rotate(all) => format!("a multiple of {}", all.iter().map(Rotation::dim).sum::<usize>()),
            };
            return Err(Error::shape("features of the inputs to change", expected, features));
        }
        let rows = inputs.chunks_exact_mut(features);
        match self {
            InputChange::Scale(s) => rows.for_each(|row| row.iter_mut().zip(s).for_each(|(v, s)| *v *= s)),
            InputChange::Rotate(all) => rows.for_each(|row| rotate(exec.isa(), all, row)),
            InputChange::Permute(order) => {
                let mut old = vec![0f32; features];
                for row in rows {
                    old.copy_from_slice(row);
                    for (v, &i) in row.iter_mut().zip(order) {
                        *v = *old.get(i as usize).ok_or_else(|| Error::range("permutation", 0..features, i))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns the error for a transform that no change of inputs undoes.
fn not_of_inputs() -> Error {
    let value = "one that undoes a selection or a replacement of values; there is none".into();
    Error::Unsupported { what: "change of inputs", value }
}

/// A change of one stored weight along its rows or its columns, such as scaling or rotation, that a [`Rewrite`](crate::Rewrite) (a change
/// of the network before compression) computed. The original weight stays as it is: [`FoldedRows`] applies folds while the rows are read.
///
/// ```
/// use tersor_core::{Fold, FoldedRows, MatView, Side, Transform, read_finite};
/// # fn main() -> tersor_core::Result<()> {
/// let fold = |side: Side, transform: Transform| Fold { weight: "w".into(), side, transform };
/// // Columns are multiplied by 1, 2 and 3; then rows are exchanged.
/// let folds = [
///     fold(Side::Input, Transform::Scale(vec![1.0, 2.0, 3.0])),
///     fold(Side::Output, Transform::permute(vec![1, 0])?),
/// ];
/// let data = [1.0f32, 1.0, 1.0, 2.0, 2.0, 2.0];
/// let rows = FoldedRows::new(&MatView::new(&data, [2, 3])?, "w", &folds).and_then(|f| read_finite(&f, 0..2))?;
/// assert_eq!(rows, [2.0, 4.0, 6.0, 1.0, 2.0, 3.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Fold {
    /// The name of the weight that is changed, as in the model file.
    pub weight: String,
    /// The axis that is changed: the columns (input features) or the rows (output features). A vector counts as a matrix of one row, so
    /// that its elements are columns.
    pub side: Side,
    /// The change itself, along the axis `side` (the columns or the rows): factors, a map of features, rotations, or new values.
    pub transform: Transform,
}

/// A [`RowSource`] (a matrix that is read some rows at a time) of a weight with [`Fold`]s, changes of its rows or columns, applied while it
/// is read. If a fold rotates along the axis of the rows, each new row depends on all old ones, and every read computes the whole matrix.
/// [`Fold`] has an example.
pub struct FoldedRows<'a> {
    source: &'a dyn RowSource,
    folds: Vec<&'a Fold>,
    isa: Isa,
    /// Shape before each fold, and after the last.
    shapes: Vec<[usize; 2]>,
}

impl<'a> FoldedRows<'a> {
    /// Returns the weight with the name `weight`, whose original rows are `source`, with its changes applied: those of `folds` that have
    /// this name, in the order of `folds`. Folds of other weights are ignored.
    ///
    /// Errors if the axis that a fold changes has, after the folds before it, a length that the fold's transform does not accept. `Scale`
    /// and `Set` accept the length of their list, `Map` accepts the number of old features of the map, and `Rotate` accepts multiples of
    /// the sum of the sizes of its rotations. `Rotate` accepts no length if it has no rotations, or if their sizes differ.
    pub fn new(source: &'a dyn RowSource, weight: &str, folds: &'a [Fold]) -> Result<Self> {
        let folds: Vec<&Fold> = folds.iter().filter(|f| f.weight == weight).collect();
        let mut shapes = vec![source.shape()];
        for f in &folds {
            let mut shape = shapes[shapes.len() - 1];
            let axis = usize::from(f.side == Side::Input);
            if !f.transform.fits(shape[axis]) {
                return Err(Error::shape("features of a fold", shape[axis], f.transform.dim()).in_tensor(weight));
            }
            shape[axis] = f.transform.features_after(shape[axis]);
            shapes.push(shape);
        }
        Ok(Self { source, folds, isa: Isa::detect(), shapes })
    }

    /// Returns this source with the instruction set `isa` for rotations. Without this call, they use the processor's best one.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Reads rows with the first `count` folds applied.
    fn read(&self, rows: Range<usize>, count: usize, out: &mut [f32]) -> Result<()> {
        let Some(before) = count.checked_sub(1) else {
            return self.source.read_rows(rows, out);
        };
        let (fold, [all, old_cols]) = (self.folds[before], self.shapes[before]);
        let cols = self.shapes[count][1];
        let mut scratch = Vec::new();
        match (fold.side, &fold.transform) {
            (Side::Input, Transform::Map(map)) if old_cols != cols => {
                let mut old = vec![0f32; rows.len() * old_cols];
                self.read(rows, before, &mut old)?;
                let pairs = old.chunks_exact(old_cols.max(1)).zip(out.chunks_exact_mut(cols.max(1)));
                pairs.for_each(|(old, new)| map.apply(old, new));
            }
            (Side::Input, transform) => {
                self.read(rows, before, out)?;
                out.chunks_exact_mut(cols.max(1)).for_each(|row| transform.along(self.isa, row, &mut scratch));
            }
            (Side::Output, Transform::Scale(s)) => {
                self.read(rows.clone(), before, out)?;
                for (row, s) in out.chunks_exact_mut(cols.max(1)).zip(&s[rows]) {
                    row.iter_mut().for_each(|v| *v *= s);
                }
            }
            (Side::Output, Transform::Map(map)) => self.mapped_rows(map, rows, before, out)?,
            (Side::Output, Transform::Set(values)) => {
                for (row, v) in out.chunks_exact_mut(cols.max(1)).zip(&values[rows]) {
                    row.fill(*v);
                }
            }
            (Side::Output, Transform::Rotate(_)) => {
                // Every row depends on all rows: the whole matrix is read and its columns are rotated.
                let mut whole = vec![0f32; crate::view::elements([all, cols])?];
                self.read(0..all, before, &mut whole)?;
                let mut column = vec![0f32; all];
                for c in 0..cols {
                    column.iter_mut().zip(whole.iter().skip(c).step_by(cols)).for_each(|(v, w)| *v = *w);
                    fold.transform.along(self.isa, &mut column, &mut scratch);
                    for (out, v) in out.iter_mut().skip(c).step_by(cols).zip(&column[rows.clone()]) {
                        *out = *v;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the rows that a feature map makes of rows with the first `before` folds applied.
    fn mapped_rows(&self, map: &FeatureMap, rows: Range<usize>, before: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.shapes[before][1];
        if let Some(sources) = map.as_selection() {
            for (row, &from) in out.chunks_exact_mut(cols.max(1)).zip(&sources[rows]) {
                self.read(from as usize..from as usize + 1, before, row)?;
            }
            return Ok(());
        }
        out.fill(0.0);
        let mut old = vec![0f32; cols];
        let wanted = |e: &&(u32, u32, f32)| rows.contains(&(e.0 as usize));
        for &(to, from, factor) in map.entries().iter().filter(wanted) {
            self.read(from as usize..from as usize + 1, before, &mut old)?;
            let row = &mut out[(to as usize - rows.start) * cols..][..cols];
            row.iter_mut().zip(&old).for_each(|(v, o)| *v += factor * o);
        }
        Ok(())
    }
}

impl RowSource for FoldedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shapes[self.shapes.len() - 1]
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape(), &rows, out.len())?;
        self.read(rows, self.folds.len(), out)
    }
    /// Follows permutations, selections and scales. Errors if a fold combines weights (rotations, sums of features), because their mask is
    /// undefined then.
    fn read_mask(&self, rows: Range<usize>, out: &mut Mask) -> Result<bool> {
        let [all, _] = self.shapes[0];
        let mut whole = Mask::default();
        if !self.source.read_mask(0..all, &mut whole)? {
            return Ok(false);
        }
        for (i, fold) in self.folds.iter().enumerate() {
            let after = self.shapes[i + 1];
            match &fold.transform {
                Transform::Scale(_) | Transform::Set(_) => {}
                Transform::Map(map) if map.as_selection().is_some() => {
                    let sources = map.as_selection().unwrap_or_default();
                    let from = |i: usize| sources.get(i).map_or(usize::MAX, |f| *f as usize);
                    whole = Mask::from_fn(after, |r, c| match fold.side {
                        Side::Output => whole.keeps(from(r), c),
                        Side::Input => whole.keeps(r, from(c)),
                    })?;
                }
                Transform::Map(_) | Transform::Rotate(_) => {
                    let value = "of a matrix whose weights a rotation or a sum of features combines; prune after the rotation instead";
                    return Err(Error::Unsupported { what: "mask", value: value.into() }.in_tensor(&fold.weight));
                }
            }
        }
        *out = whole.rows(rows)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatView;

    #[test]
    fn folds_apply_in_order_and_in_any_block_of_rows() {
        let w: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let m = MatView::new(&w, [4, 4]).unwrap();
        let rotation = Rotation::new(&[1.0], 4, &[1.0, -1.0, 1.0, 1.0]).unwrap();
        let fold = |side, transform| Fold { weight: "w".into(), side, transform };
        let folds = [
            fold(Side::Input, Transform::Scale(vec![1.0, 2.0, 3.0, 4.0])),
            fold(Side::Output, Transform::permute(vec![3, 1, 0, 2]).unwrap()),
            fold(Side::Output, Transform::Scale(vec![1.0, 0.5, 1.0, 2.0])),
            fold(Side::Output, Transform::Rotate(vec![rotation.clone()])),
            fold(Side::Input, Transform::permute(vec![1, 0, 3, 2]).unwrap()),
        ];
        let folded = FoldedRows::new(&m, "w", &folds).unwrap();
        let mut whole = vec![0f32; 16];
        folded.read_rows(0..4, &mut whole).unwrap();
        for r in 0..4 {
            let mut row = [0f32; 4];
            folded.read_rows(r..r + 1, &mut row).unwrap();
            assert_eq!(row, whole[r * 4..r * 4 + 4]);
        }
        // Column 1 of the result is column 0 of the original, permuted, scaled and rotated.
        let mut column = [12.0, 4.0 * 0.5, 0.0, 8.0 * 2.0];
        rotation.forward(Isa::detect(), &mut column);
        assert_eq!([whole[1], whole[5], whole[9], whole[13]], column);
        assert!(FoldedRows::new(&m, "w", &[fold(Side::Input, Transform::Scale(vec![1.0]))]).is_err());
    }

    #[test]
    fn changed_inputs_and_folded_columns_multiply_to_the_same() {
        let (w, x): (Vec<f32>, Vec<f32>) = ((1..13).map(|v| v as f32).collect(), vec![1.0, -2.0, 0.5, 3.0]);
        let product = |rows: &[f32], x: &[f32]| -> Vec<f32> {
            rows.chunks(4).map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };
        let m = MatView::new(&w, [3, 4]).unwrap();
        let rotation = Rotation::new(&[1.0], 4, &[1.0, -1.0, 1.0, 1.0]).unwrap();
        let changes = [
            Transform::Scale(vec![2.0, 0.5, 4.0, 1.0]),
            Transform::permute(vec![2, 0, 3, 1]).unwrap(),
            Transform::Rotate(vec![rotation]),
        ];
        for transform in changes {
            let mut changed = x.clone();
            let change = transform.input_change().unwrap();
            change.apply(&mut changed, 4, &Exec::new()).unwrap();
            assert!(change.apply(&mut [0.0; 6], 3, &Exec::new()).is_err());
            let folds = [Fold { weight: "w".into(), side: Side::Input, transform }];
            let rows = crate::read_finite(&FoldedRows::new(&m, "w", &folds).unwrap(), 0..3).unwrap();
            for (a, b) in product(&rows, &changed).iter().zip(product(&w, &x)) {
                assert!((a - b).abs() < 1e-4, "{folds:?}");
            }
        }
        assert!(Transform::Set(vec![0.0; 4]).input_change().is_err());
        assert!(Transform::select(vec![0, 2], 4).unwrap().input_change().is_err());
    }

    #[test]
    fn a_scale_multiplies_wherever_it_stands() {
        let factors = vec![2.0f32, 8.0];
        let mut x = [6.0, 4.0];
        InputChange::Scale(factors.clone()).apply(&mut x, 2, &Exec::new()).unwrap();
        assert_eq!(x, [12.0, 32.0]);
        let InputChange::Scale(inverse) = Transform::Scale(factors.clone()).input_change().unwrap() else {
            panic!("a scale of columns is undone by a scale of inputs");
        };
        assert_eq!(inverse, [0.5, 0.125]);
        let m = MatView::new(&[1.0f32, 1.0], [1, 2]).unwrap();
        let folds = [Fold { weight: "w".into(), side: Side::Input, transform: Transform::Scale(factors) }];
        let rows = crate::read_finite(&FoldedRows::new(&m, "w", &folds).unwrap(), 0..1).unwrap();
        assert_eq!(rows, [2.0, 8.0]);
    }

    #[test]
    fn selections_shorten_an_axis_and_masks_follow() {
        let w: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let m = MatView::new(&w, [3, 4]).unwrap();
        let mask = Mask::from_fn([3, 4], |r, c| r != c).unwrap();
        let masked = crate::Masked::new(&m, &mask).unwrap();
        let fold = |side, transform| Fold { weight: "w".into(), side, transform };
        let folds = [
            fold(Side::Input, Transform::select(vec![3, 0], 4).unwrap()),
            fold(Side::Input, Transform::Scale(vec![1.0, 2.0])),
            fold(Side::Output, Transform::select(vec![2, 1], 3).unwrap()),
        ];
        let folded = FoldedRows::new(&masked, "w", &folds).unwrap();
        assert_eq!(folded.shape(), [2, 2]);
        assert_eq!(crate::read_finite(&folded, 0..2).unwrap(), [11.0, 16.0, 7.0, 8.0]);
        let mut part = Mask::default();
        assert!(folded.read_mask(0..2, &mut part).unwrap());
        assert_eq!(part.count(), 4, "the diagonal of the original is not among these weights");
        let sums = FeatureMap::new(3, 2, vec![(0, 0, 1.0), (0, 1, -1.0), (1, 2, 2.0)]).unwrap();
        let sums = [fold(Side::Output, Transform::Map(sums))];
        let summed = FoldedRows::new(&m, "w", &sums).unwrap();
        assert_eq!(crate::read_finite(&summed, 0..2).unwrap(), [-4.0, -4.0, -4.0, -4.0, 16.0, 18.0, 20.0, 22.0]);
        assert!(FoldedRows::new(&masked, "w", &sums).unwrap().read_mask(0..1, &mut part).is_err());
        assert!(FoldedRows::new(&m, "w", &folds[..2]).is_ok());
        let wrong = [folds[0].clone(), folds[0].clone()];
        assert!(FoldedRows::new(&m, "w", &wrong).is_err(), "the second sees two columns");
    }

    #[test]
    fn heads_have_rotations_of_their_own() {
        let w: Vec<f32> = (0..16).map(|v| (v * v % 7) as f32).collect();
        let m = MatView::new(&w, [2, 8]).unwrap();
        let rotation = |signs: &[f32]| Rotation::new(&[1.0], 2, signs).unwrap();
        let (a, b) = (rotation(&[1.0, -1.0]), rotation(&[-1.0, -1.0]));
        let fold =
            |all: Vec<Rotation>| [Fold { weight: "w".into(), side: Side::Input, transform: Transform::Rotate(all) }];
        let folds = fold(vec![a.clone(), b.clone()]);
        let found = crate::read_finite(&FoldedRows::new(&m, "w", &folds).unwrap(), 0..2).unwrap();
        // Four spans of two features: two for each rotation.
        let mut want = w.clone();
        for (i, span) in want.chunks_exact_mut(2).enumerate() {
            if i % 4 < 2 { a.forward(Isa::detect(), span) } else { b.forward(Isa::detect(), span) }
        }
        assert_eq!(found, want);
        let wide = Rotation::new(&[1.0], 4, &[1.0; 4]).unwrap();
        for bad in [vec![], vec![a.clone(), wide], vec![a.clone(), b.clone(), a]] {
            assert!(FoldedRows::new(&m, "w", &fold(bad)).is_err());
        }
    }
}
