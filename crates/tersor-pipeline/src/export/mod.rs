//! Export: writes a model, original or compressed, in formats that other programs load ([`export`]).

mod gguf;
mod gptq;
mod peft;
mod plain;

pub use gguf::{GgufExport, GgufTensor, NotedTensor, RoundedTensor, Target};
pub use gptq::{GptqExport, Version};
pub use peft::PeftExport;
pub use plain::PlainExport;

use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value as Json, json};
use tersor_core::rows::check_range;
use tersor_core::tensors::join;
use tersor_core::{Context, DType, Error, Exec, Limits, LinearOp, OpSpec, ParamError, Registry, Result, RowSource};
use tersor_formats::{Model, json as files};
use tersor_models::{MANIFEST, Manifest, is_key_rotation};
use tersor_operators::{GroupedLinear, QuantizedInputs};

use crate::kinds::Kinds;
use crate::output::hash_model;

/// A format that [`export`] writes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Format {
    /// A directory of safetensors files in the layout of Hugging Face, with all float tensors in this type, which must be f16, bf16 or f32.
    /// Compressed matrices are decompressed; tensors that are not floats keep their type.
    Plain(DType),
    /// A GGUF file for llama.cpp and programs built on it, with the types that the target names.
    Gguf(Target),
    /// A directory in the GPTQ format, for gptqmodel and transformers, with the codes of a compressed model unchanged. Embeddings, output head and
    /// float tensors that are not compressed are stored in f16.
    Gptq(Version),
    /// A directory with a LoRA adapter for PEFT, which has the low-rank corrections of a compressed model, and in its folder `base` the model without
    /// them, in f32.
    Peft,
}

impl Format {
    /// Returns the format that `name` stands for: `f16`, `bf16` or `f32` (in upper or lower case), `gguf:TYPE` with a name that [`Target::from_name`]
    /// takes, `gptq`, `gptq-v2` or `peft`. Errors with [`Error::Param`] if there is no such format; the message lists all names, for an unknown type
    /// all types.
    pub fn from_name(name: &str) -> Result<Self> {
        if let Some(dtype) = DType::from_name(name).filter(|d| d.is_weight()) {
            return Ok(Self::Plain(dtype));
        }
        if let Some(target) = name.strip_prefix("gguf:") {
            return Target::from_name(target).map(Self::Gguf);
        }
        if let Some(version) = Version::from_name(name) {
            return Ok(Self::Gptq(version));
        }
        if name == "peft" {
            return Ok(Self::Peft);
        }
        let types = Target::names().join(", ");
        let rule = format!("must be f16, bf16, f32, gptq, gptq-v2, peft or gguf:TYPE, TYPE one of {types}");
        Err(ParamError::new("to", format!("`{name}`"), rule).into())
    }
}

/// What [`export`] wrote, by the [`Format`]. In JSON, it is the value of the variant.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Exported {
    /// A directory of safetensors files.
    Plain(PlainExport),
    /// A GGUF file.
    Gguf(GgufExport),
    /// A directory in the GPTQ format.
    Gptq(GptqExport),
    /// A LoRA adapter with its base model.
    Peft(PeftExport),
}

/// Writes the model at `model` to `out` in the format `format`, and returns what was written. `model` is the path of an original (a directory or a
/// `.gguf` file) or of an output directory of [`compress`](crate::compress()). `out` is a file for [`Format::Gguf`], otherwise a directory, which is
/// made if it does not exist. If the directory has the finished result of the same conversion, nothing is written again. `kinds` loads the operators
/// (stored forms of matrices) of a compressed model; `cx` has threads, progress and cancellation.
///
/// Errors with [`Error::Tensor`], with the name of the tensor, if the format cannot hold it (around an [`Error::Unsupported`] with the remedy), or if
/// a value is not finite or becomes infinite in the type. Errors with [`Error::Unsupported`] if a model for [`Format::Peft`] has no low-rank
/// correction. For [`Format::Gguf`], errors if the architecture or the tokenizer is none that such files are written for. Errors with
/// [`Error::Missing`] if a model for [`Format::Gguf`] or [`Format::Gptq`] has no `config.json`.
///
/// Errors with [`Error::Format`], with the path, if `out` exists (for a file), or if it has other files, has work from other inputs or is in use (for
/// a directory). Errors with [`Error::Io`], [`Error::Format`] or [`Error::Limit`] if a file cannot be read or written, and with [`Error::Cancelled`]
/// if the work is cancelled.
pub fn export(model: &Path, format: Format, out: &Path, kinds: &Kinds, cx: &Context) -> Result<Exported> {
    let source = Source::open(model, kinds)?;
    Ok(match format {
        Format::Plain(dtype) => Exported::Plain(plain::run(&source, dtype, out, cx)?),
        Format::Gguf(target) => Exported::Gguf(gguf::run(&source, target, Some(out), cx)?),
        Format::Gptq(version) => Exported::Gptq(gptq::run(&source, version, out, cx)?),
        Format::Peft => Exported::Peft(peft::run(source, out, cx)?),
    })
}

/// Returns what [`export`] to [`Format::Gguf`] with the target `target` would write for the model at `model`, with the type of every tensor, and
/// writes nothing. It reads headers, configuration, tokenizer and the scales of compressed matrices; errors of requantization
/// ([`GgufExport::rounded_again`]) are not measured. `model` is a path as in [`export`]. `kinds` has the operators (stored forms of matrices) of a
/// compressed model.
///
/// Errors as [`export`] does for reasons that follow from names, shapes and stored forms: with [`Error::Tensor`], with the name of a tensor that the
/// file cannot hold, with [`Error::Missing`] without `config.json`, and if the model cannot be read.
pub fn gguf_types(model: &Path, target: Target, kinds: &Kinds) -> Result<GgufExport> {
    gguf::run(&Source::open(model, kinds)?, target, None, &Context::new())
}

