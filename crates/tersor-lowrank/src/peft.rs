//! Corrections as LoRA adapters in PEFT's layout, which transformers and others load beside a model.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tersor_core::tensors::join;
use tersor_core::{DType, Exec, LinearOp, Result, TensorInfo, TensorSink, TensorSource};

/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// File name of the description.
pub const CONFIG: &str = "adapter_config.json";

/// Factors of modules, on their way into an adapter.
#[derive(Default)]
pub struct Adapter {
    tensors: tersor_core::MemTensors,
    ranks: BTreeMap<String, usize>,
}

impl Adapter {
    /// Without modules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `up · down` for a module (`model.layers.0.mlp.up_proj`, say): `lora_A` is `down` `[rank, in_features]`, `lora_B` is `up`
    /// `[out_features, rank]`, in f32. Error when the ranks differ.
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

    /// Number of modules.
    pub fn modules(&self) -> usize {
        self.ranks.len()
    }

    /// The tensors of [`WEIGHTS`].
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.tensors
    }

    /// The content of [`CONFIG`], for a base model of that name. Factors are added as they are: alpha is the rank.
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
