//! The safetensors format: an eight-byte header length, a JSON header, the tensor data. Reading, sharded models, canonical writing.

mod header;
mod reader;
mod shards;
mod writer;

pub use header::{Entry, Header};
pub use reader::File;
pub use shards::{INDEX, Shards};
pub use writer::{Writer, write};
