//! The figures of a plan.

use std::collections::BTreeMap;

use serde::Serialize;
use tersor_core::Result;
use tersor_formats::Model;
use tersor_models::bits_per_weight;

use super::{Plan, TaskSummary};

/// The figures of a plan. In JSON, the command `tersor plan --json` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The name of the recipe, such as `w4-g128-gptq`.
    pub recipe: String,
    /// The stored bits per element over all two-dimensional tensors, embedding tables and output head included.
    pub bits_per_weight: f64,
    /// The stored bits per element over all two-dimensional tensors except embedding tables and output head; 0 if there are none.
    pub body_bits_per_weight: f64,
    /// The sites (inputs of linear layers) that are smoothed before compression, in the order of their names.
    pub smoothed: Vec<Smoothed>,
    /// The total length of all weight files in bytes, headers included.
    pub weight_bytes: u64,
    /// The estimated peak memory of compression in bytes, by part, as [`Plan::memory`] returns it. The peak is the sum.
    pub peak_memory_bytes: BTreeMap<&'static str, u64>,
    /// Whether hidden states are kept on disk to stay within a memory limit ([`Plan::spill`]).
    pub hidden_states_on_disk: bool,
    /// Every tensor of the output, in the order of [`Plan::listed`].
    pub tensors: Vec<TensorSummary>,
    /// The tasks (parts of the work that several processes can share), in an order in which they can be done.
    pub tasks: Vec<TaskSummary>,
}

/// A [`Site`](tersor_core::Site) (an input of linear layers) whose features are scaled before the matrices that read it are compressed.
#[derive(Clone, Debug, Serialize)]
pub struct Smoothed {
    /// The name of the site, such as `model.layers.3.self_attn.qkv`.
    pub site: String,
    /// The name of the smoothing, such as `awq`.
    pub by: String,
}

/// A tensor of the output in a [`Summary`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorSummary {
    /// The name of the tensor.
    pub name: String,
    /// The index in [`Recipe::rules`](crate::Recipe::rules) of the rule that applies to the tensor; None if there is none.
    pub rule: Option<usize>,
    /// The name of the method that compresses the tensor; `copy`, `fold` or `rotation of keys` if none does.
    pub method: String,
    /// The stored bits per element; 0 for a tensor without elements.
    pub bits_per_weight: f64,
    /// The stored bytes.
    pub bytes: u64,
}

/// A piece of a tensor name: digits as their number, or other text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    Number(u64),
    Text(&'a str),
}

/// Returns the key by which tensors are listed: tables of embeddings first, then those of layers, then the others; within these by name, numbers in a
/// name by their value.
fn place(name: &str) -> (u8, Vec<Piece<'_>>) {
    let layer = name.split('.').any(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let class = if layer {
        1
    } else if name.contains("embed") {
        0
    } else {
        2
    };
    let (mut pieces, mut rest) = (Vec::new(), name);
    while let Some(first) = rest.bytes().next() {
        let digits = first.is_ascii_digit();
        let end = rest.bytes().position(|b| b.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(match piece.parse() {
            Ok(number) if digits => Piece::Number(number),
            _ => Piece::Text(piece),
        });
        rest = after;
    }
    (class, pieces)
}

impl Plan {
    /// Returns the [entries](Plan::entries) in the order in which they are shown: tables of embeddings, then tensors of layers in the order of the
    /// layers, then the others, such as final norm and head; within these groups by name.
    pub fn listed(&self) -> Vec<&super::Entry> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by(|a, b| place(&a.name).cmp(&place(&b.name)));
        all
    }

    /// Returns the figures of the plan: sizes, bits, memory, tensors and tasks. `model` is the model of the plan.
    ///
    /// # Errors
    ///
    /// Those of [`Plan::weight_bytes`]: a size overflows, or the file format reserves the name of a tensor.
    pub fn summary(&self, model: &Model) -> Result<Summary> {
        let (all, body) = bits_per_weight(&self.weights());
        let tensor = |e: &super::Entry| TensorSummary {
            name: e.name.clone(),
            rule: e.rule,
            method: e.method_name(),
            bits_per_weight: e.bits_per_weight(),
            bytes: e.bytes(),
        };
        Ok(Summary {
            recipe: self.recipe.name.clone(),
            bits_per_weight: all,
            body_bits_per_weight: body,
            smoothed: (self.smoothings.iter())
                .map(|(site, how)| Smoothed { site: site.clone(), by: how.name() })
                .collect(),
            weight_bytes: self.weight_bytes()?,
            peak_memory_bytes: self.memory(model),
            hidden_states_on_disk: self.spill,
            tensors: self.listed().into_iter().map(tensor).collect(),
            tasks: self.task_summaries(),
        })
    }
}
