//! SmolLM2, if `scripts/fetch-models.sh` has fetched it, compared with figures of transformers 5.23 on the same file in float32.

use std::path::Path;

use tersor_core::{Cancel, Exec, Silent};
use tersor_models::{Checkpoint, Decoder, Sampling, Tokenizer, evaluate, generate, windows};
use tersor_operators::registry;

fn open() -> Option<(Decoder, Tokenizer)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("models/smollm2-135m.gguf");
    if !path.is_file() {
        eprintln!("skipped: {} is missing (scripts/fetch-models.sh fetches it)", path.display());
        return None;
    }
    let checkpoint = Checkpoint::open(&path, &registry()).unwrap();
    Some((Decoder::load(&checkpoint).unwrap(), Tokenizer::of(&checkpoint).unwrap()))
}

#[test]
fn tokens_perplexity_and_greedy_text_are_those_of_transformers() {
    let Some((decoder, tokenizer)) = open() else { return };
    for (text, want) in [
        (
            "Hello, wörld! 12345\n\n  tabs\tand 日本語 <|im_start|>user",
            &[
                19556, 28, 267, 29989, 400, 17, 216, 33, 34, 35, 36, 37, 8866, 29416, 197, 397, 17097, 241, 115, 40993,
                179, 120, 248, 216, 1, 4093,
            ][..],
        ),
        (" leading", &[2899]),
        ("it's we'll", &[269, 506, 392, 3060]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), want, "{text}");
    }
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/wiki-eval.txt");
    let tokens = tokenizer.encode(&std::fs::read_to_string(text).unwrap()).unwrap();
    assert_eq!(tokens.len(), 50440);
    let cut = windows(&tokens, 512, Some(8)).unwrap();
    let found = evaluate(&decoder, None, &cut, &Exec::new(), &Silent, &Cancel::new()).unwrap();
    assert!((found.perplexity / 22.990017 - 1.0).abs() < 1e-3, "{}", found.perplexity);
    assert_eq!(found.tokens, 8 * 511);

    let greedy = [
        (
            "The capital of France is",
            [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216, 33, 34, 42, 33],
        ),
        (
            "Once upon a time there was a small boat",
            [
                338, 23217, 1699, 260, 5065, 30, 2306, 436, 3365, 260, 476, 61, 10247, 901, 506, 942, 1241, 361, 2227,
                2306, 436, 253, 12833, 284,
            ],
        ),
    ];
    for (prompt, want) in greedy {
        let prompt = tokenizer.encode(prompt).unwrap();
        let got = generate(&decoder, &prompt, 24, Sampling::Greedy, &Exec::new(), |_| true).unwrap();
        assert_eq!(got, want);
    }
}
