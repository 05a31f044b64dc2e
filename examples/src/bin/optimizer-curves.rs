//! Trains the small model from the same seed with three kinds of moments: 32 bits, 8 bits with the dynamic map in blocks, and 8 bits with the linear map
//! without blocks.
//!
//! `cargo run --release -p tersor-examples --bin optimizer-curves -- [--steps 800] --out curves.json` prints a table of the final losses and
//! the bytes of the moments, and writes the curves; `scripts/plot_optimizers.py` draws them.

use std::path::PathBuf;
use std::time::Instant;

use candle_nn::Optimizer as _;
use tersor::blockwise::Map;
use tersor::blockwise::optimizer::OptimizerConfig;
use tersor_candle::VarOptimizer;
use tersor_examples::tiny::{AnyError, LEARNING_RATE, Text, evaluate, train};

fn main() -> Result<(), AnyError> {
    let (mut out, mut steps) = (PathBuf::from("curves.json"), 800usize);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--out" => out = PathBuf::from(value),
            "--steps" => steps = value.parse()?,
            _ => return Err(format!("unknown option {arg}; the options are --out FILE and --steps N").into()),
        }
    }
    let text = Text::read()?;
    let adamw = OptimizerConfig::adamw().lr(LEARNING_RATE as f32).betas(0.9, 0.95);
    // One block, so that the whole tensor has one scale.
    let linear = adamw.clone().maps(Map::linear(true), Map::linear(false)).block(1 << 30);
    let kinds = [
        ("32 bits", adamw.clone().bits(32)),
        ("8 bits, dynamic map, blocks of 256", adamw),
        ("8 bits, linear map, no blocks", linear),
    ];
    let mut curves = Vec::new();
    println!("{:36} {:>15} {:>18} {:>8}", "moments", "evaluation loss", "bytes of moments", "seconds");
    for (name, how) in kinds {
        let (start, mut losses, mut bytes) = (Instant::now(), Vec::new(), 0);
        let optimizer = |vars, decay: f64| VarOptimizer::new(vars, how.clone().weight_decay(decay as f32));
        let done = train(&text, steps, optimizer, |_, loss, _, optimizers| {
            losses.push(loss);
            bytes = optimizers.iter().map(VarOptimizer::state_bytes).sum::<usize>();
            Ok(())
        });
        // If training diverges, it ends with a refused step.
        let (reached, said) = match done {
            Ok(model) => (Some(evaluate(&model, &text.eval)?), String::new()),
            Err(e) => (None, format!("  stopped at step {}: {e}", losses.len())),
        };
        let loss = reached.map_or("-".to_string(), |l| format!("{l:.4}"));
        println!("{name:36} {loss:>15} {bytes:>18} {:>8.0}{said}", start.elapsed().as_secs_f64());
        curves.push(serde_json::json!({
            "name": name, "losses": losses, "evaluation_loss": reached, "state_bytes": bytes,
        }));
    }
    std::fs::write(out, serde_json::to_string(&curves)?)?;
    Ok(())
}
