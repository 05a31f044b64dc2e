//! Low-rank corrections as LoRA adapters in the files of Hugging Face's PEFT, which load beside a base model.
//!
//! ```
//! use tersor_lowrank::peft::Adapter;
//! use tersor_operators::Dense;
//! # fn main() -> tersor_lowrank::Result<()> {
//! let up = Dense::new(vec![1.0, 2.0], [2, 1], tersor_lowrank::DType::F32)?;
//! let down = Dense::new(vec![0.5, 0.0, 1.0], [1, 3], tersor_lowrank::DType::F32)?;
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
use tersor_core::{DType, Exec, LinearOp, Result, TensorInfo, TensorSink, TensorSource};

/// File name of the weights of a LoRA adapter in PEFT's format.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// File name of the configuration of a LoRA adapter in PEFT's format.
pub const CONFIG: &str = "adapter_config.json";

/// A LoRA adapter in PEFT's format under construction: the factors `lora_A` and `lora_B` of each module, in memory.
#[derive(Default)]
pub struct Adapter {
    tensors: tersor_core::MemTensors,
    ranks: BTreeMap<String, usize>,
}

impl Adapter {
    /// Returns an adapter without modules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the correction `up · down` of the module `module` (for example `model.layers.0.mlp.up_proj`), in f32: `down`, `[rank, in_features]`,
    /// becomes `lora_A`, and `up`, `[out_features, rank]`, becomes `lora_B`. Errors if the ranks differ or an operator cannot be decompressed.
    pub fn add(&mut self, module: &str, up: &dyn LinearOp, down: &dyn LinearOp) -> Result<()> {
        let ([_, rank], [found, _]) = (up.shape(), down.shape());
        if rank != found {
            return Err(tersor_core::Error::shape("rank of two factors", rank, found).in_tensor(module));
        }
        for (part, op) in [("lora_A", down), ("lora_B", up)] {
            let [rows, cols] = op.shape();
            let mut values = vec![0f32; rows * cols];
            op.decompress_rows(0..rows, &mut values, &Exec::new())?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let name = join(&join("base_model.model", module), &join(part, "weight"));
            let info = TensorInfo { dtype: DType::F32, shape: vec![rows, cols] };
            self.tensors.write_rows(&name, &info, 0, &bytes)?;
        }
        self.ranks.insert(module.to_string(), rank);
        Ok(())
    }

    /// Returns the number of modules that have a correction.
    pub fn modules(&self) -> usize {
        self.ranks.len()
    }

    /// Returns the tensors of the file [`WEIGHTS`], such as `base_model.model.<module>.lora_A.weight`, in f32.
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.tensors
    }

    /// Returns the JSON content of the file [`CONFIG`], with `base` as the name of the base model. `lora_alpha` is the rank, so that factors are
    /// not scaled.
    pub fn config(&self, base: &str) -> Value {
        let max = self.ranks.values().copied().max().unwrap_or(1);
        let others: BTreeMap<&String, usize> =
            self.ranks.iter().filter(|r| *r.1 != max).map(|(n, r)| (n, *r)).collect();
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": true,
            "r": max, "lora_alpha": max, "rank_pattern": others, "alpha_pattern": others, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "target_modules": self.ranks.keys().collect::<Vec<_>>(),
        })
    }
}
