//! [`FeatureMap`]: features that are put in another order, left out, or split.

use crate::{Error, Result};

/// A sparse linear map from features to features: each new feature is a sum of old ones times factors. Permutations and selections are the
/// common cases.
#[derive(Clone, PartialEq, Debug)]
pub struct FeatureMap {
    from: usize,
    to: usize,
    /// New feature, old feature, factor; ascending by new feature.
    entries: Vec<(u32, u32, f32)>,
    /// For each new feature its old one, where each is one old feature as it is.
    sources: Option<Vec<u32>>,
    /// Whether each old feature is used exactly once, as it is.
    bijective: bool,
}

impl FeatureMap {
    /// Returns the permutation that puts feature `order[i]` at place `i`. Errors unless `order` holds each of its indices once.
    pub fn permutation(order: Vec<u32>) -> Result<Self> {
        let features = order.len();
        Self::selection(order, features)
    }

    /// Returns the map that keeps the features `kept` of `from`, in that order. Errors if an index is outside or occurs twice.
    pub fn selection(kept: Vec<u32>, from: usize) -> Result<Self> {
        if let Some(index) = kept.iter().find(|i| **i as usize >= from) {
            return Err(Error::range("features that are selected", 0..from, index));
        }
        // Sorted, since a file may say any number of features: no table of all of them is made.
        let mut sorted: Vec<(u32, usize)> = kept.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        if let Some(w) = sorted.windows(2).find(|w| w[0].0 == w[1].0) {
            let rule = "every feature at most once";
            return Err(Error::order("features that are selected", rule, format!("{} again at {}", w[1].0, w[1].1)));
        }
        let bijective = kept.len() == from;
        let entries = kept.iter().enumerate().map(|(to, f)| (to as u32, *f, 1.0)).collect();
        Ok(Self { from, to: kept.len(), entries, sources: Some(kept), bijective })
    }

    /// Returns any map of `from` features to `to`, given as new feature, old feature and factor. Errors if an index is outside, a factor is not
    /// finite, or a pair occurs twice.
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
            return Err(Error::order("features of a map", "every pair at most once", (w[0].0, w[0].1)));
        }
        Ok(Self { from, to, entries, sources: None, bijective: false })
    }

    /// Returns the number of features before.
    pub fn from(&self) -> usize {
        self.from
    }

    /// Returns the number of features after.
    pub fn to(&self) -> usize {
        self.to
    }

    /// Returns new feature, old feature and factor of each entry, ascending by new feature.
    pub fn entries(&self) -> &[(u32, u32, f32)] {
        &self.entries
    }

    /// Returns the order, where the map is a permutation.
    pub fn as_permutation(&self) -> Option<&[u32]> {
        self.sources.as_deref().filter(|_| self.bijective)
    }

    /// Returns the kept features, where the map keeps some features as they are.
    pub fn as_selection(&self) -> Option<&[u32]> {
        self.sources.as_deref()
    }

    /// Writes the new features of `old` `[from]` into `new` `[to]`. Over the shorter lengths, if they differ.
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
