//! The small Llama-shaped language model of `examples/models/tiny-wiki`, and its training.

mod model;
mod text;

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::Optimizer;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use model::*;
pub use text::{Bpe, Text};

/// Any error.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Number of windows in a training step.
pub const BATCH: usize = 8;
/// Maximum learning rate, reached after the warm-up.
pub const LEARNING_RATE: f64 = 3e-3;
/// Number of warm-up steps, over which the learning rate grows.
pub const WARMUP: usize = 50;
/// Weight decay of matrices; vectors have none.
pub const WEIGHT_DECAY: f64 = 0.1;
/// Maximum norm of all gradients together; larger ones are clipped.
pub const CLIP: f64 = 1.0;
/// Seed of the initial weights and the order of the batches.
pub const SEED: u64 = 20;

/// Trains the model from [`SEED`] for `steps` steps and returns it. `optimizer` makes an optimizer from variables and their weight decay; it is called
/// for the matrices, then for the vectors. `watch` is called after every step with its index, the loss, the model and the optimizers. Errors if candle
/// does.
pub fn train<O: Optimizer>(
    text: &Text,
    steps: usize,
    optimizer: impl Fn(Vec<Var>, f64) -> Result<O>,
    mut watch: impl FnMut(usize, f32, &Model, &[O]) -> Result<()>,
) -> Result<Model> {
    let (device, train) = (Device::Cpu, &text.train);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let model = Model::new(&mut rng, &device)?;
    // The order of `shapes`, not of the map, makes sums of norms the same in every run.
    let order: Vec<Var> = shapes().iter().filter_map(|(n, _)| model.vars.get(n).cloned()).collect();
    let (decayed, plain): (Vec<Var>, Vec<Var>) = order.iter().cloned().partition(|v| v.rank() == 2);
    let mut optimizers = [optimizer(decayed, WEIGHT_DECAY)?, optimizer(plain, 0.0)?];
    let mut starts: Vec<usize> = Vec::new();
    for step in 0..steps {
        let mut flat = Vec::with_capacity(BATCH * (CONTEXT + 1));
        for _ in 0..BATCH {
            if starts.is_empty() {
                let shift = rng.random_range(0..CONTEXT);
                starts = (shift..train.len() - CONTEXT - 1).step_by(CONTEXT).collect();
                starts.shuffle(&mut rng);
            }
            let at = starts.pop().unwrap_or(0);
            flat.extend_from_slice(&train[at..at + CONTEXT + 1]);
        }
        let loss = model.loss(&Tensor::from_vec(flat, (BATCH, CONTEXT + 1), &device)?)?;
        let mut grads = loss.backward()?;
        let mut square = 0.0f64;
        for v in &order {
            if let Some(g) = grads.get(v.as_tensor()) {
                square += f64::from(g.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = square.sqrt();
        if norm > CLIP {
            for v in &order {
                if let Some(g) = grads.get(v.as_tensor()) {
                    let scaled = (g * (CLIP / norm))?;
                    grads.insert(v.as_tensor(), scaled);
                }
            }
        }
        let lr = learning_rate(step, steps);
        for optimizer in &mut optimizers {
            optimizer.set_learning_rate(lr);
            optimizer.step(&grads)?;
        }
        watch(step, loss.to_scalar::<f32>()?, &model, &optimizers)?;
    }
    Ok(model)
}

/// Returns the mean loss over all whole windows, in nats per token. Errors if candle does.
pub fn evaluate(model: &Model, tokens: &[u32]) -> Result<f64> {
    let all = text::windows(tokens);
    let mut total = 0.0;
    for chunk in all.chunks(BATCH) {
        let flat: Vec<u32> = chunk.concat();
        let batch = Tensor::from_vec(flat, (chunk.len(), CONTEXT + 1), &Device::Cpu)?;
        total += f64::from(model.loss(&batch)?.to_scalar::<f32>()?) * chunk.len() as f64;
    }
    Ok(total / all.len() as f64)
}

fn learning_rate(step: usize, steps: usize) -> f64 {
    if step < WARMUP {
        return LEARNING_RATE * (step + 1) as f64 / WARMUP as f64;
    }
    let t = (step - WARMUP) as f64 / (steps - WARMUP).max(1) as f64;
    LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * t).cos()))
}
