//! [`Target`]: the matrix that a stage compresses, with its site and its other stages.

use super::{Field, Fields, Slot, StageSpec, Stages, assemble};
use crate::{DType, Method, ParamError, Result, Role, Site, Value};

/// A weight matrix that a recipe compresses, as [`StageSpec::parts`] gets it: its name and stored type, its [`Site`] (the input that it reads, with
/// all matrices that read this input), and its stages (steps of compression, such as smoothing and quantization). It also has the stages of the other
/// matrices of the site, for example those of k and v for q.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The name of the weight, as in the model file; empty for [`Target::none`].
    pub weight: &'a str,
    /// The type in which the model stores the weight.
    pub dtype: DType,
    /// The site of the matrix: the input that it reads, with all matrices that read this input. None if it is not known.
    pub site: Option<&'a Site>,
    /// The number of attention heads whose outputs are concatenated in the input of the matrix; 1 for any other input.
    pub heads: usize,
    /// The stages (steps of compression) of each matrix that reads the same input as this one, in the order of [`Site::consumers`]. If the site is
    /// not known, and for stages inside a stage, the list has one entry: the stages of this matrix.
    pub rules: &'a [&'a [Box<dyn StageSpec>]],
    /// The index of this matrix in `rules`, counted from 0.
    pub own: usize,
    /// The stages of the recipe that change the whole network before its matrices are compressed ([`Slot::Network`]). Empty if there are none.
    pub network: &'a [Box<dyn StageSpec>],
    /// The registry of all kinds of stages, from which a stage can make other stages, for example one that stores parts of its result.
    pub kinds: &'a Stages,
}

impl<'a> Target<'a> {
    /// Returns the target without a matrix, which stages of [`Slot::Network`] and [`Slot::Cache`] get: no weight, no site and no stages. `kinds` is
    /// the registry of all kinds of stages (steps of compression). It cannot fail.
    pub fn none(kinds: &'a Stages) -> Self {
        Self { weight: "", dtype: DType::F32, site: None, heads: 1, rules: &[], own: 0, network: &[], kinds }
    }

    /// Returns what the matrix computes, such as queries; [`Role::Linear`] if its site (the input that it reads, with all matrices that read it) is
    /// not known or does not list it.
    pub fn role(&self) -> Role {
        let consumers = self.site.into_iter().flat_map(|s| &s.consumers);
        consumers.into_iter().find(|c| c.weight == self.weight).map_or(Role::Linear, |c| c.role)
    }

    /// Returns the stages of this matrix (steps of compression, such as smoothing and quantization), in order. Empty if [`own`](Self::own) is not an
    /// index of [`rules`](Self::rules).
    pub fn stages(&self) -> &'a [Box<dyn StageSpec>] {
        self.rules.get(self.own).copied().unwrap_or_default()
    }

    /// Returns the first stage (step of compression) of this matrix whose slot is `slot`, such as [`Slot::Quantize`], the stored form of the weights.
    /// None if the matrix has none.
    pub fn stage(&self, slot: Slot) -> Option<&'a dyn StageSpec> {
        of_slot(self.stages(), slot)
    }

    /// Returns the value of the parameter of the name `field` in the first stage (step of compression) of the slot `slot`, for each matrix that reads
    /// the same input as this one, in the order of [`Site::consumers`]; for this matrix alone if its site is not known. An entry is None if the
    /// matrix has no stage of this slot, or if the stage has no parameter of this name, one without a value, or one that is a list. It cannot fail.
    pub fn values(&self, slot: Slot, field: &str) -> Vec<Option<Value>> {
        self.rules.iter().map(|stages| of_slot(stages, slot).and_then(|stage| value_of(stage, field))).collect()
    }

    /// Returns the method of compression that a stage of the kind `kind` makes for this matrix. `kind` is a name in the rules of recipes, such as
    /// `f16`; `fields` has names and values of parameters of the stage, and all others have their defaults. A stage uses it to store parts of its
    /// result by another method. Errors with [`Error::Param`](crate::Error::Param) if there is no such kind, if it has no parameter of a name or
    /// refuses a value, if it makes no stored form of a matrix, or if it also changes the site or removes weights. Errors as [`StageSpec::parts`]
    /// does.
    pub fn method(&self, kind: &str, fields: &[(&str, Value)]) -> Result<Box<dyn Method>> {
        let mut stage = self.kinds.make(kind)?;
        for (field, value) in fields {
            set(&mut *stage, field, value.clone())?;
        }
        let all = assemble(&self.with_stages(&[&[stage]]))?;
        if all.rewrites.is_empty() && all.pruners.is_empty() {
            return Ok(all.method);
        }
        Err(ParamError::new("kind", format!("`{kind}`"), "it does more than making the stored form of a matrix").into())
    }

    /// Returns this target with the stages `rules[0]` in place of the stages of the matrix; [`own`](Self::own) is 0. It serves stages that consist of
    /// other stages, such as one that divides the columns into parts. If `rules` is empty, the matrix has no stages. It cannot fail.
    pub fn with_stages<'b>(&self, rules: &'b [&'b [Box<dyn StageSpec>]]) -> Target<'b>
    where
        'a: 'b,
    {
        Target { rules, own: 0, ..*self }
    }
}

