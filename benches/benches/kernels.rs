//! Integer products beside what the machine can do at most: `cargo bench -p tersor-benches --bench kernels`.
//!
//! Every figure is the median of repetitions, on one thread and on two, pinned. Operands rotate through more memory than the caches
//! hold. Limits are measured right before the product that stands beside them.

use std::time::Instant;

use tersor_kernels::dense::{Out, Write};
use tersor_kernels::integer::{Activations, Panels, product};
use tersor_kernels::limits::{Arithmetic, arithmetic, read};
use tersor_kernels::{Isa, bits};

/// Bytes that operands rotate through.
const BEYOND: usize = 192 << 20;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Seconds of one call, the median of calls that take about half a second together.
fn time(mut f: impl FnMut(usize)) -> f64 {
    f(0);
    let start = Instant::now();
    f(1);
    let reps = ((0.5 / start.elapsed().as_secs_f64()) as usize).clamp(5, 400);
    let run = |i: usize| {
        let start = Instant::now();
        f(i + 2);
        start.elapsed().as_secs_f64()
    };
    median((0..reps).map(run).collect())
}

/// Bytes a second that all threads read together.
fn read_rate(buffer: &[u64], threads: usize) -> f64 {
    let part = buffer.len() / threads;
    let once = |_| {
        rayon::scope(|s| {
            for piece in buffer.chunks(part) {
                s.spawn(move |_| {
                    std::hint::black_box(read(piece));
                });
            }
        })
    };
    buffer.len() as f64 * 8.0 / time(once)
}

/// Operations (two a multiply-add) a second of all threads together.
fn peak(isa: Isa, kind: Arithmetic, threads: usize) -> f64 {
    let steps = 4_000_000;
    let count = arithmetic(isa, kind, 1).map_or(0, |c| c.0) as f64 * steps as f64 * 2.0 * threads as f64;
    let once = |_| {
        rayon::scope(|s| {
            for _ in 0..threads {
                s.spawn(|_| {
                    std::hint::black_box(arithmetic(isa, kind, steps));
                });
            }
        })
    };
    count / time(once)
}

struct Form {
    name: &'static str,
    bits: u32,
    group: usize,
}

fn main() {
    let isa = Isa::detect();
    println!("instruction set: {}", isa.name());
    let buffer: Vec<u64> = (0..BEYOND as u64 / 8).collect();
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    for threads in [1, 2] {
        let cores = cores.clone();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(move |i| {
            if let Some(core) = cores.get(i) {
                core_affinity::set_for_current(*core);
            }
        });
        let Ok(pool) = pool.build() else { return };
        pool.install(|| {
            let rate = |kind| peak(isa, kind, threads) / 1e9;
            println!(
                "\n{threads} thread(s): f32 {:.0} Gop/s, bytes in 32 bits {:.0} Gop/s, in 16 bits {:.0} Gop/s (AVX2)",
                rate(Arithmetic::F32),
                rate(Arithmetic::Bytes32),
                rate(Arithmetic::Bytes16)
            );
            println!(
                "{:12} {:>12} {:>7} {:>9} {:>9} {:>9} {:>16}",
                "weights", "shape", "tokens", "planes", "us", "Gop/s", "of the limit"
            );
            for [rows, cols] in [[4096, 4096], [14336, 4096]] {
                for form in [
                    Form { name: "8 row", bits: 8, group: cols },
                    Form { name: "8 g128", bits: 8, group: 128 },
                    Form { name: "4 row", bits: 4, group: cols },
                    Form { name: "4 g128", bits: 4, group: 128 },
                    Form { name: "4 g32", bits: 4, group: 32 },
                    Form { name: "3 g128", bits: 3, group: 128 },
                    Form { name: "2 g128", bits: 2, group: 128 },
                ] {
                    measure(isa, threads, [rows, cols], &form, &buffer);
                }
            }
        });
    }
}

fn measure(isa: Isa, threads: usize, [rows, cols]: [usize; 2], form: &Form, buffer: &[u64]) {
    let width = bits::packed_len(cols, form.bits);
    let packed: Vec<u8> = (0..rows * width).map(|i| ((i * 37) >> 3) as u8).collect();
    let fit = |r: usize, g: usize| (((r + g) % 64 + 1) as f32 / 4096.0, 1 << (form.bits - 1));
    let Some(first) = Panels::new(&packed, form.bits, [rows, cols], form.group, fit) else { return };
    let copies = (BEYOND / first.bytes()).max(1) + 1;
    let weights = vec![first; copies];
    let mut y = vec![0f32; 512 * rows];
    for (tokens, planes) in [(1, 1), (1, 3), (32, 1), (512, 1), (512, 3)] {
        let padding = weights[0].padding();
        let x = if planes == 1 {
            let codes: Vec<i8> = (0..tokens * cols).map(|i| ((i * 31) >> 2) as i8).collect();
            Activations::from_codes(&codes, &vec![0.1; tokens], padding)
        } else {
            let values: Vec<f32> = (0..tokens * cols).map(|i| (i % 1000) as f32 - 500.0).collect();
            Activations::exact(isa, &values, tokens, padding)
        };
        let Some(x) = x else { return };
        let seconds = time(|i| {
            let y = Out { data: &mut y[..tokens * rows], stride: rows };
            product(isa, &x, &weights[i % copies], Write::Set, y, threads > 1);
        });
        let gops = 2.0 * (tokens * rows * cols) as f64 / seconds / 1e9;
        let limit = if tokens == 1 {
            let (ours, most) = (weights[0].bytes() as f64 / seconds, read_rate(buffer, threads));
            format!("{:.0} % of {:.1} GB/s", 100.0 * ours / most, most / 1e9)
        } else {
            let most = peak(isa, Arithmetic::Bytes32, threads);
            format!("{:.0} % of 32 bits", 100.0 * gops * planes as f64 * 1e9 / most)
        };
        let shape = format!("{rows}x{cols}");
        println!("{:12} {shape:>12} {tokens:>7} {planes:>9} {:>9.0} {gops:>9.0} {limit:>16}", form.name, seconds * 1e6);
    }
}
