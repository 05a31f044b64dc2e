//! Trains the small Llama-shaped language model of `examples/models/tiny-wiki`.
//!
//! `cargo run --release -p tersor-examples --bin train-tiny -- --out DIR [--steps N]` trains a
//! byte-level BPE tokenizer of 2048 tokens and then the network on `examples/data/wiki-train.txt`, prints the
//! loss on `wiki-eval.txt` during training, and writes a complete Hugging Face directory: `config.json`,
//! `tokenizer.json`, `model.safetensors` in f16, and `training.json` with the settings and the final loss.
//! One seed determines the initial weights and the order of the batches.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::DType;
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use tersor_examples::tiny::*;

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let (mut out, mut steps) = (PathBuf::from("examples/models/tiny-wiki"), 800usize);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--out" => out = PathBuf::from(value),
            "--steps" => steps = value.parse()?,
            _ => return Err(format!("unknown option {arg}; the options are --out DIR and --steps N").into()),
        }
    }
    fs::create_dir_all(&out)?;
    let text = Text::read()?;
    fs::write(out.join("tokenizer.json"), text.tokenizer.to_string(false)?)?;
    println!("{} training tokens, {} evaluation tokens", text.train.len(), text.eval.len());

    let start = Instant::now();
    let adamw = |vars, weight_decay| {
        AdamW::new(vars, ParamsAdamW { lr: LEARNING_RATE, weight_decay, beta2: 0.95, ..Default::default() })
    };
    let model = train(&text, steps, adamw, |step, loss, model, _| {
        if step % 20 == 0 {
            println!("step {step:5}  loss {loss:.4}  {:.0} s", start.elapsed().as_secs_f64());
        }
        if step % 200 == 199 {
            println!("step {step:5}  evaluation loss {:.4}", evaluate(model, &text.eval)?);
        }
        Ok(())
    })?;
    let reached = evaluate(&model, &text.eval)?;
    println!("evaluation loss {reached:.4} nats per token, perplexity {:.2}", reached.exp());
    save(&model, &out, steps, reached)
}

fn save(model: &Model, out: &Path, steps: usize, reached: f64) -> Result<(), AnyError> {
    let mut tensors = HashMap::new();
    for (name, var) in &model.vars {
        tensors.insert(name.clone(), var.as_tensor().to_dtype(DType::F16)?);
    }
    candle_core::safetensors::save(&tensors, out.join("model.safetensors"))?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPS, "rope_theta": ROPE_THETA, "hidden_act": "silu", "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "torch_dtype": "float16",
    });
    fs::write(out.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    let training = serde_json::json!({
        "text": "examples/data/wiki-train.txt", "steps": steps, "batch": BATCH, "context": CONTEXT,
        "optimizer": "AdamW", "learning_rate": LEARNING_RATE, "warmup": WARMUP, "schedule": "cosine to 5 %",
        "betas": [0.9, 0.95], "weight_decay": WEIGHT_DECAY, "gradient_clip": CLIP, "seed": SEED,
        "evaluation_text": "examples/data/wiki-eval.txt", "evaluation_loss_nats": reached,
    });
    fs::write(out.join("training.json"), serde_json::to_string_pretty(&training)? + "\n")?;
    Ok(())
}
