//! Recipes: which matrix becomes what.

mod methods;
mod names;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tersor::core::{DType, Error, NonFinite, ParamError, Result};
use tersor::llm::Behind;

use crate::kv;

/// Ordered rules, the first that matches a matrix wins. What no rule matches stays as it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A name for tables and directories.
    pub name: String,
    /// Which weights calibration data comes through, for rules that need it: `"sequential"` (the default: each site sees the
    /// outputs of those already compressed) or `"original"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<String>,
    /// Form of the key-value cache of the network that runs: `"f32"` (the default), `"f16"`, `"int4"`, `"int4-hadamard"`, `"int4-pca-eighth"`: see [`crate::kv`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// Rotates the whole network before anything else: `"hadamard"`, `"orthogonal"`, into the principal directions of what flows through it
    /// (`"pca"`), or so that each subspace of [`Rule::parts`] is turned at random besides (`"resq"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<String>,
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
    /// `rtn`, `gptq`, `dgq`, `qqq`, `nf4`, `fp4`, `dynamic`, `int8`, `svd`, `bf16`, `f16`, `f32` or `keep`.
    pub method: String,
    /// Bits of a code, 2 to 8; what `nf4`, `fp4`, `dynamic` and `int8` have anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Bits of the activations, 2 to 8; f32 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<u32>,
    /// What shares a scale: `"token"` (the default), `"asym"` (a token, or a head of the attention output, with a zero besides), `"tensor"` (all
    /// tokens that come together), `"static"` (all ever), `"static_channel"` (each feature), or `"mxint"` (16 features of a token share a power
    /// of two).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_scale: Option<String>,
    /// Runs of columns, in order, at widths of their own, in the place of `bits` and `activations`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Range of static ones: `"max"` (the default), `"mse"`, or a percentile of the magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_range: Option<Range>,
    /// Moves magnitude from the inputs of a site to its matrices, all of which must agree: `"smoothquant"`, `"awq"`, `"adaptive"` (QQQ's) or
    /// `"percentile"` (DGQ's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<String>,
    /// How much of it, 0 to 1, 0.5 unless given (SmoothQuant).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Cuts ranges of groups by the error in their outputs, as AWQ does (`rtn` and `gptq`; not of queries and keys).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_clip: bool,
    /// Features of a group, `"channel"` (the default) or `"tensor"`; of `nf4`, `fp4` and `dynamic`, values of a block, 64, 64 and 4096 unless
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// `"asym"` (the default), `"sym"`, `"sym_full"`, `"sym_narrow"`, or `"mxint"`: `"sym_narrow"` with powers of two as scales, of groups of 16
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// `"f16"` (the default), `"bf16"` or `"f32"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// Adds what the method got wrong, as a product of low rank: `"lqer"`, `"l2qer"` (by the magnitude of the inputs) or `"gram"` (by their
    /// Gram matrix).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<String>,
    /// Rank of that product (and of `svd`), 32 unless this or `rank_bits` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Bits a weight that the product may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_bits: Option<f64>,
    /// How its factors are stored: `"mxint8"` (the default), `"f16"`, `"bf16"` or `"f32"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factors: Option<String>,
    /// Whether scales are quantized too (`nf4`, `fp4`, `dynamic`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// Whether ranges are searched for the least error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mse: bool,
    /// Weighs the search by how large each input feature is (round-to-nearest with `mse`); needs calibration or an importance matrix.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub importance: bool,
    /// Takes columns by importance (GPTQ).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub act_order: bool,
    /// Fits the grids of groups before anything is rounded (GPTQ).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub static_groups: bool,
    /// Damping of the Hessian as a share of its mean diagonal, 0.01 unless given (GPTQ).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Columns of a lazy batch, 128 unless given (GPTQ).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Weights of features that were always zero: `"zero"` (the default) or `"keep"` (GPTQ).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<String>,
    /// When no damping helps: `"rtn"` (the default) or `"error"` (GPTQ).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// What happens to NaN and infinities in the weights: `"error"` (the default), `"zero"` or `"clamp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<String>,
}

/// A run of columns.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Share of all columns; those of a rule add to 1.
    pub share: f64,
    /// Bits of its codes.
    pub bits: u32,
    /// Bits of its activations; f32 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<u32>,
}

/// One pattern or several.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Patterns {
    One(String),
    Many(Vec<String>),
}

/// A word or a percentile.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Range {
    Percentile(f64),
    Word(String),
}

/// A number of features or a word.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Group {
    Size(u64),
    Word(String),
}

