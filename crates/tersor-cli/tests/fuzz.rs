//! Every parser on mutated files: any answer but a panic, in bounded time. `TERSOR_FUZZ_SECONDS` sets how long each
//! parser is fed (1 unless set); figures of long runs are in `docs/security.md`.

#[path = "../../tersor-formats/tests/common/mod.rs"]
mod binary;
mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use common::root;
use rand_core::RngCore;
use tersor::core::{Context, Exec, MemTensors, TensorSource};
use tersor::formats::json as files;
use tersor::llm::{DecoderConfig, Manifest, Tokenizer};
use tersor::operators::{ActQuant, QuantizedInputs};
use tersor_cli::recipe::Recipe;

/// Words that parsers trip over.
const TOKENS: [&[u8]; 14] = [
    b"-1",
    b"0",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"{}",
    b"[]",
    b"\"\"",
    b"\\u0000",
    b"../",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\"F16\"",
];

fn mutate(seeds: &[Vec<u8>], rng: &mut impl RngCore) -> Vec<u8> {
    let mut below = |n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    let mut x = seeds[below(seeds.len())].clone();
    for _ in 0..1 + below(4) {
        let (at, len) = (below(x.len() + 1), x.len());
        match below(8) {
            0 if at < len => x[at] ^= 1 << below(8),
            1 if at < len => x[at] = below(256) as u8,
            2 => x.truncate(at),
            3 => x.insert(at, below(256) as u8),
            4 => drop(x.drain(at..(at + below(16)).min(len))),
            5 => {
                let part: Vec<u8> = x[at..(at + below(64)).min(len)].to_vec();
                let to = below(x.len() + 1);
                x.splice(to..to, part);
            }
            6 => {
                let token = TOKENS[below(TOKENS.len())];
                x.splice(at..at, token.iter().copied());
            }
            _ => {
                let token = TOKENS[below(TOKENS.len())];
                let end = (at + token.len()).min(len);
                x.splice(at..end, token.iter().copied());
            }
        }
    }
    x
}

/// Feeds a parser; prints how often, and how many inputs it took for valid.
fn feed(name: &str, seeds: &[Vec<u8>], parse: impl Fn(&[u8]) -> bool) {
    let seconds = std::env::var("TERSOR_FUZZ_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1.0);
    for seed in seeds {
        assert!(parse(seed), "{name}: a seed is not valid");
    }
    let mut rng = Context::new()
        .with_seed(std::env::var("TERSOR_FUZZ_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0))
        .stream(name);
    let (start, mut count, mut valid, mut slowest) = (Instant::now(), 0u64, 0u64, Duration::ZERO);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let input = mutate(seeds, &mut rng);
        let began = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| parse(&input)));
        slowest = slowest.max(began.elapsed());
        match answer {
            Ok(ok) => valid += u64::from(ok),
            Err(_) => {
                let path = std::env::temp_dir().join(format!("tersor-fuzz-{name}"));
                std::fs::write(&path, &input).unwrap();
                panic!("{name} panicked on {}", path.display());
            }
        }
        count += 1;
    }
    println!("{name}: {count} inputs, {valid} taken for valid, the slowest in {slowest:?}");
    assert!(count > 100 && valid < count, "{name}: {valid} of {count}");
}

fn text(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

fn parsed(bytes: &[u8]) -> Option<serde_json::Value> {
    serde_json::from_slice(bytes).ok()
}

#[test]
fn safetensors_files() {
    feed("safetensors", &[binary::small_safetensors()], |b| binary::read_safetensors(b.to_vec()).is_ok());
}

#[test]
fn gguf_files() {
    feed("gguf", &[binary::small_gguf().bytes()], |b| binary::read_gguf(b.to_vec()).is_ok());
}

#[test]
fn gguf_tokenizers() {
    // Through a file, as the tokenizer is made from an open model.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let texts = |t: &[&str]| t.iter().map(|t| binary::string(t.as_bytes())).collect::<Vec<_>>();
    let seed = binary::Gguf::new()
        .text("general.architecture", "llama")
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .array("tokenizer.ggml.tokens", 8, &texts(&["a", "b", "ab", "c"]))
        .array("tokenizer.ggml.merges", 8, &texts(&["a b"]))
        .array("tokenizer.ggml.token_type", 5, &[1i32, 1, 1, 3].map(|v| v.to_le_bytes().to_vec()))
        .bytes();
    feed("gguf-tokenizer", &[seed], |b| {
        std::fs::write(&path, b).unwrap();
        let model = tersor::formats::Model::open(&path, &Default::default());
        let json = model.and_then(|m| Tokenizer::json_of(&m));
        json.and_then(|j| Tokenizer::from_json(&j)).and_then(|t| t.encode("abc cab")).is_ok()
    });
}

#[test]
fn shard_indices() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model-1.safetensors"), binary::small_safetensors()).unwrap();
    let names = ["a.weight", "b.codes", "c"].map(|n| format!("\"{n}\":\"model-1.safetensors\"")).join(",");
    let seed = format!("{{\"metadata\":{{\"total_size\":31}},\"weight_map\":{{{names}}}}}").into_bytes();
    feed("index", &[seed], |b| {
        std::fs::write(dir.path().join("model.safetensors.index.json"), b).unwrap();
        tersor::formats::safetensors::Shards::open_dir(dir.path(), &Default::default()).is_ok()
    });
}

