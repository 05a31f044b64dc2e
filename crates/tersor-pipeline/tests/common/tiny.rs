//! Small random models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tersor::core::{Context, DType, TensorInfo, TensorSink};
use tersor::formats::safetensors::Writer;

/// The model included in the repository.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/tiny-wiki")
}

/// A small random model of some architecture, with the tokenizer of the included model.
pub struct Tiny {
    pub config: Json,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub dtype: DType,
}

impl Tiny {
    /// Two layers with 4 query heads, 2 key/value heads and 48 features, and the additional tensors of the architecture.
    pub fn new(model_type: &str, class: &str) -> Self {
        let config = json!({
            "model_type": model_type, "architectures": [class], "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 2048,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        });
        let mut tiny = Self { config, tensors: BTreeMap::new(), dtype: DType::F32 };
        let bias = model_type == "qwen2";
        tiny.add("model.embed_tokens.weight", &[2048, 48]);
        for layer in 0..2 {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for (part, out, inp) in [
                ("self_attn.q_proj", 48, 48),
                ("self_attn.k_proj", 24, 48),
                ("self_attn.v_proj", 24, 48),
                ("self_attn.o_proj", 48, 48),
                ("mlp.gate_proj", 80, 48),
                ("mlp.up_proj", 80, 48),
                ("mlp.down_proj", 48, 80),
            ] {
                tiny.add(&name(&format!("{part}.weight")), &[out, inp]);
                if bias && ["q", "k", "v"].iter().any(|p| part == format!("self_attn.{p}_proj")) {
                    tiny.add(&name(&format!("{part}.bias")), &[out]);
                }
            }
            tiny.add(&name("input_layernorm.weight"), &[48]);
            tiny.add(&name("post_attention_layernorm.weight"), &[48]);
            if model_type == "qwen3" {
                tiny.add(&name("self_attn.q_norm.weight"), &[12]);
                tiny.add(&name("self_attn.k_norm.weight"), &[12]);
            }
        }
        tiny.add("model.norm.weight", &[48]);
        tiny
    }

    pub fn llama() -> Self {
        Self::new("llama", "LlamaForCausalLM")
    }

    /// Adds a tensor of random values: around 1 for norms, small otherwise.
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        use rand_core::RngCore;
        let mut rng = Context::new().stream(name);
        let norm = name.ends_with("norm.weight");
        let n: usize = shape.iter().product();
        let uniform = (0..n).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5);
        let values = uniform.map(|v| if norm { 1.0 + 0.2 * v } else { 0.3 * v }).collect();
        self.tensors.insert(name.into(), (shape.to_vec(), values));
    }

    pub fn set(&mut self, name: &str, index: usize, value: f32) {
        self.tensors.get_mut(name).unwrap().1[index] = value;
    }

    /// Writes the model directory.
    pub fn write(&self, dir: &Path) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        std::fs::copy(shipped().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        self.write_weights(&dir.join("model.safetensors"), |_| true);
        dir.to_path_buf()
    }

    /// Writes the tensors whose names `keep` accepts.
    pub fn write_weights(&self, path: &Path, keep: impl Fn(&str) -> bool) {
        let info = |shape: &Vec<usize>| TensorInfo { dtype: self.dtype, shape: shape.clone() };
        let kept = self.tensors.iter().filter(|(n, _)| keep(n));
        let layout = kept.clone().map(|(n, (s, _))| (n.clone(), info(s))).collect();
        let mut writer = Writer::create(path, layout).unwrap();
        for (name, (shape, values)) in kept {
            let mut bytes = vec![0u8; values.len() * self.dtype.size()];
            self.dtype.narrow_bytes(values, &mut bytes).unwrap();
            writer.write_shared(name, &info(shape), &bytes).unwrap();
        }
        writer.finish().unwrap();
    }
}
