//! Text to tokens and back, by the `tokenizers` crate.

mod keys;

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::Model;
use tersor_formats::gguf::MetaWriter;

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

/// Runs code of the `tokenizers` crate, which panics at some files that are no tokenizer. Errors if it does.
fn no_panic<R>(f: impl FnOnce() -> R) -> Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
        .map_err(|_| Error::format("tokenizer.json", "the tokenizers crate cannot work with it"))
}

impl Tokenizer {
    /// From `tokenizer.json` beside the weights, or from GGUF metadata.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(&Self::json_of(checkpoint.model())?)
    }

    /// The `tokenizer.json` of a model; of a GGUF file, one that means the same. Error when there is none, or its kind is unknown.
    pub fn json_of(model: &Model) -> Result<Vec<u8>> {
        match model.gguf() {
            Some(file) => Ok(keys::read(file)?.to_string().into_bytes()),
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

    /// The keys that say in a GGUF file what a `tokenizer.json` says; `config` names the special tokens. Error when its kind is not one that
    /// llama.cpp has under a name known here.
    pub fn gguf_keys(json: &[u8], config: &Json, meta: &mut MetaWriter) -> Result<()> {
        let json = serde_json::from_slice(json).map_err(|e| Error::format("tokenizer.json", e.to_string()))?;
        keys::write(&json, config, meta)
    }

    /// Returns the tokenizer of a `tokenizer.json`. Errors if it is not valid JSON, or describes no tokenizer.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let bad = |e: Box<dyn std::error::Error + Send + Sync>| Error::format("tokenizer.json", e.to_string());
        // Parsed for the check alone: the crate panics at numbers and escapes that no value holds.
        serde_json::from_slice::<Json>(json).map_err(|e| bad(e.into()))?;
        let mut tokenizer = no_panic(|| tokenizers::Tokenizer::from_bytes(json))?.map_err(bad)?;
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
        let encoding = no_panic(|| self.0.encode(text, false))?.map_err(|e| Error::format("text", e.to_string()))?;
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, at)| (*id, base + at.0)).collect())
    }

    /// Tokens of a text with those that the model wants around it (`[CLS]`, `[SEP]`), at most `most`: of a longer text the end is left
    /// out, and its last token stays.
    pub fn encode_framed(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let encoding =
            no_panic(|| self.0.encode_fast(text, true))?.map_err(|e| Error::format("text", e.to_string()))?;
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
