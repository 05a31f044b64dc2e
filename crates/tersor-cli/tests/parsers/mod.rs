//! Every parser of files, as a function of bytes that returns whether it took them for valid, with valid files to begin with.

#[path = "../../../tersor-formats/tests/common/mod.rs"]
mod binary;
mod caches;
mod networks;
mod operators;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use tersor::blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig, Rule};
use tersor::core::gradients::Optimizer;
use tersor::core::{Context, MatView, MemTensors, Role, StatNeeds, StatSet, TensorSink, TensorSource};
use tersor::formats::{Model, gguf, json, safetensors};
use tersor::models::{DecoderConfig, EncoderConfig, Manifest, StoredPredictions, Tokenizer};
use tersor::pipeline::{Recipe, Text, evaluate};

/// A parser, by name.
pub struct Parser {
    pub name: &'static str,
    /// Returns valid files.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Returns whether the parser takes the bytes for valid.
    pub parse: fn(&[u8]) -> bool,
}

/// All parsers.
pub const PARSERS: [Parser; 18] = [
    Parser {
        name: "safetensors",
        seeds: || vec![binary::small_safetensors()],
        parse: |b| binary::read_safetensors(b.to_vec()).is_ok(),
    },
    Parser { name: "shard_index", seeds: shard_indices, parse: shard_index },
    Parser { name: "gguf", seeds: ggufs, parse: gguf },
    Parser { name: "gguf_tokenizer", seeds: gguf_tokenizers, parse: gguf_tokenizer },
    Parser {
        name: "tokenizer",
        seeds: tokenizers,
        parse: |b| Tokenizer::from_json(b).and_then(|t| t.encode("abc cab")).is_ok(),
    },
    Parser { name: "config", seeds: configs, parse: config },
    Parser { name: "network", seeds: networks::networks, parse: networks::network },
    Parser { name: "manifest", seeds: manifests, parse: manifest },
    Parser { name: "operators", seeds: operators::operators, parse: operators::operator },
    Parser { name: "bitsandbytes", seeds: operators::bitsandbytes_files, parse: operators::bitsandbytes_file },
    Parser { name: "caches", seeds: caches::caches, parse: caches::cache },
    Parser { name: "changes", seeds: networks::changes, parse: networks::changed },
    Parser { name: "statistics", seeds: statistics, parse: statistic },
    Parser {
        name: "imatrix",
        seeds: imatrices,
        parse: |b| with_file(b, |path| tersor::formats::imatrix::read(path, &Default::default()).is_ok()),
    },
    Parser { name: "optimizer", seeds: optimizers, parse: optimizer },
    Parser { name: "predictions", seeds: predictions, parse: prediction },
    Parser { name: "recipe", seeds: recipes, parse: recipe },
    Parser { name: "recipe_name", seeds: recipe_names, parse: recipe_name },
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

/// Returns the two parts of a file that begins with the length of the first, in 4 bytes. None if the first is longer than the file.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
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

/// Returns a file with keys of every type, and one that says the architecture of a network.
fn ggufs() -> Vec<Vec<u8>> {
    let network = binary::Gguf::new()
        .text("general.architecture", "llama")
        .u32("llama.embedding_length", 4)
        .u32("llama.block_count", 1)
        .u32("llama.feed_forward_length", 6)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.context_length", 16)
        .u32("llama.rope.dimension_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", &[4, 2], 0, &[0; 32])
        .tensor("blk.0.attn_q.weight", &[4, 4], 1, &[0; 32])
        .tensor("blk.0.attn_k.weight", &[4, 2], 1, &[0; 16]);
    vec![binary::small_gguf().bytes(), network.bytes()]
}

/// Decodes all tensors, reads the configuration, and reads the tensors as a model's.
fn gguf(bytes: &[u8]) -> bool {
    let decoded = binary::read_gguf(bytes.to_vec()).is_ok();
    if let Ok(config) = gguf::File::new(Box::new(bytes.to_vec()), &Default::default()).and_then(|f| gguf::hf_config(&f))
    {
        let _ = DecoderConfig::from_json(&config).map(|c| c.attention_heads());
        with_file(bytes, |path| {
            let Ok(model) = Model::open(path, &Default::default()) else { return };
            for tensor in model.tensors() {
                let Ok(rows) = model.rows(&tensor.name) else { continue };
                let [n, cols] = rows.shape();
                if n.saturating_mul(cols) < 1 << 12 {
                    let _ = rows.read_rows(0..n, &mut vec![0.0; n * cols]);
                }
            }
        });
    }
    decoded
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
    let scaled = |scaling: &str| {
        format!(
            r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_attention_heads":4,
            "num_hidden_layers":2,"vocab_size":300,"rope_scaling":{{{scaling}}},"eos_token_id":[1,2]}}"#
        )
    };
    let llama3 = r#""rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":8192"#;
    let yarn = r#""type":"yarn","factor":4.0,"original_max_position_embeddings":32768"#;
    let encoder = r#"{"model_type":"bert","hidden_size":8,"intermediate_size":6,"num_attention_heads":2,
        "num_hidden_layers":1,"vocab_size":3,"max_position_embeddings":4,"type_vocab_size":1,"hidden_act":"gelu"}"#;
    let mistral = r#"{"architectures":["MistralForCausalLM"],"hidden_size":8,"intermediate_size":6,"head_dim":4,
        "num_attention_heads":2,"num_key_value_heads":1,"num_hidden_layers":1,"vocab_size":3,"sliding_window":5}"#;
    let all = [scaled(llama3), scaled(yarn), encoder.into(), mistral.into()];
    [read("examples/models/tiny-wiki/config.json")].into_iter().chain(all.map(String::into_bytes)).collect()
}

