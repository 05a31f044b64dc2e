//! safetensors: an eight-byte header length, a JSON header, the data.

mod header;
mod reader;
mod shards;
mod writer;

pub use header::{Entry, Header};
pub use reader::File;
pub use shards::{INDEX, Shards};
pub use writer::{Writer, write};
