//! What the matrices of a model compute.

use std::collections::BTreeMap;

use tersor_core::{Role, Site};
use tersor_llm::Architecture;

/// Tensor name of the output head.
pub const HEAD: &str = "lm_head.weight";

/// The roles of the matrices of a model, such as queries. A tied embedding, which is the output head as well, has two.
pub struct Roles {
    known: Option<BTreeMap<String, Vec<Role>>>,
}

/// Ends of names by which the roles of matrices of an unknown architecture are guessed.
const ENDS: [(&str, &[Role]); 11] = [
    ("embed_tokens.weight", &[Role::Embedding]),
    ("_embeddings.weight", &[Role::Embedding]),
    ("lm_head.weight", &[Role::Head]),
    ("q_proj.weight", &[Role::Query]),
    ("k_proj.weight", &[Role::Key]),
    ("v_proj.weight", &[Role::Value]),
    ("o_proj.weight", &[Role::AttentionOutput]),
    ("gate_proj.weight", &[Role::Gate]),
    ("up_proj.weight", &[Role::Up]),
    ("down_proj.weight", &[Role::Down]),
    (".weight", &[Role::Linear]),
];

impl Roles {
    /// Returns the roles in a network with the sites `sites` (one input each, and the matrices that read it). Without a network, roles are guessed
    /// from names, as those of Llama and BERT.
    pub fn new(network: Option<&Architecture>, sites: &[Site]) -> Self {
        let Some(network) = network else { return Self { known: None } };
        let mut all: BTreeMap<String, Vec<Role>> = BTreeMap::new();
        for name in network.embeddings() {
            all.entry(name).or_default().push(Role::Embedding);
        }
        for consumer in sites.iter().flat_map(|s| &s.consumers) {
            all.entry(consumer.weight.clone()).or_default().push(consumer.role);
        }
        // An untied head is the head whether or not anything is gathered for it.
        all.entry(HEAD.into()).or_insert_with(|| vec![Role::Head]);
        Self { known: Some(all) }
    }

    /// Returns the roles of the matrix of this name; none for a matrix that is not known to be multiplied with activations.
    pub fn of(&self, name: &str) -> &[Role] {
        match &self.known {
            Some(all) => all.get(name).map_or(&[], Vec::as_slice),
            None => ENDS.iter().find(|(end, _)| name.ends_with(end)).map_or(&[], |(_, roles)| roles),
        }
    }
}
