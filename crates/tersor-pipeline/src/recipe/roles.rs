//! What the matrices of a model compute.

use std::collections::BTreeMap;

use tersor_core::{Role, Site};
use tersor_models::Architecture;

/// The tensor name of the output head of a decoder.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The roles of the matrices of a model, by tensor name: a [`Role`] is what a matrix computes, such as queries. A tied embedding, which is the output
/// head as well, has two roles.
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
    /// Returns the roles of the matrices of the network `network`: those of its embedding tables, and those of the matrices that read the inputs of
    /// `sites`, its [sites](Site). If `network` is None, `sites` is ignored, and the role of a matrix is guessed from the end of its name, as names
    /// are in models of the Llama and BERT families; any other name that ends in `.weight` is [`Role::Linear`] then.
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

    /// Returns the roles that the sites `sites` state of the matrices that read them.
    pub fn of_sites(sites: &[Site]) -> Self {
        let mut all: BTreeMap<String, Vec<Role>> = BTreeMap::new();
        for consumer in sites.iter().flat_map(|s| &s.consumers) {
            all.entry(consumer.weight.clone()).or_default().push(consumer.role);
        }
        Self { known: Some(all) }
    }

    /// Returns the roles of the matrix of the tensor name `name`. The list is empty for a name that is not known to be a matrix of the network.
    pub fn of(&self, name: &str) -> &[Role] {
        match &self.known {
            Some(all) => all.get(name).map_or(&[], Vec::as_slice),
            None => ENDS.iter().find(|(end, _)| name.ends_with(end)).map_or(&[], |(_, roles)| roles),
        }
    }
}
