//! AdamW with 8-bit moments on plain slices, beside the same with f32 moments: `cargo run --release -p tersor --example optimizer`.

use tersor::blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig};
use tersor::core::Result;

/// Number of features, and of examples.
const SIZE: [usize; 2] = [8192, 512];

/// Logistic regression: labels are the sign of a hidden linear function.
struct Task {
    inputs: Vec<f32>,
    labels: Vec<f32>,
}

impl Task {
    fn new() -> Self {
        let [features, examples] = SIZE;
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let inputs: Vec<f32> = (0..features * examples).map(value).collect();
        let hidden = |x: &[f32]| x.iter().enumerate().map(|(i, x)| x * value(i * 7 + 1)).sum::<f32>();
        let labels = inputs.chunks(features).map(|x| f32::from(hidden(x) > 0.0)).collect();
        Self { inputs, labels }
    }

    /// Returns the mean loss of the weights `w`, and adds its gradient to `gradient`.
    fn loss(&self, w: &[f32], gradient: &mut [f32]) -> f32 {
        let mut sum = 0.0;
        for (x, label) in self.inputs.chunks(w.len()).zip(&self.labels) {
            let logit: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            let error = 1.0 / (1.0 + (-logit).exp()) - label;
            sum += (1.0 + (-logit.abs()).exp()).ln() + logit.max(0.0) - logit * label;
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g += error * x / self.labels.len() as f32);
        }
        sum / self.labels.len() as f32
    }
}

fn main() -> Result<()> {
    let task = Task::new();
    println!("{:<8} {:>12} {:>12} {:>12}", "moments", "state bytes", "first loss", "last loss");
    for (name, in_f32) in [("8 bits", false), ("f32", true)] {
        let mut adamw = BlockwiseOptimizer::new(OptimizerConfig::adamw().lr(1e-3))?;
        if in_f32 {
            adamw.keep_f32("w")?;
        }
        let (mut w, mut losses) = (vec![0f32; SIZE[0]], Vec::new());
        for _ in 0..60 {
            let mut gradient = vec![0f32; w.len()];
            losses.push(task.loss(&w, &mut gradient));
            adamw.step_tensor("w", &mut w, &gradient)?;
        }
        println!("{name:<8} {:>12} {:>12.5} {:>12.5}", adamw.bytes(), losses[0], losses[59]);
    }
    Ok(())
}
