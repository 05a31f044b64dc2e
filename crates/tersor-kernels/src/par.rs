//! Work cut by index, in the current rayon pool or on the calling thread.

/// `f(i, scratch)` for `0..count`, results in order. With `parallel` (and the feature `rayon`) the items run in
/// the current pool, each thread with a scratch of its own; which thread has which item must not show in `f`.
pub fn map<S, R: Send>(
    count: usize,
    parallel: bool,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(usize, &mut S) -> R + Sync + Send,
) -> Vec<R> {
    #[cfg(feature = "rayon")]
    if parallel && count > 1 {
        use rayon::prelude::*;
        return (0..count).into_par_iter().map_init(scratch, |s, i| f(i, s)).collect();
    }
    let _ = parallel;
    let mut scratch = scratch();
    (0..count).map(|i| f(i, &mut scratch)).collect()
}
