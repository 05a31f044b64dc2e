//! Builds the method of a rule, with checked parameters. Errors of this module are bad usage.

use tersor::blockwise::{Blockwise, LlmInt8};
use tersor::core::{Bits, Check, DType, GroupSize, Method, ParamError, Result, Rewrite};
use tersor::groupwise::gptq::{Dead, Groups, OnFailure};
use tersor::groupwise::{Adaptive, Awq, Clip, Dgq, Gptq, Grid, OutputClip, Percentile, Qqq, Rtn, SmoothQuant};
use tersor::lowrank::{Corrected, LowRank, Norm, Rank, Subspaces};
use tersor::operators::{ActPlan, ActQuant, ActRange, Cast, WithActivations};

use super::{Group, Range, Rule};

impl Rule {
    /// Returns the smoothing of a site, if the rule has one; `rules` are the rules of the site's matrices, this one first.
    pub fn smoothing(&self, rules: &[&Rule]) -> Result<Option<Box<dyn Rewrite>>> {
        if self.alpha.is_some() && self.smooth.as_deref() != Some("smoothquant") {
            return Err(ParamError::new("alpha", "given", "it has no effect without smooth = \"smoothquant\"").into());
        }
        let Some(how) = &self.smooth else { return Ok(None) };
        for rule in rules {
            rule.check_trial()?;
        }
        Ok(Some(match how.as_str() {
            "smoothquant" => {
                let smooth = SmoothQuant::new();
                Box::new(self.alpha.map_or(smooth, |a| smooth.alpha(a)).check()?)
            }
            "awq" => Box::new(Awq::new()),
            "adaptive" => {
                let bits: Vec<u32> = rules.iter().map(|r| r.activations.unwrap_or(8)).collect();
                Box::new(Adaptive::with_activations(&bits)?)
            }
            "percentile" => Box::new(Percentile),
            _ => {
                let rule = "must be smoothquant, awq, adaptive or percentile";
                return Err(ParamError::new("smooth", format!("`{how}`"), rule).into());
            }
        }))
    }

    /// Errors if the smoothing searches its factors by trials and the method has no data-free form for them.
    fn check_trial(&self) -> Result<()> {
        if !["awq", "adaptive"].contains(&self.smooth.as_deref().unwrap_or_default()) {
            return Ok(());
        }
        match self.weights(DType::F32)?.plain() {
            Some(_) => Ok(()),
            None => {
                Err(ParamError::new("smooth", "given", format!("it cannot be combined with method `{}`", self.method))
                    .into())
            }
        }
    }

    /// Returns the group size of `dgq` and `qqq`: 128 unless given.
    fn dual_group(&self) -> Result<Group> {
        match &self.group {
            None => Ok(Group::Size(128)),
            Some(Group::Size(n)) => Ok(Group::Size(*n)),
            Some(Group::Word(w)) => {
                let rule = format!("must be a number with `{}`", self.method);
                Err(ParamError::new("group", format!("`{w}`"), rule).into())
            }
        }
    }

    /// Returns the shares of the rule's parts, if it has any.
    pub fn shares(&self) -> Option<Vec<f64>> {
        (!self.parts.is_empty()).then(|| self.parts.iter().map(|p| p.share).collect())
    }

    /// Returns the method that compresses each part of the columns with its own bits. `heads` is as in [`Rule::method`].
    fn subspaces(&self, original: DType, heads: usize) -> Result<Box<dyn Method>> {
        let refuse = |what: &'static str, rule: &str| Err(ParamError::new(what, "given", rule).into());
        if self.bits.is_some() || self.activations.is_some() {
            return refuse("bits or activations", "with `parts` they belong in each part");
        }
        if self.smooth.is_some() || self.output_clip || self.activation_range.is_some() {
            return refuse("smooth, output_clip or activation_range", "it cannot be combined with `parts`");
        }
        let mut all = Subspaces::new().heads(heads);
        if let Some(damping) = self.damping {
            all = all.damping(damping);
        }
        for part in &self.parts {
            let rule = Rule {
                bits: Some(part.bits),
                activations: part.activations,
                activation_scale: self.activation_scale.clone().filter(|_| part.activations.is_some()),
                parts: Vec::new(),
                ..self.clone()
            };
            let mut method = rule.weights(original)?;
            if let Some(plan) = rule.activation_plan(heads)? {
                method = Box::new(WithActivations::planned(plan, method));
            }
            all = all.part(part.share, method);
        }
        Ok(Box::new(all.check()?))
    }

