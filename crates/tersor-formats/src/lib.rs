#![doc = include_str!("../README.md")]

mod atomic;
mod content;
pub mod gguf;
pub mod imatrix;
pub mod json;
mod model;
pub mod peft;
mod read_at;
pub mod safetensors;

pub use atomic::{AtomicFile, sync_dir, write_atomic};
pub use content::{Content, describe};
pub use model::{Model, ModelKind, Tensor};
pub use read_at::{FileAt, ReadAt};
pub use tersor_core::Limits;