/// A model to convert: an original, or an output of `compress`.
struct Source {
    model: Model,
    manifest: Option<Manifest>,
    registry: Registry,
    /// Whether low-rank corrections are left out.
    base_only: bool,
}

/// A tensor of the network, in any stored form.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Its stored type if that is not a float, such as an integer; it is not converted then.
    non_float: Option<DType>,
}

impl Source {
    fn open(path: &Path, kinds: &Kinds) -> Result<Self> {
        let model = Model::open(path, &Limits::default())?;
        let manifest = path.join(MANIFEST);
        let read = |m| Manifest::from_json(files::read(m, &Limits::default())?);
        let manifest = if manifest.is_file() { Some(read(&manifest)?) } else { None };
        Ok(Self { model, manifest, registry: kinds.operators.clone(), base_only: false })
    }

    /// Returns what a conversion depends on, as JSON with the hashes of the contents of all weight files, and of the configuration. Errors if a file
    /// cannot be read.
    fn inputs(&self, to: &str) -> Result<Json> {
        Ok(json!({
            "model": hash_model(&self.model)?, "to": to, "version": env!("CARGO_PKG_VERSION"),
            "fingerprint": self.manifest.as_ref().map(|m| m.json["fingerprint"].clone()),
        }))
    }

    /// Returns the operator specification of a compressed matrix; none for another tensor.
    fn spec(&self, name: &str) -> Option<&OpSpec> {
        self.manifest.as_ref()?.specs.get(name)
    }

    /// Returns every tensor of the network, without a tied head.
    fn tensors(&self) -> Vec<Tensor> {
        let specs = self.manifest.as_ref().map(|m| &m.specs);
        let tied = self.model.config().is_some_and(|c| c["tie_word_embeddings"] == true);
        let compressed = specs.into_iter().flatten();
        let mut all: Vec<Tensor> = compressed
            .map(|(name, spec)| Tensor { name: name.clone(), shape: spec.shape.to_vec(), non_float: None })
            .collect();
        for t in self.model.tensors() {
            let part_of =
                |n: &String| t.name.strip_prefix(n.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.'));
            let frequencies = self.model.gguf().is_some() && t.name == "rope_freqs.weight";
            let keys = is_key_rotation(&t.name);
            let tied = tied && t.name == "lm_head.weight";
            if specs.is_some_and(|s| s.keys().any(part_of)) || tied || frequencies || keys {
                continue;
            }
            let non_float = DType::from_name(&t.dtype).filter(|d| !d.is_weight() && *d != DType::F64);
            all.push(Tensor { name: t.name, shape: t.shape, non_float });
        }
        all
    }

    /// Returns the name of the file that a tensor belongs in.
    fn file_of(&self, name: &str) -> String {
        if self.spec(name).is_none() {
            return self.model.shard_of(name).to_string();
        }
        // All parts of a matrix are in the same file.
        let part =
            |t: &tersor_formats::Tensor| t.name.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        let part = self.model.tensors().into_iter().find(part);
        part.map_or("model.safetensors".into(), |t| self.model.shard_of(&t.name).to_string())
    }

    /// Returns the dequantized rows of a tensor.
    fn rows<'a>(&'a self, name: &'a str) -> Result<Box<dyn RowSource + 'a>> {
        match (self.spec(name), self.model.stored()) {
            (Some(spec), Some(_)) => {
                let corrected = peft::corrected(spec, name).filter(|_| self.base_only);
                let op = match corrected {
                    Some((spec, prefix)) => self.load(spec.get_part("base")?, &join(&prefix, "base"))?,
                    None => self.load(spec, name)?,
                };
                Ok(Box::new(OperatorRows(op)))
            }
            _ => self.model.rows(name),
        }
    }

    /// Loads an operator of a compressed model.
    fn load(&self, spec: &OpSpec, prefix: &str) -> Result<Box<dyn LinearOp>> {
        let stored = self.model.stored();
        let stored = stored.ok_or_else(|| Error::Missing { name: prefix.into(), place: "the tensors".into() })?;
        self.registry.load(spec, prefix, stored)
    }

    /// Returns a matrix that was compressed to a grid over groups, without the quantization of its inputs; none for any other matrix.
    fn grouped(&self, name: &str) -> Result<Option<GroupedLinear>> {
        let (Some(spec), Some(stored)) = (self.spec(name), self.model.stored()) else { return Ok(None) };
        let (spec, prefix) = at(spec, name, QuantizedInputs::KIND);
        let grouped = spec.kind == GroupedLinear::KIND;
        grouped.then(|| GroupedLinear::load(spec, &prefix, stored)).transpose().map_err(|e| e.in_tensor(name))
    }
}

/// Returns the specification inside wrappers of kind `wrapper`, and the prefix of its tensor names.
fn at<'s>(mut spec: &'s OpSpec, name: &str, wrapper: &str) -> (&'s OpSpec, String) {
    let mut prefix = name.to_string();
    while spec.kind == wrapper
        && let Ok(inner) = spec.get_part("op")
    {
        spec = inner;
        prefix = join(&prefix, "op");
    }
    (spec, prefix)
}

/// The dequantized rows of an operator.
struct OperatorRows(Box<dyn LinearOp>);

impl RowSource for OperatorRows {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_range(self.shape(), &rows, out.len())?;
        self.0.decompress_rows(rows, out, &Exec::new())
    }
}