fn config(bytes: &[u8]) -> bool {
    let Some(json) = parsed(bytes) else { return false };
    let heads = |c: &DecoderConfig| match c.attention_heads() {
        Ok(h) => {
            let _ = gguf::gguf_meta(&json);
            h.rotary().is_some_and(|r| !r.angles(7).cos.is_empty())
        }
        Err(_) => false,
    };
    let decoder = DecoderConfig::from_json(&json).is_ok_and(|c| !c.sites().is_empty() && heads(&c));
    decoder || EncoderConfig::from_json(&json).is_ok_and(|c| !c.sites().is_empty())
}

fn tokenizers() -> Vec<Vec<u8>> {
    gguf_tokenizers()
        .iter()
        .map(|b| with_file(b, |p| Tokenizer::json_of(&Model::open(p, &Default::default()).unwrap()).unwrap()))
        .collect()
}

fn manifests() -> Vec<Vec<u8>> {
    let spec = json::from_spec(&operators::small().0);
    vec![serde_json::json!({"format": 1, "tensors": {"w": {"spec": spec}}}).to_string().into_bytes()]
}

fn manifest(bytes: &[u8]) -> bool {
    thread_local!(static STORED: MemTensors = operators::small().1);
    let specs = parsed(bytes).and_then(|j| Manifest::from_json(j).ok()).map(|m| m.specs);
    STORED.with(|stored| specs.is_some_and(|s| s.values().all(|s| operators::loads(s, stored))))
}

/// Returns true; panics unless a recipe is equal to what is read from its text.
fn prints(recipe: &Recipe) -> bool {
    let text = recipe.to_toml(tersor::stages());
    let again = Recipe::from_toml(&text, "printed", tersor::stages());
    assert!(again.is_ok_and(|r| r == *recipe), "{text}");
    recipe.rule("model.layers.0.mlp.up_proj.weight", &[Role::Up]);
    true
}

