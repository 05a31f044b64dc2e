//! Writes a model of 70 billion parameters as real headers with sparse files, which take almost no disk space. It serves to measure
//! the cost of a plan: `sparse-model OUT_DIR`, then `tersor plan OUT_DIR --recipe w4-g128-rtn`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, json};
use tersor::core::{DType, TensorInfo};
use tersor::formats::safetensors::{Header, INDEX};

const LAYERS: usize = 80;
const HIDDEN: usize = 8192;
const INTERMEDIATE: usize = 28_672;
const HEADS: usize = 64;
const KV_HEADS: usize = 8;
const VOCAB: usize = 128_256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::args().nth(1).ok_or("usage: sparse-model OUT_DIR")?;
    let out = Path::new(&out);
    fs::create_dir_all(out)?;
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "intermediate_size": INTERMEDIATE, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": false,
    });
    fs::write(out.join("config.json"), format!("{config:#}"))?;

    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = Vec::new();
    shards.push(vec![
        ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".into(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        if layer % 4 == 0 {
            shards.push(Vec::new());
        }
        let tensors = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ];
        let named = tensors.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape));
        shards.last_mut().into_iter().for_each(|s| s.extend(named.clone()));
    }
    let (mut map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let info = |shape: &Vec<usize>| TensorInfo { dtype: DType::BF16, shape: shape.clone() };
        let tensors: BTreeMap<_, _> = shard.iter().map(|(name, shape)| (name.clone(), info(shape))).collect();
        let (header, bytes) = Header::canonical(&tensors)?;
        fs::write(out.join(&file), bytes)?;
        fs::File::options().write(true).open(out.join(&file))?.set_len(header.file_len())?;
        total += header.file_len() - header.data_start;
        map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone().into())));
    }
    fs::write(out.join(INDEX), json!({"metadata": {"total_size": total}, "weight_map": map}).to_string())?;
    println!("{}: {} GB of weights in {} sparse shards", out.display(), total / 1_000_000_000, shards.len());
    Ok(())
}
