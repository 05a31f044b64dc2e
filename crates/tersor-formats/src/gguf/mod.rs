//! The GGUF format: reads the metadata and tensors of versions 2 and 3, dequantizes rows, and writes version 3.

pub mod blocks;
mod config;
mod encode;
mod file;
mod meta;
mod names;
mod write;

pub use blocks::BlockType;
pub use config::{gguf_meta, hf_config};
pub use file::{File, GgufRows, GgufTensor, InterleavedRows};
pub use meta::{Meta, MetaValue};
pub use names::{RowOrder, TensorName, gguf_name, hf_name};
pub use write::{MetaWriter, Writer};
