//! Every parser of files, as a function of bytes that says whether it took them for valid, with valid files to begin with.

#[path = "../../../tersor-formats/tests/common/mod.rs"]
mod binary;

use std::path::{Path, PathBuf};

use tersor::blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig};
use tersor::core::gradients::Optimizer;
use tersor::core::{Exec, LinearOp, MatView, MemTensors, OpSpec, StatNeeds, StatSet, TensorSink, TensorSource};
use tersor::formats::{Model, json, safetensors};
use tersor::llm::{DecoderConfig, Manifest, Tokenizer};
use tersor::operators::{ActQuant, QuantizedInputs};
use tersor_cli::recipe::Recipe;

/// A parser, by name.
pub struct Parser {
    pub name: &'static str,
    /// Returns valid files.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Returns whether the parser takes the bytes for valid.
    pub parse: fn(&[u8]) -> bool,
}

/// All parsers.
pub const PARSERS: [Parser; 12] = [
    Parser {
        name: "safetensors",
        seeds: || vec![binary::small_safetensors()],
        parse: |b| binary::read_safetensors(b.to_vec()).is_ok(),
    },
    Parser {
        name: "gguf",
        seeds: || vec![binary::small_gguf().bytes()],
        parse: |b| binary::read_gguf(b.to_vec()).is_ok(),
    },
    Parser { name: "gguf_tokenizer", seeds: gguf_tokenizers, parse: gguf_tokenizer },
    Parser { name: "shard_index", seeds: shard_indices, parse: shard_index },
    Parser { name: "config", seeds: configs, parse: config },
    Parser {
        name: "tokenizer",
        seeds: tokenizers,
        parse: |b| Tokenizer::from_json(b).and_then(|t| t.encode("abc cab")).is_ok(),
    },
    Parser { name: "manifest", seeds: manifests, parse: manifest },
    Parser { name: "recipe", seeds: || vec![read("examples/recipes/mixed.toml")], parse: recipe },
    Parser {
        name: "imatrix",
        seeds: imatrices,
        parse: |b| with_file(b, |path| tersor::formats::imatrix::read(path, &Default::default()).is_ok()),
    },
    Parser {
        name: "statistics",
        seeds: statistics,
        parse: |b| stored(b).is_some_and(|f| StatSet::load("s", &f).is_ok()),
    },
    Parser { name: "operators", seeds: operators, parse: operator },
    Parser { name: "optimizer", seeds: optimizers, parse: |b| stored(b).is_some_and(|f| optimizer().load(&f).is_ok()) },
];

/// Returns the parser of this name.
pub fn parser(name: &str) -> &'static Parser {
    const ALL: &[Parser] = &PARSERS;
    ALL.iter().find(|p| p.name == name).expect("a known parser")
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|p| p.join("examples/recipes").exists()).expect("the repository").to_path_buf()
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

/// Calls `f` with the path of a file with these bytes, which is this thread's own.
fn with_file<R>(bytes: &[u8], f: impl FnOnce(&Path) -> R) -> R {
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());
    DIR.with(|dir| {
        let path = dir.path().join("file.gguf");
        std::fs::write(&path, bytes).unwrap();
        f(&path)
    })
}

fn parsed(bytes: &[u8]) -> Option<serde_json::Value> {
    serde_json::from_slice(bytes).ok()
}

fn stored(bytes: &[u8]) -> Option<safetensors::File> {
    safetensors::File::new(Box::new(bytes.to_vec()), &Default::default()).ok()
}