fn of_slot(stages: &[Box<dyn StageSpec>], slot: Slot) -> Option<&dyn StageSpec> {
    stages.iter().map(|s| &**s).find(|s| s.slot() == slot)
}

/// Returns the value of the parameter of the name `field` of the stage (step of compression) `stage`. None if it has no parameter of this name, one
/// without a value, or one that is a list. The stage is not changed.
pub fn value_of(stage: &dyn StageSpec, field: &str) -> Option<Value> {
    struct Find<'f>(&'f str, Option<Value>);
    impl Fields for Find<'_> {
        fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
            if field.name == self.0 {
                self.1.clone_from(value);
            }
            Ok(())
        }
    }
    let mut find = Find(field, None);
    // This visitor refuses nothing, so a stage has no reason to fail.
    stage.clone_stage().fields(&mut find).ok()?;
    find.1
}

/// A visitor ([`Fields`]) of the parameters of a stage (a step of compression) that replaces the value of each parameter by that of the parameter of
/// the same name in another stage, the one given here. A parameter keeps its value if the given stage has none of its name, or one without a value or
/// that is a list. Ranges are not checked.
pub struct ValuesOf<'a>(pub &'a dyn StageSpec);

impl Fields for ValuesOf<'_> {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        if let Some(other) = value_of(self.0, field.name) {
            *value = Some(other);
        }
        Ok(())
    }
}

/// Sets the parameter of the name `field` of the stage (step of compression) `stage` to `value`. A parameter may depend on an earlier one, which is
/// then to be set before: the word `sym` for a grid stands for the grid that is usual for the bits. Errors with [`Error::Param`](crate::Error::Param)
/// if the stage has no parameter of this name (the message lists its parameters), if the parameter is a list, or if `value` is not of its type or not
/// in its range.
pub fn set(stage: &mut dyn StageSpec, field: &str, value: Value) -> Result<()> {
    struct Set<'f>(&'f str, Option<Value>, Vec<&'static str>);
    impl Fields for Set<'_> {
        fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
            self.2.push(field.name);
            if field.name == self.0 {
                self.1.iter().try_for_each(|v| field.check(v))?;
                *value = self.1.take();
            }
            Ok(())
        }
    }
    let mut visitor = Set(field, Some(value), Vec::new());
    stage.fields(&mut visitor)?;
    let Set(_, Some(_), names) = visitor else { return Ok(()) };
    let has = if names.is_empty() { "no parameters".to_string() } else { names.join(", ") };
    let rule = format!("`{}` has no parameter of this name (it has {has})", stage.kind());
    Err(ParamError::new("parameter", format!("`{field}`"), rule).into())
}
