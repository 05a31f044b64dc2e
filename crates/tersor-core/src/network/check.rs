//! Checks of a network's sites.

use std::collections::BTreeSet;

use super::Network;
use crate::{Error, Result, Weights};

/// Errors unless the sites of `network` fit each other and the weights: every site has a name of its own and at least one matrix, every matrix
/// has as many columns as its site has features, every matrix is in `weights` with the shape that its site states, and every site is in exactly
/// one wave of one stage. The error names the site or the matrix. Reads no weights.
pub fn check_network(network: &dyn Network, weights: &dyn Weights) -> Result<()> {
    let sites = network.sites();
    let mut names = BTreeSet::new();
    for site in sites {
        if !names.insert(site.name.as_str()) {
            return Err(Error::order("names of sites", "each occurs once", &site.name));
        }
        if site.consumers.is_empty() {
            let place = format!("site `{}`; remove the site or name the matrices that read it", site.name);
            return Err(Error::missing("a consumer", place));
        }
        for consumer in &site.consumers {
            let in_matrix = |e: Error| e.in_tensor(&consumer.weight);
            if consumer.shape[1] != site.features {
                return Err(in_matrix(Error::shape("columns of a matrix", site.features, consumer.shape[1])));
            }
            let found = weights.rows(&consumer.weight)?.shape();
            if found != consumer.shape {
                return Err(in_matrix(Error::shape("shape, as its site states it,", consumer.shape, found)));
            }
        }
    }
    let mut seen = vec![0usize; sites.len()];
    for index in (0..network.stages()).flat_map(|s| network.waves(s)).flatten() {
        let count = seen.get_mut(index).ok_or_else(|| Error::range("site of a wave", 0..sites.len(), index))?;
        *count += 1;
    }
    match seen.iter().position(|n| *n != 1) {
        Some(at) => Err(Error::order("waves of a network", "each site is in one wave of one stage", &sites[at].name)),
        None => Ok(()),
    }
}
