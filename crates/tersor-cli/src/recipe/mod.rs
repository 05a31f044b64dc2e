//! Recipes: which matrix becomes what.

mod names;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tersor::core::compose::Cast;
use tersor::core::{Check, DType, Error, Method, NonFinite, ParamError, Result};
use tersor::groupwise::{Clip, Grid, Rtn};

/// Ordered rules, the first that matches a matrix wins. What no rule matches stays as it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A name for tables and directories.
    pub name: String,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name patterns with `*` and `?`.
    #[serde(rename = "match")]
    pub patterns: Patterns,
    /// `rtn`, `bf16`, `f16`, `f32` or `keep`.
    pub method: String,
    /// Bits of a code, 2 to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Features of a group, `"channel"` (the default) or `"tensor"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// `"asym"` (the default), `"sym"`, `"sym_full"` or `"sym_narrow"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// `"f16"` (the default), `"bf16"` or `"f32"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// Whether ranges are searched for the least error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mse: bool,
    /// What happens to NaN and infinities in the weights: `"error"` (the default), `"zero"` or `"clamp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<String>,
}

/// One pattern or several.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Patterns {
    One(String),
    Many(Vec<String>),
}

/// A number of features or a word.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Group {
    Size(u64),
    Word(String),
}

impl Recipe {
    /// A recipe by built-in name, or from a TOML file. Error (bad usage) when it is neither or invalid.
    pub fn find(name: &str) -> Result<Self> {
        let path = Path::new(name);
        let recipe = if name.ends_with(".toml") || path.is_file() {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            let parsed: Result<Recipe, _> = toml::from_str(&text);
            parsed.map_err(|e| ParamError::new("recipe", name, e.to_string().trim_end().to_string()))?
        } else {
            names::built_in(name)?
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks every rule, used or not.
    pub fn check(&self) -> Result<()> {
        let plain = !self.name.is_empty() && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !plain || self.name.starts_with('.') {
            let rule = "must consist of letters, digits, `-`, `_` and `.`, and not begin with `.`";
            return Err(ParamError::new("name", format!("`{}`", self.name), rule).into());
        }
        for rule in &self.rules {
            rule.method(DType::F32)?;
            rule.non_finite()?;
            rule.matches("")?;
        }
        Ok(())
    }

    /// Number of the first rule that matches a name, and the rule.
    pub fn rule(&self, tensor: &str) -> Result<Option<(usize, &Rule)>> {
        for (i, rule) in self.rules.iter().enumerate() {
            if rule.matches(tensor)? {
                return Ok(Some((i, rule)));
            }
        }
        Ok(None)
    }
}

impl Rule {
    fn matches(&self, tensor: &str) -> Result<bool> {
        let patterns = match &self.patterns {
            Patterns::One(p) => std::slice::from_ref(p),
            Patterns::Many(p) => p,
        };
        let mut hit = false;
        for p in patterns {
            let pattern = glob::Pattern::new(p);
            let pattern = pattern.map_err(|e| ParamError::new("match", format!("`{p}`"), e.to_string()))?;
            hit |= pattern.matches(tensor);
        }
        Ok(hit)
    }

    /// What happens to values that are not finite.
    pub fn non_finite(&self) -> Result<NonFinite> {
        match self.non_finite.as_deref() {
            None | Some("error") => Ok(NonFinite::Refuse),
            Some("zero") => Ok(NonFinite::Zero),
            Some("clamp") => Ok(NonFinite::Clamp),
            Some(other) => {
                Err(ParamError::new("non_finite", format!("`{other}`"), "must be error, zero or clamp").into())
            }
        }
    }

    /// The checked method; `keep` stores `original`.
    pub fn method(&self, original: DType) -> Result<Box<dyn Method>> {
        let cast = |dtype| Ok(Box::new(Cast::new(dtype)?) as Box<dyn Method>);
        let quantizes = self.method == "rtn";
        let given =
            self.bits.is_some() || self.group.is_some() || self.grid.is_some() || self.scales.is_some() || self.mse;
        if !quantizes && given {
            let rule = "takes no bits, group, grid, scales or mse";
            return Err(ParamError::new("method", format!("`{}`", self.method), rule).into());
        }
        match self.method.as_str() {
            "keep" => cast(original),
            "bf16" => cast(DType::BF16),
            "f16" => cast(DType::F16),
            "f32" => cast(DType::F32),
            "rtn" => Ok(Box::new(self.rtn()?.check()?)),
            other => {
                let rule = "must be one of rtn, bf16, f16, f32, keep";
                Err(ParamError::new("method", format!("`{other}`"), rule).into())
            }
        }
    }

    fn rtn(&self) -> Result<Rtn> {
        let bits = self.bits.ok_or_else(|| ParamError::new("bits", "missing", "`rtn` needs 2 to 8"))?;
        let mut rtn = Rtn::new().bits(bits);
        rtn = match &self.group {
            None => rtn.per_channel(),
            Some(Group::Size(n)) => rtn.group(usize::try_from(*n).unwrap_or(usize::MAX)),
            Some(Group::Word(w)) if w == "channel" => rtn.per_channel(),
            Some(Group::Word(w)) if w == "tensor" => rtn.per_tensor(),
            Some(Group::Word(w)) => {
                return Err(
                    ParamError::new("group", format!("`{w}`"), "must be a number, `channel` or `tensor`").into()
                );
            }
        };
        rtn = match self.grid.as_deref() {
            None => rtn,
            Some("sym") => rtn.symmetric(),
            Some(g) => rtn.grid(Grid::from_name(g).ok_or_else(|| {
                ParamError::new("grid", format!("`{g}`"), "must be asym, sym, sym_full or sym_narrow")
            })?),
        };
        if let Some(s) = &self.scales {
            let dtype = DType::from_name(s).filter(|d| d.is_weight());
            rtn = rtn
                .scales(dtype.ok_or_else(|| ParamError::new("scales", format!("`{s}`"), "must be f16, bf16 or f32"))?);
        }
        Ok(if self.mse { rtn.clip(Clip::Search { norm: 2.4 }) } else { rtn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_rule_wins() {
        let recipe: Recipe = toml::from_str(include_str!("../../../../examples/recipes/mixed.toml")).unwrap();
        recipe.check().unwrap();
        let rule = |n: &str| recipe.rule(n).unwrap().map(|r| r.0);
        assert_eq!(rule("model.layers.3.self_attn.v_proj.weight"), Some(1));
        assert_eq!(rule("model.layers.3.self_attn.q_proj.weight"), Some(2));
        assert_eq!(rule("lm_head.weight"), Some(0));
        assert_eq!(rule("model.norm.weight"), None);
    }

    #[test]
    fn invalid_recipes_are_bad_usage() {
        let toml = |rule: &str| -> Result<()> {
            let text = format!("name = \"x\"\n[[rules]]\nmatch = \"*\"\n{rule}");
            let recipe: Recipe =
                toml::from_str(&text).map_err(|e| Error::from(ParamError::new("recipe", "", e.to_string())))?;
            recipe.check()
        };
        toml("method = \"rtn\"\nbits = 4\ngroup = \"tensor\"\nscales = \"f32\"\ngrid = \"sym\"").unwrap();
        for bad in [
            "method = \"rtn\"",
            "method = \"rtn\"\nbits = 9",
            "method = \"rtn\"\nbits = 4\ngroup = 0",
            "method = \"rtn\"\nbits = 4\ngroup = -1",
            "method = \"rtn\"\nbits = 4\ngroup = \"row\"",
            "method = \"rtn\"\nbits = 4\ngrid = \"odd\"",
            "method = \"rtn\"\nbits = 4\nscales = \"i8\"",
            "method = \"rtn\"\nbits = 4\nunknown = 1",
            "method = \"bf16\"\nbits = 4",
            "method = \"magic\"",
            "method = \"bf16\"\nnon_finite = \"ignore\"",
        ] {
            let e = toml(bad).unwrap_err();
            assert!(e.is_usage(), "{bad}: {e}");
        }
    }
}
