//! GGUF version 3 (and 2, which differs in nothing that is read here): metadata, tokenizer, tensors.

pub mod blocks;
mod config;
mod file;
mod meta;
mod names;

pub use blocks::BlockType;
pub use config::hf_config;
pub use file::{File, GgufRows, GgufTensor};
pub use meta::{Meta, MetaValue};
pub use names::{Heads, HfTensor, hf_name};
