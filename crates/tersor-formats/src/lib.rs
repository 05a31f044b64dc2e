//! Model files: safetensors (one file or shards with an index) and GGUF, read at positions and row by
//! row, never as a whole; canonical safetensors written so that a file is either absent or complete.
//!
//! Nothing a file says is believed before it is checked against the file's length and [`Limits`]. No
//! pickle is read. Names of tensors are never used as paths.
//!
//! ```
//! use tersor_formats::{Model, safetensors};
//! use tersor_core::{DType, Limits, RowSource, TensorInfo, TensorSink};
//! # fn main() -> tersor_core::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("model.safetensors");
//! let info = TensorInfo { dtype: DType::F32, shape: vec![2, 2] };
//! let mut file = safetensors::Writer::create(&path, [("w".to_string(), info.clone())].into())?;
//! file.write_rows("w", &info, 0, &[1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat())?;
//! file.finish()?;
//!
//! let model = Model::open(&path, &Limits::default())?;
//! let mut row = [0.0; 2];
//! model.rows("w")?.read_rows(1..2, &mut row)?;
//! assert_eq!(row, [3.0, 4.0]);
//! # Ok(())
//! # }
//! ```

mod atomic;
pub mod gguf;
pub mod imatrix;
pub mod json;
mod model;
mod read_at;
pub mod safetensors;

pub use atomic::{AtomicFile, sync_dir, write_atomic};
pub use model::{Model, ModelKind, Tensor};
pub use read_at::{FileAt, ReadAt};
pub use tersor_core::Limits;
