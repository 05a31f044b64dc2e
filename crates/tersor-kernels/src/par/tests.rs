use super::*;

/// Runs `f` on a pool of so many threads, where there are pools.
fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "rayon")]
    return rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f);
    #[cfg(not(feature = "rayon"))]
    {
        let _ = threads;
        f()
    }
}

#[test]
fn every_item_is_done_once_and_results_stay_in_order() {
    let work = || {
        for round in 0..if cfg!(miri) { 20 } else { 2000usize } {
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
    in_pool(3, work);
    in_pool(3, || region(true, work));
    region(true, || region(true, work));
    region(false, work);
    let inner = region(true, || map(50, true, || (), |i, ()| map(i, true, || (), |j, ()| j).len()));
    assert!(inner.iter().enumerate().all(|(i, n)| i == *n));
}

#[test]
#[cfg(feature = "rayon")]
fn many_regions_at_once_do_not_wait_for_each_other() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    std::thread::scope(|s| {
        for t in 0..4usize {
            let pool = &pool;
            s.spawn(move || {
                for _ in 0..if cfg!(miri) { 10 } else { 200 } {
                    let sum: usize = pool.install(|| region(true, || map(20, true, || (), |i, ()| i + t).iter().sum()));
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

/// What `work` returns, computed by a thread of its own. Fails when it has not ended after a while.
#[cfg(feature = "rayon")]
fn within_time<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
        .recv_timeout(std::time::Duration::from_secs(if cfg!(miri) { 600 } else { 20 }))
        .expect("the work has ended")
}

#[test]
#[cfg(feature = "rayon")]
fn two_outside_threads_with_nested_jobs_in_regions_end() {
    let rounds = if cfg!(miri) { 5 } else { 300 };
    let sums = within_time(move || {
        // Both have begun their regions before either has jobs.
        let meet = std::sync::Barrier::new(2);
        let work = |t: usize| {
            region(true, || {
                meet.wait();
                let inner = |i: usize| map(9, true, || (), |j, ()| i * j + t).into_iter().sum::<usize>();
                (0..rounds).map(|_| map(7, true, || (), |i, ()| inner(i)).into_iter().sum::<usize>()).sum::<usize>()
            })
        };
        std::thread::scope(|s| [0, 1].map(|t| s.spawn(move || work(t))).map(|h| h.join().unwrap()))
    });
    assert_eq!(sums, [0, 1].map(|t| rounds * (21 * 36 + 63 * t)));
}

#[test]
#[cfg(feature = "rayon")]
fn a_region_may_wait_for_a_job_of_its_pool() {
    for threads in [2, 3] {
        let got = within_time(move || {
            let wait = |value: usize| {
                let (sender, receiver) = std::sync::mpsc::channel();
                rayon::spawn(move || sender.send(value).unwrap());
                receiver.recv().unwrap()
            };
            // In the region itself, and in one of the items.
            in_pool(threads, || {
                region(true, || {
                    let before: usize = (0..20).map(wait).sum();
                    before + map(20, true, || (), |i, ()| if i == 3 { wait(i) } else { i }).iter().sum::<usize>()
                })
            })
        });
        assert_eq!(got, 380);
    }
}

#[test]
#[cfg(feature = "rayon")]
fn rayon_may_be_called_in_a_region() {
    let (rounds, n) = if cfg!(miri) { (3, 100) } else { (100, 5000) };
    let sum = within_time(move || {
        in_pool(3, || {
            use rayon::prelude::*;
            let sum = |n: u64| (0..n).into_par_iter().map(|v| v * v % 7).sum::<u64>();
            (0..rounds)
                .map(|_| region(true, || sum(n) + map(5, true, || (), |i, ()| sum(i as u64)).iter().sum::<u64>()))
                .sum::<u64>()
        })
    });
    let serial = |n: u64| (0..n).map(|v| v * v % 7).sum::<u64>();
    assert_eq!(sum, rounds * (serial(n) + (0..5).map(serial).sum::<u64>()));
}
