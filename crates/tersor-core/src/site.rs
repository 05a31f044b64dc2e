//! A network as an ordered list of sites, and what rewrites do to them.

use crate::rows::check_range;
use crate::{Error, Result, Rotation, RowSource};
use std::ops::Range;

/// One input, the matrices that consume it, and what produces it.
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    /// A name that is unique in the network: `model.layers.3.self_attn.qkv`.
    pub name: String,
    /// Transformer layer, counted from 0; none for embedding and head.
    pub layer: Option<usize>,
    /// Features of the input.
    pub features: usize,
    /// The matrices that read it, in order.
    pub consumers: Vec<Consumer>,
    /// What the input comes out of.
    pub producer: Producer,
    /// Where it is read from the residual stream through a norm: the weights of all matrices that wrote to the stream
    /// before, in order.
    pub writers: Vec<String>,
}

/// A matrix that reads a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// Name of its weight, as in the model file.
    pub weight: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
}

/// What an input comes out of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Producer {
    /// A norm with an elementwise weight, into which factors fold.
    Norm {
        /// Name of its weight.
        weight: String,
    },
    /// Rows of a matrix: `rows` of its outputs are the features of the site, in order, each used `repeat` times
    /// side by side in blocks of `block` (grouped heads share their values).
    Linear {
        /// Name of its weight.
        weight: String,
        /// Features of one head, or all of them.
        block: usize,
        /// How often each block is used.
        repeat: usize,
    },
    /// Something that nothing folds into.
    Opaque,
}

/// Which axis of a matrix a fold acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Columns.
    Input,
    /// Rows.
    Output,
}

/// What a fold does along its axis.
#[derive(Clone, Debug)]
pub enum Transform {
    /// Multiplies by a factor each.
    Scale(Vec<f32>),
    /// Puts feature `order[i]` at place `i`.
    Permute(Vec<u32>),
    /// Rotates runs of their width, each of these as many in a row as the others: one all runs alike, as many as there are heads each its own.
    Rotate(Vec<Rotation>),
    /// Puts these values in the place of what is there (the weight of a norm that was folded away).
    Set(Vec<f32>),
}

impl Transform {
    fn dim(&self) -> usize {
        match self {
            Transform::Scale(s) => s.len(),
            Transform::Permute(o) => o.len(),
            Transform::Rotate(all) => all.iter().map(Rotation::dim).sum(),
            Transform::Set(v) => v.len(),
        }
    }

    fn fits(&self, features: usize) -> bool {
        match self {
            Transform::Rotate(all) => {
                let alike = all.windows(2).all(|w| w[0].dim() == w[1].dim());
                alike && !all.is_empty() && features.is_multiple_of(self.dim().max(1))
            }
            other => other.dim() == features,
        }
    }

    /// Changes inputs, `[tokens, features]`, so that they and a matrix whose columns have this fold multiply to what they did: divides by the factors,
    /// rotates, or puts features in another order. Error when it is for another number of features, or is no change of inputs.
    pub fn change_inputs(&self, inputs: &mut [f32], features: usize) -> Result<()> {
        if !self.fits(features) || features == 0 {
            return Err(Error::shape("features of a change of inputs", features, self.dim()));
        }
        let mut scratch = Vec::new();
        let mut each =
            |change: &Self| inputs.chunks_exact_mut(features).try_for_each(|r| change.apply(r, &mut scratch));
        match self {
            Transform::Scale(factors) => each(&Transform::Scale(factors.iter().map(|s| s.recip()).collect())),
            Transform::Permute(_) | Transform::Rotate(_) => each(self),
            Transform::Set(_) => {
                let value = "values put in the place of others".to_string();
                Err(Error::Unsupported { what: "change of inputs", value })
            }
        }
    }

    fn apply(&self, row: &mut [f32], scratch: &mut Vec<f32>) -> Result<()> {
        match self {
            Transform::Scale(s) => row.iter_mut().zip(s).for_each(|(v, s)| *v *= s),
            Transform::Rotate(all) => {
                let run = row.len() / all.len().max(1);
                row.chunks_exact_mut(run.max(1)).zip(all).for_each(|(run, r)| r.forward(run));
            }
            Transform::Set(v) => row.copy_from_slice(v),
            Transform::Permute(order) => {
                scratch.clear();
                scratch.extend_from_slice(row);
                for (v, &i) in row.iter_mut().zip(order) {
                    *v = *scratch.get(i as usize).ok_or_else(|| Error::shape("permutation", row_range(scratch), i))?;
                }
            }
        }
        Ok(())
    }
}

fn row_range(row: &[f32]) -> String {
    format!("indices below {}", row.len())
}

/// A change of one matrix that a rewrite asks for: a value, kept in the plan and applied when the matrix is read.
#[derive(Clone, Debug)]
pub struct Fold {
    /// Name of the weight it acts on.
    pub weight: String,
    /// The axis.
    pub side: Side,
    /// What happens along it.
    pub transform: Transform,
}

/// The rows of a matrix with folds applied as they are read.
pub struct FoldedRows<'a> {
    source: &'a dyn RowSource,
    folds: Vec<&'a Fold>,
}

impl<'a> FoldedRows<'a> {
    /// Picks the folds of `weight`, in order. Error when one does not fit the shape of `source`.
    pub fn new(source: &'a dyn RowSource, weight: &str, folds: &'a [Fold]) -> Result<Self> {
        let [rows, cols] = source.shape();
        let folds: Vec<&Fold> = folds.iter().filter(|f| f.weight == weight).collect();
        for f in &folds {
            let n = if f.side == Side::Input { cols } else { rows };
            if !f.transform.fits(n) {
                return Err(Error::shape("features of a fold", n, f.transform.dim()).in_tensor(weight));
            }
        }
        Ok(Self { source, folds })
    }