/// Returns a recipe with every part of the format, those of the examples, and what names stand for.
fn recipes() -> Vec<Vec<u8>> {
    let whole = r#"version = 1
name = "whole"
statistics = "original"
network = [{ kind = "rotate", by = "orthogonal", parts = [0.125, 0.875] }]
cache = [{ match = "layers 0-1", kind = "int", bits = 4, high = 8 }, { match = "*", kind = "f16" }]
[[rules]]
match = "@q"
non_finite = "clamp"
stages = [
    { kind = "split", damping = 0.02, parts = [
        { share = 0.125, stages = [{ kind = "rtn", bits = 8 }, { kind = "act", bits = 8 }] },
        { share = 0.875, stages = [{ kind = "gptq", bits = 3, group = 32 }, { kind = "act", bits = 4, scale = "asym" }] },
    ] },
    { kind = "lqer", rank = 4 },
]
"#;
    let examples = ["mixed", "resq-without-pca"].map(|n| read(&format!("examples/recipes/{n}.toml")));
    let printed = |name: Vec<u8>| {
        let recipe = Recipe::find(std::str::from_utf8(&name).unwrap(), tersor::stages()).unwrap();
        recipe.to_toml(tersor::stages()).into_bytes()
    };
    [whole.into()].into_iter().chain(examples).chain(recipe_names().into_iter().map(printed)).collect()
}

