//! Runs the command on small models.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value as Json, json};
use tersor::core::{Context, DType, TensorInfo, TensorSink};
use tersor::formats::safetensors::Writer;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs `tersor` with these arguments.
pub fn tersor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tersor")).args(args).output().unwrap()
}

/// Runs `tersor` with `--json`, asserts success, and returns the object that it prints.
pub fn tersor_json(args: &[&str]) -> Json {
    let mut args = args.to_vec();
    args.push("--json");
    let out = tersor(&args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The model included in the repository.
pub fn shipped() -> PathBuf {
    root().join("examples/models/tiny-wiki")
}

/// A text of the repository.
pub fn data(name: &str) -> PathBuf {
    root().join("examples/data").join(name)
}

/// Arguments of `compress`, calibrated on `windows` windows of `ctx` tokens.
pub fn compress(model: &Path, recipe: &str, out: &Path, [windows, ctx]: [&str; 2]) -> Vec<String> {
    let text = data("wiki-calib.txt");
    let list = ["compress", s(model), "--recipe", recipe, "--out", s(out), "--calib", s(&text)];
    list.iter().chain(&["--calib-windows", windows, "--ctx", ctx]).map(|a| a.to_string()).collect()
}

/// Arguments followed by more arguments.
pub fn with<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// [`tersor_json`] of arguments followed by more arguments.
pub fn run(args: &[String], more: &[&str]) -> Json {
    tersor_json(&with(args, more))
}

/// The output of `eval` for a model compared with another, on 8 windows of 64 tokens.
pub fn eval(model: &Path, against: &Path, more: &[&str]) -> Json {
    let text = data("wiki-eval.txt");
    let args =
        ["eval", s(model), "--text", s(&text), "--ctx", "64", "--windows", "8", "--no-speed", "--against", s(against)];
    tersor_json(&[&args[..], more].concat())
}

/// The mean divergence in the output of `eval`.
pub fn kl(found: &Json) -> f64 {
    found["kl_mean"].as_f64().unwrap()
}

/// Runs `tersor`, asserts this exit code and no output on stdout, and returns the output on stderr.
pub fn fails(code: i32, args: &[&str]) -> String {
    let out = tersor(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert!(out.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&out.stdout));
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Every file under a directory, by relative name.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            out.extend(files(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            out.insert(name, std::fs::read(&path).unwrap());
        }
    }
    out
}

/// All files of a compressed directory except the timings.
pub fn result(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = files(dir);
    assert!(all.remove("timing.json").is_some());
    all
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
        std::fs::copy(root().join("examples/models/tiny-wiki/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
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

/// A path as an argument.
pub fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a recipe file: `head` has lists beside the rules; each rule is a TOML pattern, or list of them, and its stages.
pub fn recipe(name: &str, head: &str, rules: &[(&str, &str)]) -> String {
    let rules = rules.iter().map(|(pattern, stages)| format!("    {{ match = {pattern}, stages = [{stages}] }},\n"));
    format!("version = 1\nname = \"{name}\"\n{head}\nrules = [\n{}]\n", rules.collect::<String>())
}

/// The pattern of every matrix.
pub const ALL: &str = "\"*\"";
/// The patterns of embedding and head.
pub const ENDS: &str = "[\"@embedding\", \"@head\"]";
/// The stage of 8 bits a row.
pub const RTN8: &str = "{ kind = \"rtn\", bits = 8 }";
