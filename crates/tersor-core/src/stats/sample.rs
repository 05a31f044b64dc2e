//! A sample of tokens that does not depend on how the stream is cut.

use std::ops::Range;

/// Whole tokens, chosen by a hash of their number, so that the choice does not depend on how the stream is cut.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sample {
    pub want: usize,
    pub seed: u64,
    /// Key and number of each sampled token, ascending by key. The number of a token is its index in the whole stream, counted from 0; its
    /// key is a hash of the seed and the number.
    pub keys: Vec<(u64, u64)>,
    pub rows: Vec<Vec<f32>>,
}

impl Sample {
    pub fn new(want: usize, seed: u64) -> Self {
        Self { want, seed, keys: Vec::new(), rows: Vec::new() }
    }

    /// Offers a token to the sample, which holds at most `want` tokens: those with the smallest keys. `number` is the token's index in the
    /// whole stream, counted from 0; its key is a hash of the seed and the number. `row` returns the token's values, `[features]`; it is
    /// called only if the token is added. If the sample was full, the token with the largest key is dropped. Nothing changes if the key is
    /// not small enough or the sample holds a token of this number already.
    pub fn offer(&mut self, number: u64, row: impl FnOnce() -> Vec<f32>) {
        let key = (mix(self.seed ^ mix(number)), number);
        let at = match self.keys.binary_search(&key) {
            Ok(_) => return,
            Err(at) => at,
        };
        if at >= self.want {
            return;
        }
        self.keys.insert(at, key);
        self.rows.insert(at, row());
        self.keys.truncate(self.want);
        self.rows.truncate(self.want);
    }

    pub fn merge(&mut self, other: &Self) {
        for (key, row) in other.keys.iter().zip(&other.rows) {
            self.offer(key.1, || row.clone());
        }
    }

    /// Returns the values of the sampled tokens in the order of the stream, `[n, features]` row-major, where `n` is the number of sampled
    /// tokens.
    pub fn in_order(&self) -> Vec<f32> {
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_by_key(|&i| self.keys[i].1);
        order.into_iter().flat_map(|i| self.rows[i].iter().copied()).collect()
    }

    /// Returns the sample with only the features of the range `columns`, counted from 0; panics if the range leaves the features.
    pub fn columns(&self, columns: &Range<usize>) -> Self {
        let rows = self.rows.iter().map(|row| row[columns.clone()].to_vec()).collect();
        Self { want: self.want, seed: self.seed, keys: self.keys.clone(), rows }
    }
}

/// The finalizer of splitmix64.
fn mix(v: u64) -> u64 {
    let v = v.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let v = (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let v = (v ^ (v >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    v ^ (v >> 31)
}
