//! Text to tokens and back, by the `tokenizers` crate.

use std::collections::HashMap;

use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, Result};
use tersor_formats::Model;
use tersor_formats::gguf::{self, Meta, MetaValue};

use crate::Checkpoint;

/// Bytes that are tokenized at once: the work takes some 150 times as many.
const PIECE: usize = 1 << 16;

/// Bytes that two neighbouring pieces share.
const OVERLAP: usize = 1 << 12;

/// Tokens on either side of a seam on which both pieces must agree.
const AGREE: usize = 16;

/// Where the tokens of a text so far and those of its next piece, which begins at byte `first`, can be joined: how many of the former to
/// keep, how many of the latter to leave out. In the middle of what both have seen neither end shows.
fn seam(all: &[(u32, usize)], piece: &[(u32, usize)], first: usize) -> Option<[usize; 2]> {
    let middle = first + OVERLAP / 2;
    let from = all.partition_point(|t| t.1 < middle);
    (from..all.len().saturating_sub(AGREE)).find_map(|i| {
        let j = piece.partition_point(|t| t.1 < all[i].1);
        let before = i.checked_sub(AGREE).zip(j.checked_sub(AGREE))?;
        let same = all.get(before.0..i + AGREE) == piece.get(before.1..j + AGREE);
        same.then_some([i, j])
    })
}

/// A model's tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// From `tokenizer.json` beside the weights, or from GGUF metadata.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(&Self::json_of(checkpoint.model())?)
    }

    /// The `tokenizer.json` of a model; of a GGUF file, one that means the same. Error when there is none, or its kind is unknown.
    pub fn json_of(model: &Model) -> Result<Vec<u8>> {
        match model.gguf() {
            Some(file) => Ok(from_gguf(file)?.to_string().into_bytes()),
            None => {
                let path =
                    if model.path().is_dir() { model.path() } else { model.path().parent().unwrap_or(model.path()) };
                let path = path.join("tokenizer.json");
                let len = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
                // Vocabularies of multilingual models are larger than other JSON files.
                Limits::check("length of tokenizer.json", len, Limits::default().header_bytes)?;
                std::fs::read(&path).map_err(|e| Error::io(&path, e))
            }
        }
    }

    /// From the content of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let bad = |e: Box<dyn std::error::Error + Send + Sync>| Error::format("tokenizer.json", e.to_string());
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(bad)?;
        // Some files ask for every text to be cut and padded to one length.
        tokenizer.with_padding(None).with_truncation(None).map_err(bad)?;
        Ok(Self(tokenizer))
    }

    /// Tokens of a text; none are added around it. Memory does not grow with the text but for the tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() <= PIECE {
            return Ok(self.tokens_at(text, 0)?.into_iter().map(|t| t.0).collect());
        }
        let mut all: Vec<(u32, usize)> = Vec::new();
        let mut first = 0;
        loop {
            let end = text.floor_char_boundary(first + PIECE);
            let piece = self.tokens_at(&text[first..end], first)?;
            if first == 0 {
                all = piece;
            } else if let Some([keep, skip]) = seam(&all, &piece, first) {
                all.truncate(keep);
                all.extend_from_slice(&piece[skip..]);
            } else {
                // A tokenizer for which far away matters: the text as a whole.
                let whole = self.tokens_at(text, 0)?;
                return Ok(whole.into_iter().map(|t| t.0).collect());
            }
            if end == text.len() {
                return Ok(all.into_iter().map(|t| t.0).collect());
            }
            first = text.floor_char_boundary(end - OVERLAP);
        }
    }

    /// Tokens, each with the byte where it begins, `base` being the first.
    fn tokens_at(&self, text: &str, base: usize) -> Result<Vec<(u32, usize)>> {
        let encoding = self.0.encode(text, false).map_err(|e| Error::format("text", e.to_string()))?;
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, at)| (*id, base + at.0)).collect())
    }

    /// Tokens of a text with those that the model wants around it (`[CLS]`, `[SEP]`), at most `most`: of a longer text the end is left
    /// out, and its last token stays.
    pub fn encode_framed(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let encoding = self.0.encode_fast(text, true).map_err(|e| Error::format("text", e.to_string()))?;
        let mut tokens = encoding.get_ids().to_vec();
        if tokens.len() > most {
            tokens.drain(most.saturating_sub(1)..tokens.len() - 1);
        }
        Ok(tokens)
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.0.decode(tokens, true).map_err(|e| Error::format("tokens", e.to_string()))
    }
}

