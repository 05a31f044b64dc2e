//! [`Target`]: the matrix that a stage is asked to work on.

use super::{Field, Fields, Slot, StageSpec, Stages, assemble};
use crate::{DType, Method, ParamError, Result, Role, Site, Value};

/// A weight matrix that a recipe compresses, as [`StageSpec::parts`] sees it: the name of the matrix, its stored type, the site whose input
/// it reads, and the stages (the steps of its compression, such as smoothing and quantization, in order) that the recipe lists for it. It
/// also has the stages of the other matrices that read the same input, for example those of k and v for q.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The name of the weight, as in the model file.
    pub weight: &'a str,
    /// The type in which the model stores the weight.
    pub dtype: DType,
    /// The site that the matrix reads, the input that it shares with other matrices; None if it is not known.
    pub site: Option<&'a Site>,
    /// The number of attention heads whose outputs are concatenated in the input of the matrix; 1 for any other input.
    pub heads: usize,
    /// The stages (steps of the compression, such as smoothing and quantization) of each matrix that reads the same input as this one, in
    /// the order of [`Site::consumers`]. If the site (the input and the matrices that read it) is not known, and for stages inside of a
    /// stage, the list has one entry, the stages of this matrix.
    pub rules: &'a [&'a [Box<dyn StageSpec>]],
    /// The index of this matrix in the list `rules`, counted from 0, which has the stages of each matrix that reads the same input as this
    /// one.
    pub own: usize,
    /// The stages of [`Slot::Network`] of the recipe, which change the whole network before its matrices are compressed. Empty if there are
    /// none.
    pub network: &'a [Box<dyn StageSpec>],
    /// The registry of all kinds of stages, from which a stage can make other stages, for example one that stores parts of its result.
    pub kinds: &'a Stages,
}

impl<'a> Target<'a> {
    /// Returns the target without a matrix that stages of [`Slot::Network`] and [`Slot::Cache`] get: no weight, no site, and no stages.
    pub fn none(kinds: &'a Stages) -> Self {
        Self { weight: "", dtype: DType::F32, site: None, heads: 1, rules: &[], own: 0, network: &[], kinds }
    }

    /// Returns what the matrix computes, such as queries; [`Role::Linear`] if its site (its input, and the matrices that read it) is not
    /// known or does not list it.
    pub fn role(&self) -> Role {
        let consumers = self.site.into_iter().flat_map(|s| &s.consumers);
        consumers.into_iter().find(|c| c.weight == self.weight).map_or(Role::Linear, |c| c.role)
    }

    /// Returns the stages of this matrix (the steps of its compression, such as smoothing and quantization), in order.
    pub fn stages(&self) -> &'a [Box<dyn StageSpec>] {
        self.rules.get(self.own).copied().unwrap_or_default()
    }

    /// Returns the first stage of this matrix that has the slot `slot`, which is what a stage works on, such as [`Slot::Quantize`] for the
    /// stored form of the weights. None if no stage of the matrix has it.
    pub fn stage(&self, slot: Slot) -> Option<&'a dyn StageSpec> {
        of_slot(self.stages(), slot)
    }

    /// Returns the value of the parameter `field` in the first stage of the slot `slot`, for each matrix that reads the same input as this
    /// one, in the order of [`Site::consumers`]; for this matrix alone if its site is not known. An entry is None if the matrix has no
    /// stage of this slot, if the stage has no such parameter, or if the parameter has no value or is a list.
    pub fn values(&self, slot: Slot, field: &str) -> Vec<Option<Value>> {
        self.rules.iter().map(|stages| of_slot(stages, slot).and_then(|stage| value_of(stage, field))).collect()
    }

    /// Returns the method that a stage of the kind `kind` (its name in recipes, such as `f16`) makes for this matrix. `fields` has the
    /// names and values of its parameters; others have their defaults. Stages use it to store parts of their result by another method.
    /// Errors (bad usage) if there is no such kind, if it also changes the site or prunes, if it has no parameter
    /// of a name or refuses a value, or if it does not make the stored form of a matrix. Errors if [`StageSpec::parts`] does.
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

    /// Returns this target with other stages of the same matrix: those of `rules[0]`. The other fields but `own`, which is 0, stay as they
    /// are. It serves stages that consist of other stages, such as one that divides the columns into parts.
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

/// Returns the value of the parameter `field` of a stage; None if it has no such parameter, or if the parameter has no value or is a list.
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

/// A visitor ([`Fields`]) that replaces the value of each parameter by that of the parameter of the same name in the given stage. A
/// parameter stays as it is if the given stage has no parameter of its name, or if that has no value or is a list. Ranges are not checked.
pub struct ValuesOf<'a>(pub &'a dyn StageSpec);

impl Fields for ValuesOf<'_> {
    fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
        if let Some(other) = value_of(self.0, field.name) {
            *value = Some(other);
        }
        Ok(())
    }
}

/// Sets the parameter `field` of a stage to `value`. Errors (bad usage) if the stage has no parameter of this name, if the parameter is a
/// list, or if `value` is not of its type or not in its range. Parameters may depend on earlier ones: `sym` stands for the grid that is
/// usual for the bits, so that bits are set before the grid.
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
