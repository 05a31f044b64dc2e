//! Recipes by name, such as `w4-g128-awq-gptq`.

use tersor_core::stages::{Named, Section, Segment, Slot, StageSpec, Stages, set};
use tersor_core::{Error, ParamError, Result};

use super::{CacheRule, Layers, Pattern, Recipe, Rule};

impl Recipe {
    /// Returns the stages that names stand for where they say nothing, as for embeddings and heads: 8 bits by the default quantizer. Errors if `kinds`
    /// has none.
    pub fn outer(kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
        Ok(Named::parse("w8", kinds)?.stages)
    }

    /// Returns the recipe that a name stands for: segments with `-` between them, each the word of a stage or a parameter of one
    /// ([`Named::parse`]). Its stages are those of all matrices but the embedding and the output head, which are rounded to 8 bits; a name
    /// of a float type alone, such as `bf16`, is for them as well. An encoder's pooler, which has no calibration inputs, is also rounded
    /// to 8 bits. Errors (bad usage), with near names, if the name stands for nothing.
    pub fn from_name(name: &str, kinds: &Stages) -> Result<Self> {
        let named = Named::parse(name, kinds).map_err(|e| refuse(name, e, kinds))?;
        let mut rules = Vec::new();
        if !named.everything {
            rules.push(Rule::new(["@embedding", "@head", "*pooler.dense.weight"], Self::outer(kinds)?)?);
        }
        for rule in named.rules {
            rules.push(Rule::new(rule.roles.into_iter().filter_map(Pattern::word), rule.stages)?);
        }
        rules.push(Rule::new(["*"], named.stages)?);
        let cache = named.cache.into_iter().map(|stage| CacheRule { layers: Layers::All, stage }).collect();
        let recipe = Self { name: name.into(), statistics: None, network: named.network, cache, rules };
        recipe.check(kinds)?;
        Ok(recipe)
    }
}

impl CacheRule {
    /// Returns the cache of all layers that a name stands for: a kind of caches, followed by its number of bits if it has one, and segments that set
    /// its parameters ([`StageSpec::segments`]), such as `f16` or `int4-hadamard-high8`. Errors (bad usage) if the name stands for nothing.
    pub fn parse(name: &str, kinds: &Stages) -> Result<Self> {
        let own = || kinds.kinds().filter(|s| s.slot() == Slot::Cache);
        let refuse = |rule: String| Error::from(ParamError::new("kv", format!("`{name}`"), rule));
        let mut parts = name.split('-');
        let head = parts.next().unwrap_or_default();
        let letters = head.trim_end_matches(|c: char| c.is_ascii_digit());
        let known = |kind: &str| own().find(|s| s.kind() == kind).map(|s| s.clone_stage());
        let mut stage = match (known(head), known(letters)) {
            (Some(stage), _) => stage,
            (None, Some(mut stage)) => {
                let bits = Segment::number("", "bits").values(&head[letters.len()..]);
                let bits = bits.ok_or_else(|| refuse("its number of bits must have no leading zero".into()))?;
                bits.into_iter().try_for_each(|(field, value)| set(&mut *stage, field, value))?;
                stage
            }
            (None, None) => {
                let all: Vec<&str> = own().map(|s| s.kind()).collect();
                return Err(refuse(format!("must begin with a kind of caches: {}", all.join(", "))));
            }
        };
        let mut taken = Vec::new();
        for part in parts {
            let forms = stage.segments();
            let found = forms.iter().find_map(|f| Some((f.to_string(), f.values(part)?)));
            let Some((form, values)) = found.filter(|(form, _)| !taken.contains(form)) else {
                let forms: Vec<String> = forms.iter().map(Segment::to_string).collect();
                let rule = format!("`{part}` is none of its segments, or repeated; they are {}", forms.join(", "));
                return Err(refuse(rule));
            };
            taken.push(form);
            values.into_iter().try_for_each(|(field, value)| set(&mut *stage, field, value))?;
        }
        Ok(Self { layers: Layers::All, stage })
    }
}

/// Returns the error that `name` stands for nothing, with names that are near.
fn refuse(name: &str, error: Error, kinds: &Stages) -> Error {
    let Error::Param(e) = error else { return error };
    let segment = e.value.trim_matches('`');
    let words = kinds.kinds().filter(|s| s.slot().section() != Section::Cache).flat_map(|s| s.words());
    let forms = kinds.kinds().flat_map(|s| s.segments()).map(|s| s.to_string());
    let mut near: Vec<String> = words.map(String::from).chain(forms.filter(|f| !f.contains('<'))).collect();
    near.sort_by_key(|word| (strsim::damerau_levenshtein(word, segment), word.clone()));
    near.dedup();
    near.truncate(3);
    let near: Vec<String> = near.iter().map(|word| name.replacen(segment, word, 1)).collect();
    let rule = format!(
        "there is no recipe or file of this name: segment `{segment}`: {}; near names: {}",
        e.rule,
        near.join(", ")
    );
    ParamError::new("recipe", format!("`{name}`"), rule).into()
}
