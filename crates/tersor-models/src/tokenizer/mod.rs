//! Tokenizers of models, on top of the `tokenizers` crate.

mod keys;

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result};
use tersor_formats::Model;
use tersor_formats::gguf::MetaWriter;

use crate::Checkpoint;

/// Bytes of text that are tokenized at once. Tokenizing takes some 150 bytes of memory per byte of text.
const PIECE: usize = 1 << 16;

/// Bytes of text by which two neighbouring pieces overlap.
const OVERLAP: usize = 1 << 12;

/// Number of tokens before and after a seam that must be the same in both pieces.
const AGREE: usize = 16;

/// Finds where the tokens `all` of a text so far and the tokens `piece` of its next piece, which begins at byte `first`, can be joined. Each token
/// comes with its byte offset. Returns how many tokens of `all` to keep and how many of `piece` to skip; none if the two disagree. The search starts
/// in the middle of the overlap, where tokens do not depend on where a piece was cut.
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

/// The tokenizer of a model: byte-level BPE, SentencePiece-style BPE, WordPiece, or any other kind that a Hugging Face `tokenizer.json`
/// describes.
///
/// ```
/// use tersor_models::{Checkpoint, Tokenizer};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let tokenizer = Tokenizer::of(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let tokens = tokenizer.encode("The river flows.")?;
/// assert_eq!(tokenizer.decode(&tokens)?, "The river flows.");
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer(tokenizers::Tokenizer);

/// Runs code of the `tokenizers` crate, which panics on some invalid files, and turns a panic into an error.
fn no_panic<R>(f: impl FnOnce() -> R) -> Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
        .map_err(|_| Error::format("tokenizer.json", "the tokenizers crate cannot process it"))
}

impl Tokenizer {
    /// Loads the tokenizer of a checkpoint: from `tokenizer.json` beside the weights, or from the metadata of a GGUF file. Errors if there
    /// is none, it cannot be read or is invalid, or a GGUF file's kind of tokenizer or pre-tokenizer is unknown.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(&Self::json_of(checkpoint.model())?)
    }

    /// Returns the content of the `tokenizer.json` beside a model's weights, as it is, even if it is no valid tokenizer. For a GGUF file,
    /// returns the bytes of an equivalent `tokenizer.json` built from the file's metadata. Errors if `tokenizer.json` does not exist or is
    /// larger than 100 MB, or if a GGUF file lacks the tokenizer's keys or has an unknown kind of tokenizer or pre-tokenizer.
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

    /// Adds to `meta` the GGUF keys that correspond to a `tokenizer.json`. `json` is the content of that file, and `config` is the model's
    /// `config.json`. The key `vocab_size` of `config` is the number of tokens to write, 0 if it is missing; a number that the tokenizer
    /// does not use gets a placeholder such as `[PAD7]`. The keys `bos_token_id`, `eos_token_id` and `pad_token_id` of `config` have the
    /// numbers of the special tokens; of a list the first is taken, and a missing one or one of another type adds no key. Errors if `json` is not valid JSON or no BPE tokenizer, a merge is neither two tokens in a string with one space
    /// between them nor a list of two tokens, a token's number is not below `vocab_size`, or, for a tokenizer without byte fallback, the
    /// pre-tokenizer is none that llama.cpp has a known name for.
    pub fn write_gguf_meta(json: &[u8], config: &Json, meta: &mut MetaWriter) -> Result<()> {
        let json = serde_json::from_slice(json).map_err(|e| Error::format("tokenizer.json", e.to_string()))?;
        keys::write(&json, config, meta)
    }

    /// Parses the content of a Hugging Face `tokenizer.json`. Its padding and truncation settings are ignored. Errors if it is not valid
    /// JSON or describes no tokenizer that the `tokenizers` crate supports.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let bad = |e: Box<dyn std::error::Error + Send + Sync>| Error::format("tokenizer.json", e.to_string());
        // Parsed for the check alone: the crate panics at numbers and escapes that no value holds.
        serde_json::from_slice::<Json>(json).map_err(|e| bad(e.into()))?;
        let mut tokenizer = no_panic(|| tokenizers::Tokenizer::from_bytes(json))?.map_err(bad)?;
        // Some files set truncation and padding to a fixed length.
        tokenizer.with_padding(None).with_truncation(None).map_err(bad)?;
        Ok(Self(tokenizer))
    }

    /// Returns the token numbers of a text, without special tokens around it. To bound memory, a text of more than 64 KiB is tokenized in
    /// overlapping pieces, whose tokens are joined at a place where they agree. If two neighbouring pieces do not agree, the text is
    /// tokenized as a whole. Errors if the tokenizer fails on the text.
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
                // The tokens depend on text outside of the piece, so the text is tokenized as a whole.
                let whole = self.tokens_at(text, 0)?;
                return Ok(whole.into_iter().map(|t| t.0).collect());
            }
            if end == text.len() {
                return Ok(all.into_iter().map(|t| t.0).collect());
            }
            first = text.floor_char_boundary(end - OVERLAP);
        }
    }

    /// Returns the tokens of `text` with the byte offset of each; `base` is the offset of the first byte.
    fn tokens_at(&self, text: &str, base: usize) -> Result<Vec<(u32, usize)>> {
        let encoding = no_panic(|| self.0.encode(text, false))?.map_err(|e| Error::format("text", e.to_string()))?;
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, at)| (*id, base + at.0)).collect())
    }

    /// Returns the token numbers of a text with the special tokens that the model adds around it (`[CLS]`, `[SEP]`). Of a sequence of more
    /// than `max` tokens, returns the first `max - 1` and the last one, so that a final `[SEP]` remains. A `max` of 0 counts as 1. Errors
    /// if the tokenizer fails on the text.
    pub fn encode_with_special_tokens(&self, text: &str, max: usize) -> Result<Vec<u32>> {
        let encoding =
            no_panic(|| self.0.encode_fast(text, true))?.map_err(|e| Error::format("text", e.to_string()))?;
        let mut tokens = encoding.get_ids().to_vec();
        if tokens.len() > max {
            tokens.drain(max.saturating_sub(1)..tokens.len() - 1);
        }
        Ok(tokens)
    }

    /// Returns the text of the token numbers `tokens`. Special tokens and numbers outside of the vocabulary are skipped. Errors if the
    /// tokenizer's decoder fails on the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        no_panic(|| self.0.decode(tokens, true))?.map_err(|e| Error::format("tokens", e.to_string()))
    }
}
