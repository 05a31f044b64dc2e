//! The tensors of a plan.

use tersor_core::{Method, StatNeeds, TensorInfo};

/// What is done with a tensor.
pub enum Action {
    /// The tensor is copied as it is stored; GGUF block types are converted to f32.
    Copy,
    /// The tensor is a vector into which a rewrite folds factors; it is stored in f32.
    Fold,
    /// The tensor is a matrix and is compressed by this method.
    Compress(Box<dyn Method>),
    /// The tensor is not in the model; the rotation of the network adds it.
    New,
}

/// A tensor in a plan.
pub struct Entry {
    /// Name of the tensor in the output.
    pub name: String,
    /// Name of the tensor in the model: the same, except for an output head that is separated from the embedding.
    pub source: String,
    /// Shape of the original tensor.
    pub shape: Vec<usize>,
    /// Index of the matching rule of the recipe; none if no rule matches.
    pub rule: Option<usize>,
    /// What is done with the tensor.
    pub action: Action,
    /// Name, type and shape of the tensors that are stored for it.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Name of the file that they are stored in.
    pub file: String,
}

impl Entry {
    /// Returns the total length in bytes of the tensors that are stored for it.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.bytes().unwrap_or(0) as u64).sum()
    }

    /// Returns the statistics of its inputs that its method needs.
    pub fn needs(&self) -> StatNeeds {
        match &self.action {
            Action::Copy | Action::Fold | Action::New => StatNeeds::default(),
            Action::Compress(m) => m.needs(),
        }
    }

    /// Returns the name of its method, or what else is done with it.
    pub fn method_name(&self) -> String {
        match &self.action {
            Action::Copy => "copy".into(),
            Action::Fold => "fold".into(),
            Action::Compress(m) => m.name(),
            Action::New => "rotation of keys".into(),
        }
    }

    /// Returns its stored bits per element; 0 if it is empty.
    pub fn bits_per_weight(&self) -> f64 {
        let n = self.shape.iter().map(|&d| d as f64).product::<f64>();
        if n == 0.0 { 0.0 } else { self.bytes() as f64 * 8.0 / n }
    }

    /// Returns rows and columns of a matrix; none for another tensor.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [r, c] => Some([r, c]),
            _ => None,
        }
    }
}
