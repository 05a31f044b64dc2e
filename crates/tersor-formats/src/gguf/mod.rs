//! GGUF version 3 (and 2, which differs in nothing that is read here): metadata, tokenizer, tensors; version 3 written.

pub mod blocks;
mod config;
mod encode;
mod file;
mod meta;
mod names;
mod write;

pub use blocks::BlockType;
pub use config::{gguf_meta, hf_config};
pub use file::{File, GgufRows, GgufTensor, Interleaved};
pub use meta::{Meta, MetaValue};
pub use names::{Heads, HfTensor, gguf_name, hf_name};
pub use write::{MetaWriter, Writer};
