#![doc = include_str!("../README.md")]

pub mod awq;
pub mod coder;
pub mod dgq;
pub mod gptq;
mod output_clip;
pub mod qqq;
mod rtn;
mod search;
pub mod smooth;
mod stages;
mod ways;

pub use awq::{Awq, OutputClip};
pub use dgq::Dgq;
pub use gptq::Gptq;
pub use qqq::Qqq;
pub use rtn::{CheckedRtn, Rtn};
pub use smooth::{Adaptive, Percentile, SmoothQuant};
pub use stages::register_stages;
pub use tersor_core::{
    Changes, Check, ColumnCoder, Context, DType, Element, Error, Exec, GroupSize, Input, IntoMat, Isa, LinearOp,
    LinearOpExt, Mask, Masked, MatView, MatViewMut, MemTensors, Method, OpSpec, ParamError, Registry, Report, Result,
    Rewrite, RowSource, Site, StatNeeds, StatSet, TensorSource, Write,
};
pub use tersor_linalg::{HessianFactor, Sweep};
pub use tersor_operators::{
    ActQuant, Clip, DualLinear, Grid, GroupSpec, GroupedLinear, QuantParams, TableLinear, registry,
};

#[cfg(feature = "ndarray")]
pub use tersor_core::ndarray;