fn recipe(bytes: &[u8]) -> bool {
    with_file(bytes, |path| {
        let toml = path.with_extension("toml");
        std::fs::rename(path, &toml).unwrap();
        let recipe = Recipe::find(toml.to_str().unwrap(), tersor::stages());
        recipe.is_ok_and(|r| prints(&r))
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

/// Returns statistics of all kinds, with a sample and with windows.
fn statistics() -> Vec<Vec<u8>> {
    let tokens = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
    let batch = MatView::new(&tokens, [3, 3]).unwrap();
    let needs = StatNeeds { squares: true, channel: true, gram: true, sample: 2, windows: false };
    let mut sampled = StatSet::new(3, needs, 1, 0).unwrap();
    sampled.observe(&batch).unwrap();
    let mut windowed = StatSet::new(3, StatNeeds { windows: true, ..needs }, 1, 0).unwrap();
    windowed.observe_window(&batch, Some(&[0.5, 1.0, 2.0])).unwrap();
    let save = |stats: StatSet| {
        let mut tensors = MemTensors::new();
        stats.save("s", &mut tensors).unwrap();
        file_of(&tensors)
    };
    [sampled, windowed].map(save).into()
}

/// Loads statistics, and merges, cuts and saves them.
fn statistic(bytes: &[u8]) -> bool {
    let Some(stats) = stored(bytes).and_then(|f| StatSet::load("s", &f).ok()) else { return false };
    let mut tensors = MemTensors::new();
    stats.save("s", &mut tensors).unwrap();
    let again = StatSet::load("s", &tensors);
    assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
    let (features, needs) = (stats.features(), stats.needs());
    let _ = stats.columns(features / 2..features);
    let _ = (stats.squares(), stats.sample(), stats.weight());
    // Of the tokens that follow, and of the same tokens, which is an error.
    let all = stats.tokens().checked_add(stats.first_window().unwrap_or(0)).unwrap_or(0);
    if let Ok(mut next) = StatSet::new(features.min(1 << 10), needs, 0, all) {
        let _ = next.merge(&stats);
    }
    let mut own = stats.columns(0..features).unwrap();
    let _ = own.merge(&stats);
    own.only(StatNeeds { squares: true, ..StatNeeds::default() });
    true
}

/// Returns files of an original's predictions, without logits and with them.
fn predictions() -> Vec<Vec<u8>> {
    let (model, cx) = (root().join("examples/models/tiny-wiki"), Context::new());
    let of = |reference_logits: u64| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("predictions");
        let options = evaluate::Options {
            ctx: Some(2),
            windows: Some(1),
            reference: Some(file.clone()),
            reference_logits,
            ..Default::default()
        };
        let text = Text::new("text", "One two three four five six.");
        evaluate::decoder(&model, &text, None, &options, tersor::kinds(), &cx).unwrap();
        std::fs::read(&file).unwrap()
    };
    vec![of(0), of(u64::MAX)]
}

/// Opens a file of predictions and reads its windows and logits.
fn prediction(bytes: &[u8]) -> bool {
    with_file(bytes, |path| {
        let Ok(mut found) = evaluate::Reference::open(path) else { return false };
        let mut logits = vec![0f32; 2048];
        let all = (0..2).map(|w| found.window(w).is_ok() & found.logits(w, 0..1, &mut logits).is_ok());
        all.fold(false, |any, one| any | one)
    })
}

/// The optimizers whose states are loaded, each with its rule.
fn optimizer_configs() -> [(Rule, OptimizerConfig); 6] {
    [
        (Rule::Adam, OptimizerConfig::adamw().percentile(5)),
        (Rule::AdEmaMix, OptimizerConfig::ademamix()),
        (Rule::Momentum, OptimizerConfig::momentum()),
        (Rule::Lion, OptimizerConfig::lion().bits(32)),
        (Rule::RmsProp, OptimizerConfig::rmsprop()),
        (Rule::Adagrad, OptimizerConfig::adagrad().bits(32)),
    ]
    .map(|(rule, config)| (rule, config.min_8bit_size(0)))
}

/// Returns the states of each optimizer after a step of a tensor of 20 parameters.
fn optimizers() -> Vec<Vec<u8>> {
    let save = |(_, config): (Rule, OptimizerConfig)| {
        let mut optimizer = BlockwiseOptimizer::new(config).unwrap();
        optimizer.step_tensor("w", &mut [0.5f32; 20], &[0.1f32; 20]).unwrap();
        let mut tensors = MemTensors::new();
        optimizer.save(&mut tensors).unwrap();
        file_of(&tensors)
    };
    optimizer_configs().map(save).into()
}

/// Loads states into the optimizers whose rule the file names, and steps each tensor.
fn optimizer(bytes: &[u8]) -> bool {
    // Their codebooks take longer to make than a state to load, and so do those of a file.
    type Optimizers = Vec<(Rule, BlockwiseOptimizer)>;
    thread_local!(static OPTIMIZERS: RefCell<Optimizers> = RefCell::new(
        optimizer_configs().map(|(rule, config)| (rule, BlockwiseOptimizer::new(config).unwrap())).into(),
    ));
    let named = |rule: Rule| bytes.windows(rule.name().len()).any(|w| w == rule.name().as_bytes());
    let Some(file) = stored(bytes) else { return false };
    let names: Vec<String> = file.names().iter().filter_map(|n| Some(n.strip_suffix(".state")?.into())).collect();
    let steps = |optimizer: &mut BlockwiseOptimizer| {
        if optimizer.load(&file).is_err() {
            return false;
        }
        for name in &names {
            let len = optimizer.state(name).unwrap().len();
            if len < 1 << 16 {
                let _ = optimizer.step_tensor(name, &mut vec![0.5f32; len], &vec![0.1f32; len]);
            }
        }
        let mut tensors = MemTensors::new();
        optimizer.save(&mut tensors).unwrap();
        let again = optimizer.load(&tensors);
        assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
        true
    };
    OPTIMIZERS.with_borrow_mut(|all| all.iter_mut().any(|(rule, optimizer)| named(*rule) && steps(optimizer)))
}

fn recipe_names() -> Vec<Vec<u8>> {
    ["w4-g128-rtn-sym-mse", "w3-g64-awq-gptq", "w4a8-g128-qqq", "w4a4kv4-resq", "w4-nf4-dq", "bf16"]
        .map(|n| n.as_bytes().to_vec())
        .into()
}

fn recipe_name(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|name| Recipe::find(name, tersor::stages()).is_ok_and(|r| prints(&r)))
}
