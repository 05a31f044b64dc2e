#![doc = include_str!("../README.md")]

pub mod awq;
pub mod coder;
pub mod dgq;
pub mod gptq;
pub mod mixed;
pub mod qqq;
mod rtn;
mod search;
pub mod smooth;

pub use awq::{Awq, OutputClip};
pub use dgq::Dgq;
pub use gptq::Gptq;
pub use qqq::Qqq;
pub use rtn::{CheckedRtn, Rtn};
pub use smooth::{Adaptive, Percentile, SmoothQuant};
pub use tersor_core::{
    Check, Context, DType, Error, Exec, GroupSize, Input, IntoMat, Isa, LinearOp, LinearOpExt, MatView, MatViewMut,
    MemTensors, Method, ParamError, Registry, Report, Result, StatNeeds, StatSet, Write,
};
pub use tersor_operators::{Clip, DualLinear, Grid, GroupFit, GroupSpec, GroupedLinear, TableLinear, registry};

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;
