//! The smoothing of sites.

use std::collections::BTreeMap;

use tersor::core::{Error, ParamError, Result, Rewrite, Site};

use crate::recipe::{self, Recipe, Rule};

/// Returns the smoothing of each smoothed site, by the name of the site. Errors if the rules of a site's matrices differ in it, or if no site can be
/// smoothed.
pub fn of(own: &Recipe, sites: &[Site]) -> Result<BTreeMap<String, Box<dyn Rewrite>>> {
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
        if let Some(smoothing) = recipe::smoothing(Some(site), &rules)?
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
