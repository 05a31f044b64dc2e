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

/// `f(i, a_i, b_i)` for the parts of two slices, `a` cut into parts of `na` elements and `b` of `nb`; results in order. Ends with the shorter.
pub fn pairs<A: Send, B: Send, R: Send>(
    a: &mut [A],
    na: usize,
    b: &mut [B],
    nb: usize,
    parallel: bool,
    f: impl Fn(usize, &mut [A], &mut [B]) -> R + Sync + Send,
) -> Vec<R> {
    let (na, nb) = (na.max(1), nb.max(1));
    #[cfg(feature = "rayon")]
    if parallel && a.len() > na {
        use rayon::prelude::*;
        let parts = a.par_chunks_mut(na).zip(b.par_chunks_mut(nb));
        return parts.enumerate().map(|(i, (a, b))| f(i, a, b)).collect();
    }
    let _ = parallel;
    a.chunks_mut(na).zip(b.chunks_mut(nb)).enumerate().map(|(i, (a, b))| f(i, a, b)).collect()
}