#[test]
fn configurations() {
    let llama3 = br#"{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_attention_heads":4,
        "num_hidden_layers":2,"vocab_size":300,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
        "high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[1,2]}"#;
    feed("config", &[text("examples/models/tiny-wiki/config.json"), llama3.to_vec()], |b| {
        parsed(b).is_some_and(|j| DecoderConfig::from_json(&j).is_ok_and(|c| !c.sites().is_empty()))
    });
}

#[test]
fn manifests_and_the_operators_in_them() {
    let op = tersor::groupwise::Rtn::new().bits(3).group(8);
    let w: Vec<f32> = (0..80).map(|i| (i as f32).sin()).collect();
    let op = op.quantize(&tersor::core::MatView::new(&w, [4, 20]).unwrap()).unwrap().0;
    let op = QuantizedInputs::new(ActQuant::per_token(8).unwrap(), Box::new(op));
    let mut stored = MemTensors::new();
    let op: &dyn tersor::core::LinearOp = &op;
    op.save("w", &mut stored).unwrap();
    let spec = files::from_spec(&op.spec());
    let seed = serde_json::json!({"format": 1, "tensors": {"w": {"spec": spec}}}).to_string().into_bytes();
    let registry = tersor::registry();
    assert_eq!(stored.names().len(), 3);
    feed("manifest", &[seed], |b| {
        let specs = parsed(b).and_then(|j| Manifest::from_json(j).ok()).map(|m| m.specs);
        let load = |s: &tersor::core::OpSpec| -> tersor::core::Result<()> {
            let op = registry.load(s, "w", &stored)?;
            let [rows, cols] = op.shape();
            op.decompress_rows(0..rows, &mut vec![0.0; rows * cols], &Exec::new())
        };
        specs.is_some_and(|s| s.values().all(|s| load(s).is_ok()))
    });
}

#[test]
fn recipes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    feed("recipe", &[text("examples/recipes/mixed.toml")], |b| {
        std::fs::write(&path, b).unwrap();
        let recipe = Recipe::find(path.to_str().unwrap());
        recipe.and_then(|r| r.rule("model.layers.0.mlp.up_proj.weight").map(|_| ())).is_ok()
    });
    assert!(!Path::new("r.toml").exists());
}

#[test]
fn importance_matrices() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut older = 1i32.to_le_bytes().to_vec();
    for part in [
        &6i32.to_le_bytes()[..],
        b"output",
        &2i32.to_le_bytes(),
        &2i32.to_le_bytes(),
        &1f32.to_le_bytes(),
        &2f32.to_le_bytes(),
    ] {
        older.extend(part);
    }
    let mut newer = binary::Gguf::new();
    let entry = |name: &str, offset| binary::GgufEntry { name: name.into(), dims: vec![2], kind: 0, offset };
    newer.tensors = vec![entry("output.in_sum2", 0), entry("output.counts", 32)];
    newer.data = vec![0; 64];
    feed("imatrix", &[older, newer.bytes()], |b| {
        std::fs::write(&path, b).unwrap();
        tersor::formats::imatrix::read(&path, &Default::default()).is_ok()
    });
}

#[test]
fn files_of_statistics() {
    use tersor::core::{MatView, StatNeeds, StatSet};
    let needs = StatNeeds { squares: true, channel: true, gram: true, sample: 2, windows: false };
    let mut stats = StatSet::new(3, needs, 1, 0).unwrap();
    stats.observe(&MatView::new(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [3, 3]).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let layout = StatSet::layout(3, needs, 3).into_iter().map(|(n, i)| (format!("s.{n}"), i)).collect();
    let mut writer = tersor::formats::safetensors::Writer::create(&path, layout).unwrap();
    stats.save("s", &mut writer).unwrap();
    writer.finish().unwrap();
    feed("statistics", &[std::fs::read(&path).unwrap()], |b| {
        let file = tersor::formats::safetensors::File::new(Box::new(b.to_vec()), &Default::default());
        file.and_then(|f| StatSet::load("s", &f)).is_ok()
    });
}
