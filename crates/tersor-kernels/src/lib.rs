//! The loops under Tersor's operators: slices in, slices out, no type of any other crate of ours.
//!
//! Everything vectorized or `unsafe` in the workspace lives here, behind safe functions that check
//! lengths first. Each vector loop has a scalar twin that defines its meaning; tests hold the two
//! equal bit for bit, sums included (the twin adds in the same order, with fused multiply-add).
//!
//! The instruction set is an argument, [`Isa`], of every function with such a loop. With [`Isa::SCALAR`] it runs plain
//! Rust to its last loop. The products of [`dense`] that need the `gemm` crate are the exception: that crate chooses
//! its own instructions.
//!
//! A function that can refuse its arguments returns [`Fault`]. Several products that share their input run as one piece
//! of parallel work through [`GemmTask`] and [`run_tasks`].
//!
//! ```
//! use tersor_kernels::{Isa, affine, bits};
//! let isa = Isa::detect();
//! let mut codes = [0u8; 3];
//! affine::quantize(isa, &[-1.0, 0.0, 0.5], affine::Affine { scale: 0.1, zero: 8 }, 0..=15, &mut codes);
//! assert_eq!(codes, [0, 8, 13]);
//! let mut packed = vec![0u8; bits::packed_len(3, 4)];
//! bits::pack(isa, &codes, 4, &mut packed);
//! assert_eq!(packed, [0x80, 0x0d]);
//! ```

pub mod affine;
mod arch;
pub mod attention;
pub mod bits;
pub mod blockwise;
pub mod cluster;
pub mod codebook;
pub mod convert;
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
pub mod vector;

pub use fault::Fault;
pub use gemm_task::{GemmTask, Out, Tile, Write, run_tasks};
pub use isa::Isa;
