//! Integer products compared with the limits of the machine: `cargo bench -p tersor-benches --bench kernels`.
//!
//! Every figure is the median of repetitions, on one pinned thread and on two. Operands rotate through more memory than the processor's caches
//! hold. The limits are measured right before and after the product on the same line. Words after `--` select the lines that contain
//! all of them (`-- avx2 "4 row" "512 tokens" "2 threads"`).

use std::time::Instant;

use tersor_kernels::dense::{Out, Write};
use tersor_kernels::integer::{Activations, Panels, product};
use tersor_kernels::limits::{Arithmetic, arithmetic, read};
use tersor_kernels::{Isa, bits, par};

/// Bytes of memory through which operands rotate.
const BEYOND: usize = 192 << 20;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Returns the median seconds of a call, over calls that take about half a second together.
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

/// Returns the bytes per second that all threads read together.
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

/// Returns the operations per second of all threads together; a multiply-add counts as two.
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
    dual: bool,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let buffer: Vec<u64> = (0..BEYOND as u64 / 8).collect();
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    println!(
        "{:10} {:10} {:8} {:>12} {:>11} {:>8} {:>9} {:>7}  of the limit",
        "level", "threads", "weights", "shape", "tokens", "planes", "us", "Gop/s"
    );
    for isa in Isa::available().into_iter().skip(1).rev() {
        for threads in [2, 1] {
            let cores = cores.clone();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(move |i| {
                if let Some(core) = cores.get(i) {
                    core_affinity::set_for_current(*core);
                }
            });
            let Ok(pool) = pool.build() else { return };
            pool.install(|| {
                for shape in [[4096, 4096], [14336, 4096], [4096, 14336]] {
                    for (name, bits, group, dual) in [
                        ("8 row", 8, shape[1], false),
                        ("8 g128", 8, 128, false),
                        ("4 row", 4, shape[1], false),
                        ("4 dual", 4, 128, true),
                        ("4 g128", 4, 128, false),
                        ("4 g32", 4, 32, false),
                        ("3 g128", 3, 128, false),
                        ("2 g128", 2, 128, false),
                    ] {
                        measure(isa, threads, shape, &Form { name, bits, group, dual }, &buffer, &words);
                    }
                }
            });
        }
    }
}

/// Operands, made for the first line that needs them.
fn weights(isa: Isa, [rows, cols]: [usize; 2], form: &Form) -> Option<Vec<Panels>> {
    let width = bits::packed_len(cols, form.bits);
    let packed: Vec<u8> = (0..rows * width).map(|i| ((i * 37) >> 3) as u8).collect();
    let zero = 1 << (form.bits - 1);
    let first = if form.dual {
        let fit = |r: usize, g: usize| ((r + g) as u8 % 15 + 1, zero);
        Panels::dual(isa, &packed, form.bits, [rows, cols], form.group, fit, &vec![0.01; rows]).ok()?
    } else {
        let fit = |r: usize, g: usize| (((r + g) % 64 + 1) as f32 / 4096.0, zero);
        Panels::new(isa, &packed, form.bits, [rows, cols], form.group, fit).ok()?
    };
    let copies = (BEYOND / first.bytes()).max(1) + 1;
    Some(vec![first; copies])
}

fn measure(isa: Isa, threads: usize, [rows, cols]: [usize; 2], form: &Form, buffer: &[u64], words: &[String]) {
    let mut made = None;
    for (tokens, planes) in [(1, 1), (1, 3), (32, 1), (512, 1), (512, 3)] {
        let label = format!(
            "{:10} {threads} threads  {:8} {:>12} {tokens:>4} tokens {planes:>8}",
            isa.name(),
            form.name,
            format!("{rows}x{cols}")
        );
        if !words.iter().all(|w| label.contains(w.as_str())) {
            continue;
        }
        let Some(weights) = made.get_or_insert_with(|| weights(isa, [rows, cols], form)) else { return };
        let padding = weights[0].padding();
        let x = if planes == 1 {
            let codes: Vec<i8> = (0..tokens * cols).map(|i| ((i * 31) >> 2) as i8).collect();
            Activations::from_codes(&codes, &vec![0.1; tokens], padding)
        } else {
            let values: Vec<f32> = (0..tokens * cols).map(|i| (i % 1000) as f32 - 500.0).collect();
            Activations::exact(isa, &values, tokens, padding)
        };
        let Ok(x) = x else { return };
        let mut y = vec![0f32; tokens * rows];
        let copies = weights.len();
        let run = |i: usize| {
            let y = Out { data: &mut y, stride: rows };
            product(isa, &x, &weights[i % copies], Write::Set, y, threads > 1).ok();
        };
        let limit = || match tokens {
            1 => read_rate(buffer, threads),
            _ => peak(isa, Arithmetic::Bytes32, threads),
        };
        // As in a decoder, the threads stay awake between products.
        let (before, seconds, after) = (limit(), par::region(threads > 1, || time(run)), limit());
        let max = (before + after) / 2.0;
        let gops = 2.0 * (tokens * rows * cols) as f64 / seconds / 1e9;
        let share = if tokens == 1 {
            let bytes = weights[0].bytes() as f64 / seconds;
            format!("{:.0} % of {:.1} GB/s", 100.0 * bytes / max, max / 1e9)
        } else {
            let in_16 = peak(isa, Arithmetic::Bytes16, threads);
            let done = gops * planes as f64 * 1e11;
            format!(
                "{:.0} % of {:.0} Gop/s in 32 bits, {:.0} % of {:.0} in 16",
                done / max,
                max / 1e9,
                done / in_16,
                in_16 / 1e9
            )
        };
        println!("{label} {:>9.0} {gops:>7.0}  {share}", seconds * 1e6);
    }
}
