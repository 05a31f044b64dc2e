//! The stages of a rule: its fields become kinds of stages with parameters, which the method crates turn into methods. Errors of this module
//! are bad usage.

use tersor_core::stages::{Field, Fields, List, StageSpec, Stages, Target, assemble, set};
use tersor_core::{DType, Error, Method, ParamError, Result, Rewrite, Site, Value};

use super::{Group, Part, Range, Rule};

type StageList = Vec<Box<dyn StageSpec>>;

/// A field of a rule that is given, with its value.
type Given = (&'static str, Value);

/// Words of the field `method`.
const METHODS: [&str; 13] =
    ["rtn", "gptq", "dgq", "qqq", "nf4", "fp4", "dynamic", "int8", "svd", "bf16", "f16", "f32", "keep"];

/// Words of the field `smooth`.
const SMOOTHINGS: [&str; 4] = ["smoothquant", "awq", "adaptive", "percentile"];

/// Words of the field `low_rank`.
const CORRECTIONS: [&str; 3] = ["lqer", "l2qer", "gram"];

/// Returns a stage of the kind that the field `field` of a rule names, one of `words`.
fn stage(kinds: &Stages, field: &'static str, kind: &str, words: &[&str]) -> Result<Box<dyn StageSpec>> {
    if words.contains(&kind) {
        return kinds.make(kind);
    }
    Err(ParamError::new(field, format!("`{kind}`"), format!("must be one of {}", words.join(", "))).into())
}

/// Sets the parameter `parameter` of a stage. Errors name the field `field` of the rule, which may have another name.
fn put(stage: &mut dyn StageSpec, field: &'static str, parameter: &str, value: Value) -> Result<()> {
    set(stage, parameter, value).map_err(|e| match e {
        Error::Param(e) if e.name == "parameter" => {
            ParamError::new(field, "given", format!("`{}` takes none", stage.kind())).into()
        }
        Error::Param(e) => ParamError { name: field, ..e }.into(),
        other => other,
    })
}

/// Sets parameters that have the names of the rule's fields.
fn put_all(stage: &mut dyn StageSpec, given: Vec<Given>) -> Result<()> {
    given.into_iter().try_for_each(|(field, value)| put(stage, field, field, value))
}

fn int(value: impl TryInto<i64>) -> Value {
    Value::Int(value.try_into().unwrap_or(i64::MAX))
}

fn text(value: &str) -> Value {
    Value::Text(value.to_string())
}

/// Returns the smoothing of a site before its matrices are compressed, if it has one; `rules` are the rules of the site's matrices, and `kinds`
/// makes their stages.
pub fn smoothing(kinds: &Stages, site: Option<&Site>, rules: &[&Rule]) -> Result<Option<Box<dyn Rewrite>>> {
    if rules.first().is_none_or(|r| r.smooth.is_none()) {
        return Ok(None);
    }
    let list = |rule: &&Rule| -> Result<StageList> {
        // The search needs the quantized activations of all matrices, and any stored form.
        let mut all: StageList = rule.smooth(kinds)?.into_iter().collect();
        all.push(kinds.make("keep")?);
        all.extend(rule.act(kinds, rule.activations)?);
        Ok(all)
    };
    let lists = rules.iter().map(list).collect::<Result<Vec<_>>>()?;
    let lists: Vec<&[Box<dyn StageSpec>]> = lists.iter().map(Vec::as_slice).collect();
    let weight = site.and_then(|s| s.consumers.first()).map_or("", |c| &c.weight);
    let all = assemble(&Target { weight, dtype: DType::F32, site, heads: 1, rules: &lists, own: 0, kinds })?;
    Ok(all.rewrites.into_iter().next())
}

impl Rule {
    /// Returns the shares of the rule's parts, if it has any.
    pub fn shares(&self) -> Option<Vec<f64>> {
        (!self.parts.is_empty()).then(|| self.parts.iter().map(|p| p.share).collect())
    }

    /// Returns the checked method for the matrix `weight` of a site; `kinds` makes its stages. `dtype` is its stored type, which `keep` uses; `heads` is the number of heads
    /// whose outputs are concatenated in its input, or 1.
    pub fn method(
        &self,
        kinds: &Stages,
        weight: &str,
        dtype: DType,
        heads: usize,
        site: Option<&Site>,
    ) -> Result<Box<dyn Method>> {
        self.smooth(kinds)?;
        let mut all = StageList::new();
        if self.output_clip {
            if !["rtn", "gptq"].contains(&self.method.as_str()) {
                let rule = "it is for rtn and gptq only";
                return Err(ParamError::new("output_clip", "given", rule).into());
            }
            all.push(kinds.make("clip")?);
        }
        all.push(if self.parts.is_empty() { self.weights(kinds)? } else { self.split(kinds)? });
        let product = self.product();
        if let Some(how) = &self.low_rank {
            let mut correction = stage(kinds, "low_rank", how, &CORRECTIONS)?;
            put_all(&mut *correction, product)?;
            all.push(correction);
        } else if !product.is_empty() && self.method != "svd" {
            let rule = "it has no effect without low_rank";
            return Err(ParamError::new("rank, rank_bits or factors", "given", rule).into());
        }
        if self.parts.is_empty() {
            all.extend(self.act(kinds, self.activations)?);
        }
        let rules: [&[Box<dyn StageSpec>]; 1] = [&all];
        let at = Target { weight, dtype, site, heads, rules: &rules, own: 0, kinds };
        Ok(assemble(&at)?.method)
    }

    /// Returns the stage of the smoothing, if the rule has one.
    fn smooth(&self, kinds: &Stages) -> Result<Option<Box<dyn StageSpec>>> {
        let Some(how) = &self.smooth else {
            let rule = "it has no effect without smooth = \"smoothquant\"";
            return if self.alpha.is_some() { Err(ParamError::new("alpha", "given", rule).into()) } else { Ok(None) };
        };
        let mut smooth = stage(kinds, "smooth", how, &SMOOTHINGS)?;
        if let Some(alpha) = self.alpha {
            put(&mut *smooth, "alpha", "alpha", Value::Float(alpha))?;
        }
        Ok(Some(smooth))
    }

    /// Returns the stage that makes the stored form.
    fn weights(&self, kinds: &Stages) -> Result<Box<dyn StageSpec>> {
        let mut quantizer = stage(kinds, "method", &self.method, &METHODS)?;
        match self.bits {
            Some(bits) => put(&mut *quantizer, "bits", "bits", int(bits))?,
            None if ["rtn", "gptq"].contains(&self.method.as_str()) => {
                return Err(ParamError::new("bits", "missing", format!("method `{}` needs 2 to 8", self.method)).into());
            }
            None => {}
        }
        // Block-wise methods call a group a block; the rule's `block` is that of GPTQ.
        let blocks = ["nf4", "fp4", "dynamic"].contains(&self.method.as_str());
        for (field, value) in self.given()? {
            let parameter = match field {
                "group" if blocks => "block",
                "block" if blocks => "group",
                other => other,
            };
            put(&mut *quantizer, field, parameter, value)?;
        }
        if self.method == "svd" {
            put_all(&mut *quantizer, self.product())?;
        }
        Ok(quantizer)
    }

    /// Returns the given fields of the quantizer, but its bits, with their values. The grid `mxint` stands for three of them.
    fn given(&self) -> Result<Vec<Given>> {
        let mut group = self.group.as_ref().map(|g| match g {
            Group::Size(n) => int(*n),
            Group::Word(w) => text(w),
        });
        let flag = |on: bool| on.then_some(Value::Bool(true));
        let word = |w: &Option<String>| w.as_deref().map(text);
        let (mut grid, mut scales) = (word(&self.grid), self.scales.as_ref().map(|s| text(&s.to_lowercase())));
        if scales == Some(text("e8m0")) {
            return Err(
                ParamError::new("scales", "`e8m0`", "must be f16, bf16 or f32; grid mxint has powers of two").into()
            );
        }
        if grid == Some(text("mxint")) {
            if scales.is_some() {
                let rule = "the scales of grid mxint are always powers of two";
                return Err(ParamError::new("scales", "given", rule).into());
            }
            (grid, scales) = (Some(text("sym_narrow")), Some(text("e8m0")));
            group.get_or_insert(int(16));
        }
        let all = [
            ("grid", grid),
            ("group", group),
            ("scales", scales),
            ("mse", flag(self.mse)),
            ("importance", flag(self.importance)),
            ("nested", flag(self.nested)),
            ("act_order", flag(self.act_order)),
            ("static_groups", flag(self.static_groups)),
            ("damping", self.damping.map(Value::Float)),
            ("block", self.block.map(int)),
            ("dead", word(&self.dead)),
            ("on_failure", word(&self.on_failure)),
        ];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }

    /// Returns the given fields of a low-rank product with their values.
    fn product(&self) -> Vec<Given> {
        let all = [
            ("rank", self.rank.map(int)),
            ("rank_bits", self.rank_bits.map(Value::Float)),
            ("factors", self.factors.as_deref().map(text)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Returns the stage of quantized activations of `bits` bits; none without bits.
    fn act(&self, kinds: &Stages, bits: Option<u32>) -> Result<Option<Box<dyn StageSpec>>> {
        let given = self.activation_scale.is_some() || self.activation_range.is_some();
        let Some(bits) = bits else {
            let rule = "it has no effect without activations";
            let unused = ParamError::new("activation_scale or activation_range", "given", rule);
            return if given && self.parts.is_empty() { Err(unused.into()) } else { Ok(None) };
        };
        let mut act = kinds.make("act")?;
        put(&mut *act, "activations", "bits", int(bits))?;
        if let Some(scale) = &self.activation_scale {
            put(&mut *act, "activation_scale", "scale", text(scale))?;
        }
        let range = self.activation_range.as_ref().map(|range| match range {
            Range::Percentile(p) => Value::Float(*p),
            Range::Word(word) => text(word),
        });
        if let Some(range) = range {
            if !matches!(self.activation_scale.as_deref(), Some("static" | "static_channel")) {
                return Err(ParamError::new("activation_range", "given", "it is for static scales only").into());
            }
            put(&mut *act, "activation_range", "range", range)?;
        }
        Ok(Some(act))
    }

    /// Returns the stage that compresses each part of the columns with its own bits.
    fn split(&self, kinds: &Stages) -> Result<Box<dyn StageSpec>> {
        let refuse = |what: &'static str, rule: &str| Err(ParamError::new(what, "given", rule).into());
        if self.bits.is_some() || self.activations.is_some() {
            return refuse("bits or activations", "with `parts` they belong in each part");
        }
        if self.smooth.is_some() || self.output_clip || self.activation_range.is_some() {
            return refuse("smooth, output_clip or activation_range", "it cannot be combined with `parts`");
        }
        let own = |part: &Part| -> Result<(f64, StageList)> {
            let rule = Rule { bits: Some(part.bits), parts: Vec::new(), ..self.clone() };
            let mut list = vec![rule.weights(kinds)?];
            list.extend(self.act(kinds, part.activations)?);
            Ok((part.share, list))
        };
        let mut split = kinds.make("split")?;
        if let Some(damping) = self.damping {
            put(&mut *split, "damping", "damping", Value::Float(damping))?;
        }
        let mut parts = Parts { parts: self.parts.iter().map(own).collect::<Result<_>>()?, at: 0 };
        split.fields(&mut parts)?;
        Ok(split)
    }
}

/// Gives the stage `split` its parts.
struct Parts {
    parts: Vec<(f64, StageList)>,
    at: usize,
}

impl Fields for Parts {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        if field.name == "share" {
            let share = Value::Float(self.parts[self.at].0);
            field.check(&share)?;
            *value = Some(share);
        }
        Ok(())
    }
    fn nested(&mut self, _: &Field, value: &mut StageList) -> Result<()> {
        value.clone_from(&self.parts[self.at].1);
        Ok(())
    }
    fn tables(&mut self, _: &Field, list: &mut dyn List) -> Result<()> {
        list.resize(self.parts.len());
        for i in 0..self.parts.len() {
            self.at = i;
            list.fields(i, self)?;
        }
        Ok(())
    }
}
