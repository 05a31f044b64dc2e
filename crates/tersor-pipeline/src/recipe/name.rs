//! Recipes by name, such as `w4-g128-awq-gptq`.

use tersor_core::stages::{Named, Section, Segment, Slot, StageSpec, Stages, set};
use tersor_core::{Error, ParamError, Result};

use super::{CacheRule, Layers, Pattern, Recipe, Rule};

impl Recipe {
    /// Returns the stages of the name `w8`, which [`from_name`](Self::from_name) uses for embeddings and heads: 8 bits by the default quantizer of
    /// `kinds`.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if no kind in `kinds` takes the segment `w8`.
    pub(crate) fn outer(kinds: &Stages) -> Result<Vec<Box<dyn StageSpec>>> {
        Ok(Named::parse("w8", kinds)?.stages)
    }

    /// Returns the recipe that `name` stands for, such as `w4-g128-awq-gptq`. A name consists of segments with `-` between them; each is the word of
    /// a stage or sets a parameter of one ([`Named::parse`]). `kinds` has the kinds of stages.
    ///
    /// A word may stand for further rules, network stages and caches. The stages of the name compress all other matrices except embeddings, the
    /// output head, and the pooler of an encoder (`*pooler.dense.weight`), which are stored with 8 bits by the default quantizer. A name of a float
    /// type alone, such as `bf16`, is for these matrices too. The recipe is [checked](Self::check).
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] of the parameter `recipe`, with up to three names that are similar, if a segment is unknown, repeated, or has an invalid
    /// value, or if the stages do not fit together.
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
    /// Returns the form of cache that `name` stands for, for all layers. The name is a kind of cache, followed by its number of bits if it has one,
    /// and by segments, with `-` in front, that set its parameters ([`StageSpec::segments`]): `f16` or `int4-hadamard-high8`. `kinds` has the kinds
    /// of caches.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if the name does not begin with a kind of cache, if a segment is unknown or repeated, or if a value is invalid.
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
