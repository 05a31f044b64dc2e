#![doc = include_str!("../README.md")]

pub mod affine;
mod arch;
pub mod attention;
pub mod bits;
pub mod blockwise;
pub mod cached_rows;
pub mod cluster;
pub mod codebook;
pub mod convert;
pub mod convolution;
mod decades;
pub mod dense;
mod fault;
mod gemm_task;
pub mod grouped;
pub mod hadamard;
pub mod integer;
mod isa;
pub mod limits;
pub mod lookup;
pub mod optimizer;
pub mod par;
mod real;
pub mod vector;

pub use fault::Fault;
pub use gemm_task::{GemmTask, Out, Tile, Write, run_tasks};
pub use isa::Isa;
pub use real::Real;
