//! Recipes: the method and parameters of each matrix, by name pattern.

mod methods;
mod names;

pub use methods::smoothing;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tersor_core::stages::Stages;
use tersor_core::{DType, Error, NonFinite, ParamError, Result};
use tersor_llm::Upstream;

use crate::kv;

/// A recipe: settings of the whole network, and an ordered list of rules. The first rule that matches a matrix applies; a matrix that no rule matches is
/// not compressed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the recipe, for tables and directories.
    pub name: String,
    /// Which weights are upstream of a site during calibration: `"sequential"` (the default: the compressed ones) or `"original"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<String>,
    /// Form of the key-value cache when the network runs: `"f32"` (the default), `"f16"`, `"int4"`, `"int4-hadamard"`, `"int4-pca-eighth"`; see
    /// `kv.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// Rotation of the whole network before compression: `"hadamard"`, `"orthogonal"`, `"pca"` (into the principal directions of the activations), or
    /// `"resq"` (the same, followed by a random rotation inside each subspace of [`Rule::parts`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<String>,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// One rule of a recipe: name patterns, and the method and parameters of the matrices that match.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Patterns of tensor names, with `*` and `?`.
    #[serde(rename = "match")]
    pub patterns: Patterns,
    /// Name of the method: `rtn`, `gptq`, `dgq`, `qqq`, `nf4`, `fp4`, `dynamic`, `int8`, `svd`, `bf16`, `f16`, `f32` or `keep`.
    pub method: String,
    /// Bits of a code, 2 to 8; optional for `nf4`, `fp4`, `dynamic` and `int8`, which have a fixed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Bits of quantized activations, 2 to 8; activations are f32 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<u32>,
    /// Granularity of activation scales: `"token"` (the default), `"asym"` (per token, or per head of the attention output, with a zero), `"tensor"` (all
    /// tokens of a call), `"static"` (one fixed scale), `"static_channel"` (a fixed scale per feature), or `"mxint"` (a power of two per 16
    /// features of a token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_scale: Option<String>,
    /// Parts of the columns, in order, with bits of their own; replaces `bits` and `activations`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Range of static activation scales: `"max"` (the default), `"mse"`, or a percentile of the magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_range: Option<Range>,
    /// Smoothing of the site, which moves magnitude from its inputs to its matrices: `"smoothquant"`, `"awq"`, `"adaptive"` (of QQQ) or `"percentile"`
    /// (of DGQ). It must be the same for all matrices of a site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<String>,
    /// Migration strength α of SmoothQuant, 0 to 1; 0.5 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Whether ranges of groups are clipped by the error of their outputs, as in AWQ (`rtn` and `gptq`; skipped for queries and keys of a known
    /// architecture).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_clip: bool,
    /// Number of features of a group, `"channel"` (the default) or `"tensor"`. For `nf4`, `fp4` and `dynamic`, number of values of a block; 64, 64 and
    /// 4096 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Grid of codes: `"asym"` (the default), `"sym"`, `"sym_full"`, `"sym_narrow"`, or `"mxint"` (`"sym_narrow"` with powers of two as scales, in groups
    /// of 16 unless given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// Type of the scales: `"f16"` (the default), `"bf16"` or `"f32"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// Low-rank correction of the quantization error: `"lqer"`, `"l2qer"` (error weighted by the magnitude of the inputs) or `"gram"` (by their Gram
    /// matrix).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<String>,
    /// Rank of the correction, or of `svd`; 32 unless this or `rank_bits` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Maximum bits per weight of the correction, or of `svd`, instead of a rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_bits: Option<f64>,
    /// Stored form of the low-rank factors: `"mxint8"` (the default), `"f16"`, `"bf16"` or `"f32"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factors: Option<String>,
    /// Whether scales are quantized as well (`nf4`, `fp4`, `dynamic`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// Whether ranges are searched for the smallest error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mse: bool,
    /// Whether the range search weights errors by the mean square of each input feature (`rtn` with `mse`); needs calibration or an importance matrix.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub importance: bool,
    /// Whether GPTQ processes columns in descending order of the Hessian's diagonal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub act_order: bool,
    /// Whether GPTQ computes the grids of all groups before it rounds any column.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub static_groups: bool,
    /// Damping of the Hessian as a share of its mean diagonal, 0.01 unless given (GPTQ).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Number of columns of a lazy batch of GPTQ; 128 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// What GPTQ does with weights of features that were zero on all calibration tokens: `"zero"` (the default) or `"keep"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<String>,
    /// What GPTQ does if the Hessian is not positive definite with any damping: `"rtn"` (the default) or `"error"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// Treatment of NaN and infinities in the weights: `"error"` (the default), `"zero"` or `"clamp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<String>,
}

