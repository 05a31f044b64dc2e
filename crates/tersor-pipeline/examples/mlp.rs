//! Compresses a network of the program's own, two linear layers, to 3 bits with GPTQ, and prints its accuracy.
use tersor::core::network::{Batch, Forward, MemWeights};
use tersor::core::{Context, Result, Site};
use tersor::pipeline::{Recipe, network};

/// Returns `n` numbers from -1 to 1, the same ones for each seed.
fn random(mut seed: u32, n: usize) -> Vec<f32> {
    let mut next = || (seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223), seed >> 8).1;
    (0..n).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn main() -> Result<()> {
    // Noisy copies of ten points, each a class. The second layer compares with the mean hidden features of each class.
    let (points, first) = (random(1, 10 * 32), random(2, 128 * 32));
    let noisy = |(i, v): (usize, &f32)| points[i / 32 % 10 * 32 + i % 32] + 1.5 * v;
    let copies = |seed| random(seed, 1000 * 32).iter().enumerate().map(noisy).collect::<Vec<f32>>();
    let batch = |x| Batch::of_values(x, vec![1000, 32], (0..1000).map(|i| i % 10).collect());
    let (train, test, mut second) = (copies(3), copies(4), vec![0f32; 10 * 128]);
    for (i, x) in train.chunks(32).enumerate() {
        for (j, w) in first.chunks(32).enumerate() {
            second[i % 10 * 128 + j] += w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>().max(0.0) / 100.0;
        }
    }
    let bias: Vec<f32> = second.chunks(128).map(|c| c.iter().map(|v| v * v).sum::<f32>() / -2.0).collect();
    let mlp = Forward::new(vec![Site::linear("first", [128, 32]), Site::linear("second", [10, 128])], |x, products| {
        let mut hidden = products.linear(0, &x)?;
        hidden.values.iter_mut().for_each(|v| *v = v.max(0.0));
        let mut logits = products.linear(1, &hidden)?;
        logits.values.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % 10]);
        Ok(logits)
    });
    let (mut weights, kinds, cx, test) = (MemWeights::new(), tersor::kinds(), Context::new(), [batch(test)?]);
    weights.insert("first", [128, 32], first.clone())?;
    weights.insert("second", [10, 128], second.clone())?;
    let recipe = Recipe::find("w3-g32-gptq", &kinds.stages)?;
    let made = network::compress_network(&mlp, &weights, &[batch(train)?], &recipe, kinds, &cx)?;
    let before = network::original_scores(&mlp, &weights, &test, &cx)?.accuracy();
    println!("accuracy {before:.3?}, compressed {:.3?}", made.scores(&mlp, &weights, &test, &cx)?.accuracy());
    Ok(())
}
