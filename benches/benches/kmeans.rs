//! Lloyd iterations of k-means from a given start: `cargo bench -p tersor-benches --bench kmeans`.
//!
//! Without arguments, clusters a million points of a standard normal distribution in 8 dimensions, from the first 256 of
//! them as centroids, and prints the median seconds of five runs and the objective. With the arguments `POINTS START DIMS
//! ITERATIONS OUT`, the first two files of raw little-endian f32, answers each line on the input with the seconds of one
//! run and its objective, and writes the centroids to `OUT`; `benches/rivals/kmeans.py` alternates it with faiss.
//! `RAYON_NUM_THREADS` sets the number of threads.
#![allow(missing_docs)]

use std::io::{BufRead, Write};
use std::time::Instant;

use tersor::core::{Check, Context};
use tersor::linalg::gaussian;
use tersor::linalg::kmeans::{CheckedKMeans, Clustering, KMeans, Seeding};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.as_slice() {
        [] => alone(),
        [points, start, dims, iterations, out] => {
            answer(&floats(points)?, floats(start)?, dims.parse()?, iterations.parse()?, out)
        }
        _ => Err("expected POINTS START DIMS ITERATIONS OUT, or nothing".into()),
    }
}

fn alone() -> Outcome<()> {
    let (n, dims, k, iterations) = (1_000_000, 8, 256, 20);
    let points: Vec<f32> =
        gaussian(n * dims, &mut Context::new().stream("points")).into_iter().map(|v| v as f32).collect();
    let params = lloyd(points[..k * dims].to_vec(), k, iterations)?;
    let mut times = Vec::new();
    let mut objective = 0.0;
    for _ in 0..5 {
        let (seconds, found) = run(&params, &points, dims)?;
        times.push(seconds);
        objective = found.objective();
    }
    times.sort_by(f64::total_cmp);
    let threads = rayon::current_num_threads();
    println!("{n} x {dims}, {k} centroids, {iterations} iterations, {threads} threads: {:.4} s", times[2]);
    println!("objective {objective:.6e}");
    Ok(())
}

fn answer(points: &[f32], start: Vec<f32>, dims: usize, iterations: usize, out: &str) -> Outcome<()> {
    let k = start.len() / dims.max(1);
    let params = lloyd(start, k, iterations)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let (seconds, found) = run(&params, points, dims)?;
        let bytes: Vec<u8> = found.centroids().iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(out, bytes)?;
        println!("{seconds} {}", found.objective());
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn lloyd(start: Vec<f32>, k: usize, iterations: usize) -> Outcome<CheckedKMeans> {
    Ok(KMeans::new(k).seeding(Seeding::Given(start)).iterations(iterations).tolerance(0.0).check()?)
}

fn run(params: &CheckedKMeans, points: &[f32], dims: usize) -> Outcome<(f64, Clustering)> {
    let start = Instant::now();
    let found = params.fit(points, [points.len() / dims.max(1), dims], None, &Context::new())?;
    Ok((start.elapsed().as_secs_f64(), found))
}

fn floats(path: &str) -> Outcome<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}
