//! The rewrites that a recipe names.

use std::collections::BTreeMap;

use tersor_core::{Check, Error, ParamError, Result, Rewrite, Site};
use tersor_llm::Architecture;
use tersor_lowrank::{By, Rotate};

use crate::kinds::Kinds;
use crate::recipe::{self, Recipe, Rule};

/// Tensor name of the output head.
pub const HEAD: &str = "lm_head.weight";

/// Returns the smoothing of each smoothed site, by the name of the site. Errors if the rules of a site's matrices differ in it, or if no site can be
/// smoothed.
pub fn smoothings(own: &Recipe, sites: &[Site], kinds: &Kinds) -> Result<BTreeMap<String, Box<dyn Rewrite>>> {
    let mut all = BTreeMap::new();
    for site in sites.iter().filter(|s| s.layer.is_some()) {
        let mut rules: Vec<Option<&Rule>> = Vec::new();
        for c in &site.consumers {
            rules.push(own.rule(&c.weight)?.map(|r| r.1));
        }
        let settings = |r: &Option<&Rule>| r.and_then(|r| Some((r.smooth.clone()?, r.alpha)));
        let first = rules.first().and_then(settings);
        if rules.iter().any(|r| settings(r) != first) {
            let rule = format!("must be the same for all matrices that read {}", site.name);
            return Err(Error::from(ParamError::new("smooth", "different", rule)));
        }
        let rules: Vec<&Rule> = rules.into_iter().flatten().collect();
        if let Some(smoothing) = recipe::smoothing(&kinds.stages, Some(site), &rules)?
            && !smoothing.plan(std::slice::from_ref(site))?.is_empty()
        {
            all.insert(site.name.clone(), smoothing);
        }
    }
    if all.is_empty() && own.rules.iter().any(|r| r.smooth.is_some()) {
        let rule = "it needs a site of a known architecture that it can change, and there is none here";
        return Err(ParamError::new("smooth", "given", rule).into());
    }
    Ok(all)
}

/// Returns the rotation of a network by its name in a recipe: `hadamard`, `orthogonal`, `resq`, or `pca` (`resq` without the random rotation inside
/// each subspace). `shares` are the relative sizes of the subspaces, if matrices are split. Errors if the network is no decoder.
pub fn rotation(how: &str, network: Option<&Architecture>, shares: Option<Vec<f64>>) -> Result<Box<dyn Rewrite>> {
    let by = match how {
        "hadamard" => By::Hadamard,
        "orthogonal" => By::Orthogonal,
        "resq" => By::Principal { mix: true },
        "pca" => By::Principal { mix: false },
        _ => {
            let rule = "must be hadamard, orthogonal, resq or pca";
            return Err(ParamError::new("rotate", format!("`{how}`"), rule).into());
        }
    };
    if !matches!(network, Some(Architecture::Decoder(_))) {
        let rule = "it is supported for decoders of a known architecture only";
        return Err(ParamError::new("rotate", "given", rule).into());
    }
    let rotate = Rotate::new(by).head(HEAD).split_heads(shares.is_some());
    Ok(Box::new(shares.map_or(rotate.clone(), |s| rotate.shares(s)).check()?))
}
