//! [`Stages`]: the registry of the kinds of stages that recipes may name.

use std::collections::BTreeMap;

use super::{Section, StageSpec};
use crate::{ParamError, Result};

/// A registry of the kinds of stages (steps of compression) that recipes may name, such as `gptq`. Each method crate has a function `register_stages`
/// that adds the kinds of the crate. The default has none.
///
/// ```
/// use tersor_core::stages::Stages;
/// assert_eq!(Stages::new().kinds().count(), 0);
/// ```
#[derive(Clone, Default)]
pub struct Stages(BTreeMap<(Section, &'static str), Box<dyn StageSpec>>);

impl Stages {
    /// Returns a registry without kinds of stages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the kind of `stage`, under the name that [`StageSpec::kind`] returns. It replaces a kind of the same name in the same list of a recipe
    /// ([`Slot::section`](super::Slot::section)). The parameters of `stage` become the default parameters of the kind.
    pub fn register(&mut self, stage: impl StageSpec + 'static) {
        self.0.insert((stage.slot().section(), stage.kind()), Box::new(stage));
    }

    /// Returns a stage (a step of compression) of each kind, with the default parameters: sorted by the list of a recipe that the kind belongs in
    /// ([`Section`]) and, within a list, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &dyn StageSpec> {
        self.0.values().map(|stage| &**stage)
    }

    /// Returns a new stage (a step of compression) of the kind `kind`, with the default parameters; `kind` is the name of a kind for the rules of a
    /// recipe, such as `gptq`. Errors with [`Error::Param`](crate::Error::Param) if there is no such kind for rules; the message lists all that there
    /// are.
    pub fn make(&self, kind: &str) -> Result<Box<dyn StageSpec>> {
        self.make_in(Section::Rules, kind)
    }

    /// Returns a new stage (a step of compression) of the kind `kind` for the list `section` of a recipe, with the default parameters. Errors with
    /// [`Error::Param`](crate::Error::Param) if there is no such kind for this list; the message lists all that there are.
    pub fn make_in(&self, section: Section, kind: &str) -> Result<Box<dyn StageSpec>> {
        let own = || self.kinds().filter(|s| s.slot().section() == section);
        own().find(|s| s.kind() == kind).map(|s| s.clone_stage()).ok_or_else(|| {
            let known: Vec<&str> = own().map(StageSpec::kind).collect();
            ParamError::new("kind", format!("`{kind}`"), format!("must be one of {}", known.join(", "))).into()
        })
    }
}
