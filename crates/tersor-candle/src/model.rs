//! [`Compressed`]: the weights of a model directory.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tersor_core::tensors::read_expected;
use tersor_core::{DType as Stored, Error, LinearOp, LinearOpExt, Registry, TensorInfo, TensorSource};
use tersor_models::Checkpoint;

use crate::{CompressedEmbedding, CompressedLinear, Result};

/// The weights of a model on disk: an output of `tersor compress` or of `tersor_pipeline`, another directory of safetensors files, or a
/// GGUF file. Compressed matrices load as [`CompressedLinear`] and stay compressed; all other tensors load as candle tensors. The
/// architecture of the model does not matter.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use tersor_candle::Compressed;
///
/// # fn main() -> candle_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let model = Compressed::open(path)?;
/// let up = model.linear("model.layers.0.mlp.up_proj")?;
/// let norm = model.tensor("model.norm.weight")?;
/// let x = Tensor::ones((1, 4, up.shape()[1]), DType::F32, &Device::Cpu)?;
/// assert_eq!(up.forward(&x)?.dims(), [1, 4, up.shape()[0]]);
/// assert_eq!(norm.dims(), [up.shape()[1]]);
/// assert!(model.linear("model.layers.0.mlp.upward").is_err());
/// # Ok(())
/// # }
/// ```
pub struct Compressed {
    checkpoint: Checkpoint,
    /// Names of all weights.
    names: BTreeSet<String>,
}

