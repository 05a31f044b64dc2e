//! Work cut by index, on the threads of the current rayon pool or on the calling one.
//!
//! [`map`] and [`pairs`] give the pool work and wait for it. Where many small pieces follow each other, as in a network that makes one token,
//! waking a thread takes longer than the work: inside of a [`region`] the other threads stay awake between them.

#[cfg(feature = "rayon")]
use team::Team;

/// `f(i, scratch)` for `0..count`, results in order. With `parallel` (and the feature `rayon`) the items run on all threads of the region or
/// the pool, each thread with a scratch of its own; which thread has which item must not show in `f`.
pub fn map<S, R: Send>(
    count: usize,
    parallel: bool,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(usize, &mut S) -> R + Sync + Send,
) -> Vec<R> {
    #[cfg(feature = "rayon")]
    if parallel && count > 1 {
        if let Some(results) = Team::current(|team| team.map(count, &scratch, &f)) {
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

/// `f(i, a_i, b_i)` for the parts of two slices, `a` cut into parts of `na` elements and `b` of `nb`; results in order. Ends with the one that has
/// fewer parts.
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

/// Runs `f` while the other threads of the pool wait for work without sleeping: for many calls of [`map`] and [`pairs`] by the calling thread,
/// one after the other, for a time that is short on the whole. Without `parallel`, without a second thread, or inside of another region, it
/// just runs `f`.
pub fn region<R>(parallel: bool, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "rayon")]
    if parallel && rayon::current_num_threads() > 1 && !Team::any() {
        return Team::new().run(rayon::current_num_threads() - 1, f);
    }
    let _ = parallel;
    f()
}

/// Threads that share work.
pub fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// How much work is worth sharing, against what it is where threads must be woken: a sixteenth inside of a [`region`].
pub fn worth(work: usize, asleep: usize) -> bool {
    #[cfg(feature = "rayon")]
    if Team::any() {
        return work >= asleep / 16;
    }
    work >= asleep
}

#[cfg(feature = "rayon")]
mod team {
    use std::cell::{Cell, UnsafeCell};
    use std::mem::MaybeUninit;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

    thread_local! {
        /// The team that this thread leads.
        static CURRENT: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
    }

    /// Rounds of waiting before the processor is offered to others.
    const PATIENCE: u32 = 1 << 12;

    /// A leader, who posts one job after the other, and helpers, who take items of it.
    pub(super) struct Team {
        /// Written by the leader while the job is closed and nobody is inside.
        job: UnsafeCell<Option<Job>>,
        /// Whether items may be taken.
        open: AtomicBool,
        /// Helpers that look at the job.
        inside: AtomicUsize,
        /// The next item.
        next: AtomicUsize,
        /// Whether the region has ended.
        over: AtomicBool,
    }

    /// What a job is: a function that takes items until there are none.
    #[derive(Clone, Copy)]
    struct Job {
        data: *const (),
        call: unsafe fn(*const (), &AtomicUsize),
    }

    // SAFETY: `job` is written by the leader alone, while `open` is false and `inside` is 0; see `post` and `help`.
    unsafe impl Sync for Team {}

    struct OnDrop<F: FnMut()>(F);
    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    impl Team {
        pub(super) fn new() -> Self {
            let (open, over) = (AtomicBool::new(false), AtomicBool::new(false));
            Self { job: UnsafeCell::new(None), open, inside: AtomicUsize::new(0), next: AtomicUsize::new(0), over }
        }

        /// Whether this thread leads a team.
        pub(super) fn any() -> bool {
            !CURRENT.get().is_null()
        }

        /// `f` of the team that this thread leads. While it works on a job, it leads none: a job inside of a job is its own affair.
        pub(super) fn current<R>(f: impl FnOnce(&Team) -> R) -> Option<R> {
            let team = CURRENT.replace(std::ptr::null());
            let _back = OnDrop(|| CURRENT.set(team));
            // SAFETY: set by `run` for the time that the team lives, and reset by it at the end.
            unsafe { team.as_ref() }.map(f)
        }

        /// Runs `f` as the leader of this many helpers.
        pub(super) fn run<R>(&self, helpers: usize, f: impl FnOnce() -> R) -> R {
            rayon::in_place_scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(|_| self.help());
                }
                // Also when `f` panics: or the helpers would wait for ever.
                let _end = OnDrop(|| {
                    CURRENT.set(std::ptr::null());
                    self.over.store(true, SeqCst);
                });
                CURRENT.set(self);
                f()
            })
        }

        fn help(&self) {
            let mut waited = 0u32;
            while !self.over.load(SeqCst) {
                if !self.open.load(SeqCst) {
                    waited += 1;
                    if waited < PATIENCE {
                        std::hint::spin_loop()
                    } else {
                        std::thread::yield_now()
                    }
                    continue;
                }
                waited = 0;
                self.inside.fetch_add(1, SeqCst);
                let _leave = OnDrop(|| {
                    self.inside.fetch_sub(1, SeqCst);
                });
                // Looked at again now that the leader sees somebody inside: as long as it is open, the job stays.
                if self.open.load(SeqCst) {
                    // SAFETY: the leader writes only while nobody is inside of a closed job, and keeps what `data` points to until then.
                    unsafe {
                        if let Some(job) = *self.job.get() {
                            (job.call)(job.data, &self.next);
                        }
                    }
                }
            }
        }

        /// Has `work` called by all, with a counter that gives out items.
        fn post<F: Fn(&AtomicUsize) + Sync>(&self, work: &F) {
            unsafe fn call<F: Fn(&AtomicUsize)>(data: *const (), next: &AtomicUsize) {
                // SAFETY: `data` is the `work` of `post`.
                unsafe { (*data.cast::<F>())(next) }
            }
            self.next.store(0, SeqCst);
            let job = Job { data: std::ptr::from_ref(work).cast(), call: call::<F> };
            // SAFETY: the job is closed and nobody is inside: so the last `post` left it.
            unsafe { *self.job.get() = Some(job) };
            self.open.store(true, SeqCst);
            // Also when `work` panics here.
            let _close = OnDrop(|| {
                self.open.store(false, SeqCst);
                while self.inside.load(SeqCst) != 0 {
                    std::hint::spin_loop();
                }
            });
            work(&self.next);
        }

        pub(super) fn map<S, R: Send>(
            &self,
            count: usize,
            scratch: &(impl Fn() -> S + Sync),
            f: &(impl Fn(usize, &mut S) -> R + Sync),
        ) -> Vec<R> {
            struct Slots<R>(*mut MaybeUninit<R>);
            // SAFETY: each slot is written once, by whoever took its number.
            unsafe impl<R: Send> Sync for Slots<R> {}
            impl<R> Slots<R> {
                fn at(&self, index: usize) -> *mut MaybeUninit<R> {
                    self.0.wrapping_add(index)
                }
            }
            let mut results: Vec<MaybeUninit<R>> = Vec::with_capacity(count);
            results.resize_with(count, MaybeUninit::uninit);
            let (slots, done) = (Slots(results.as_mut_ptr()), AtomicUsize::new(0));
            self.post(&|next: &AtomicUsize| {
                let (mut own, mut mine) = (None, 0);
                loop {
                    let i = next.fetch_add(1, Relaxed);
                    if i >= count {
                        break;
                    }
                    let result = f(i, own.get_or_insert_with(scratch));
                    // SAFETY: below `count`, and nobody else has this number.
                    unsafe { (*slots.at(i)).write(result) };
                    mine += 1;
                }
                done.fetch_add(mine, SeqCst);
            });
            // A panic of a helper is told by the scope in the end; until then there is a result for every item or none for any.
            assert_eq!(done.load(SeqCst), count, "a helper panicked");
            // SAFETY: all of them were written.
            results.into_iter().map(|r| unsafe { r.assume_init() }).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_results_stay_in_order() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let work = || {
            for round in 0..2000usize {
                let got = map(
                    round % 17,
                    true,
                    || 0usize,
                    |i, s| {
                        *s += 1;
                        i * i + round
                    },
                );
                assert!(got.iter().enumerate().all(|(i, v)| *v == i * i + round));
                let (mut a, mut b) = (vec![1u32; round % 23], vec![0u64; round % 7]);
                pairs(&mut a, 4, &mut b, 1, true, |i, a, b| {
                    a[0] += 1;
                    b[0] = i as u64 + 1;
                });
                let parts = a.len().div_ceil(4).min(b.len());
                assert_eq!(a.iter().filter(|v| **v == 2).count(), parts);
                assert!(b.iter().enumerate().all(|(i, v)| *v == if i < parts { i as u64 + 1 } else { 0 }));
            }
        };
        // Inside of a pool and outside, alone and in a region, and one inside of another.
        pool.install(work);
        pool.install(|| region(true, work));
        region(true, || region(true, work));
        region(false, work);
        let inner = region(true, || map(50, true, || (), |i, ()| map(i, true, || (), |j, ()| j).len()));
        assert!(inner.iter().enumerate().all(|(i, n)| i == *n));
    }

    #[test]
    fn many_regions_at_once_do_not_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        std::thread::scope(|s| {
            for t in 0..4usize {
                let pool = &pool;
                s.spawn(move || {
                    for _ in 0..200 {
                        let sum: usize =
                            pool.install(|| region(true, || map(20, true, || (), |i, ()| i + t).iter().sum()));
                        assert_eq!(sum, 190 + 20 * t);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_ends_the_region() {
        let run = |at: usize| {
            std::panic::catch_unwind(|| {
                region(true, || map(100, true, || (), |i, ()| assert_ne!(i, at)));
            })
        };
        assert!(run(0).is_err() && run(99).is_err() && run(100).is_ok());
    }
}
