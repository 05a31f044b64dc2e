//! The rewrites that a recipe names.

use std::collections::BTreeMap;

use tersor_core::stages::{Part, Slot, Target, assemble};
use tersor_core::{DType, Error, ParamError, Result, Rewrite, Role, Site};
use tersor_models::Architecture;

use crate::kinds::Kinds;
use crate::recipe::{Recipe, Roles, Rule};

/// Returns the change of each site that the rules of its matrices name, such as smoothing, by the name of the site. Sites that are not changed are
/// left out, and the input of an output head never is changed.
///
/// # Errors
///
/// An [`Error::Param`] if the rules of the matrices of a site differ in the change, if they name more than one, or if a rule names a change and no
/// site of the network can be changed. Other errors if a stage cannot be made from its parameters, or the rewrite refuses a site.
pub(crate) fn smoothings(
    recipe: &Recipe,
    sites: &[Site],
    roles: &Roles,
    kinds: &Kinds,
) -> Result<BTreeMap<String, Box<dyn Rewrite>>> {
    let mut all = BTreeMap::new();
    // The input of an output head is left as it is.
    let head = |s: &Site| s.consumers.iter().any(|c| c.role == Role::Head);
    for site in sites.iter().filter(|s| !head(s)) {
        let lists = recipe.stages_of(site, roles);
        let at = |own: usize| Target {
            weight: &site.consumers[own].weight,
            dtype: DType::F32,
            site: Some(site),
            heads: 1,
            rules: &lists,
            own,
            network: &recipe.network,
            kinds: &kinds.stages,
        };
        let names = (0..lists.len()).map(|own| changes(&at(own))).collect::<Result<Vec<_>>>()?;
        if names.iter().any(|n| *n != names[0]) {
            let rule = format!("must be the same for all matrices that read {}", site.name);
            return Err(Error::from(ParamError::new("stages of `transform`", "different", rule)));
        }
        if names.first().is_none_or(Vec::is_empty) {
            continue;
        }
        let mut rewrites = assemble(&at(0))?.rewrites;
        if rewrites.len() > 1 {
            let rule = format!("only one stage may change the input of {}", site.name);
            return Err(Error::from(ParamError::new("stages of `transform`", names[0].join(", "), rule)));
        }
        if let Some(rewrite) = rewrites.pop()
            && !rewrite.plan(std::slice::from_ref(site))?.is_empty()
        {
            all.insert(site.name.clone(), rewrite);
        }
    }
    let asked = |r: &Rule| {
        let rules: [&[_]; 1] = [&r.stages];
        changes(&Target { rules: &rules, network: &recipe.network, ..Target::none(&kinds.stages) })
    };
    for rule in recipe.rules.iter().filter(|_| all.is_empty()) {
        if let Some(change) = asked(rule)?.into_iter().next() {
            let rule = "it needs a site of a known architecture that it can change, and there is none here";
            return Err(ParamError::new("stage", change, rule).into());
        }
    }
    Ok(all)
}

/// Returns the stages of a matrix that change its site, in the form of a recipe.
fn changes(at: &Target<'_>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for stage in at.stages().iter().filter(|s| s.slot() == Slot::Transform) {
        if stage.parts(at)?.iter().any(|p| matches!(p, Part::Rewrite(_))) {
            all.push(crate::recipe::stage_text(&**stage));
        }
    }
    Ok(all)
}

/// Returns the change of the whole network that a recipe names, such as a rotation. None if it names none.
///
/// # Errors
///
/// An [`Error::Param`] if the recipe names more than one change, if one has invalid parameters, or if the network is no decoder of a known
/// architecture.
pub(crate) fn of_network(
    recipe: &Recipe,
    network: Option<&Architecture>,
    kinds: &Kinds,
) -> Result<Option<Box<dyn Rewrite>>> {
    let mut all = recipe.network_rewrites(&kinds.stages)?;
    if all.is_empty() {
        return Ok(None);
    }
    if all.len() > 1 {
        let rule = "must have one stage; changes of the network one after the other are not supported";
        return Err(ParamError::new("network", format!("{} stages", all.len()), rule).into());
    }
    if !matches!(network, Some(Architecture::Decoder(_))) {
        let rule = "it is supported for decoders of a known architecture only";
        return Err(ParamError::new("network", "given", rule).into());
    }
    Ok(all.pop())
}
