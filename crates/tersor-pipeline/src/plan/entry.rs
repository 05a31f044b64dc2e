//! The tensors of a plan.

use tersor_core::{Method, StatNeeds, TensorInfo};

/// What is done with a tensor of the model.
pub enum Action {
    /// The bytes of the tensor are copied. A tensor of a block-quantized GGUF type is converted to f32.
    Copy,
    /// The tensor, such as the weight of a norm, is changed by a smoothing or a rotation (a factor is multiplied into it), and is stored in f32.
    Fold,
    /// The tensor is a matrix that this method compresses, or stores in a float type. A matrix that no rule matches is stored in its own float type.
    Compress(Box<dyn Method>),
    /// The tensor is not in the model. The rotation of the network adds it, such as a rotation of keys for the cache.
    New,
}

/// A tensor of the output: what is done with the tensor of the model that it comes from, and what is stored for it.
pub struct Entry {
    /// The name of the tensor in the output.
    pub name: String,
    /// The name of the tensor in the model that the values come from. It differs from `name` only for an output head that shares the embedding's
    /// matrix in the model and has one of its own in the output.
    pub source: String,
    /// The shape of the tensor in the model, such as `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// The index in [`Recipe::rules`](crate::Recipe::rules) of the rule that applies to the tensor; None if no rule matches it or it is not a float
    /// matrix.
    pub rule: Option<usize>,
    /// What is done with the tensor.
    pub action: Action,
    /// Name, type and shape of each tensor that is stored for it, such as codes and scales.
    pub tensors: Vec<(String, TensorInfo)>,
    /// The name of the weight file of the output that they are stored in.
    pub file: String,
}

impl Entry {
    /// Returns the total length in bytes of the tensors that are stored for this one. A tensor whose length overflows the address space counts as 0.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.bytes().unwrap_or(0) as u64).sum()
    }

    /// Returns the statistics of the inputs of the matrix that its method needs; none for a tensor that no method compresses.
    pub fn needs(&self) -> StatNeeds {
        match &self.action {
            Action::Copy | Action::Fold | Action::New => StatNeeds::default(),
            Action::Compress(m) => m.needs(),
        }
    }

    /// Returns the name of the method that compresses the tensor, such as `gptq`; `copy`, `fold` or `rotation of keys` for a tensor that none
    /// compresses.
    pub fn method_name(&self) -> String {
        match &self.action {
            Action::Copy => "copy".into(),
            Action::Fold => "fold".into(),
            Action::Compress(m) => m.name(),
            Action::New => "rotation of keys".into(),
        }
    }

    /// Returns the stored bits per element of the tensor's original shape; 0 if the tensor has no elements.
    pub fn bits_per_weight(&self) -> f64 {
        let n = self.shape.iter().map(|&d| d as f64).product::<f64>();
        if n == 0.0 { 0.0 } else { self.bytes() as f64 * 8.0 / n }
    }

    /// Returns the shape `[rows, cols]` of a two-dimensional tensor; None for a tensor with another number of axes.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [r, c] => Some([r, c]),
            _ => None,
        }
    }
}
