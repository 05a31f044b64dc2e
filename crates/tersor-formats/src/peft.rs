//! Low-rank corrections as LoRA adapters in the files of Hugging Face's PEFT, which load beside a base model.
//!
//! ```
//! use tersor_formats::peft::Adapter;
//! use tersor_operators::Dense;
//! # fn main() -> tersor_core::Result<()> {
//! let up = Dense::new(vec![1.0, 2.0], [2, 1], tersor_core::DType::F32)?;
//! let down = Dense::new(vec![0.5, 0.0, 1.0], [1, 3], tersor_core::DType::F32)?;
//! let mut adapter = Adapter::new();
//! adapter.add("model.layers.0.mlp.up_proj", &up, &down)?;
//! let name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
//! assert_eq!(adapter.tensors().info(name)?.shape, [1, 3]);
//! assert_eq!(adapter.config("base")["r"], 1);
//! # Ok(())
//! # }
//! ```

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tersor_core::tensors::join;
use tersor_core::{DType, Exec, LinearOp, Result, TensorInfo, TensorSink, TensorSource, view};

/// The file name of the weights of a LoRA adapter in PEFT's format, `adapter_model.safetensors`.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The file name of the configuration of a LoRA adapter in PEFT's format, `adapter_config.json`.
pub const CONFIG: &str = "adapter_config.json";

/// A LoRA adapter in PEFT's format that is being built in memory: for each module the two factors `lora_A`, `[rank, in_features]`, and
/// `lora_B`, `[out_features, rank]`, in f32. Modules may have different ranks.
#[derive(Default)]
pub struct Adapter {
    tensors: tersor_core::MemTensors,
    ranks: BTreeMap<String, usize>,
}

impl Adapter {
    /// Returns an adapter without modules; [`add`](Self::add) adds them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the correction `up · down` of the module `module` (for example `model.layers.0.mlp.up_proj`), decompressed to f32: `down`,
    /// `[rank, in_features]`, becomes `lora_A`, and `up`, `[out_features, rank]`, becomes `lora_B`. If the same `module` was added before,
    /// the new factors replace the old ones. Errors if the ranks of `up` and `down` differ, if an operator cannot be decompressed, or if
    /// the old factors of the same `module` have other shapes. After an error the adapter is unchanged.
    pub fn add(&mut self, module: &str, up: &dyn LinearOp, down: &dyn LinearOp) -> Result<()> {
        let ([_, rank], [found, _]) = (up.shape(), down.shape());
        if rank != found {
            return Err(tersor_core::Error::shape("rank of two factors", rank, found).in_tensor(module));
        }
        let values = |op: &dyn LinearOp| {
            let mut values = vec![0f32; view::elements(op.shape())?];
            op.decompress_rows(0..op.shape()[0], &mut values, &Exec::new())?;
            Ok::<_, tersor_core::Error>(values)
        };
        // Both are decompressed and checked before either is stored.
        let factors = [("lora_A", down.shape(), values(down)?), ("lora_B", up.shape(), values(up)?)];
        let name = |part: &str| join(&join("base_model.model", module), &join(part, "weight"));
        for (part, shape, _) in factors.iter().filter(|_| self.ranks.contains_key(module)) {
            let before = self.tensors.info(&name(part))?.shape;
            if before != shape {
                return Err(tersor_core::Error::shape("factor of a module that was added before", before, shape)
                    .in_tensor(module));
            }
        }
        for (part, [rows, cols], values) in factors {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let info = TensorInfo { dtype: DType::F32, shape: vec![rows, cols] };
            self.tensors.write_rows(&name(part), &info, 0, &bytes)?;
        }
        self.ranks.insert(module.to_string(), rank);
        Ok(())
    }

    /// Returns the number of modules that have a correction.
    pub fn modules(&self) -> usize {
        self.ranks.len()
    }

    /// Returns the tensors of the file [`WEIGHTS`], in f32: for each module `base_model.model.<module>.lora_A.weight`,
    /// `[rank, in_features]`, and `base_model.model.<module>.lora_B.weight`, `[out_features, rank]`.
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.tensors
    }

    /// Returns the JSON content of the file [`CONFIG`], with `base` as the name or path of the base model. `r` and `lora_alpha` are both
    /// the largest rank of a module (1 without modules), and `rank_pattern` and `alpha_pattern` both give the modules of other ranks their
    /// own rank: PEFT then multiplies every correction by 1.
    pub fn config(&self, base: &str) -> Value {
        let max = self.ranks.values().copied().max().unwrap_or(1).max(1);
        let others: BTreeMap<&String, usize> =
            self.ranks.iter().filter(|r| *r.1 != max).map(|(n, r)| (n, *r)).collect();
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": true,
            "r": max, "lora_alpha": max, "rank_pattern": others, "alpha_pattern": others, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "target_modules": self.ranks.keys().collect::<Vec<_>>(),
        })
    }
}
