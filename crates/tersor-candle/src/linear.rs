//! [`CompressedLinear`]: a compressed matrix as a linear layer.

use std::sync::Arc;

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Module, Shape, Tensor};
use candle_nn::Linear;
use tersor_core::{Exec, Input, LinearOp, LinearOpExt, MatView, MatViewMut, Write};

use crate::error::{check_cpu, on_device};
use crate::storage::{as_matrix, read, type_of, write};
use crate::{Error, Result};

/// The input of a product, in messages.
const INPUT: &str = "the input of a compressed matrix";

/// A linear layer `y = x Wᵀ + b` whose matrix `W` `[out_features, in_features]` is a [`LinearOp`]: quantized, factored, or any other stored
/// form. Clones share the matrix.
///
/// The input has the shape `[.., in_features]`, with elements in f32, f16 or bf16; the output has the shape `[.., out_features]` and the
/// same type. Products are computed in f32 and rounded to the type of the input. The gradients with respect to the input and the bias are
/// those of a dense layer; the matrix itself is not trained. Tensors must be on the CPU.
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{Device, Module, Tensor};
/// use tersor_candle::{CompressedLinear, Matrix};
/// use tersor::groupwise::Rtn;
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Tensor::randn(0f32, 1.0, (64, 128), &Device::Cpu)?;
/// let (op, report) = Rtn::new().bits(4).group(32).quantize(&Matrix::new(&weight)?).map_err(tersor_candle::Error::from)?;
/// assert!(report.relative_error() < 0.2);
/// let layer = CompressedLinear::new(Arc::new(op), None)?;
/// let y = layer.forward(&Tensor::ones((2, 3, 128), candle_core::DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [2, 3, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CompressedLinear {
    product: Product,
    bias: Option<Tensor>,
}

impl std::fmt::Debug for CompressedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spec = self.product.op.spec();
        let mut out = f.debug_struct("CompressedLinear");
        out.field("kind", &spec.kind).field("shape", &spec.shape).field("bias", &self.bias.is_some()).finish()
    }
}

impl CompressedLinear {
    /// Returns the layer with the matrix `op`, `[out_features, in_features]`, and the bias `bias`, `[out_features]`. Products run in the
    /// rayon pool of the calling thread, with the processor's best instruction set. Errors if the bias has another shape or is not on the
    /// CPU.
    pub fn new(op: Arc<dyn LinearOp>, bias: Option<Tensor>) -> Result<Self> {
        let [out, _] = op.shape();
        if let Some(bias) = &bias {
            check_cpu("the bias of a compressed matrix", bias.device())?;
            if bias.dims() != [out] {
                return Err(tersor_core::Error::shape("bias of a compressed matrix", [out], bias.dims()).into());
            }
        }
        Ok(Self { product: Product { op, exec: Exec::new(), transposed: false }, bias })
    }

    /// Returns this layer with products that run on `exec`: its threads, its instruction set and its scratch memory.
    pub fn with_exec(mut self, exec: Exec) -> Self {
        self.product.exec = exec;
        self
    }

    /// Returns the matrix, `[out_features, in_features]`.
    pub fn op(&self) -> &Arc<dyn LinearOp> {
        &self.product.op
    }

    /// Returns the bias, `[out_features]`; None if the layer has none.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Returns the shape of the matrix, `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        self.product.op.shape()
    }

    /// Returns a dense layer in f32 with the decompressed matrix and the same bias. Errors if rows cannot be decompressed.
    pub fn dequantize(&self) -> Result<Linear> {
        let weight = Tensor::from_vec(self.product.op.decompress()?, &self.shape(), &candle_core::Device::Cpu)?;
        let bias = self.bias.as_ref().map(|b| b.to_dtype(candle_core::DType::F32)).transpose()?;
        Ok(Linear::new(weight, bias))
    }
}

impl Module for CompressedLinear {
    /// Returns `x Wᵀ + b`, `[.., out_features]`, for `x` `[.., in_features]` in f32, f16 or bf16, in the same type. Errors if the number of
    /// features differs, a value is not finite, or `x` has another type or is not on the CPU.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        check_cpu(INPUT, x.device())?;
        let y = x.contiguous()?.apply_op1(self.product.clone())?;
        match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?),
            None => Ok(y),
        }
    }
}

/// The product `x Wᵀ` as a candle operation; if `transposed`, its gradient `dy W`. Each is the gradient of the other, so that gradients of
/// gradients are right, too.
#[derive(Clone)]
pub(crate) struct Product {
    pub(crate) op: Arc<dyn LinearOp>,
    pub(crate) exec: Exec,
    pub(crate) transposed: bool,
}

impl Product {
    fn compute(&self, x: &[f32], shape: [usize; 2]) -> tersor_core::Result<Vec<f32>> {
        let ([tokens, features], [out, inp]) = (shape, self.op.shape());
        let (from, to) = if self.transposed { (out, inp) } else { (inp, out) };
        if features != from {
            let what = if self.transposed { "features of a gradient" } else { "features of the input" };
            return Err(tersor_core::Error::shape(what, from, features));
        }
        let mut y = vec![0f32; tersor_core::view::elements([tokens, to])?];
        let view = MatViewMut::new(&mut y, [tokens, to])?;
        if self.transposed {
            self.op.apply_transposed(MatView::new(x, shape)?, view, &self.exec)?;
        } else {
            self.op.apply(&Input::new(x, shape)?, view, Write::Set, &self.exec)?;
        }
        Ok(y)
    }

    fn run(&self, stored: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let matrix = as_matrix(INPUT, layout.dims())?;
        let x = read(INPUT, stored, layout, self.exec.isa())?;
        let y = self.compute(&x, matrix).map_err(Error::from)?;
        let [out, inp] = self.op.shape();
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = if self.transposed { inp } else { out };
        }
        Ok((write(INPUT, y, type_of(stored), self.exec.isa())?, Shape::from(dims)))
    }
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        if self.transposed {
            "gradient of a product with a compressed matrix"
        } else {
            "product with a compressed matrix"
        }
    }

    fn cpu_fwd(&self, stored: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.run(stored, layout)?)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Err(on_device(INPUT, "cuda").into())
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        Err(on_device(INPUT, "metal").into())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let other = Self { transposed: !self.transposed, ..self.clone() };
        Ok(Some(dy.contiguous()?.apply_op1(other)?))
    }
}
