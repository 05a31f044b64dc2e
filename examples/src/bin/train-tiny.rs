//! Trains the small Llama-shaped language model that ships under `examples/models/tiny-wiki`.
//!
//! `cargo run --release -p tersor-examples --bin train-tiny -- --out DIR [--steps N]` learns a
//! byte-level BPE of 2048 tokens and then the network on `examples/data/wiki-train.txt`, prints the
//! loss on `wiki-eval.txt` as it goes, and writes a complete Hugging Face directory: `config.json`,
//! `tokenizer.json`, `model.safetensors` in f16, and `training.json` with the settings and the loss reached.
//! One seed drives the initial weights and the order of the batches.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss, ops};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

const VOCAB: usize = 2048;
const HIDDEN: usize = 192;
const INTERMEDIATE: usize = 384;
const LAYERS: usize = 4;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const CONTEXT: usize = 256;
const ROPE_THETA: f64 = 10_000.0;
const EPS: f64 = 1e-5;

const BATCH: usize = 8;
const LEARNING_RATE: f64 = 3e-3;
const WARMUP: usize = 50;
const WEIGHT_DECAY: f64 = 0.1;
const CLIP: f64 = 1.0;
const SEED: u64 = 20;

type Bpe = TokenizerImpl<ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
type AnyError = Box<dyn std::error::Error + Send + Sync>;

struct Model {
    vars: HashMap<String, Var>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

/// Name and shape of every parameter; the head is tied to the embedding.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let p = format!("model.layers.{layer}");
        let mut add = |name: &str, shape: Vec<usize>| all.push((format!("{p}.{name}.weight"), shape));
        add("input_layernorm", vec![HIDDEN]);
        add("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]);
        add("post_attention_layernorm", vec![HIDDEN]);
        add("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]);
    }
    all.push(("model.norm.weight".to_string(), vec![HIDDEN]));
    all
}

impl Model {
    fn new(rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let mut vars = HashMap::new();
        for (name, shape) in shapes() {
            let n: usize = shape.iter().product();
            let values: Vec<f32> = if shape.len() == 1 {
                vec![1.0; n]
            } else {
                let residual = name.contains("o_proj") || name.contains("down_proj");
                let std = if residual { 0.04 / (2.0 * LAYERS as f32).sqrt() } else { 0.04 };
                let normal = Normal::new(0.0f32, std).map_err(candle_core::Error::wrap)?;
                (0..n).map(|_| normal.sample(rng)).collect()
            };
            vars.insert(name, Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?);
        }
        let inv: Vec<f32> =
            (0..HEAD_DIM / 2).map(|i| (ROPE_THETA.powf(-2.0 * i as f64 / HEAD_DIM as f64)) as f32).collect();
        let angles: Vec<f32> = (0..CONTEXT).flat_map(|t| inv.iter().map(move |f| t as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (CONTEXT, HEAD_DIM / 2), device)?;
        let mask: Vec<f32> =
            (0..CONTEXT).flat_map(|q| (0..CONTEXT).map(move |k| if k > q { f32::NEG_INFINITY } else { 0.0 })).collect();
        let mask = Tensor::from_vec(mask, (CONTEXT, CONTEXT), device)?;
        Ok(Self { vars, cos: angles.cos()?, sin: angles.sin()?, mask })
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.vars
            .get(name)
            .map(|v| v.as_tensor())
            .ok_or_else(|| candle_core::Error::Msg(format!("no parameter {name}")))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (b, t, k) = x.dims3()?;
        let w = self.get(&format!("{name}.weight"))?;
        x.reshape((b * t, k))?.matmul(&w.t()?)?.reshape((b, t, w.dim(0)?))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(self.get(&format!("{name}.weight"))?)
    }

    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let half = HEAD_DIM / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let left = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let right = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[left, right], D::Minus1)
    }