    /// Returns the checked method for the matrix `tensor`. `original` is its stored type, which `keep` uses; `heads` is the number of heads whose outputs
    /// are concatenated in its input, or 1.
    pub fn method(&self, tensor: &str, original: DType, heads: usize) -> Result<Box<dyn Method>> {
        let whole = self.parts.is_empty();
        let mut method = if whole { self.weights(original)? } else { self.subspaces(original, heads)? };
        if self.output_clip {
            if !["rtn", "gptq"].contains(&self.method.as_str()) {
                let rule = "it is for rtn and gptq only";
                return Err(ParamError::new("output_clip", "given", rule).into());
            }
            let g = self.grid()?;
            let group = match g.group {
                GroupSize::Size(n) => Some(n.get()),
                _ => None,
            };
            // As in AWQ, queries and keys are not clipped: their errors matter in their products only.
            if !["q_proj", "k_proj", "query", "key"].iter().any(|p| tensor.contains(p)) {
                method = Box::new(
                    OutputClip::before(method).bits(g.bits).group(group).grid(g.grid).scales(g.scales).check()?,
                );
            }
        }
        let product = self.rank.is_some() || self.rank_bits.is_some() || self.factors.is_some();
        if let Some(how) = &self.low_rank {
            let norm = self.norm(how)?;
            let corrected = Corrected::lqer(method).norm(norm).rank(self.product_rank()?).factors(self.factors()?);
            method = Box::new(corrected.check()?);
        } else if product && self.method != "svd" {
            let rule = "it has no effect without low_rank";
            return Err(ParamError::new("rank, rank_bits or factors", "given", rule).into());
        }
        if !whole {
            return Ok(method);
        }
        Ok(match self.activation_plan(heads)? {
            Some(plan) => Box::new(WithActivations::planned(plan, method)),
            None => method,
        })
    }

    /// Returns the quantization of activations, if the rule has one.
    fn activation_plan(&self, heads: usize) -> Result<Option<ActPlan>> {
        let given = self.activation_scale.is_some() || self.activation_range.is_some();
        let Some(bits) = self.activations else {
            let rule = "it has no effect without activations";
            let unused = || ParamError::new("activation_scale or activation_range", "given", rule).into();
            return if given { Err(unused()) } else { Ok(None) };
        };
        let scale = self.activation_scale.as_deref().unwrap_or("token");
        let range = match &self.activation_range {
            None => ActRange::Max,
            Some(Range::Percentile(p)) => ActRange::Percentile(*p),
            Some(Range::Word(w)) if w == "max" => ActRange::Max,
            Some(Range::Word(w)) if w == "mse" => ActRange::Mse,
            Some(Range::Word(w)) => {
                let rule = "must be max, mse or a percentile";
                return Err(ParamError::new("activation_range", format!("`{w}`"), rule).into());
            }
        };
        if self.activation_range.is_some() && !scale.starts_with("static") {
            let rule = "it is for static scales only";
            return Err(ParamError::new("activation_range", "given", rule).into());
        }
        Ok(Some(match scale {
            "token" => ActPlan::Ready(ActQuant::per_token(bits)?),
            "asym" => ActPlan::Ready(ActQuant::asymmetric(bits, heads)?),
            "tensor" => ActPlan::Ready(ActQuant::per_tensor(bits)?),
            "mxint" => ActPlan::Ready(ActQuant::mxint(bits, 16)?),
            "static" | "static_channel" => ActPlan::fixed(bits, range, scale == "static_channel")?,
            other => {
                let rule = "must be token, asym, tensor, static, static_channel or mxint";
                return Err(ParamError::new("activation_scale", format!("`{other}`"), rule).into());
            }
        }))
    }