/// Returns tensors as a safetensors file.
fn file_of(tensors: &MemTensors) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let infos = tensors.names().into_iter().map(|n| (n.clone(), tensors.info(&n).unwrap()));
    let mut writer = safetensors::Writer::create(&path, infos.collect()).unwrap();
    for name in tensors.names() {
        writer.write_shared(&name, &tensors.info(&name).unwrap(), tensors.get(&name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

fn gguf_tokenizers() -> Vec<Vec<u8>> {
    let texts = |t: &[&str]| t.iter().map(|t| binary::string(t.as_bytes())).collect::<Vec<_>>();
    vec![
        binary::Gguf::new()
            .text("general.architecture", "llama")
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "smollm")
            .array("tokenizer.ggml.tokens", 8, &texts(&["a", "b", "ab", "c"]))
            .array("tokenizer.ggml.merges", 8, &texts(&["a b"]))
            .array("tokenizer.ggml.token_type", 5, &[1i32, 1, 1, 3].map(|v| v.to_le_bytes().to_vec()))
            .bytes(),
    ]
}

fn gguf_tokenizer(bytes: &[u8]) -> bool {
    with_file(bytes, |path| {
        let json = Model::open(path, &Default::default()).and_then(|m| Tokenizer::json_of(&m));
        json.and_then(|j| Tokenizer::from_json(&j)).and_then(|t| t.encode("abc cab")).is_ok()
    })
}

fn shard_indices() -> Vec<Vec<u8>> {
    let names = ["a.weight", "b.codes", "c"].map(|n| format!("\"{n}\":\"model-1.safetensors\"")).join(",");
    vec![format!("{{\"metadata\":{{\"total_size\":31}},\"weight_map\":{{{names}}}}}").into_bytes()]
}

fn shard_index(bytes: &[u8]) -> bool {
    thread_local!(static DIR: tempfile::TempDir = {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model-1.safetensors"), binary::small_safetensors()).unwrap();
        dir
    });
    DIR.with(|dir| {
        std::fs::write(dir.path().join("model.safetensors.index.json"), bytes).unwrap();
        safetensors::Shards::open_dir(dir.path(), &Default::default()).is_ok()
    })
}

fn configs() -> Vec<Vec<u8>> {
    let llama3 = br#"{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_attention_heads":4,
        "num_hidden_layers":2,"vocab_size":300,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
        "high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[1,2]}"#;
    vec![read("examples/models/tiny-wiki/config.json"), llama3.to_vec()]
}

fn config(bytes: &[u8]) -> bool {
    parsed(bytes).is_some_and(|j| DecoderConfig::from_json(&j).is_ok_and(|c| !c.sites().is_empty()))
}

fn tokenizers() -> Vec<Vec<u8>> {
    gguf_tokenizers()
        .iter()
        .map(|b| with_file(b, |p| Tokenizer::json_of(&Model::open(p, &Default::default()).unwrap()).unwrap()))
        .collect()
}

/// Returns a compressed matrix `[4, 20]` and its tensors.
fn small_operator() -> (OpSpec, MemTensors) {
    let w: Vec<f32> = (0..80).map(|i| (i as f32).sin()).collect();
    let rtn = tersor::groupwise::Rtn::new().bits(3).group(8);
    let op = rtn.quantize(&MatView::new(&w, [4, 20]).unwrap()).unwrap().0;
    let op = QuantizedInputs::new(ActQuant::per_token(8).unwrap(), Box::new(op)).unwrap();
    let mut tensors = MemTensors::new();
    op.save("w", &mut tensors).unwrap();
    (op.spec(), tensors)
}

/// Loads an operator and reads its rows.
fn loads(spec: &OpSpec, source: &dyn TensorSource) -> bool {
    tersor::registry().load(spec, "w", source).is_ok_and(|op| {
        let [rows, cols] = op.shape();
        let size = rows.checked_mul(cols).filter(|n| *n < 1 << 20);
        size.is_none_or(|n| op.decompress_rows(0..rows, &mut vec![0.0; n], &Exec::serial()).is_ok())
    })
}

fn manifests() -> Vec<Vec<u8>> {
    let spec = json::from_spec(&small_operator().0);
    vec![serde_json::json!({"format": 1, "tensors": {"w": {"spec": spec}}}).to_string().into_bytes()]
}

fn manifest(bytes: &[u8]) -> bool {
    thread_local!(static STORED: MemTensors = small_operator().1);
    let specs = parsed(bytes).and_then(|j| Manifest::from_json(j).ok()).map(|m| m.specs);
    STORED.with(|stored| specs.is_some_and(|s| s.values().all(|s| loads(s, stored))))
}

fn recipe(bytes: &[u8]) -> bool {
    with_file(bytes, |path| {
        let toml = path.with_extension("toml");
        std::fs::rename(path, &toml).unwrap();
        let recipe = Recipe::find(toml.to_str().unwrap());
        recipe.and_then(|r| r.rule("model.layers.0.mlp.up_proj.weight").map(|_| ())).is_ok()
    })
}

fn imatrices() -> Vec<Vec<u8>> {
    let mut older = 1i32.to_le_bytes().to_vec();
    let parts: [&[u8]; 6] = [
        &6i32.to_le_bytes(),
        b"output",
        &2i32.to_le_bytes(),
        &2i32.to_le_bytes(),
        &1f32.to_le_bytes(),
        &2f32.to_le_bytes(),
    ];
    parts.into_iter().for_each(|part| older.extend(part));
    let mut newer = binary::Gguf::new();
    let entry = |name: &str, offset| binary::GgufEntry { name: name.into(), dims: vec![2], kind: 0, offset };
    newer.tensors = vec![entry("output.in_sum2", 0), entry("output.counts", 32)];
    newer.data = vec![0; 64];
    vec![older, newer.bytes()]
}

fn statistics() -> Vec<Vec<u8>> {
    let needs = StatNeeds { squares: true, channel: true, gram: true, sample: 2, windows: false };
    let mut stats = StatSet::new(3, needs, 1, 0).unwrap();
    stats.observe(&MatView::new(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [3, 3]).unwrap()).unwrap();
    let mut tensors = MemTensors::new();
    stats.save("s", &mut tensors).unwrap();
    vec![file_of(&tensors)]
}

/// A length in 4 bytes, the specification as JSON, and a safetensors file.
fn operators() -> Vec<Vec<u8>> {
    let (spec, tensors) = small_operator();
    let spec = json::from_spec(&spec).to_string().into_bytes();
    vec![[&(spec.len() as u32).to_le_bytes()[..], &spec, &file_of(&tensors)].concat()]
}

fn operator(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let Some((spec, file)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { return false };
    let spec = parsed(spec).and_then(|j| json::to_spec(&j).ok());
    spec.zip(stored(file)).is_some_and(|(spec, file)| loads(&spec, &file))
}

fn optimizer() -> BlockwiseOptimizer {
    BlockwiseOptimizer::new(OptimizerConfig::adamw().min_8bit_size(0).percentile(5)).unwrap()
}

fn optimizers() -> Vec<Vec<u8>> {
    let mut adam = optimizer();
    let (mut w, g) = (vec![0.5f32; 300], vec![0.1f32; 300]);
    adam.step_tensor("w", &mut w, &g).unwrap();
    let mut tensors = MemTensors::new();
    adam.save(&mut tensors).unwrap();
    vec![file_of(&tensors)]
}