    /// Rows with the first `count` folds applied.
    fn read(&self, rows: Range<usize>, count: usize, out: &mut [f32]) -> Result<()> {
        let [all, cols] = self.source.shape();
        let Some(fold) = count.checked_sub(1).map(|i| self.folds[i]) else {
            return self.source.read_rows(rows, out);
        };
        let mut scratch = Vec::new();
        match (&fold.side, &fold.transform) {
            (Side::Input, transform) => {
                self.read(rows, count - 1, out)?;
                out.chunks_exact_mut(cols.max(1)).try_for_each(|row| transform.apply(row, &mut scratch))
            }
            (Side::Output, Transform::Scale(s)) => {
                self.read(rows.clone(), count - 1, out)?;
                for (row, s) in out.chunks_exact_mut(cols.max(1)).zip(&s[rows]) {
                    row.iter_mut().for_each(|v| *v *= s);
                }
                Ok(())
            }
            (Side::Output, Transform::Permute(order)) => {
                for (row, &from) in out.chunks_exact_mut(cols.max(1)).zip(&order[rows]) {
                    let from = from as usize;
                    self.read(from..from + 1, count - 1, row)?;
                }
                Ok(())
            }
            (Side::Output, Transform::Set(values)) => {
                for (row, v) in out.chunks_exact_mut(cols.max(1)).zip(&values[rows]) {
                    row.fill(*v);
                }
                Ok(())
            }
            (Side::Output, Transform::Rotate(_)) => {
                // Every row is a mixture of all: read the whole and turn its columns.
                let mut whole = vec![0f32; crate::view::elements([all, cols])?];
                self.read(0..all, count - 1, &mut whole)?;
                let mut column = vec![0f32; all];
                for c in 0..cols {
                    column.iter_mut().zip(whole.iter().skip(c).step_by(cols)).for_each(|(v, w)| *v = *w);
                    fold.transform.apply(&mut column, &mut scratch)?;
                    for (out, v) in out.iter_mut().skip(c).step_by(cols).zip(&column[rows.clone()]) {
                        *out = *v;
                    }
                }
                Ok(())
            }
        }
    }
}

impl RowSource for FoldedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.source.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape(), &rows, out.len())?;
        self.read(rows, self.folds.len(), out)
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
            fold(Side::Output, Transform::Permute(vec![3, 1, 0, 2])),
            fold(Side::Output, Transform::Scale(vec![1.0, 0.5, 1.0, 2.0])),
            fold(Side::Output, Transform::Rotate(vec![rotation.clone()])),
            fold(Side::Input, Transform::Permute(vec![1, 0, 3, 2])),
        ];
        let folded = FoldedRows::new(&m, "w", &folds).unwrap();
        let mut whole = vec![0f32; 16];
        folded.read_rows(0..4, &mut whole).unwrap();
        for r in 0..4 {
            let mut row = [0f32; 4];
            folded.read_rows(r..r + 1, &mut row).unwrap();
            assert_eq!(row, whole[r * 4..r * 4 + 4]);
        }
        // Column 1 of the result is column 0 of the original, permuted, scaled and turned.
        let mut column = [12.0, 4.0 * 0.5, 0.0, 8.0 * 2.0];
        rotation.forward(&mut column);
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
            Transform::Permute(vec![2, 0, 3, 1]),
            Transform::Rotate(vec![rotation]),
        ];
        for transform in changes {
            let mut changed = x.clone();
            transform.change_inputs(&mut changed, 4).unwrap();
            assert!(transform.change_inputs(&mut [0.0; 6], 3).is_err());
            let folds = [Fold { weight: "w".into(), side: Side::Input, transform }];
            let rows = crate::read_finite(&FoldedRows::new(&m, "w", &folds).unwrap(), 0..3).unwrap();
            for (a, b) in product(&rows, &changed).iter().zip(product(&w, &x)) {
                assert!((a - b).abs() < 1e-4, "{folds:?}");
            }
        }
        assert!(Transform::Set(vec![0.0; 4]).change_inputs(&mut [0.0; 4], 4).is_err());
    }

    #[test]
    fn heads_have_rotations_of_their_own() {
        let w: Vec<f32> = (0..16).map(|v| (v * v % 7) as f32).collect();
        let m = MatView::new(&w, [2, 8]).unwrap();
        let turn = |signs: &[f32]| Rotation::new(&[1.0], 2, signs).unwrap();
        let (a, b) = (turn(&[1.0, -1.0]), turn(&[-1.0, -1.0]));
        let fold =
            |all: Vec<Rotation>| [Fold { weight: "w".into(), side: Side::Input, transform: Transform::Rotate(all) }];
        let folds = fold(vec![a.clone(), b.clone()]);
        let found = crate::read_finite(&FoldedRows::new(&m, "w", &folds).unwrap(), 0..2).unwrap();
        // Four runs of two features: two of the one, two of the other.
        let mut want = w.clone();
        for (i, run) in want.chunks_exact_mut(2).enumerate() {
            if i % 4 < 2 { a.forward(run) } else { b.forward(run) }
        }
        assert_eq!(found, want);
        let wide = Rotation::new(&[1.0], 4, &[1.0; 4]).unwrap();
        for bad in [vec![], vec![a.clone(), wide], vec![a.clone(), b.clone(), a]] {
            assert!(FoldedRows::new(&m, "w", &fold(bad)).is_err());
        }
    }
}
