//! [`check_network`]: checks the sites of a network.

use std::collections::BTreeSet;

use super::Network;
use crate::{Error, Result, Weights};

/// Checks that the sites of `network` (a site is one input and the weight matrices that read it) fit each other and `weights`, the weights by name.
/// It asks for the shapes of weights but reads no values.
///
/// Errors with [`Error::Order`] if two sites have the same name, or if a site is not in exactly one wave (a set of sites that are observed together)
/// of one stage. Errors with [`Error::Missing`] if a site has no matrix, and with [`Error::Range`] if a wave has the index of no site. Errors with
/// [`Error::Tensor`], with the name of the matrix, if its number of columns is not the site's number of features, or if its shape in `weights` is not
/// that of the site. Errors of `weights`, for a matrix that it lacks, are passed on.
pub fn check_network(network: &dyn Network, weights: &dyn Weights) -> Result<()> {
    let sites = network.sites();
    let (mut names, mut matrices) = (BTreeSet::new(), BTreeSet::new());
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
            if !matrices.insert(consumer.weight.as_str()) {
                return Err(in_matrix(Error::order("matrices of sites", "each reads one site", &site.name)));
            }
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
