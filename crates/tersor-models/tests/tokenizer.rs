//! Long texts are tokenized in pieces; the tokens are the same as those of the whole text.

use std::path::Path;

use tersor_core::Limits;
use tersor_formats::Model;
use tersor_models::Tokenizer;

/// Prose, then text without spaces, repeated newlines, and characters of several bytes.
fn text() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let prose = std::fs::read_to_string(root.join("examples/data/wiki-eval.txt")).unwrap();
    let odd =
        "日本語の文章です。".repeat(900) + &"\n".repeat(3000) + &"wörld1234567890".repeat(2000) + &" ".repeat(500);
    format!("{}{odd}{}", &prose[..prose.floor_char_boundary(150_000)], &prose[..prose.floor_char_boundary(70_000)])
}

#[test]
fn pieces_give_the_tokens_of_the_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = text();
    for name in ["examples/models/tiny-wiki", "models/smollm2-135m.gguf", "models/minilm"] {
        let path = root.join(name);
        if !path.exists() {
            eprintln!("skipped: {name} is missing (scripts/fetch-models.sh fetches it)");
            continue;
        }
        let json = Tokenizer::json_of(&Model::open(&path, &Limits::default()).unwrap()).unwrap();
        let mut whole = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        whole.with_padding(None).with_truncation(None).unwrap();
        let want = whole.encode(text.as_str(), false).unwrap();
        assert!(Tokenizer::from_json(&json).unwrap().encode(&text).unwrap() == want.get_ids(), "{name}");
    }
}

#[test]
fn framed_texts_keep_their_last_token() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/minilm");
    if !path.exists() {
        eprintln!("skipped: models/minilm is missing (scripts/fetch-models.sh fetches it)");
        return;
    }
    let model = Model::open(&path, &Limits::default()).unwrap();
    let tokenizer = Tokenizer::from_json(&Tokenizer::json_of(&model).unwrap()).unwrap();
    let all = tokenizer.encode_with_special_tokens("A quick brown fox.", 512).unwrap();
    assert_eq!(all, [101, 1037, 4248, 2829, 4419, 1012, 102]);
    assert_eq!(tokenizer.encode_with_special_tokens("A quick brown fox.", 4).unwrap(), [101, 1037, 4248, 102]);
    // The file sets padding to 128 tokens, which is ignored.
    assert_eq!(tokenizer.encode_with_special_tokens("", 512).unwrap(), [101, 102]);
}
