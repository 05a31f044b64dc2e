//! [`Coupling`]: the rows and columns of matrices that belong together to one head, neuron or channel.

use std::ops::Range;

use crate::{Error, Fold, Result, Side, Transform};

/// The kind of the equal units that a [`Coupling`] (a part of a network that is pruned by whole units) consists of: attention heads,
/// key/value heads with the query heads that share them, neurons of a feed-forward block, or channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Query heads, each with a key/value head of its own.
    Head,
    /// Key/value heads, each with the query heads that share it.
    KvHead,
    /// Neurons of a feed-forward block.
    Neuron,
    /// Channels of a convolution or of the residual stream.
    Channel,
}

/// A part of a network that consists of equal units, such as the neurons of a feed-forward block, with the rows and columns of all weights
/// that belong to each unit. Structured pruning removes a unit by removing these rows and columns.
///
/// ```
/// use tersor_core::{Coupled, Coupling, Side, Unit};
/// # fn main() -> tersor_core::Result<()> {
/// let part = |weight: &str, side: Side| Coupled { weight: weight.into(), side, width: 1 };
/// let mlp = Coupling {
///     name: "model.layers.0.mlp".into(),
///     unit: Unit::Neuron,
///     count: 4,
///     // A neuron is a row of the up projection and a column of the down projection.
///     parts: vec![part("up", Side::Output), part("down", Side::Input)],
/// };
/// assert_eq!(mlp.ranges(2)?, [("up", Side::Output, 2..3), ("down", Side::Input, 2..3)]);
/// // Folds that remove neurons 1 and 2.
/// let folds = mlp.keep(&[0, 3])?;
/// assert_eq!((folds.len(), folds[0].transform.features_after(4)), (2, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Coupling {
    /// The name of the part of the network that is made of equal units, such as `model.layers.3.mlp`. It is unique in the network.
    pub name: String,
    /// The kind of the equal units that this part of the network is made of, such as heads or neurons.
    pub unit: Unit,
    /// The number of equal units, such as heads or neurons, that this part of the network is made of. They are counted from 0.
    pub count: usize,
    /// The axes of weights that are made of units: along each of these axes, every unit owns the same number of neighbouring rows or
    /// columns. The neurons of a feed-forward block, for example, are the rows of the up projection and the columns of the down projection.
    pub parts: Vec<Coupled>,
}

/// One axis (the rows or the columns) of a weight, made of the units of a [`Coupling`], such as heads or neurons. The units lie side by
/// side: unit `i`, counted from 0, owns the rows or columns `i * width .. (i + 1) * width`. A vector, such as a bias, counts as a matrix of
/// one row, so that its elements are columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coupled {
    /// The name of the weight, as in the model file.
    pub weight: String,
    /// The axis that is made of units, such as heads or neurons: the columns ([`Side::Input`]) or the rows ([`Side::Output`]).
    pub side: Side,
    /// The number of neighbouring rows or columns that one unit owns: 1 if units are neurons, the head dimension if they are heads. If a
    /// unit is a key/value head with several query heads, it owns the head dimension times the number of these query heads in the query and
    /// output projections.
    pub width: usize,
}

impl Coupling {
    /// Returns the rows and columns of weights that belong to unit `unit`, such as one head or neuron, counted from 0. For each of
    /// [`Coupling::parts`], in order, this is the name of the weight, the axis (columns or rows), and the range of columns or rows. Errors
    /// if there is no such unit, or if all units together own more than 2^32 rows or columns of a weight.
    pub fn ranges(&self, unit: usize) -> Result<Vec<(&str, Side, Range<usize>)>> {
        if unit >= self.count {
            return Err(Error::range("unit", 0..self.count, unit).in_tensor(&self.name));
        }
        self.check_widths()?;
        let range = |p: &Coupled| unit * p.width..(unit + 1) * p.width;
        Ok(self.parts.iter().map(|p| (p.weight.as_str(), p.side, range(p))).collect())
    }

