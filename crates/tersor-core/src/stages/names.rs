//! Names of recipes, such as `w4-g128-awq-gptq`. They consist of segments: words that ask for stages, and segments that set parameters of stages.

use super::{Section, Slot, StageSpec, Stages, set};
use crate::{ParamError, Result, Role, Value};

/// The form of a segment of a recipe's name that sets parameters of a stage (a step of compression). A segment is a part of a name between two `-`:
/// `g128` sets the group size, `sym` the grid. The form is shown as `g<number>` or `sym`.
#[derive(Clone, PartialEq, Debug)]
pub struct Segment {
    text: &'static str,
    number: Option<&'static str>,
    values: Vec<(&'static str, Value)>,
}

impl Segment {
    /// Returns the form of segments that consist of the letters `prefix` and an integer without sign and leading zeros, and set the parameter of the
    /// name `field` to the integer: with the prefix `g`, the segment `g128` sets it to 128. It cannot fail.
    pub fn number(prefix: &'static str, field: &'static str) -> Self {
        Self { text: prefix, number: Some(field), values: Vec::new() }
    }

    /// Returns the form of the single segment `word`, which gives each parameter in `values` (name and value) its value. It cannot fail.
    pub fn word(word: &'static str, values: Vec<(&'static str, Value)>) -> Self {
        Self { text: word, number: None, values }
    }

    /// Returns the names and values of the parameters that the segment `segment` of a name sets. None if the segment is not of this form, or if its
    /// number is above `i64::MAX`.
    pub fn values(&self, segment: &str) -> Option<Vec<(&'static str, Value)>> {
        match self.number {
            None => (self.text == segment).then(|| self.values.clone()),
            Some(field) => {
                let digits = segment.strip_prefix(self.text)?;
                let number = digits.parse::<i64>().ok().filter(|n| n.to_string() == digits && *n >= 0)?;
                Some(vec![(field, Value::Int(number))])
            }
        }
    }
}

/// Shows the form of the segment, such as `g<number>` or `sym`.
impl std::fmt::Display for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text)?;
        if self.number.is_some() { f.write_str("<number>") } else { Ok(()) }
    }
}

/// A rule of a recipe that a name stands for: the matrices that it is for, and the stages that compress them.
#[derive(Clone)]
pub struct NameRule {
    /// The roles of matrices that the rule is for. A role is what a matrix computes, such as queries.
    pub roles: Vec<Role>,
    /// The stages (steps of compression) of these matrices, in the order of [`Slot`].
    pub stages: Vec<Box<dyn StageSpec>>,
}

/// The recipe that a name such as `w4-g128-gptq` stands for: stages (steps of compression) of the whole network, of its matrices and of the caches.
/// [`Named::parse`] makes it. The kinds of stages that the name asks for fill it ([`StageSpec::add_to`]).
#[derive(Clone)]
pub struct Named<'k> {
    /// The stages that change the whole network before anything is compressed, in order.
    pub network: Vec<Box<dyn StageSpec>>,
    /// The rules for some of the matrices, by what they compute. The first rule that is for a matrix applies to it; `stages` apply to all other
    /// matrices.
    pub rules: Vec<NameRule>,
    /// The stages of the matrices that no rule in `rules` is for, in the order of [`Slot`]. Embedding and output head have them only if `everything`
    /// is true.
    pub stages: Vec<Box<dyn StageSpec>>,
    /// The stages that store the key-value caches of all layers, at most one; empty for the default cache.
    pub cache: Vec<Box<dyn StageSpec>>,
    /// Names and values of parameters that the stage in `cache`, if there is one, gets at the end of [`parse`](Self::parse), such as the rotation of
    /// keys that goes with a rotation of the network. The stage must have these parameters.
    pub cache_values: Vec<(&'static str, Value)>,
    /// Whether embedding, output head and the pooler of an encoder have the stages in `stages`. If not, they are stored in 8 bits.
    pub everything: bool,
    /// Whether a word of the name asks for the stage of [`Slot::Quantize`], as in `w4-gptq`; false if only a segment that sets a parameter does, as
    /// in `w4`.
    pub quantizer_named: bool,
    /// The words of the name that ask for stages, in order. Segments that set parameters are not among them.
    pub words: Vec<String>,
    /// The registry of all kinds of stages.
    pub kinds: &'k Stages,
}

