//! Attention of one token to a long text, with caches of the shape of a layer of a model with 8 billion parameters (32 query heads, 8 key/value heads of
//! 128 features): `cargo bench -p tersor-benches --bench cache`. The caches run alternately, and medians are printed. The caches of several layers
//! rotate through more memory than the processor's caches hold.

use std::sync::Arc;
use std::time::Instant;

use tersor::core::cache::Rotary;
use tersor::core::{Check, Exec, Heads, KvCache, LayerCache};
use tersor::kv::Integers;
use tersor::operators::DenseCaches;

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const LAYERS: usize = 8;
const TURNS: usize = 40;

fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + salt) * 7919) % 2001) as f32 / 1000.0 - 1.0).collect()
}

fn main() {
    let rotary = Arc::new(Rotary::new(DIM, 10_000.0).unwrap());
    let heads = Heads::new(HEADS, KV_HEADS, DIM).unwrap().with_rotary(rotary).unwrap();
    let integers = |params: Integers| -> LayerCache { params.check().unwrap().layer(&heads).unwrap() };
    let exec = &Exec::new();
    for tokens in [512usize, 4096] {
        let make = |name: &str| match name {
            "f32" => DenseCaches::f32().layer(&heads).unwrap(),
            "int8" => integers(Integers::new(8)),
            "int4" => integers(Integers::new(4)),
            "int4-eighth" => integers(Integers::new(4).high(DIM / 8)),
            _ => integers(Integers::new(2)),
        };
        let names = ["f32", "int8", "int4", "int4-eighth", "int2"];
        let mut layers: Vec<Vec<LayerCache>> = names.map(|n| (0..LAYERS).map(|_| make(n)).collect()).into();
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let (keys, cached) = (values(tokens * KV_HEADS * DIM, 1), values(tokens * KV_HEADS * DIM, 2));
        for cache in layers.iter_mut().flatten() {
            cache.append(&keys, &cached, &positions, exec).unwrap();
        }
        let query = values(HEADS * DIM, 3);
        let mut out = vec![0f32; HEADS * DIM];
        let mut times = vec![Vec::new(); names.len()];
        for turn in 0..TURNS {
            for (caches, times) in layers.iter_mut().zip(&mut times) {
                let start = Instant::now();
                caches[turn % LAYERS].attend(&query, &[tokens as u32 - 1], &mut out, exec).unwrap();
                times.push(start.elapsed().as_secs_f64());
            }
        }
        println!("{tokens} tokens cached");
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let base = median(&mut times[0]);
        for ((name, caches), times) in names.iter().zip(&layers).zip(&mut times) {
            let (bytes, seconds) = (caches[0].bytes() as f64, median(times));
            println!(
                "  {name:12} {:7.2} MB {:9.1} us {:7.1} GB/s  {:6.2} of f32's time",
                bytes / 1e6,
                seconds * 1e6,
                bytes / seconds / 1e9,
                seconds / base
            );
        }
    }
}
