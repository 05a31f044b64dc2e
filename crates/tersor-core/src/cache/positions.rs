//! The positions of cached tokens.

/// Positions of the cached tokens: one list for all key heads until their tokens differ.
pub(super) enum Positions {
    Shared(Vec<u32>),
    ByHead(Vec<Vec<u32>>),
}

impl Positions {
    pub fn new() -> Self {
        Self::Shared(Vec::new())
    }

    pub fn of(&self, head: usize) -> &[u32] {
        match self {
            Self::Shared(all) => all,
            Self::ByHead(heads) => heads.get(head).map_or(&[], |h| h),
        }
    }

    /// Returns the positions of the cached tokens in the text, as ascending lists: one list if all key heads cache the same tokens,
    /// otherwise one list for each key head, in order.
    pub fn lists(&self) -> &[Vec<u32>] {
        match self {
            Self::Shared(all) => std::slice::from_ref(all),
            Self::ByHead(heads) => heads,
        }
    }

    fn lists_mut(&mut self) -> &mut [Vec<u32>] {
        match self {
            Self::Shared(all) => std::slice::from_mut(all),
            Self::ByHead(heads) => heads,
        }
    }

    pub fn last(&self) -> Option<u32> {
        self.lists().iter().filter_map(|l| l.last().copied()).max()
    }

    pub fn longest(&self) -> usize {
        self.lists().iter().map(Vec::len).max().unwrap_or(0)
    }

    pub fn extend(&mut self, new: &[u32]) {
        self.lists_mut().iter_mut().for_each(|l| l.extend_from_slice(new));
    }

    pub fn remove_last(&mut self, tokens: usize) {
        self.lists_mut().iter_mut().for_each(|l| l.truncate(l.len().saturating_sub(tokens)));
    }

    /// Keeps, for each key head `h`, the positions with the ascending indices `keep[h]`, counted from 0, and drops the others. `keep` has a
    /// list for each key head; an index past the last position is ignored.
    pub fn retain(&mut self, keep: &[Vec<u32>]) {
        let select = |(h, keep): (usize, &Vec<u32>)| -> Vec<u32> {
            keep.iter().filter_map(|&i| self.of(h).get(i as usize).copied()).collect()
        };
        let mut lists: Vec<Vec<u32>> = keep.iter().enumerate().map(select).collect();
        let alike = lists.windows(2).all(|l| l[0] == l[1]);
        *self = if alike { Self::Shared(lists.pop().unwrap_or_default()) } else { Self::ByHead(lists) };
    }
}
