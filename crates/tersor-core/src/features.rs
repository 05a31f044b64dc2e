//! [`FeatureMap`]: sparse linear maps of features, such as permutations and selections.

use crate::{Error, Result};

/// A sparse linear map from a vector of old features to a vector of new features: each new feature is a sum of old features times factors.
/// Common cases are permutations, and selections, which keep some features and drop the others.
///
/// ```
/// use tersor_core::FeatureMap;
/// # fn main() -> tersor_core::Result<()> {
/// let old = [10.0, 20.0, 30.0];
/// let mut new = [0f32; 2];
/// FeatureMap::selection(vec![2, 0], 3)?.apply(&old, &mut new);
/// assert_eq!(new, [30.0, 10.0]);
/// // The first new feature is the mean of the first two old ones.
/// FeatureMap::new(3, 2, vec![(0, 0, 0.5), (0, 1, 0.5), (1, 2, 1.0)])?.apply(&old, &mut new);
/// assert_eq!(new, [15.0, 30.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct FeatureMap {
    from: usize,
    to: usize,
    /// `(new feature, old feature, factor)`, ascending by new feature.
    entries: Vec<(u32, u32, f32)>,
    /// The old feature of each new one, if each new feature equals one old feature.
    sources: Option<Vec<u32>>,
    /// Whether the map is a permutation.
    bijective: bool,
}

impl FeatureMap {
    /// Returns the permutation of `order.len()` features whose new feature `i` is the old feature `order[i]`, both counted from 0. Errors
    /// unless `order` holds each of `0..order.len()` exactly once.
    pub fn permutation(order: Vec<u32>) -> Result<Self> {
        let features = order.len();
        Self::selection(order, features)
    }

    /// Returns the map of `from` old features to `kept.len()` new ones whose new feature `i` is the old feature `kept[i]`, both counted
    /// from 0. Old features that `kept` does not list are dropped. Errors if an index is not below `from` or occurs twice.
    pub fn selection(kept: Vec<u32>, from: usize) -> Result<Self> {
        if let Some(index) = kept.iter().find(|i| **i as usize >= from) {
            return Err(Error::range("selected features", 0..from, index));
        }
        // Sorted rather than marked in a table of `from` entries: `from` may come from a file.
        let mut sorted: Vec<(u32, usize)> = kept.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        if let Some(w) = sorted.windows(2).find(|w| w[0].0 == w[1].0) {
            let rule = "each must occur at most once";
            return Err(Error::order("selected features", rule, format!("{} again at {}", w[1].0, w[1].1)));
        }
        let bijective = kept.len() == from;
        let entries = kept.iter().enumerate().map(|(to, f)| (to as u32, *f, 1.0)).collect();
        Ok(Self { from, to: kept.len(), entries, sources: Some(kept), bijective })
    }

    /// Returns the map of `from` old features to `to` new ones with the entries `(new feature, old feature, factor)`, in any order. A new
    /// feature is the sum of the old features of its entries times the factors, 0 without entries. Features are counted from 0. Errors if
    /// an index is out of range, a factor is not finite, or a pair of features occurs twice.
    pub fn new(from: usize, to: usize, mut entries: Vec<(u32, u32, f32)>) -> Result<Self> {
        for (t, f, factor) in &entries {
            if *t as usize >= to || *f as usize >= from {
                return Err(Error::range("features of a map", format!("{to} by {from}"), (t, f)));
            }
            if !factor.is_finite() {
                return Err(Error::NonFinite { row: *t as usize, col: *f as usize, value: *factor });
            }
        }
        entries.sort_by_key(|(t, f, _)| (*t, *f));
        if let Some(w) = entries.windows(2).find(|w| (w[0].0, w[0].1) == (w[1].0, w[1].1)) {
            return Err(Error::order("features of a map", "each pair must occur at most once", (w[0].0, w[0].1)));
        }
        Ok(Self { from, to, entries, sources: None, bijective: false })
    }

    /// Returns the number of old features: the length of the vectors that the map takes.
    pub fn from(&self) -> usize {
        self.from
    }

