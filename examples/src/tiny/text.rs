//! The training text of the small model, and its tokenizer.

use std::fs;
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::{AnyError, CONTEXT, VOCAB};

/// A byte-level BPE tokenizer.
pub type Bpe =
    TokenizerImpl<ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The tokenizer, and the tokens of the training and evaluation texts.
pub struct Text {
    /// The tokenizer, trained on the training text.
    pub tokenizer: Bpe,
    /// Tokens of `wiki-train.txt`.
    pub train: Vec<u32>,
    /// Tokens of `wiki-eval.txt`.
    pub eval: Vec<u32>,
}

impl Text {
    /// Trains the tokenizer on `examples/data/wiki-train.txt` and tokenizes both texts. Errors if a file cannot be read.
    pub fn read() -> Result<Self, AnyError> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
        let tokenizer = learn_tokenizer(&data.join("wiki-train.txt"))?;
        let encode = |name: &str| -> Result<Vec<u32>, AnyError> {
            Ok(tokenizer.encode(fs::read_to_string(data.join(name))?, false)?.get_ids().to_vec())
        };
        let (train, eval) = (encode("wiki-train.txt")?, encode("wiki-eval.txt")?);
        Ok(Self { tokenizer, train, eval })
    }
}

fn learn_tokenizer(text: &Path) -> Result<Bpe, AnyError> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut bpe: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    bpe.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes)).with_post_processor(Some(bytes));
    bpe.train_from_files(&mut trainer, vec![text.to_string_lossy().into_owned()])?;
    // Converted through JSON to the type that a tokenizer.json is loaded as.
    Ok(serde_json::from_str(&bpe.to_string(false)?)?)
}

/// Iterates over non-overlapping windows of `CONTEXT` tokens, each with the token after it.
pub(super) fn windows(tokens: &[u32]) -> Vec<&[u32]> {
    tokens
        .chunks_exact(CONTEXT)
        .filter_map(|w| {
            let start = w.as_ptr() as usize - tokens.as_ptr() as usize;
            let at = start / size_of::<u32>();
            tokens.get(at..at + CONTEXT + 1)
        })
        .collect()
}
