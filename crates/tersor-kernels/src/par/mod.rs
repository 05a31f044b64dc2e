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

/// Returns `f(i, scratch)` for every `i` in `0..count`, results in order. With `parallel` (and the feature `rayon`) items run on all
/// threads of the region or the pool, each thread with its own value of `scratch()`; results of `f` must not depend on which thread has
/// which item. Inside of an item of a [`region`], the calling thread does all the work. A panic of an item is passed on to the caller.
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

/// Returns `f(i, a_i, b_i)` for every pair of parts of two slices, `a` cut into parts of `na` elements and `b` into parts of `nb` elements
/// (0 counts as 1); results in order. Ends with the slice that has fewer parts. `parallel` and panics as for [`map`].
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

/// Runs `f` on the calling thread while the other threads of the pool wait for work without sleeping, and returns its result. Meant for
/// many calls of [`map`] and [`pairs`] in close succession.
///
/// One region is active in a process at a time. Without `parallel`, on a pool of one thread, inside of another region, or while another
/// thread has a region, `f` runs without one, and its work is shared as it is elsewhere. A `map` inside of an item of another `map` runs on
/// the thread of that item.
///
/// Inside of a region:
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

/// Runs `f` on the calling thread alone, and returns its result: [`map`], [`pairs`] and [`region`] inside of it use no other thread.
pub fn serial<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    let _role = team::alone();
    f()
}

/// Returns the number of threads of the current pool; 1 without the feature `rayon`.
#[must_use]
pub fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Returns whether an amount of `work` is large enough to be shared between threads: at least `threshold`, in the same unit. Inside of a
/// [`region`], whose threads need not be woken, a sixteenth of `threshold` suffices.
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
