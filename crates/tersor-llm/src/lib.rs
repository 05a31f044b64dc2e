//! A Llama-family decoder over boxed operators and a key-value cache (SmolLM2, Llama, Mistral, Qwen2 and Qwen3) and a
//! BERT-family encoder with mean pooling, from safetensors, GGUF, or what `tersor compress` wrote; tokenizers, sites and what
//! flows into them, generation, and perplexity.
//!
//! ```
//! use tersor_core::Exec;
//! use tersor_llm::{Checkpoint, Decoder, Sampling, Tokenizer, generate};
//! # fn main() -> tersor_core::Result<()> {
//! # let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki"));
//! let checkpoint = Checkpoint::open(path, &tersor_operators::registry())?;
//! let (decoder, tokenizer) = (Decoder::load(&checkpoint)?, Tokenizer::of(&checkpoint)?);
//! let prompt = tokenizer.encode("The river ")?;
//! let tokens = generate(&decoder, &prompt, 8, Sampling::Greedy, &Exec::new(), |_| true)?;
//! println!("{}", tokenizer.decode(&tokens)?);
//! # assert_eq!(tokens.len(), 8);
//! # Ok(())
//! # }
//! ```

mod architecture;
mod cache;
mod calibrate;
mod checkpoint;
mod config;
mod decoder;
mod encoder;
mod evaluate;
mod generate;
mod layer;
mod rope;
mod sites;
mod tokenizer;

pub use architecture::Architecture;
pub use cache::DenseCache;
pub use calibrate::{
    ABREAST, Behind, Calibration, Forks, Hooks, ReadRow, Replaced, Replacements, Seen, SiteChanges, batch_tokens,
    shard_windows,
};
pub use checkpoint::{
    Checkpoint, MANIFEST, Manifest, StoredWeight, Weights, bits_per_weight, is_embedding_or_head, is_key_rotation,
    key_rotation_name,
};
pub use config::{DecoderConfig, RopeScaling};
pub use decoder::{Decoder, State};
pub use encoder::{Activation, Encoder, EncoderConfig};
pub use evaluate::{Agreement, Evaluation, evaluate, windows};
pub use generate::{Sampling, Temperature, generate};
pub use layer::{Layer, Linear, SiteKind};
pub use rope::Rope;
pub use tersor_core::Angles;
pub use tokenizer::Tokenizer;