/// Pre-tokenizers by llama.cpp's names. Patterns are those of the models' own `tokenizer.json`.
fn pre_tokenizer(name: &str) -> Result<Json> {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false)]})
    };
    Ok(match name {
        "default" | "gpt-2" | "gpt2" => bytes(true),
        "smollm" => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => split(LLAMA3),
        "qwen2" => split(QWEN2),
        other => return Err(Error::Unsupported { what: "GGUF pre-tokenizer", value: format!("`{other}`") }),
    })
}

fn missing(key: &str) -> Error {
    Error::Missing { name: key.into(), place: "the GGUF metadata".into() }
}

/// A list of texts in the metadata.
fn texts<'a>(meta: &'a Meta, key: &str) -> Result<Vec<&'a str>> {
    let text = |v: &'a MetaValue| match v {
        MetaValue::Text(s) => Ok(s.as_str()),
        _ => Err(Error::format(key, "holds something else than texts")),
    };
    meta.array(key).ok_or_else(|| missing(key))?.iter().map(text).collect()
}

fn from_gguf(file: &gguf::File) -> Result<Json> {
    let meta = file.meta();
    let tokens = texts(meta, "tokenizer.ggml.tokens")?;
    let kinds: Vec<i64> = meta
        .array("tokenizer.ggml.token_type")
        .map(|l| l.iter().map(|v| if let MetaValue::Int(i) = v { *i } else { 1 }).collect())
        .unwrap_or_default();
    // Types 3 and 4 are control and user-defined tokens: matched in the text before anything else.
    let added: Vec<Json> = kinds.iter().zip(&tokens).enumerate().filter(|(_, (k, _))| matches!(**k, 3 | 4)).map(|(id, (k, t))| {
        json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": *k == 3})
    }).collect();
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(i, t)| (t.to_string(), i.into())).collect();
    if vocab.len() != tokens.len() {
        return Err(Error::format("tokenizer.ggml.tokens", "a token appears twice"));
    }
    let frame = |normalizer: Json, pre: Json, decoder: Json, model: Json| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": null, "decoder": decoder, "model": model})
    };
    let bpe = |merges: Vec<Json>, unk: Json, fallback: bool| {
        json!({"type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": fallback, "byte_fallback": fallback, "ignore_merges": false, "vocab": vocab, "merges": merges})
    };
    match meta.text("tokenizer.ggml.model") {
        Some("gpt2") => {
            let pre = meta.text("tokenizer.ggml.pre").unwrap_or("default");
            let merges = texts(meta, "tokenizer.ggml.merges")?;
            let merges = merges.iter().map(|m| match m.split_once(' ') {
                Some((a, b)) => Ok(json!([a, b])),
                None => Err(Error::format("tokenizer.ggml.merges", format!("`{m}` is not a pair"))),
            });
            let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Json::Null };
            let decoder =
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            Ok(frame(normalizer, pre_tokenizer(pre)?, decoder, bpe(merges.collect::<Result<_>>()?, Json::Null, false)))
        }
        Some("llama") => {
            let scores = meta.array("tokenizer.ggml.scores").ok_or_else(|| missing("tokenizer.ggml.scores"))?;
            let merges = merges_by_score(&tokens, scores);
            let prefix = meta.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
            let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            let normalizer = if prefix {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
            } else {
                replace
            };
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if prefix {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            let unk = meta
                .uint("tokenizer.ggml.unknown_token_id")
                .and_then(|i| tokens.get(i as usize))
                .map_or(Json::Null, |t| json!(t));
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            Ok(frame(normalizer, Json::Null, decoder, bpe(merges, unk, true)))
        }
        Some(other) => Err(Error::Unsupported { what: "GGUF tokenizer", value: format!("`{other}`") }),
        None => Err(missing("tokenizer.ggml.model")),
    }
}

/// SentencePiece merges the neighbours whose union has the best score: as a list of merges, every way to cut a token in
/// two tokens, best score of the whole first.
fn merges_by_score(tokens: &[&str], scores: &[MetaValue]) -> Vec<Json> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (*t, i)).collect();
    let score = |i: usize| match scores.get(i) {
        Some(MetaValue::Float(v)) => *v,
        _ => 0.0,
    };
    let mut all: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        for (cut, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(cut);
            if let (Some(&x), Some(&y)) = (ids.get(a), ids.get(b)) {
                all.push((score(i), x, y, a, b));
            }
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    all.into_iter().map(|(_, _, _, a, b)| json!([a, b])).collect()
}
