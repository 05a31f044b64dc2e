//! Block-wise quantization compared with the memory time: `cargo bench -p tersor-benches --bench blockwise [FILTER]`.
//!
//! With the only argument `turns` it answers lines on its input, for `benches/rivals/compare.py`: `quantize MAP BLOCK`, `dequantize MAP BLOCK` and `step
//! adamw BITS`, with the median time in seconds and those of reading and of copying as many values, measured alternately.

use std::io::BufRead;

use tersor_benches::{against_memory, copying, on_pinned_threads, reading, times};
use tersor_blockwise::optimizer::OptimizerConfig;
use tersor_blockwise::{Blockwise, Map};
use tersor_core::{Check, Exec, Isa};

const N: usize = 64 << 20;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if filters == ["turns"] {
        let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(2);
        on_pinned_threads(&[threads], |_| answer());
        return;
    }
    println!("{N} values; instruction set {}", Isa::detect().name());
    println!("{:8} {:30} {:>8} {:>10} {:>14}", "threads", "loop", "ms", "GB/s f32", "of memory time");
    on_pinned_threads(&[2, 1], |threads| run(threads, &filters));
}

/// Approximately normal values: sums of four uniform values.
fn values() -> Vec<f32> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (0..4).map(|i| (state >> (16 * i)) as u16 as f32 / 65_536.0 - 0.5).sum::<f32>()
    };
    (0..N).map(|_| next()).collect()
}

fn run(threads: usize, filters: &[String]) {
    let (x, exec) = (values(), Exec::new());
    let mut y = vec![1f32; N];
    for (name, map, block) in [
        ("dynamic, 4096", Map::dynamic(true), 4096),
        ("dynamic, 256", Map::dynamic(true), 256),
        ("dynamic unsigned, 256", Map::dynamic(false), 256),
        ("linear, 256", Map::linear(true), 256),
        ("nf4, 64", Map::nf4(), 64),
        ("fp4, 64", Map::fp4(), 64),
    ] {
        let wanted = |what: &str| filters.iter().all(|f| what.contains(f.as_str()));
        let show = |what: &str, [limit, seconds]: [f64; 2]| {
            let speed = 4.0 * N as f64 / seconds / 1e9;
            println!("{threads:<8} {what:30} {:>8.2} {speed:>10.2} {:>12.0} %", seconds * 1e3, 100.0 * limit / seconds);
        };
        let how = Blockwise::new(map).block(block).check().unwrap();
        let (mut codes, mut absmax) = (vec![1u8; how.code_bytes(N)], vec![1f32; N / block]);
        let bytes = [4 * N, codes.len() + 4 * absmax.len()];
        let what = format!("quantize {name}");
        if wanted(&what) {
            show(
                &what,
                against_memory(&x, &mut y, bytes, &mut || how.quantize_into(&x, &mut codes, &mut absmax).unwrap()),
            );
        }
        let q = how.quantize_values(&x).unwrap();
        let mut out = vec![1f32; N];
        let what = format!("dequantize {name}");
        if wanted(&what) {
            let mut read = || q.dequantize_into(&mut out, &exec).unwrap();
            show(&what, against_memory(&x, &mut y, [bytes[1], bytes[0]], &mut read));
        }
    }
    for (name, how, bytes) in [
        ("AdamW, 8 bits", OptimizerConfig::adamw(), [10 * N, 6 * N]),
        ("AdamW, 32 bits", OptimizerConfig::adamw().bits(32), [16 * N, 12 * N]),
        ("Lion, 8 bits", OptimizerConfig::lion(), [9 * N, 5 * N]),
    ] {
        let what = format!("step {name}");
        if filters.iter().all(|f| what.contains(f.as_str())) {
            let how = how.check().unwrap();
            let (mut p, mut state) = (values(), how.state(N).unwrap());
            // Bytes: parameters and moments are read and written; the gradient is read.
            let [limit, seconds] = against_memory(&x, &mut y, bytes, &mut || how.step(&mut state, &mut p, &x).unwrap());
            let speed = seconds * 1e9 / N as f64;
            println!(
                "{threads:<8} {what:30} {:>8.2} {speed:>7.2} ns {:>12.0} %",
                seconds * 1e3,
                100.0 * limit / seconds
            );
        }
    }
}

/// Answers each line of the input with a line.
fn answer() {
    let (x, exec) = (values(), Exec::new());
    let mut y = vec![1f32; N];
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let map = |name: &str| match name {
            "nf4" => Map::nf4(),
            "fp4" => Map::fp4(),
            _ => Map::dynamic(true),
        };
        let mut z = vec![1f32; N];
        let mut show = |f: &mut dyn FnMut()| {
            let [seconds, read, copy] = times([f, &mut || reading(&x), &mut || copying(&x, &mut z)]);
            println!("{seconds} {read} {copy}");
        };
        match words[..] {
            ["step", _, bits] => {
                let how = OptimizerConfig::adamw().bits(bits.parse().unwrap_or(8)).check().unwrap();
                let mut state = how.state(N).unwrap();
                show(&mut || how.step(&mut state, &mut y, &x).unwrap());
            }
            [what, name, block] => {
                let how = Blockwise::new(map(name)).block(block.parse().unwrap_or(256)).check().unwrap();
                let q = how.quantize_values(&x).unwrap();
                let (mut codes, mut absmax) = (q.codes().to_vec(), q.absmax().to_vec());
                match what {
                    "quantize" => show(&mut || how.quantize_into(&x, &mut codes, &mut absmax).unwrap()),
                    _ => show(&mut || q.dequantize_into(&mut y, &exec).unwrap()),
                }
            }
            _ => println!("nan"),
        }
    }
}
