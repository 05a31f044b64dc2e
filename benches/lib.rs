//! Shared functions of the benchmarks under `benches/`.

use std::time::Instant;

use tersor_kernels::limits::read;

/// Returns the median seconds of each function. The functions run alternately, because the speed of memory varies over time.
pub fn times<const K: usize>(mut work: [&mut dyn FnMut(); K]) -> [f64; K] {
    let mut times = [const { Vec::new() }; K];
    for turn in 0..16 {
        for (f, times) in work.iter_mut().zip(&mut times) {
            let start = Instant::now();
            f();
            // The first turn warms up.
            if turn > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    })
}

/// Calls `f` on equal parts of two slices, one part for each thread.
pub fn parts<A: Send + Sync, B: Send>(a: &[A], b: &mut [B], f: impl Fn(&[A], &mut [B]) + Sync) {
    let n = rayon::current_num_threads();
    let (na, nb) = (a.len() / n, b.len() / n);
    rayon::scope(|s| {
        for (a, b) in a.chunks(na).zip(b.chunks_mut(nb)) {
            let f = &f;
            s.spawn(move |_| f(a, b));
        }
    });
}

/// Calls `f` for each number of threads, in a pool of that many threads, each pinned to a core.
pub fn on_pinned_threads(counts: &[usize], f: impl Fn(usize) + Sync) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    for threads in counts {
        let cores = cores.clone();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(*threads).start_handler(move |i| {
            if let Some(core) = cores.get(i) {
                core_affinity::set_for_current(*core);
            }
        });
        let Ok(pool) = pool.build() else { return };
        pool.install(|| f(*threads));
    }
}

/// Reads all values on all threads.
pub fn reading(x: &[f32]) {
    let words: &[u64] = bytemuck::cast_slice(&x[..x.len() / 2 * 2]);
    let mut sums = vec![0u64; rayon::current_num_threads()];
    parts(words, &mut sums, |part, sum| sum.iter_mut().for_each(|s| *s = read(part)));
    std::hint::black_box(sums);
}

/// Copies all values on all threads.
pub fn copying(x: &[f32], y: &mut [f32]) {
    parts(x, y, |a, b| b.copy_from_slice(a));
}

/// Returns the median memory time and the median time of `f` in seconds; `bytes` are the numbers of bytes that `f` reads and writes. The memory time is
/// the larger of the time to read the bytes at read bandwidth and the time to read and write them at memcpy's rate, both measured alternately with `f`.
pub fn against_memory(x: &[f32], y: &mut [f32], bytes: [usize; 2], f: &mut dyn FnMut()) -> [f64; 2] {
    let [reading, copying, seconds] = times([&mut || reading(x), &mut || copying(x, y), f]);
    let [all, size] = [(bytes[0] + bytes[1]) as f64, (4 * x.len()) as f64];
    [(bytes[0] as f64 * reading / size).max(all * copying / (2.0 * size)), seconds]
}
