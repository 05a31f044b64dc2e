//! Converts tokenizers between GGUF metadata and `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Value as Json, json};
use tersor_core::{Error, Result};
use tersor_formats::gguf::{self, Meta, MetaValue, MetaWriter};

/// Returns the pre-tokenizer, as in a `tokenizer.json`, of a llama.cpp name. The patterns are those of the models' own files. Errors if the name is
/// unknown.
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

/// Returns a key's list of strings. Errors if the key is missing or another type.
fn texts<'a>(meta: &'a Meta, key: &str) -> Result<Vec<&'a str>> {
    let text = |v: &'a MetaValue| match v {
        MetaValue::Text(s) => Ok(s.as_str()),
        _ => Err(Error::format(key, "it must be a list of strings only")),
    };
    meta.array(key).ok_or_else(|| missing(key))?.iter().map(text).collect()
}

/// Builds the `tokenizer.json` that corresponds to the metadata of a GGUF file. Errors if a key is missing or the kind of tokenizer is unknown.
pub(super) fn read(file: &gguf::File) -> Result<Json> {
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
                None => Err(Error::format(
                    "tokenizer.ggml.merges",
                    format!("the merge `{m}` is not a pair of tokens separated by a space"),
                )),
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

/// Returns the BPE merges that correspond to SentencePiece scores. SentencePiece merges the two neighbours whose union has the highest score, so the
/// list has every split of a token into two tokens, in descending order of the whole token's score.
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

/// Adds the GGUF keys that correspond to a `tokenizer.json`; see [`super::Tokenizer::write_gguf_meta`].
pub(super) fn write(json: &Json, config: &Json, meta: &mut MetaWriter) -> Result<()> {
    let model = &json["model"];
    let unknown = |what: &str, value: &Json| -> Result<()> {
        let mut value = value.to_string();
        value.truncate(value.floor_char_boundary(120));
        Err(Error::Unsupported { what: "tokenizer in a GGUF file", value: format!("{what} {value}") })
    };
    if model["type"] != "BPE" {
        return unknown("of model", &model["type"]);
    }
    let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entries = model["vocab"].as_object().into_iter().flatten().map(|(t, id)| (t.as_str(), id.as_u64(), 1));
    let special = added.iter().map(|t| {
        let kind = if t["special"] == true { 3 } else { 4 };
        (t["content"].as_str().unwrap_or_default(), t["id"].as_u64(), kind)
    });
    // The embedding may have more rows than the tokenizer has tokens; the others get placeholder names.
    let rows = config["vocab_size"].as_u64().unwrap_or(0) as usize;
    let mut tokens: Vec<(String, i32)> = (0..rows).map(|i| (format!("[PAD{i}]"), 5)).collect();
    for (text, id, kind) in entries.chain(special) {
        let slot = id.and_then(|id| tokens.get_mut(id as usize));
        let slot = slot.ok_or_else(|| Error::shape("id of a token", format!("below {rows}"), format!("{id:?}")))?;
        *slot = (text.to_string(), kind);
    }
    let merges: Option<Vec<String>> = model["merges"].as_array().into_iter().flatten().map(merge).collect();
    let merges =
        merges.ok_or_else(|| Error::format("tokenizer.json", "`merges` must be a list of pairs of tokens only"))?;
    if model["byte_fallback"] == true {
        meta.text("tokenizer.ggml.model", "llama").text("tokenizer.ggml.pre", "default");
        // The score is the negative rank of the merge that makes a token; tokens that no merge makes score 0.
        let mut rank: HashMap<String, usize> = HashMap::new();
        for (i, m) in merges.iter().enumerate() {
            rank.entry(m.replacen(' ', "", 1)).or_insert(i);
        }
        let score = |t: &str| rank.get(t).map_or(0.0, |r| -(*r as f32));
        let scores: Vec<f32> = tokens.iter().map(|(t, _)| score(t)).collect();
        meta.floats("tokenizer.ggml.scores", &scores);
        for (text, kind) in &mut tokens {
            match (text.as_str(), &kind) {
                (t, 1) if t.len() == 6 && t.starts_with("<0x") && t.ends_with('>') => *kind = 6,
                (t, 3 | 1) if model["unk_token"] == t => *kind = 2,
                _ => {}
            }
        }
        meta.bool("tokenizer.ggml.add_space_prefix", json["normalizer"].to_string().contains("Prepend"));
    } else {
        let pre = &json["pre_tokenizer"];
        let name = NAMES.iter().find(|n| pre_tokenizer(n).is_ok_and(|known| steps(&known) == steps(pre)));
        let Some(name) = name else { return unknown("with pre-tokenizer", pre) };
        meta.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", name);
        meta.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
        meta.bool("tokenizer.ggml.add_space_prefix", false);
    }
    meta.texts("tokenizer.ggml.tokens", tokens.iter().map(|t| t.0.as_str()));
    meta.ints("tokenizer.ggml.token_type", &tokens.iter().map(|t| t.1).collect::<Vec<_>>());
    for (name, id) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        // GGUF has one end-of-text token: the first of several.
        let id = config[id].as_u64().or_else(|| config[id].as_array()?.first()?.as_u64());
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            meta.uint(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    let first = json["post_processor"].to_string();
    let begins = config["bos_token_id"].as_u64().and_then(|id| tokens.get(id as usize)).is_some_and(|t| {
        !t.0.is_empty() && first.contains("TemplateProcessing") && first.contains(&json!(t.0).to_string())
    });
    meta.bool("tokenizer.ggml.add_bos_token", begins);
    Ok(())
}

/// llama.cpp's names of the pre-tokenizers that [`write`] recognizes.
const NAMES: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// Returns a merge as GGUF stores it, `left right`, from either of its forms in `tokenizer.json`; none if it is neither.
fn merge(pair: &Json) -> Option<String> {
    match pair {
        Json::String(s) if s.split(' ').count() == 2 => Some(s.clone()),
        Json::Array(p) if p.len() == 2 => Some(format!("{} {}", p[0].as_str()?, p[1].as_str()?)),
        _ => None,
    }
}

/// Returns the steps of a pre-tokenizer for comparison, without options that do not change the tokens.
fn steps(pre: &Json) -> Vec<Json> {
    if pre["type"] == "Sequence" {
        return pre["pretokenizers"].as_array().into_iter().flatten().flat_map(steps).collect();
    }
    let mut pre = pre.clone();
    if let Some(map) = pre.as_object_mut() {
        map.remove("trim_offsets");
    }
    vec![pre]
}