impl Compressed {
    /// Opens the model at `path`, with the operators of `tersor-operators`. Errors if a file is missing, breaks its format or exceeds a
    /// limit.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &tersor_operators::registry())
    }

    /// Opens the model at `path`. `registry` has the loaders of the operators in a compressed model, also of the caller's own. Errors if a
    /// file is missing, breaks its format or exceeds a limit.
    pub fn open_with(path: impl AsRef<Path>, registry: &Registry) -> Result<Self> {
        let checkpoint = Checkpoint::open(path.as_ref(), registry)?;
        let compressed = |name: &str| checkpoint.manifest().is_some_and(|m| m.specs.contains_key(name));
        let mut names: BTreeSet<String> =
            checkpoint.manifest().into_iter().flat_map(|m| m.specs.keys().cloned()).collect();
        for tensor in checkpoint.model().tensors() {
            // The tensors of a compressed matrix are called `NAME.part`, those of nested operators `NAME.part.part`.
            let dots = tensor.name.match_indices('.').map(|(at, _)| at);
            if !dots.chain([tensor.name.len()]).any(|end| compressed(&tensor.name[..end])) {
                names.insert(tensor.name);
            }
        }
        Ok(Self { checkpoint, names })
    }

    /// Returns the names of all weights, sorted: compressed matrices, and stored tensors that are no part of one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Returns whether the weight `name` is a compressed matrix.
    pub fn is_compressed(&self, name: &str) -> bool {
        self.checkpoint.manifest().is_some_and(|m| m.specs.contains_key(name))
    }

    /// Returns the open model, with its configuration and its manifest.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Loads the linear layer `module`: the matrix `module.weight`, or `module` itself if there is no such weight, with the bias
    /// `module.bias` where there is one. A matrix that is not compressed is dense, in f32. Errors if there is no such weight, it has not
    /// two axes, the bias has another length, or a value is not finite. A head that shares the matrix of the embedding has no weight of its
    /// own: it is a layer of the embedding's [`op`](CompressedEmbedding::op).
    pub fn linear(&self, module: &str) -> Result<CompressedLinear> {
        let weight = self.weight_of(module);
        let bias = format!("{module}.bias");
        let bias = if self.names.contains(&bias) { Some(self.tensor(&bias)?) } else { None };
        CompressedLinear::new(self.matrix(&weight)?.into(), bias)
    }

    /// Loads the table of embeddings `module`: the matrix `module.weight`, or `module` itself if there is no such weight. Its outputs have
    /// the type `dtype`. Errors if there is no such weight, it has not two axes, a value is not finite, or `dtype` is not f32, f16 or bf16.
    pub fn embedding(&self, module: &str, dtype: DType) -> Result<CompressedEmbedding> {
        CompressedEmbedding::new(self.matrix(&self.weight_of(module))?.into(), dtype)
    }

    /// Loads the weight `name` as a candle tensor on the CPU: a compressed matrix decompressed, in f32; a tensor of a GGUF file in f32; any
    /// other tensor in its stored type. Errors if there is no such weight, candle has no such type, or a value is not finite.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.check_name(name)?;
        if self.is_compressed(name) {
            let op = self.matrix(name)?;
            return Ok(Tensor::from_vec(op.decompress()?, &op.shape(), &Device::Cpu)?);
        }
        let model = self.checkpoint.model();
        let tensor = match model.stored() {
            Some(stored) => read(stored, name).map_err(|e| named(e, name))?,
            None => {
                let (rows, shape) = (model.rows(name)?, model.tensor(name)?.shape);
                let mut values = vec![0f32; tersor_core::view::elements(rows.shape())?];
                rows.read_rows(0..rows.shape()[0], &mut values)?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
        };
        if tensor.dtype().is_float() {
            let values = tensor.to_dtype(DType::F32)?;
            let cols = values.dims().last().copied().unwrap_or(1);
            crate::storage::with_f32("a weight", &values, tersor_core::Isa::detect(), |v| {
                Ok(tersor_core::check_finite(v, cols, 0).map_err(|e| e.in_tensor(name))?)
            })?;
        }
        Ok(tensor)
    }

    /// Loads the matrix `name` as an operator, a dense f32 one if it is not compressed. Errors if there is no such weight, it has not two
    /// axes, or a value is not finite.
    pub fn matrix(&self, name: &str) -> Result<Box<dyn LinearOp>> {
        self.check_name(name)?;
        let spec = self.checkpoint.manifest().and_then(|m| m.specs.get(name));
        let shape = match spec {
            Some(spec) => spec.shape,
            None => {
                let shape = self.checkpoint.model().tensor(name)?.shape;
                let two = <[usize; 2]>::try_from(&shape[..]);
                two.map_err(|_| Error::shape("axes of a matrix", 2, shape.len()).in_tensor(name))?
            }
        };
        Ok(self.checkpoint.matrix(name, shape)?)
    }

    fn weight_of(&self, module: &str) -> String {
        let weight = format!("{module}.weight");
        if self.names.contains(&weight) || !self.names.contains(module) { weight } else { module.into() }
    }

    fn check_name(&self, name: &str) -> Result<()> {
        if self.names.contains(name) {
            return Ok(());
        }
        let path = self.checkpoint.model().path().display();
        Err(Error::missing(name, format!("{path}; `names()` lists its {} weights", self.names.len())).into())
    }
}

fn named(error: crate::Error, name: &str) -> crate::Error {
    match error {
        crate::Error::Tersor(own) => own.in_tensor(name).into(),
        other => other,
    }
}

/// Reads a stored tensor in its own type.
fn read(source: &dyn TensorSource, name: &str) -> Result<Tensor> {
    let TensorInfo { dtype, shape } = source.info(name)?;
    let own = match dtype {
        Stored::F64 => DType::F64,
        Stored::F32 => DType::F32,
        Stored::F16 => DType::F16,
        Stored::BF16 => DType::BF16,
        Stored::I64 => DType::I64,
        Stored::I32 => DType::I32,
        Stored::I16 => DType::I16,
        Stored::U32 => DType::U32,
        Stored::U8 | Stored::Bool => DType::U8,
        other => {
            let value = format!("{}; candle has no such type", other.name());
            return Err(Error::Unsupported { what: "type of a stored tensor", value }.into());
        }
    };
    let bytes = read_expected(source, name, dtype, &shape)?;
    Ok(Tensor::from_raw_buffer(&bytes, own, &shape, &Device::Cpu)?)
}
