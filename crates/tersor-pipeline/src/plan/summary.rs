//! The figures of a plan.

use std::collections::BTreeMap;

use serde::Serialize;
use tersor_core::Result;
use tersor_formats::Model;
use tersor_llm::bits_per_weight;

use super::{Plan, TaskSummary};

/// The figures of a plan, as `tersor plan --json` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of the recipe that the model was, or is to be, compressed by: that of its file, or the name that stands for it, such as `w4-g128-gptq`.
    pub recipe: String,
    /// Stored bits per weight of all matrices, embedding and head included.
    pub bits_per_weight: f64,
    /// The same without embedding and head.
    pub body_bits_per_weight: f64,
    /// The smoothed sites.
    pub smoothed: Vec<Smoothed>,
    /// Total length of all weight files in bytes.
    pub weight_bytes: u64,
    /// Peak memory of compressing in bytes, by term.
    pub peak_memory_bytes: BTreeMap<&'static str, u64>,
    /// Whether hidden states are kept on disk.
    pub hidden_states_on_disk: bool,
    /// Every tensor of the output: embeddings, layers in the order of their numbers, then final norms and the head.
    pub tensors: Vec<TensorSummary>,
    /// The tasks, in an order in which they can be done.
    pub tasks: Vec<TaskSummary>,
}

/// A smoothed site.
#[derive(Clone, Debug, Serialize)]
pub struct Smoothed {
    /// Name of the site.
    pub site: String,
    /// Name of the smoothing.
    pub by: String,
}

/// A tensor in a [`Summary`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorSummary {
    /// Name of the tensor.
    pub name: String,
    /// Index of the matching rule of the recipe; none if no rule matches.
    pub rule: Option<usize>,
    /// Name of the method, or `copy`, `fold`, `rotation of keys`.
    pub method: String,
    /// Stored bits per element.
    pub bits_per_weight: f64,
    /// Stored bytes.
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
    /// Returns the entries in the order in which they are listed: embeddings, layers in the order of their numbers, then final norms and the head.
    pub fn listed(&self) -> Vec<&super::Entry> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by(|a, b| place(&a.name).cmp(&place(&b.name)));
        all
    }

    /// Returns the figures of the plan. Errors if a file would be too large for its format.
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