    /// Returns the changes of weights that keep the units `units`, in this order, and remove all others. Units (such as heads or neurons)
    /// are counted from 0. There is one [`Fold`] (a change of the rows or columns of a weight) for each of [`Coupling::parts`], in order.
    /// Errors if `units` is empty, if one of them is out of range or occurs twice, or if all units together own more than 2^32 rows or
    /// columns of a weight.
    pub fn keep(&self, units: &[usize]) -> Result<Vec<Fold>> {
        if units.is_empty() {
            return Err(
                Error::range("number of units to keep", format!("1 to {}", self.count), 0).in_tensor(&self.name)
            );
        }
        if let Some(unit) = units.iter().find(|u| **u >= self.count) {
            return Err(Error::range("unit", 0..self.count, unit).in_tensor(&self.name));
        }
        self.check_widths()?;
        let fold = |p: &Coupled| -> Result<Fold> {
            let features = |u: &usize| (u * p.width..(u + 1) * p.width).map(|f| f as u32);
            let kept = units.iter().flat_map(features).collect();
            let transform = Transform::select(kept, self.count * p.width).map_err(|e| e.in_tensor(&p.weight))?;
            Ok(Fold { weight: p.weight.clone(), side: p.side, transform })
        };
        self.parts.iter().map(fold).collect()
    }

    /// Errors if a weight has more features than a fold can name, 2^32.
    fn check_widths(&self) -> Result<()> {
        let fits = |p: &Coupled| self.count.checked_mul(p.width).is_some_and(|n| n <= 1 << 32);
        match self.parts.iter().find(|p| !fits(p)) {
            Some(p) => Err(Error::Overflow { what: "the features of all units".into() }.in_tensor(&p.weight)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FoldedRows, MatView, RowSource, read_finite};

    /// `down (gate ∘ up)` with units removed equals the same with their inner activations at zero.
    #[test]
    fn removed_units_compute_the_masked_function() {
        let values = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let (up, gate, down, x) = (values(12, 0.7), values(12, 1.3), values(8, 0.3), values(3, 2.1));
        let part = |weight: &str, side| Coupled { weight: weight.into(), side, width: 1 };
        let coupling = Coupling {
            name: "mlp".into(),
            unit: Unit::Neuron,
            count: 4,
            parts: vec![part("up", Side::Output), part("gate", Side::Output), part("down", Side::Input)],
        };
        let kept = [0, 3];
        let folds = coupling.keep(&kept).unwrap();
        let rows = |name: &str, w: &[f32], shape| {
            let m = MatView::new(w, shape).unwrap();
            let folded = FoldedRows::new(&m, name, &folds).unwrap();
            (read_finite(&folded, 0..folded.shape()[0]).unwrap(), folded.shape())
        };
        let ((u, shape), (g, _), (d, down_shape)) =
            (rows("up", &up, [4, 3]), rows("gate", &gate, [4, 3]), rows("down", &down, [2, 4]));
        assert_eq!((shape, down_shape), ([2, 3], [2, 2]));
        let product = |w: &[f32], x: &[f32]| -> Vec<f32> {
            w.chunks(x.len()).map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };
        let inner: Vec<f32> = product(&u, &x).iter().zip(product(&g, &x)).map(|(a, b)| a * b).collect();
        let mut masked: Vec<f32> = product(&up, &x).iter().zip(product(&gate, &x)).map(|(a, b)| a * b).collect();
        (0..4).filter(|i| !kept.contains(i)).for_each(|i| masked[i] = 0.0);
        for (a, b) in product(&d, &inner).iter().zip(product(&down, &masked)) {
            assert!((a - b).abs() < 1e-6);
        }
        assert_eq!(coupling.ranges(3).unwrap()[2], ("down", Side::Input, 3..4));
        assert!(coupling.ranges(4).is_err() && coupling.keep(&[]).is_err());
        assert!(
            coupling.keep(&[4]).is_err() && coupling.keep(&[1 << 32]).is_err() && coupling.keep(&[usize::MAX]).is_err()
        );
        assert!(coupling.keep(&[0, 4]).is_err() && coupling.keep(&[1, 1]).is_err());
    }
}