    /// Returns the number of new features: the length of the vectors that the map returns.
    pub fn to(&self) -> usize {
        self.to
    }

    /// Returns all entries `(new feature, old feature, factor)` of the map, with features counted from 0, ascending by new feature and then
    /// by old feature. A permutation or selection has one entry for each new feature, with factor 1.
    pub fn entries(&self) -> &[(u32, u32, f32)] {
        &self.entries
    }

    /// Returns the order of a permutation, with one element for each new feature: element `i` is the old feature (counted from 0) that
    /// becomes the new feature `i`. None if the map drops features, or was made by [`FeatureMap::new`], even from the entries of a
    /// permutation.
    pub fn as_permutation(&self) -> Option<&[u32]> {
        self.sources.as_deref().filter(|_| self.bijective)
    }

    /// Returns the kept features of a permutation or selection, with one element for each new feature: element `i` is the old feature
    /// (counted from 0) that becomes the new feature `i`. None if the map was made by [`FeatureMap::new`], even from the entries of a
    /// selection.
    pub fn as_selection(&self) -> Option<&[u32]> {
        self.sources.as_deref()
    }

    /// Computes the new features `new` (`self.to()` values) from the old features `old` (`self.from()` values). Other lengths give no
    /// error. Old features that `old` lacks count as 0, and values of `old` after the first `self.from()` are ignored. New features that
    /// have no place in `new` are left out. Elements of `new` after the first `self.to()` stay unchanged if the map was made by
    /// [`FeatureMap::permutation`] or [`FeatureMap::selection`], and become 0 if it was made by [`FeatureMap::new`].
    pub fn apply(&self, old: &[f32], new: &mut [f32]) {
        if let Some(sources) = &self.sources {
            for (v, &f) in new.iter_mut().zip(sources) {
                *v = old.get(f as usize).copied().unwrap_or(0.0);
            }
            return;
        }
        new.fill(0.0);
        for &(t, f, factor) in &self.entries {
            if let (Some(v), Some(o)) = (new.get_mut(t as usize), old.get(f as usize)) {
                *v += factor * o;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_selections_and_sums() {
        let p = FeatureMap::permutation(vec![2, 0, 1]).unwrap();
        let mut new = [0.0; 3];
        p.apply(&[1.0, -0.0, 3.0], &mut new);
        assert_eq!(new, [3.0, 1.0, -0.0]);
        assert!(new[2].is_sign_negative(), "values are copied, not summed");
        assert_eq!(p.as_permutation(), Some(&[2, 0, 1][..]));
        let s = FeatureMap::selection(vec![3, 1], 4).unwrap();
        let mut new = [0.0; 2];
        s.apply(&[1.0, 2.0, 3.0, 4.0], &mut new);
        assert_eq!((new, s.from(), s.to(), s.as_permutation()), ([4.0, 2.0], 4, 2, None));
        let m = FeatureMap::new(2, 3, vec![(2, 1, 0.5), (0, 0, 1.0), (1, 1, 0.5)]).unwrap();
        let mut new = [9.0; 3];
        m.apply(&[2.0, 4.0], &mut new);
        assert_eq!(new, [2.0, 2.0, 2.0]);
    }

    #[test]
    fn index_lists_that_are_no_permutation_are_refused() {
        assert!(matches!(FeatureMap::permutation(vec![0, 0, 2]), Err(Error::Order { .. })));
        assert!(matches!(FeatureMap::permutation(vec![0, 3, 1]), Err(Error::Range { .. })));
        assert!(FeatureMap::selection(vec![1, 1], 4).is_err() && FeatureMap::selection(vec![4], 4).is_err());
        assert!(FeatureMap::new(2, 2, vec![(0, 2, 1.0)]).is_err());
        assert!(FeatureMap::new(2, 2, vec![(0, 1, f32::NAN)]).is_err());
        assert!(FeatureMap::new(2, 2, vec![(0, 1, 1.0), (0, 1, 2.0)]).is_err());
    }
}
