//! Round-to-nearest quantization and dequantization, compared with a copy of the same bytes.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tersor::core::{Exec, LinearOp, MatView};
use tersor::groupwise::Rtn;

fn rounding(c: &mut Criterion) {
    let shape = [1024usize, 4096];
    let w: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.37).sin()).collect();
    let view = MatView::new(&w, shape).expect("a matrix");
    let mut group = c.benchmark_group("1024x4096");
    group.throughput(Throughput::Bytes(4 * w.len() as u64)).sample_size(20);
    let (mut out, exec) = (vec![0f32; w.len()], Exec::new());
    group.bench_function("memcpy", |b| b.iter(|| out.copy_from_slice(black_box(&w))));
    for (bits, size) in [(8, 4096), (4, 128), (4, 32), (3, 64)] {
        let rtn = Rtn::new().bits(bits).group(size);
        group.bench_function(format!("quantize w{bits}-g{size}"), |b| b.iter(|| rtn.quantize(black_box(&view))));
        let (op, _) = rtn.quantize(&view).expect("finite values");
        group.bench_function(format!("dequantize w{bits}-g{size}"), |b| {
            b.iter(|| op.decompress_rows(0..shape[0], &mut out, &exec))
        });
    }
    group.finish();
}

criterion_group!(benches, rounding);
criterion_main!(benches);
