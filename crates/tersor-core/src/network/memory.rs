//! [`MemWeights`]: weights in memory.

use std::collections::BTreeMap;

use crate::{Error, IntoMat, MatView, Result, RowSource, Weights};

/// The weights of a network in memory, by name, in f32: matrices `[out_features, in_features]`, and vectors as matrices of one row. It serves
/// networks whose weights are arrays rather than a model file.
///
/// ```
/// use tersor_core::Weights;
/// use tersor_core::network::MemWeights;
/// let mut weights = MemWeights::new();
/// weights.insert("w", [2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
/// assert_eq!(weights.rows("w").unwrap().shape(), [2, 2]);
/// assert!(weights.insert("v", [2, 2], vec![1.0]).is_err() && weights.rows("v").is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemWeights(BTreeMap<String, (Vec<f32>, [usize; 2])>);

impl MemWeights {
    /// Returns an empty set of weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the weight `name`, in place of an earlier one of this name. `values` is a matrix of the shape `shape`, `[rows, cols]`, row-major; a
    /// vector has one row. Errors with [`Error::Tensor`], with the name, if the number of values is not that of the shape or a value is not finite.
    /// Errors with [`Error::Overflow`] if the shape exceeds the address space.
    pub fn insert(&mut self, name: &str, shape: [usize; 2], values: Vec<f32>) -> Result<()> {
        let n = crate::view::elements(shape)?;
        if n != values.len() {
            return Err(Error::shape("values of a weight", n, values.len()).in_tensor(name));
        }
        crate::check_finite(&values, shape[1], 0).map_err(|e| e.in_tensor(name))?;
        self.0.insert(name.into(), (values, shape));
        Ok(())
    }

    /// Adds a copy of the matrix `w` in f32 under `name`, in place of an earlier weight of this name. `w` has any form that [`IntoMat`] takes, with
    /// any strides. Errors with [`Error::Tensor`], with the name, if a value is not finite. Errors if the shape of `w` does not match its elements.
    pub fn insert_mat(&mut self, name: &str, w: &impl IntoMat<f32>) -> Result<()> {
        let (shape, values) = w.with_mat(|m| Ok((m.shape(), m.to_f32().into_owned())))?;
        self.insert(name, shape, values)
    }

    /// Returns the names of all weights, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Weights for MemWeights {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let (values, shape) = self.0.get(name).ok_or_else(|| Error::missing(name, "the weights in memory"))?;
        Ok(Box::new(MatView::new(values, *shape)?))
    }
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}
