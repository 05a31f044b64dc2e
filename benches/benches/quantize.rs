//! Quantize and dequantize loops compared with the memory time: `cargo bench -p tersor-benches --bench quantize`.
//!
//! The memory time is the larger of the time to read the bytes at read bandwidth and the time to read and write them at memcpy's rate, both measured
//! alternately with the loop on the same pinned threads. Buffers are larger than the processor's caches and are written before they are timed.

use half::{bf16, f16};
use tersor_benches::{against_memory, on_pinned_threads, parts};
use tersor_kernels::affine::{Affine, min_max};
use tersor_kernels::grouped::{Groups, dequantize, quantize};
use tersor_kernels::integer::quantize_rows;
use tersor_kernels::{Fault, Isa, convert, hadamard};

const ROWS: usize = 8192;
const COLS: usize = 4096;
const N: usize = ROWS * COLS;

fn main() {
    let isa = Isa::detect();
    println!("{} values; instruction set {}", N, isa.name());
    println!("{:8} {:28} {:>8} {:>8} {:>14}", "threads", "loop", "ms", "memory", "of memory time");
    on_pinned_threads(&[2, 1], |threads| run(isa, threads));
}

fn run(isa: Isa, threads: usize) {
    let x: Vec<f32> =
        (0..N as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0).collect();
    let mut y = vec![1f32; N];
    let mut show = |name: &str, bytes: [usize; 2], f: &mut dyn FnMut()| {
        let [limit, seconds] = against_memory(&x, &mut y, bytes, f);
        println!(
            "{threads:<8} {name:28} {:>8.2} {:>8.2} {:>12.0} %",
            seconds * 1e3,
            limit * 1e3,
            100.0 * limit / seconds
        );
    };
    for (name, bits, group) in [
        ("4 bits, groups of 128", 4u32, 128),
        ("8 bits, rows", 8, COLS),
        ("3 bits, groups of 128", 3, 128),
        ("2 bits, groups of 128", 2, 128),
    ] {
        let max = ((1u32 << bits) - 1) as u8;
        let groups = Groups { cols: COLS, group, bits, range: 0..=max };
        let mut codes = vec![1u8; ROWS * groups.row_bytes()];
        let mut fits = vec![Affine { scale: 1.0, zero: 0 }; ROWS * groups.count()];
        let fit = |_: usize, row: &[f32], fits: &mut [Affine]| -> Result<(), Fault> {
            for (part, fit) in row.chunks(group).zip(fits) {
                let (lo, hi) = min_max(isa, part);
                let scale = (hi - lo) / f32::from(max);
                *fit = Affine { scale, zero: (-lo / scale).round_ties_even() as u8 };
            }
            Ok(())
        };
        let bytes = [4 * N, codes.len() + 5 * fits.len()];
        show(&format!("quantize {name}"), bytes, &mut || {
            let done = quantize(isa, &x, &groups, fit, (&mut codes, &mut fits), threads > 1);
            assert_eq!(done, Ok(()));
        });
        let mut back = vec![1f32; N];
        let count = groups.count();
        show(&format!("dequantize {name}"), [bytes[1], 4 * N], &mut || {
            let done = dequantize(isa, &codes, &groups, |r, g| fits[r * count + g], &mut back, threads > 1);
            assert_eq!(done, Ok(()));
        });
    }
    let mut codes = vec![1i8; N];
    show("activations, 8 bits a token", [4 * N, N], &mut || {
        parts(&x, &mut codes, |x, codes| {
            let mut scales = vec![0f32; x.len() / COLS];
            quantize_rows(isa, x, COLS, 127, codes, &mut scales).ok();
        });
    });
    let (mut halves, mut brains, mut back) = (vec![f16::ONE; N], vec![bf16::ONE; N], vec![1f32; N]);
    show("f32 to f16", [4 * N, 2 * N], &mut || parts(&x, &mut halves, |x, y| convert::f32_to_f16(isa, x, y)));
    show("f16 to f32", [2 * N, 4 * N], &mut || parts(&halves, &mut back, |x, y| convert::f16_to_f32(isa, x, y)));
    show("f32 to bf16", [4 * N, 2 * N], &mut || parts(&x, &mut brains, |x, y| convert::f32_to_bf16(isa, x, y)));
    show("bf16 to f32", [2 * N, 4 * N], &mut || parts(&brains, &mut back, |x, y| convert::bf16_to_f32(isa, x, y)));
    show("Hadamard of 4096", [4 * N, 4 * N], &mut || {
        parts(&[0u8; 64], &mut back, |_, y| {
            y.chunks_exact_mut(COLS).for_each(|row| {
                hadamard::fwht(isa, row).ok();
            });
        });
    });
}
