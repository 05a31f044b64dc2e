//! Work cut by index, on the threads of the current rayon pool or on the calling one.
//!
//! [`map`] and [`pairs`] give work to the pool and wait for it. Where many small pieces follow each other, as in a
//! network that makes one token, waking a thread takes longer than the work: inside of a [`region`] the other threads
//! stay awake between pieces.

#[cfg(feature = "rayon")]
mod team;

/// Returns `f(i, scratch)` for `0..count`, results in order. With `parallel` (and the feature `rayon`) the items run on
/// all threads of the region or the pool, each thread with a scratch of its own; which thread has which item must not
/// show in `f`. Inside of an item of a [`region`], the calling thread does all the work. A panic of an item is passed
/// on to the caller.
pub fn map<S, R: Send>(
    count: usize,
    parallel: bool,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(usize, &mut S) -> R + Sync + Send,
) -> Vec<R> {
    #[cfg(feature = "rayon")]
    if parallel && count > 1 && !team::in_item() {
        if let Some(results) = team::share(count, &scratch, &f) {
            return results;
        }
        use rayon::prelude::*;
        return (0..count).into_par_iter().map_init(scratch, |s, i| f(i, s)).collect();
    }
    let _ = parallel;
    let mut scratch = scratch();
    (0..count).map(|i| f(i, &mut scratch)).collect()
}

/// A slice whose parts go to different threads.
struct Parts<T>(*mut T, usize, usize);
// SAFETY: parts are disjoint, and each is asked for once (see `pairs`).
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// Part `index` of as many elements as parts have.
    ///
    /// # Safety
    /// No other part of the same index is alive, and the slice is borrowed for as long.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self, index: usize) -> &mut [T] {
        let first = (index * self.2).min(self.1);
        let count = self.2.min(self.1 - first);
        // SAFETY: inside of the slice; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), count) }
    }
}

/// `f(i, a_i, b_i)` for the parts of two slices, `a` cut into parts of `na` elements and `b` of `nb`; results in order.
/// Ends with the one that has fewer parts.
pub fn pairs<A: Send, B: Send, R: Send>(
    a: &mut [A],
    na: usize,
    b: &mut [B],
    nb: usize,
    parallel: bool,
    f: impl Fn(usize, &mut [A], &mut [B]) -> R + Sync + Send,
) -> Vec<R> {
    let (na, nb) = (na.max(1), nb.max(1));
    let count = a.len().div_ceil(na).min(b.len().div_ceil(nb));
    let (a, b) = (Parts(a.as_mut_ptr(), a.len(), na), Parts(b.as_mut_ptr(), b.len(), nb));
    let (a, b) = (&a, &b);
    // SAFETY: `map` calls once for each index, and both slices are borrowed until it is done.
    map(count, parallel, || (), |i, ()| unsafe { f(i, a.get(i), b.get(i)) })
}

/// Runs `f` while the other threads of the pool wait for work without sleeping, and returns what `f` returns: for many
/// calls of [`map`] and [`pairs`] by the calling thread, one after the other, for a time that is short on the whole.
///
/// One region is active in the process at a time. `f` just runs, and its work forks as it does elsewhere, without
/// `parallel`, without a second thread, inside of another region, or while another thread has a region. A `map` inside
/// of an item of another `map` runs on the thread that has the item.
///
/// Inside of a region:
/// - do not wait for files, sockets or other threads: all threads of the pool consume processor time until the region
///   ends. Nothing hangs,
///   because threads that have found no work for a while run other jobs of the pool;
/// - do not hold a lock that a job of the pool takes: the calling thread may run such a job while it waits for an item.
pub fn region<R>(parallel: bool, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    if parallel && rayon::current_num_threads() > 1 && !team::in_item() {
        return team::lead(rayon::current_num_threads() - 1, f);
    }
    let _ = parallel;
    f()
}

/// Runs `f` on the calling thread alone: each [`map`], [`pairs`] and [`region`] in it stays on this thread.
pub fn serial<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    let _role = team::alone();
    f()
}

/// Returns the number of threads that share work.
#[must_use]
pub fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Returns whether `work` is enough to be shared, where `asleep` is enough if threads must be woken: a sixteenth of it
/// is enough inside of a [`region`].
#[must_use]
pub fn worth(work: usize, asleep: usize) -> bool {
    #[cfg(feature = "rayon")]
    if team::leads() {
        return work >= asleep / 16;
    }
    work >= asleep
}

#[cfg(test)]
mod tests;