    /// Returns the method for the weights, without corrections and activations.
    fn weights(&self, original: DType) -> Result<Box<dyn Method>> {
        let cast = |dtype| Ok(Box::new(Cast::new(dtype)?) as Box<dyn Method>);
        let groups = self.bits.is_some() || self.group.is_some();
        let grid = self.grid.is_some() || self.scales.is_some() || self.mse || self.importance;
        let gptq = self.act_order
            || self.static_groups
            || self.damping.is_some()
            || self.block.is_some()
            || self.dead.is_some()
            || self.on_failure.is_some();
        let refuse = |rule: &str| Err(ParamError::new("method", format!("`{}`", self.method), rule).into());
        if gptq && self.method != "gptq" {
            return refuse("it takes no act_order, static_groups, damping, block, dead or on_failure");
        }
        let blocks = ["nf4", "fp4", "dynamic"].contains(&self.method.as_str());
        if self.nested && !blocks {
            return refuse("it takes no nested");
        }
        match self.method.as_str() {
            _ if blocks && grid => refuse("it takes no grid, scales, mse or importance"),
            _ if blocks => Ok(Box::new(self.blockwise()?.check()?)),
            "svd" if grid || groups => refuse("it takes no bits, group, grid, scales, mse or importance"),
            "svd" => Ok(Box::new(LowRank::new(self.product_rank()?).factors(self.factors()?).check()?)),
            "int8" if grid || self.group.is_some() => refuse("it takes no group, grid, scales, mse or importance"),
            "int8" => self.has_bits(8).map(|()| Box::new(LlmInt8) as Box<dyn Method>),
            "gptq" if self.importance => refuse("it already weights errors by the inputs and takes no importance"),
            "dgq" | "qqq" if grid => refuse("it has a fixed grid and takes no grid, scales, mse or importance"),
            "dgq" => {
                self.has_bits(4)?;
                Ok(Box::new(Dgq::new().group(self.dual_size()?).check()?))
            }
            "qqq" => {
                self.has_bits(4)?;
                Ok(Box::new(Qqq::new().group(self.dual_size()?).check()?))
            }
            "rtn" => Ok(Box::new(self.rtn()?.check()?)),
            "gptq" => Ok(Box::new(self.gptq()?.check()?)),
            "keep" | "bf16" | "f16" | "f32" if grid || groups => {
                refuse("it takes no bits, group, grid, scales, mse or importance")
            }
            "keep" => cast(original),
            "bf16" => cast(DType::BF16),
            "f16" => cast(DType::F16),
            "f32" => cast(DType::F32),
            _ => refuse("must be one of rtn, gptq, dgq, qqq, nf4, fp4, dynamic, int8, svd, bf16, f16, f32, keep"),
        }
    }

    fn dual_size(&self) -> Result<usize> {
        match self.dual_group()? {
            Group::Size(n) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
            Group::Word(_) => Ok(0),
        }
    }

    /// Returns the grid, groups and scales of `rtn` and `gptq`.
    fn grid(&self) -> Result<GridOptions> {
        let needs = || ParamError::new("bits", "missing", format!("method `{}` needs 2 to 8", self.method));
        let bits = self.bits.ok_or_else(needs)?;
        let mxint = self.grid.as_deref() == Some("mxint");
        let group = match &self.group {
            None if mxint => GroupSize::size(16)?,
            None => GroupSize::Channel,
            Some(Group::Size(n)) => GroupSize::size(usize::try_from(*n).unwrap_or(usize::MAX))?,
            Some(Group::Word(w)) if w == "channel" => GroupSize::Channel,
            Some(Group::Word(w)) if w == "tensor" => GroupSize::Tensor,
            Some(Group::Word(w)) => {
                let rule = "must be a number, `channel` or `tensor`";
                return Err(ParamError::new("group", format!("`{w}`"), rule).into());
            }
        };
        let bad =
            |g: &str| ParamError::new("grid", format!("`{g}`"), "must be asym, sym, sym_full, sym_narrow or mxint");
        let grid = match self.grid.as_deref() {
            None => Grid::Asym,
            Some("mxint") => Grid::SymNarrow,
            Some("sym") => Grid::symmetric(Bits::new(bits)?),
            Some(g) => Grid::from_name(g).ok_or_else(|| bad(g))?,
        };
        let scales = match self.scales.as_deref() {
            None if mxint => DType::E8M0,
            None => DType::F16,
            Some(_) if mxint => {
                return Err(
                    ParamError::new("scales", "given", "the scales of grid mxint are always powers of two").into()
                );
            }
            Some(s) => DType::from_name(s)
                .filter(|d| d.is_weight())
                .ok_or_else(|| ParamError::new("scales", format!("`{s}`"), "must be f16, bf16 or f32"))?,
        };
        let clip = if self.mse { Clip::Search { norm: 2.4 } } else { Clip::None };
        Ok(GridOptions { bits, group, grid, scales, clip })
    }

