//! Products of Tersor and candle on request, for `benches/rivals/compare.py`, which runs several programs alternately.
//!
//! Each line on the input, `ours|candle FORM ROWS COLS TOKENS`, is answered with the median time in seconds of a product of f32 activations
//! with compressed weights, quantization of the activations included: in Tersor (`8row`, `8g32`, `4row`, `4dual`, `4g128`, `4g32`, `3g128`, `2g128`), in
//! candle (`q4_0`, `q4_K`, `q8_0`), or `f32` in either. `limits` is answered with bytes per second and operations per second. Weights rotate through
//! more memory than the processor's caches hold; threads are pinned. `RAYON_NUM_THREADS` sets their number.

use std::io::{BufRead, Write as _};
use std::time::Instant;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use tersor_kernels::dense::{self, Options, Out, Write};
use tersor_kernels::integer::{Activations, Panels, product, quantize_rows};
use tersor_kernels::limits::{Arithmetic, arithmetic, read};
use tersor_kernels::{Isa, bits, par};

/// Bytes of memory through which weights rotate.
const BEYOND: usize = 128 << 20;

/// Returns the median seconds of a call, over calls that take about a third of a second together.
fn time(mut f: impl FnMut(usize)) -> f64 {
    f(0);
    let start = Instant::now();
    f(1);
    let reps = ((0.3 / start.elapsed().as_secs_f64()) as usize).clamp(5, 300);
    let mut times: Vec<f64> = (0..reps)
        .map(|i| {
            let start = Instant::now();
            f(i + 2);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect()
}

fn ours(form: &str, [rows, cols, tokens]: [usize; 3]) -> Option<f64> {
    let isa = Isa::detect();
    let (x, mut y) = (values(tokens * cols), vec![0f32; tokens * rows]);
    if form == "f32" {
        let copies = (BEYOND / (rows * cols * 4)).max(1) + 1;
        let w = vec![values(rows * cols); copies];
        let how = Options { isa, write: Write::Set, parallel: true };
        return Some(time(|i| {
            dense::product(how, &x, [tokens, cols], &w[i % copies], rows, Out { data: &mut y, stride: rows }).ok();
        }));
    }
    let (width, group) = form.split_at(1);
    let width: u32 = width.parse().ok()?;
    let packed: Vec<u8> = (0..rows * bits::packed_len(cols, width)).map(|i| ((i * 37) >> 3) as u8).collect();
    let zero = 1u8 << (width - 1);
    let fit = |r: usize, g: usize| (((r + g) % 64 + 1) as f32 / 4096.0, zero);
    let panels = match group {
        "dual" => {
            let fit = |r: usize, g: usize| ((r + g) as u8 % 15 + 1, zero);
            Panels::dual(isa, &packed, width, [rows, cols], 128, fit, &vec![0.01; rows]).ok()?
        }
        "row" => Panels::new(isa, &packed, width, [rows, cols], cols, fit).ok()?,
        g => Panels::new(isa, &packed, width, [rows, cols], g.strip_prefix('g')?.parse().ok()?, fit).ok()?,
    };
    let copies = (BEYOND / panels.bytes()).max(1) + 1;
    let panels = vec![panels; copies];
    let (mut codes, mut scales) = (vec![0i8; tokens * cols], vec![0f32; tokens]);
    let once = |i: usize| {
        let w = &panels[i % copies];
        quantize_rows(isa, &x, cols, 127, &mut codes, &mut scales).ok();
        if let Ok(x) = Activations::from_codes(&codes, &scales, w.padding()) {
            product(isa, &x, w, Write::Set, Out { data: &mut y, stride: rows }, true).ok();
        }
    };
    // As a decoder runs, and as ggml's threads wait for the next graph: awake.
    Some(par::region(true, || time(once)))
}

fn candle(form: &str, [rows, cols, tokens]: [usize; 3]) -> Option<f64> {
    let dtype = match form {
        "q4_0" => GgmlDType::Q4_0,
        "q4_K" => GgmlDType::Q4K,
        "q8_0" => GgmlDType::Q8_0,
        _ => GgmlDType::F32,
    };
    let x = Tensor::from_vec(values(tokens * cols), (tokens, cols), &Device::Cpu).ok()?;
    let w = Tensor::from_vec(values(rows * cols), (rows, cols), &Device::Cpu).ok()?;
    if form == "f32" {
        let w = w.t().ok()?;
        return Some(time(|_| {
            std::hint::black_box(x.matmul(&w).ok());
        }));
    }
    let first = QTensor::quantize(&w, dtype).ok()?;
    let bytes = first.data().ok()?;
    let copies = BEYOND / bytes.len() + 2;
    let copy =
        |_| qtensor_from_ggml(dtype, &bytes, vec![rows, cols], &Device::Cpu).and_then(QMatMul::from_qtensor).ok();
    let made = (0..copies).map(copy).collect::<Option<Vec<_>>>()?;
    Some(time(|i| {
        std::hint::black_box(made[i % copies].forward(&x).ok());
    }))
}

/// Bytes a second that all threads read; f32 and byte operations a second in 32 and in 16 bits.
fn limits(buffer: &[u64]) -> [f64; 4] {
    let (isa, threads) = (Isa::detect(), rayon::current_num_threads());
    let part = buffer.len() / threads;
    let bytes = time(|_| {
        rayon::scope(|s| {
            for piece in buffer.chunks(part) {
                s.spawn(move |_| {
                    std::hint::black_box(read(piece));
                });
            }
        })
    });
    let peak = |kind| {
        let steps = 2_000_000;
        let count = arithmetic(isa, kind, 1).map_or(0, |c| c.0) as f64 * steps as f64 * 2.0 * threads as f64;
        count
            / time(|_| {
                rayon::scope(|s| {
                    for _ in 0..threads {
                        s.spawn(move |_| {
                            std::hint::black_box(arithmetic(isa, kind, steps));
                        });
                    }
                })
            })
    };
    let rate = buffer.len() as f64 * 8.0 / bytes;
    [rate, peak(Arithmetic::F32), peak(Arithmetic::Bytes32), peak(Arithmetic::Bytes16)]
}

fn main() {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().start_handler(move |i| {
        if let Some(core) = cores.get(i) {
            core_affinity::set_for_current(*core);
        }
    });
    if pool.build_global().is_err() {
        return;
    }
    let buffer: Vec<u64> = (0..BEYOND as u64 / 8).collect();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words.get(i).and_then(|w| w.parse().ok()).unwrap_or(0usize);
        let shape = [number(2), number(3), number(4)];
        match (words.first().copied(), words.get(1)) {
            (Some("limits"), _) => println!("{}", limits(&buffer).map(|v| v.to_string()).join(" ")),
            (Some("ours"), Some(form)) => println!("{}", ours(form, shape).unwrap_or(f64::NAN)),
            (Some("candle"), Some(form)) => println!("{}", candle(form, shape).unwrap_or(f64::NAN)),
            _ => println!("NaN"),
        }
        let _ = std::io::stdout().flush();
    }
}
