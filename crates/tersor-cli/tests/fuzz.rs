//! Every parser on mutated files: any answer but a panic, in bounded time. `TERSOR_FUZZ_SECONDS` sets how long each
//! parser is fed (1 unless set); figures of long runs are in `docs/security.md`. Files that fuzzing found faults with are
//! in `fuzz/found`, small files that cover the parsers in `fuzz/corpus`, each in the folder of its parser.

mod parsers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parsers::{PARSERS, Parser, parser};
use rand_core::RngCore;
use tersor::core::Context;

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
fn feed(name: &str) {
    let Parser { seeds, parse, .. } = parser(name);
    let seeds = seeds();
    let seconds = std::env::var("TERSOR_FUZZ_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1.0);
    for seed in &seeds {
        assert!(parse(seed), "{name}: a seed is not valid");
    }
    let mut rng = Context::new()
        .with_seed(std::env::var("TERSOR_FUZZ_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0))
        .stream(name);
    let (start, mut count, mut valid, mut slowest) = (Instant::now(), 0u64, 0u64, Duration::ZERO);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let input = mutate(&seeds, &mut rng);
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
    // The slowest parser, of names of recipes, searches thousands of names for near ones.
    assert!(count > 10 && valid < count, "{name}: {valid} of {count}");
}

macro_rules! fed {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                feed(stringify!($name));
            }
        )*

        const FED: &[&str] = &[$(stringify!($name)),*];
    };
}
fed!(
    safetensors shard_index gguf gguf_tokenizer tokenizer config network manifest operators
    bitsandbytes caches changes statistics imatrix optimizer predictions recipe recipe_name
);

fn folder(kind: &str, parser: &Parser) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(parser.name)
}

#[test]
fn every_parser_is_fed_and_has_a_target_and_a_corpus() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
    for parser in &PARSERS {
        let target = targets.join(format!("{}.rs", parser.name));
        assert!(target.exists() && folder("corpus", parser).exists() && FED.contains(&parser.name), "{}", parser.name);
    }
}

#[test]
fn files_that_fuzzing_found() {
    for (parser, kind) in PARSERS.iter().flat_map(|p| [(p, "found"), (p, "corpus")]) {
        for file in std::fs::read_dir(folder(kind, parser)).into_iter().flatten() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(catch_unwind(AssertUnwindSafe(|| (parser.parse)(&bytes))).is_ok(), "{}", path.display());
        }
    }
}