    /// Mean cross-entropy in nats of predicting `tokens[:, 1..]`; `tokens` is `[batch, CONTEXT + 1]`.
    fn loss(&self, tokens: &Tensor) -> Result<Tensor> {
        let b = tokens.dim(0)?;
        let ids = tokens.narrow(1, 0, CONTEXT)?.contiguous()?.flatten_all()?;
        let target = tokens.narrow(1, 1, CONTEXT)?.contiguous()?.flatten_all()?;
        let embed = self.get("model.embed_tokens.weight")?;
        let mut h = embed.index_select(&ids, 0)?.reshape((b, CONTEXT, HIDDEN))?;
        for layer in 0..LAYERS {
            let p = format!("model.layers.{layer}");
            let x = self.norm(&h, &format!("{p}.input_layernorm"))?;
            let heads = |name: &str, n: usize| -> Result<Tensor> {
                self.linear(&x, &format!("{p}.self_attn.{name}"))?
                    .reshape((b, CONTEXT, n, HEAD_DIM))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let repeat = |t: Tensor| -> Result<Tensor> {
                let n = HEADS / KV_HEADS;
                t.unsqueeze(2)?
                    .broadcast_as((b, KV_HEADS, n, CONTEXT, HEAD_DIM))?
                    .contiguous()?
                    .reshape((b, HEADS, CONTEXT, HEAD_DIM))
            };
            let q = self.rope(&heads("q_proj", HEADS)?)?;
            let k = repeat(self.rope(&heads("k_proj", KV_HEADS)?)?)?;
            let v = repeat(heads("v_proj", KV_HEADS)?)?;
            let scores = (q.matmul(&k.t()?)? / (HEAD_DIM as f64).sqrt())?.broadcast_add(&self.mask)?;
            let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
            let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, CONTEXT, HEADS * HEAD_DIM))?;
            h = (h + self.linear(&mixed, &format!("{p}.self_attn.o_proj"))?)?;
            let x = self.norm(&h, &format!("{p}.post_attention_layernorm"))?;
            let gate = ops::silu(&self.linear(&x, &format!("{p}.mlp.gate_proj"))?)?;
            let up = self.linear(&x, &format!("{p}.mlp.up_proj"))?;
            h = (h + self.linear(&(gate * up)?, &format!("{p}.mlp.down_proj"))?)?;
        }
        let h = self.norm(&h, "model.norm")?;
        let logits = h.reshape((b * CONTEXT, HIDDEN))?.matmul(&embed.t()?)?;
        loss::cross_entropy(&logits, &target)
    }
}

fn learn_tokenizer(text: &Path) -> std::result::Result<Bpe, AnyError> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut bpe: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    bpe.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes)).with_post_processor(Some(bytes));
    bpe.train_from_files(&mut trainer, vec![text.to_string_lossy().into_owned()])?;
    // Through JSON, to the type that any tokenizer.json loads as.
    Ok(serde_json::from_str(&bpe.to_string(false)?)?)
}

fn windows(tokens: &[u32]) -> Vec<&[u32]> {
    tokens
        .chunks_exact(CONTEXT)
        .filter_map(|w| {
            let start = w.as_ptr() as usize - tokens.as_ptr() as usize;
            let at = start / size_of::<u32>();
            tokens.get(at..at + CONTEXT + 1)
        })
        .collect()
}

fn evaluate(model: &Model, tokens: &[u32], device: &Device) -> Result<f64> {
    let all = windows(tokens);
    let mut total = 0.0;
    for chunk in all.chunks(BATCH) {
        let flat: Vec<u32> = chunk.concat();
        let batch = Tensor::from_vec(flat, (chunk.len(), CONTEXT + 1), device)?;
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

fn main() -> std::result::Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let (mut out, mut steps) = (PathBuf::from("examples/models/tiny-wiki"), 800usize);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--out" => out = PathBuf::from(value),
            "--steps" => steps = value.parse()?,
            _ => return Err(format!("unknown option {arg}; there are --out DIR and --steps N").into()),
        }
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    fs::create_dir_all(&out)?;
    let tokenizer = learn_tokenizer(&data.join("wiki-train.txt"))?;
    fs::write(out.join("tokenizer.json"), tokenizer.to_string(false)?)?;
    let encode = |name: &str| -> std::result::Result<Vec<u32>, AnyError> {
        Ok(tokenizer.encode(fs::read_to_string(data.join(name))?, false)?.get_ids().to_vec())
    };
    let (train, eval) = (encode("wiki-train.txt")?, encode("wiki-eval.txt")?);
    println!("{} training tokens, {} evaluation tokens", train.len(), eval.len());

    let device = Device::Cpu;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let model = Model::new(&mut rng, &device)?;
    let params = ParamsAdamW { lr: LEARNING_RATE, weight_decay: WEIGHT_DECAY, beta2: 0.95, ..Default::default() };
    // In the order of `shapes`, not of the map, so that sums of norms are the same in every run.
    let order: Vec<Var> = shapes().iter().filter_map(|(n, _)| model.vars.get(n).cloned()).collect();
    let (decayed, plain): (Vec<Var>, Vec<Var>) = order.iter().cloned().partition(|v| v.rank() == 2);
    let mut decayed = AdamW::new(decayed, params.clone())?;
    let mut plain = AdamW::new(plain, ParamsAdamW { weight_decay: 0.0, ..params })?;

    let start = Instant::now();
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
        for optimizer in [&mut decayed, &mut plain] {
            optimizer.set_learning_rate(lr);
            optimizer.step(&grads)?;
        }
        if step % 20 == 0 {
            println!("step {step:5}  loss {:.4}  {:.0} s", loss.to_scalar::<f32>()?, start.elapsed().as_secs_f64());
        }
        if step % 200 == 199 {
            println!("step {step:5}  evaluation loss {:.4}", evaluate(&model, &eval, &device)?);
        }
    }
    let reached = evaluate(&model, &eval, &device)?;
    println!("evaluation loss {reached:.4} nats a token, perplexity {:.2}", reached.exp());
    save(&model, &out, steps, reached)?;
    Ok(())
}

fn save(model: &Model, out: &Path, steps: usize, reached: f64) -> std::result::Result<(), AnyError> {
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