/// A contiguous part of a matrix's columns with bits of its own.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Share of all columns; the shares of a rule add to 1.
    pub share: f64,
    /// Bits of the part's weight codes.
    pub bits: u32,
    /// Bits of the part's activations; f32 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<u32>,
}

/// One name pattern or several.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Patterns {
    One(String),
    Many(Vec<String>),
}

/// A range of static activations: a word or a percentile.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Range {
    Percentile(f64),
    Word(String),
}

/// A group size: a number of features or a word.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Group {
    Size(u64),
    Word(String),
}

impl Rule {
    /// Returns a rule for these name patterns with a method and no other field set.
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
    /// Returns the recipe of a built-in name or of a TOML file, checked; `kinds` makes its stages. Errors (bad usage) if there is neither, or it is invalid.
    pub fn find(name: &str, kinds: &Stages) -> Result<Self> {
        let path = Path::new(name);
        let recipe = if name.ends_with(".toml") || path.is_file() {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            let parsed: Result<Recipe, _> = toml::from_str(&text);
            parsed.map_err(|e| ParamError::new("recipe", name, e.to_string().trim_end().to_string()))?
        } else {
            names::built_in(name)?
        };
        recipe.check(kinds)?;
        Ok(recipe)
    }

    /// Checks the recipe and every rule of it; `kinds` makes its stages. Errors (bad usage) on the first invalid value.
    pub fn check(&self, kinds: &Stages) -> Result<()> {
        let plain = !self.name.is_empty() && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !plain || self.name.starts_with('.') {
            let rule = "must consist of letters, digits, `-`, `_` and `.`, and not begin with `.`";
            return Err(ParamError::new("name", format!("`{}`", self.name), rule).into());
        }
        self.upstream()?;
        if let Some(kv) = &self.kv {
            kv::Spec::parse(kv)?;
        }
        for rule in &self.rules {
            rule.method(kinds, "", DType::F32, 1, None)?;
            smoothing(kinds, None, &[rule])?;
            rule.non_finite()?;
            rule.matches("")?;
        }
        Ok(())
    }

    /// Returns which weights are upstream of a site during calibration. Errors (bad usage) if `statistics` is invalid.
    pub fn upstream(&self) -> Result<Upstream> {
        match self.statistics.as_deref() {
            None | Some("sequential") => Ok(Upstream::Compressed),
            Some("original") => Ok(Upstream::Original),
            Some(other) => {
                Err(ParamError::new("statistics", format!("`{other}`"), "must be sequential or original").into())
            }
        }
    }

    /// Returns the first rule that matches a tensor name, and its index; none if no rule matches. Errors (bad usage) if a pattern is invalid.
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
    /// Returns whether a pattern of the rule matches a tensor name.
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

    /// Returns the treatment of values that are not finite. Errors (bad usage) if the word is unknown.
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
        recipe.check(tersor::stages()).unwrap();
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
            recipe.check(tersor::stages())
        };
        toml("method = \"rtn\"\nbits = 4\ngroup = \"tensor\"\nscales = \"f32\"\ngrid = \"sym\"").unwrap();
        toml("method = \"rtn\"\nbits = 4\nscales = \"F32\"\ngroup = 5000000000").unwrap();
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
            "method = \"nf4\"\nblock = 32",
            "method = \"mxint\"",
            "method = \"split\"",
            "method = \"rtn\"\nbits = 4\nsmooth = \"clip\"",
            "method = \"rtn\"\nbits = 8\ngrid = \"sym\"\nscales = \"e8m0\"",
            "method = \"rtn\"\nbits = 4\nactivations = 8\nactivation_range = \"max\"",
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
