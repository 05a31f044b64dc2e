//! A SentencePiece vocabulary in GGUF metadata becomes a tokenizer that merges by score, as llama.cpp does.

#[path = "../../tersor-formats/tests/common/mod.rs"]
mod binary;

use binary::{Gguf, string};
use tersor_core::Limits;
use tersor_formats::Model;
use tersor_models::Tokenizer;

#[test]
fn pieces_merge_by_score_and_unknown_bytes_fall_back() {
    let mut pieces: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    pieces.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
    for (i, piece) in ["▁t", "he", "▁the", "er", "▁th", "▁a", "▁", "t", "h", "e", "r", "a", "n"].iter().enumerate()
    {
        pieces.push((piece.to_string(), -(i as f32), 1));
    }
    let file = Gguf::new()
        .text("general.architecture", "llama")
        .text("tokenizer.ggml.model", "llama")
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .array("tokenizer.ggml.tokens", 8, &pieces.iter().map(|p| string(p.0.as_bytes())).collect::<Vec<_>>())
        .array("tokenizer.ggml.scores", 6, &pieces.iter().map(|p| p.1.to_le_bytes().to_vec()).collect::<Vec<_>>())
        .array("tokenizer.ggml.token_type", 5, &pieces.iter().map(|p| p.2.to_le_bytes().to_vec()).collect::<Vec<_>>());
    let dir = std::env::temp_dir().join(format!("tersor-sentencepiece-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let model = Model::open(&path, &Limits::default()).unwrap();
    let tokenizer = Tokenizer::from_json(&Tokenizer::json_of(&model).unwrap()).unwrap();
    let id = |p: &str| pieces.iter().position(|q| q.0 == p).unwrap() as u32;
    // `▁t` (best score) is merged first, then `he`, then both into `▁the`; a space is prepended.
    assert_eq!(tokenizer.encode("the a").unwrap(), [id("▁the"), id("▁a")]);
    assert_eq!(tokenizer.encode("ther").unwrap(), [id("▁the"), id("r")]);
    // `é` is not in the vocabulary and becomes its two bytes.
    assert_eq!(tokenizer.encode("né").unwrap(), [id("▁"), id("n"), id("<0xC3>"), id("<0xA9>")]);
    assert_eq!(tokenizer.encode("a</s>").unwrap()[1..], [id("</s>")]);
    for text in ["the a", "ther né", "an  e"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
