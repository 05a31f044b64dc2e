//! [`Caches`]: the key-value caches of a decoder, as its recipe or the caller names them.

use std::sync::Arc;

use tersor_core::cache::{CacheSample, MixedCaches, MixedLayer};
use tersor_core::stages::{Part, Target};
use tersor_core::{CacheMethod, CacheSet, Context, Error, Heads, Result};
use tersor_models::{Checkpoint, Decoder};

use crate::kinds::Kinds;
use crate::recipe::CacheRule;

/// The forms in which the key-value caches of all layers of a decoder are stored, such as f32 or integers of 4 bits.
pub struct Caches {
    set: Arc<dyn CacheSet>,
    /// The bytes that one token takes in the caches of all layers together.
    pub bytes_per_token: usize,
}

impl Caches {
    /// Returns the caches for the decoder of `checkpoint`. `name` is a form of cache for all layers, such as `int4-hadamard` ([`CacheRule::parse`]).
    /// None stands for the caches that the recipe of a compressed model records, and f32 caches in layers for which it records none. `kinds` has the
    /// kinds of caches.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if `name` is unknown or has invalid parameters. An [`Error::Format`] with the path of the model if the recipe that it
    /// records is invalid. Another error if the model is no decoder, if the form cannot store heads of its size, if it must learn from calibration
    /// data ([`Error::Unsupported`]), or if it needs rotations of keys that the model does not store.
    pub fn of(name: Option<&str>, checkpoint: &Checkpoint, kinds: &Kinds) -> Result<Self> {
        let mut rules = match name {
            Some(name) => vec![CacheRule::parse(name, &kinds.stages)?],
            None => {
                let recorded = checkpoint.manifest().map(|m| &m.json["recipe"]["cache"]);
                let read = |json| CacheRule::list(json, "recipe of the model", &kinds.stages);
                // What a file records is no bad usage.
                let place = || checkpoint.model().path().display().to_string();
                recorded.map_or(Ok(Vec::new()), read).map_err(|e| Error::format(place(), e.to_string()))?
            }
        };
        rules.push(CacheRule::parse("f32", &kinds.stages)?);
        let c = checkpoint.architecture()?.decoder()?;
        let layers = vec![c.attention_heads()?; c.layers];
        let rotations = (0..c.layers).map(|layer| checkpoint.key_rotation(layer, c.head_dim));
        let rotations = rotations.collect::<Result<Vec<_>>>()?;
        let stored = if rotations.iter().any(Option::is_some) { &rotations[..] } else { &[] };
        Self::new(&rules, &layers, &CacheSample { heads: &layers, layers: &[], key_rotations: stored }, kinds)
    }

    fn new(rules: &[CacheRule], layers: &[Heads], sample: &CacheSample<'_>, kinds: &Kinds) -> Result<Self> {
        // The rule of each layer; only rules that some layer has are used.
        let of_layer = |i: usize| rules.iter().position(|r| r.layers.contains(i)).unwrap_or(rules.len() - 1);
        let rule_of: Vec<usize> = (0..layers.len()).map(of_layer).collect();
        let mut used = rule_of.clone();
        used.sort_unstable();
        used.dedup();
        let (mut sets, mut all): (Vec<Arc<dyn CacheSet>>, Vec<Option<MixedLayer>>) =
            (Vec::new(), vec![None; layers.len()]);
        for rule in used {
            let method = method(&rules[rule], kinds)?;
            for (i, heads) in layers.iter().enumerate().filter(|(i, _)| rule_of[*i] == rule) {
                let bytes_per_token = method.layout(std::slice::from_ref(heads))?.bytes_per_token;
                all[i] = Some(MixedLayer { set: sets.len(), bytes_per_token });
            }
            sets.push(method.fit(sample, &Context::new())?.into());
        }
        let set = match <[_; 1]>::try_from(sets) {
            Ok([set]) => set,
            Err(sets) => Arc::new(MixedCaches::new(sets, all.into_iter().flatten().collect())?),
        };
        Ok(Self { bytes_per_token: set.bytes_per_token(layers)?, set })
    }

    /// Returns `decoder` with these caches, in the states that it makes from now on. It must be the decoder of the checkpoint that they were made
    /// for.
    pub fn attach(self, decoder: Decoder) -> Decoder {
        decoder.with_caches(self.set)
    }
}

/// Returns the method of caching of a rule. Errors if its stage is invalid, or learns from data, which is not supported yet.
fn method(rule: &CacheRule, kinds: &Kinds) -> Result<Box<dyn CacheMethod>> {
    let parts = rule.stage.parts(&Target::none(&kinds.stages))?;
    let method = parts.into_iter().find_map(|p| if let Part::Cache(method) = p { Some(method) } else { None });
    let method = method.ok_or_else(|| Error::missing("a method of caching", "the stage of the cache"))?;
    if method.needs() != Default::default() {
        let value = format!("`{}`, which learns from calibration data", rule.stage.kind());
        return Err(Error::Unsupported { what: "kind of cache", value });
    }
    Ok(method)
}
