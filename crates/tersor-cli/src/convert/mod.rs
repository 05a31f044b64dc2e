//! `tersor convert`: writes a model in formats that other programs load.

mod gguf;
mod gptq;
mod peft;
mod plain;

use std::ops::Range;
use std::path::Path;

use serde_json::{Value as Json, json};
use tersor::core::rows::check_range;
use tersor::core::tensors::join;
use tersor::core::{DType, Error, Exec, Limits, LinearOp, OpSpec, ParamError, Registry, Result, RowSource};
use tersor::formats::{Model, json as files};
use tersor::groupwise::GroupedLinear;
use tersor::llm::{MANIFEST, Manifest, is_key_rotation};
use tersor::operators::QuantizedInputs;

use crate::args;

pub fn run(a: &args::Convert, json: bool) -> Result<()> {
    let plain = DType::from_name(&a.to).filter(|d| d.is_weight());
    let gguf = a.to.strip_prefix("gguf:").map(gguf::Target::from_name).transpose()?;
    let gptq = gptq::Version::from_name(&a.to);
    let source = || Source::open(&a.model);
    if a.dry_run && gguf.is_none() {
        return Err(ParamError::new("dry-run", "given", "it is for gguf only, whose types differ by tensor").into());
    }
    match (plain, gguf, gptq) {
        (Some(dtype), ..) => plain::run(&source()?, dtype, &a.out, json),
        (_, Some(target), _) => gguf::run(&source()?, target, a, json),
        (_, _, Some(version)) => gptq::run(&source()?, version, &a.out, json),
        _ if a.to == "peft" => peft::run(source()?, &a.out, json),
        (None, None, None) => {
            let types = gguf::Target::names().join(", ");
            let rule = format!("must be f16, bf16, f32, gptq, gptq-v2, peft or gguf:TYPE, TYPE one of {types}");
            Err(ParamError::new("to", format!("`{}`", a.to), rule).into())
        }
    }
}

/// A model to convert: an original, or an output of `compress`.
pub struct Source {
    pub model: Model,
    manifest: Option<Manifest>,
    registry: Registry,
    /// Whether low-rank corrections are left out.
    base_only: bool,
}

/// A tensor of the network, in any stored form.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Its stored type if that is not a float, such as an integer; it is not converted then.
    pub non_float: Option<DType>,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let model = Model::open(path, &Limits::default())?;
        let manifest = path.join(MANIFEST);
        let read = |m| Manifest::from_json(files::read(m, &Limits::default())?);
        let manifest = if manifest.is_file() { Some(read(&manifest)?) } else { None };
        Ok(Self { model, manifest, registry: tersor::registry(), base_only: false })
    }

    /// Returns what a conversion depends on, as JSON with hashes.
    pub fn inputs(&self, to: &str) -> Json {
        let model = format!("{:?}{:?}", self.model.files(), self.model.tensors());
        json!({
            "model": blake3::hash(model.as_bytes()).to_hex().to_string(), "to": to, "version": env!("CARGO_PKG_VERSION"),
            "fingerprint": self.manifest.as_ref().map(|m| m.json["fingerprint"].clone()),
        })
    }

    /// Returns the operator specification of a compressed matrix; none for another tensor.
    pub fn spec(&self, name: &str) -> Option<&OpSpec> {
        self.manifest.as_ref()?.specs.get(name)
    }

    /// Returns every tensor of the network, without a tied head.
    pub fn tensors(&self) -> Vec<Tensor> {
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
            |t: &tersor::formats::Tensor| t.name.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        let part = self.model.tensors().into_iter().find(part);
        part.map_or("model.safetensors".into(), |t| self.model.shard_of(&t.name).to_string())
    }

    /// Returns the dequantized rows of a tensor.
    pub fn rows<'a>(&'a self, name: &'a str) -> Result<Box<dyn RowSource + 'a>> {
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
    pub fn grouped(&self, name: &str) -> Result<Option<GroupedLinear>> {
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