    /// Returns the norm in which a low-rank correction minimizes the error.
    fn norm(&self, how: &str) -> Result<Norm> {
        match how {
            "lqer" => Ok(Norm::Plain),
            "l2qer" => Ok(Norm::Magnitude),
            "gram" => Ok(Norm::Gram),
            _ => Err(ParamError::new("low_rank", format!("`{how}`"), "must be lqer, l2qer or gram").into()),
        }
    }

    fn product_rank(&self) -> Result<Rank> {
        match (self.rank, self.rank_bits) {
            (Some(_), Some(_)) => {
                Err(ParamError::new("rank", "given with rank_bits", "only one of them may be given").into())
            }
            (Some(rank), None) => Ok(Rank::Fixed(rank)),
            (None, Some(bits)) => Ok(Rank::Bits(bits)),
            (None, None) => Ok(Rank::Fixed(32)),
        }
    }

    fn factors(&self) -> Result<Box<dyn Method>> {
        Ok(match self.factors.as_deref() {
            None | Some("mxint8") => Box::new(Rtn::mxint(8).check()?),
            Some("f16") => Box::new(Cast::new(DType::F16)?),
            Some("bf16") => Box::new(Cast::new(DType::BF16)?),
            Some("f32") => Box::new(Cast::new(DType::F32)?),
            Some(f) => {
                return Err(ParamError::new("factors", format!("`{f}`"), "must be mxint8, f16, bf16 or f32").into());
            }
        })
    }

    /// Errors if the rule gives a number of bits other than the fixed one of the method.
    fn has_bits(&self, bits: u32) -> Result<()> {
        match self.bits {
            Some(b) if b != bits => {
                Err(ParamError::new("bits", b, format!("method `{}` has {bits}", self.method)).into())
            }
            _ => Ok(()),
        }
    }

    fn blockwise(&self) -> Result<Blockwise> {
        let (how, bits) = match self.method.as_str() {
            "nf4" => (Blockwise::nf4(), 4),
            "fp4" => (Blockwise::fp4(), 4),
            _ => (Blockwise::dynamic(), 8),
        };
        self.has_bits(bits)?;
        let how = match &self.group {
            None => how,
            Some(Group::Size(n)) => how.block(usize::try_from(*n).unwrap_or(usize::MAX)),
            Some(Group::Word(w)) => {
                return Err(
                    ParamError::new("group", format!("`{w}`"), "must be a number, the values of a block").into()
                );
            }
        };
        Ok(how.nested(self.nested))
    }

    fn rtn(&self) -> Result<Rtn> {
        let g = self.grid()?;
        let rtn = Rtn::new().bits(g.bits).grid(g.grid).scales(g.scales).clip(g.clip).importance(self.importance);
        Ok(match g.group {
            GroupSize::Size(n) => rtn.group(n.get()),
            GroupSize::Channel => rtn.per_channel(),
            GroupSize::Tensor => rtn.per_tensor(),
        })
    }

    fn gptq(&self) -> Result<Gptq> {
        let g = self.grid()?;
        let mut gptq = Gptq::new().bits(g.bits).grid(g.grid).scales(g.scales).clip(g.clip).act_order(self.act_order);
        gptq = match g.group {
            GroupSize::Size(n) => gptq.group(n.get()),
            GroupSize::Channel => gptq.per_channel(),
            GroupSize::Tensor => {
                return Err(ParamError::new("group", "`tensor`", "must be a number or `channel` with gptq").into());
            }
        };
        if self.static_groups {
            gptq = gptq.groups(Groups::Static);
        }
        gptq = self.damping.map_or(gptq, |d| gptq.damping(d));
        gptq = self.block.map_or(gptq, |b| gptq.block(b));
        gptq = match self.dead.as_deref() {
            None | Some("zero") => gptq.dead(Dead::Zero),
            Some("keep") => gptq.dead(Dead::Keep),
            Some(other) => return Err(ParamError::new("dead", format!("`{other}`"), "must be zero or keep").into()),
        };
        Ok(match self.on_failure.as_deref() {
            None | Some("rtn") => gptq.on_failure(OnFailure::Rtn),
            Some("error") => gptq.on_failure(OnFailure::Error),
            Some(o) => return Err(ParamError::new("on_failure", format!("`{o}`"), "must be rtn or error").into()),
        })
    }
}

/// Parameters of a grid over groups.
struct GridOptions {
    bits: u32,
    group: GroupSize,
    grid: Grid,
    scales: DType,
    clip: Clip,
}