impl Rule {
    /// A method for matrices of these names, with nothing else said.
    pub fn named(names: Patterns, method: &str) -> Self {
        Rule {
            patterns: names,
            method: method.into(),
            bits: None,
            activations: None,
            parts: Vec::new(),
            activation_scale: None,
            activation_range: None,
            smooth: None,
            alpha: None,
            output_clip: false,
            group: None,
            grid: None,
            scales: None,
            low_rank: None,
            rank: None,
            rank_bits: None,
            factors: None,
            nested: false,
            mse: false,
            importance: false,
            act_order: false,
            static_groups: false,
            damping: None,
            block: None,
            dead: None,
            on_failure: None,
            non_finite: None,
        }
    }
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
        self.behind()?;
        if let Some(kv) = &self.kv {
            kv::Spec::parse(kv)?;
        }
        for rule in &self.rules {
            rule.method("", DType::F32, 1)?;
            rule.smoothing(&[rule])?;
            rule.non_finite()?;
            rule.matches("")?;
        }
        Ok(())
    }

    /// Which weights calibration data comes through.
    pub fn behind(&self) -> Result<Behind> {
        match self.statistics.as_deref() {
            None | Some("sequential") => Ok(Behind::Compressed),
            Some("original") => Ok(Behind::Original),
            Some(other) => {
                Err(ParamError::new("statistics", format!("`{other}`"), "must be sequential or original").into())
            }
        }
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
        toml("method = \"nf4\"\ngroup = 128\nnested = true").unwrap();
        toml("method = \"int8\"\nbits = 8\nactivations = 8").unwrap();
        toml("method = \"rtn\"\nbits = 4\ngrid = \"mxint\"\nactivations = 8\nlow_rank = \"l2qer\"").unwrap();
        toml("method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_scale = \"static\"\nactivation_range = 99.9")
            .unwrap();
        toml("method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_scale = \"mxint\"").unwrap();
        toml("method = \"dgq\"\nsmooth = \"percentile\"\nactivations = 8").unwrap();
        toml("method = \"qqq\"\nbits = 4\ngroup = 64\nsmooth = \"adaptive\"").unwrap();
        toml("method = \"gptq\"\nbits = 3\nsmooth = \"awq\"\noutput_clip = true").unwrap();
        toml("method = \"nf4\"\nsmooth = \"awq\"").unwrap();
        toml("method = \"rtn\"\nbits = 8\nsmooth = \"smoothquant\"\nalpha = 0.75").unwrap();
        toml("method = \"svd\"\nrank_bits = 6.0\nfactors = \"bf16\"").unwrap();
        toml("method = \"rtn\"\nbits = 4\nactivations = 4\nactivation_scale = \"asym\"").unwrap();
        toml("method = \"gptq\"\nparts = [{ share = 0.875, bits = 4, activations = 4 }, { share = 0.125, bits = 8 }]")
            .unwrap();
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
            "method = \"gptq\"",
            "method = \"rtn\"\nbits = 4\nparts = [{ share = 1.0, bits = 4 }]",
            "method = \"rtn\"\nactivations = 4\nparts = [{ share = 1.0, bits = 4 }]",
            "method = \"rtn\"\nparts = [{ share = 0.5, bits = 4 }]",
            "method = \"rtn\"\nparts = [{ share = 1.0, bits = 9 }]",
            "method = \"nf4\"\nparts = [{ share = 1.0, bits = 8 }]",
            "method = \"rtn\"\nsmooth = \"awq\"\nparts = [{ share = 1.0, bits = 4 }]",
            "method = \"rtn\"\noutput_clip = true\nparts = [{ share = 1.0, bits = 4 }]",
            "method = \"rtn\"\nparts = [{ share = 0.5, bits = 4, activations = 8 }, { share = 0.5, bits = 8 }]\nactivation_range = \"mse\"",
            "method = \"gptq\"\nbits = 4\ngroup = \"tensor\"",
            "method = \"gptq\"\nbits = 4\ndamping = 0.0",
            "method = \"gptq\"\nbits = 4\ndead = \"bury\"",
            "method = \"gptq\"\nbits = 4\non_failure = \"pray\"",
            "method = \"rtn\"\nbits = 4\nact_order = true",
            "method = \"rtn\"\nbits = 4\nactivations = 9",
            "method = \"bf16\"\ndamping = 0.01",
            "method = \"rtn\"\nbits = 4\nimportance = true",
            "method = \"gptq\"\nbits = 4\nmse = true\nimportance = true",
            "method = \"bf16\"\nnon_finite = \"ignore\"",
            "method = \"nf4\"\nbits = 8",
            "method = \"nf4\"\ngroup = \"channel\"",
            "method = \"fp4\"\ngroup = 0",
            "method = \"dynamic\"\nbits = 4",
            "method = \"nf4\"\ngrid = \"sym\"",
            "method = \"int8\"\nnested = true",
            "method = \"int8\"\ngroup = 64",
            "method = \"rtn\"\nbits = 4\nnested = true",
            "method = \"rtn\"\nbits = 4\nlow_rank = \"best\"",
            "method = \"rtn\"\nbits = 4\nrank = 4",
            "method = \"rtn\"\nbits = 4\nlow_rank = \"lqer\"\nrank = 0",
            "method = \"rtn\"\nbits = 4\nlow_rank = \"lqer\"\nrank = 4\nrank_bits = 0.5",
            "method = \"rtn\"\nbits = 4\nlow_rank = \"lqer\"\nfactors = \"int8\"",
            "method = \"rtn\"\nbits = 4\ngrid = \"mxint\"\nscales = \"f16\"",
            "method = \"svd\"\nbits = 4",
            "method = \"dgq\"\nbits = 8",
            "method = \"rtn\"\nbits = 4\nactivation_scale = \"tensor\"",
            "method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_scale = \"row\"",
            "method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_range = \"mse\"",
            "method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_scale = \"static\"\nactivation_range = 20.0",
            "method = \"dgq\"\ngroup = \"channel\"",
            "method = \"qqq\"\ngrid = \"sym\"",
            "method = \"dgq\"\noutput_clip = true",
            "method = \"rtn\"\nbits = 4\nsmooth = \"sandpaper\"",
            "method = \"rtn\"\nbits = 4\nalpha = 0.5",
            "method = \"rtn\"\nbits = 4\nsmooth = \"smoothquant\"\nalpha = 2.0",
        ] {
            let e = toml(bad).unwrap_err();
            assert!(e.is_usage(), "{bad}: {e}");
        }
    }
}
