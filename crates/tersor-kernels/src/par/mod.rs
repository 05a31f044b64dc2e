//! Parallel work that is cut by index, on the threads of the current rayon pool or on the calling one.
//!
//! [`map`] and [`pairs`] give work to the pool and wait for it. Where many small pieces follow each other, as in a network that generates
//! one token, waking a thread takes longer than the work: inside of a [`region`] the other threads stay awake between pieces.
//!
//! ```
//! use tersor_kernels::par;
//! let squares = par::map(4, true, || (), |i, ()| i * i);
//! assert_eq!(squares, [0, 1, 4, 9]);
//! let sums = par::region(true, || par::map(2, true, || (), |i, ()| squares[2 * i] + squares[2 * i + 1]));
//! assert_eq!(sums, [1, 13]);
//! ```

#[cfg(feature = "rayon")]
mod team;

/// Calls `f(i, scratch)` once for every item `i` in `0..count` and returns the `count` results in the order of the items. With `parallel`
/// (and the feature `rayon`) the threads of the active [`region`], or else of the current rayon pool, share the items; otherwise the
/// calling thread takes them in order. `scratch()` makes the working memory that `f` gets: no two threads share one, and a thread uses one
/// for several items, so the results must not depend on what earlier items left in it.
///
/// The calling thread takes all items, even with `parallel`, in two cases: if `map` is called inside of [`serial`], and if it is called by
/// the `f` of another `map` or [`pairs`] whose items the threads of a [`region`] share. A panic of `f` is passed on to the caller of `map`.
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

/// A slice whose parts are written by different threads: its address, its length and the length of a part.
struct Parts<T>(*mut T, usize, usize);
// SAFETY: parts are disjoint, and each is taken once (see `pairs`).
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// Returns part `index`; the last part may be shorter.
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

/// Cuts the slice `a` into parts of `na` elements and `b` into parts of `nb` elements. The last part of a slice may be shorter, and an `na`
/// or `nb` of 0 counts as 1. Calls `f(i, a_i, b_i)` once for every pair of parts with the same index `i`, and returns the results in the
/// order of `i`. If one slice has more parts than the other, the parts without a partner are left out. The pairs are shared between threads
/// as the items of [`map`] are: if `parallel` is true, the threads of the active [`region`], or else of the current rayon pool, take them,
/// otherwise the calling thread does. A panic of `f` is passed on to the caller.
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

/// Runs `f` on the calling thread and returns its result. Meanwhile the other threads of the rayon pool stay awake for work, so that many
/// calls of [`map`] and [`pairs`] by `f` in close succession need not wake them. A panic of `f` is passed on to the caller.
///
/// One region is active in a process at a time. No new region begins, and [`map`] and [`pairs`] use the threads that they would use without
/// this call of `region`,
///
/// - if `parallel` is false, or without the feature `rayon`;
/// - if the pool has one thread;
/// - if the call is inside of another region or of [`serial`];
/// - if another thread has a region.
///
/// Inside of a region:
///
/// - do not wait for files, sockets or other threads: all threads of the pool consume processor time until the region ends. Nothing
///   deadlocks, because threads that have found no work for a while run other jobs of the pool;
/// - do not hold a lock that a job of the pool takes: the calling thread may run such a job while it waits for an item.
pub fn region<R>(parallel: bool, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    if parallel && rayon::current_num_threads() > 1 && !team::in_item() {
        return team::lead(rayon::current_num_threads() - 1, f);
    }
    let _ = parallel;
    f()
}

/// Runs `f` on the calling thread and returns its result. [`map`], [`pairs`] and [`region`] that `f` calls on that thread use no other
/// thread, even if their `parallel` is true.
pub fn serial<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    let _role = team::alone();
    f()
}

/// Returns the number of threads of the current rayon pool, the calling thread included if it belongs to the pool; 1 without the feature
/// `rayon`.
#[must_use]
pub fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Returns whether an amount of `work` is large enough to be shared between threads, that is at least `threshold`. Both have the same unit,
/// which is up to the caller, for example bytes. On the thread that runs a [`region`], whose other threads are awake, a sixteenth of
/// `threshold` suffices.
#[must_use]
pub fn worth(work: usize, threshold: usize) -> bool {
    #[cfg(feature = "rayon")]
    if team::leads() {
        return work >= threshold / 16;
    }
    work >= threshold
}

#[cfg(test)]
mod tests;