/// A stage while the name is read.
struct Draft {
    stage: Box<dyn StageSpec>,
    word: String,
    taken: Vec<&'static str>,
}

impl Draft {
    /// Gives the stage a segment; false if it does not take it. Errors if the value is invalid, or if the stage has had such a segment.
    fn take(&mut self, segment: &str) -> Result<bool> {
        for form in self.stage.segments() {
            let Some(values) = form.values(segment) else { continue };
            if self.taken.contains(&form.text) {
                return Err(ParamError::new("recipe", format!("`{segment}`"), "another segment sets the same").into());
            }
            self.taken.push(form.text);
            values.into_iter().try_for_each(|(field, value)| set(&mut *self.stage, field, value))?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl<'k> Named<'k> {
    /// Returns the recipe that `name` stands for, with the kinds of stages (steps of compression) in `kinds`. A name consists of segments with `-`
    /// between them. A segment is a word that asks for a stage ([`StageSpec::words`]), or it sets parameters of a stage ([`StageSpec::segments`]):
    /// those of the last stage in front of it that takes it; if none does, those of the first stage behind it that does; if there is none, those of a
    /// [default](StageSpec::is_default) stage, which the recipe then has as well. Segments of letters and a number may follow each other without `-`,
    /// as in `w4a8`.
    ///
    /// Errors with [`Error::Param`](crate::Error::Param) of the parameter `recipe`, with the segment, if no stage takes a segment, if another segment
    /// sets the same, or if the name asks for two stages of a slot other than [`Slot::Transform`]; with the name, if the name asks for no stage of
    /// [`Slot::Quantize`]. Errors with [`Error::Param`](crate::Error::Param) of the parameter of a stage if a value in a segment is out of its range.
    /// Errors as [`StageSpec::add_to`] does.
    pub fn parse(name: &str, kinds: &'k Stages) -> Result<Self> {
        let refuse = |segment: &str, rule: &str| ParamError::new("recipe", format!("`{segment}`"), rule);
        let (mut drafts, mut waiting): (Vec<Draft>, Vec<String>) = (Vec::new(), Vec::new());
        let open = |drafts: &mut Vec<Draft>, waiting: &mut Vec<String>, stage: Box<dyn StageSpec>, word: &str| {
            let slot = stage.slot();
            if slot != Slot::Transform && drafts.iter().any(|d| d.stage.slot() == slot) {
                let rule = format!("the name has a stage of `{}` already", slot.name());
                return Err(crate::Error::from(refuse(word, &rule)));
            }
            let mut draft = Draft { stage, word: word.to_string(), taken: Vec::new() };
            let mut rest = Vec::new();
            for segment in waiting.drain(..) {
                if !draft.take(&segment)? {
                    rest.push(segment);
                }
            }
            *waiting = rest;
            drafts.push(draft);
            Ok(())
        };
        for segment in name.split('-').flat_map(|part| pieces(part, kinds)) {
            let asked = kinds.kinds().find(|s| s.slot() != Slot::Cache && s.words().contains(&segment));
            if let Some(stage) = asked {
                open(&mut drafts, &mut waiting, stage.clone_stage(), segment)?;
                continue;
            }
            let mut taken = false;
            for draft in drafts.iter_mut().rev() {
                taken = draft.take(segment)?;
                if taken {
                    break;
                }
            }
            if !taken {
                waiting.push(segment.to_string());
            }
        }
        while let Some(segment) = waiting.first().cloned() {
            let takes =
                |s: &&dyn StageSpec| s.is_default() && s.segments().iter().any(|f| f.values(&segment).is_some());
            let stage = kinds.kinds().find(takes);
            let stage = stage.ok_or_else(|| refuse(&segment, "no stage has this name or takes this segment"))?;
            open(&mut drafts, &mut waiting, stage.clone_stage(), "")?;
        }
        if !drafts.iter().any(|d| d.stage.slot() == Slot::Quantize) {
            return Err(refuse(name, "no segment says how weights are stored, such as `w4` or `bf16`").into());
        }
        Self::of(drafts, kinds)
    }

    /// Returns the recipe of the stages that a name asks for.
    fn of(mut drafts: Vec<Draft>, kinds: &'k Stages) -> Result<Self> {
        let quantizer_named = drafts.iter().any(|d| d.stage.slot() == Slot::Quantize && !d.word.is_empty());
        let words = drafts.iter().filter(|d| !d.word.is_empty()).map(|d| d.word.clone()).collect();
        let mut all = Self {
            network: Vec::new(),
            rules: Vec::new(),
            stages: Vec::new(),
            cache: Vec::new(),
            cache_values: Vec::new(),
            everything: false,
            quantizer_named,
            words,
            kinds,
        };
        let order = |s: &Slot| match s.section() {
            Section::Rules => 0,
            Section::Network => 1,
            Section::Cache => 2,
        };
        drafts.sort_by_key(|d| (order(&d.stage.slot()), d.stage.slot()));
        for draft in &drafts {
            draft.stage.add_to(&mut all, &draft.word)?;
        }
        for stage in &mut all.cache {
            for (field, value) in &all.cache_values {
                set(&mut **stage, field, value.clone())?;
            }
        }
        Ok(all)
    }

    /// Adds the stage (a step of compression) `stage` to the list that it belongs in by its slot ([`Slot::section`]): `network`, `stages` or `cache`.
    /// It comes behind the stages of its own slot and of the slots before it. It cannot fail.
    pub fn push(&mut self, stage: Box<dyn StageSpec>) {
        let list = match stage.slot().section() {
            Section::Network => &mut self.network,
            Section::Rules => &mut self.stages,
            Section::Cache => &mut self.cache,
        };
        let at = list.iter().position(|s| s.slot() > stage.slot()).unwrap_or(list.len());
        list.insert(at, stage);
    }

    /// Returns the first stage (step of compression) in `stages` whose slot is `slot`, such as [`Slot::Quantize`]; None if there is none.
    pub fn stage(&self, slot: Slot) -> Option<&dyn StageSpec> {
        self.stages.iter().map(|s| &**s).find(|s| s.slot() == slot)
    }

    /// Removes all stages (steps of compression) of the slot of `stage` from `stages`, and adds `stage` as [`push`](Self::push) does. It cannot fail.
    pub fn replace(&mut self, stage: Box<dyn StageSpec>) {
        self.stages.retain(|s| s.slot() != stage.slot());
        self.push(stage);
    }
}

/// Cuts a part of a name that is no word, and consists of letters and numbers in turn, after each number.
fn pieces<'n>(part: &'n str, kinds: &Stages) -> Vec<&'n str> {
    let ends_in_digit = part.ends_with(|c: char| c.is_ascii_digit());
    let starts_with_letter = part.starts_with(|c: char| c.is_ascii_lowercase());
    if kinds.kinds().any(|s| s.words().contains(&part)) || !ends_in_digit || !starts_with_letter {
        return vec![part];
    }
    let mut out = Vec::new();
    let (mut start, bytes) = (0, part.as_bytes());
    for i in 1..bytes.len() {
        if bytes[i - 1].is_ascii_digit() && bytes[i].is_ascii_lowercase() {
            out.push(&part[start..i]);
            start = i;
        }
    }
    out.push(&part[start..]);
    out
}
