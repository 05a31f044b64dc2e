//! A method that nobody but this file knows: one line registers its kind, and recipes, names, plans and files take it.

use std::path::Path;

use tersor::core::stages::{Fields, Part, Segment, Slot, StageSpec, Target};
use tersor::core::{Check, Context, Result};
use tersor::groupwise::Rtn;
use tersor::pipeline::{Kinds, Pipeline, Recipe, recipe, verify};

/// Rounds in groups of 16, and never else.
#[derive(Clone)]
struct Sixteen {
    bits: u32,
}

impl StageSpec for Sixteen {
    fn kind(&self) -> &'static str {
        "sixteen"
    }
    fn help(&self) -> &'static str {
        "Rounds each weight to the nearest code of its group of 16."
    }
    fn slot(&self) -> Slot {
        Slot::Quantize
    }
    fn fields(&mut self, f: &mut dyn Fields) -> Result<()> {
        f.int("bits", "Bits of a code.", 2..=6, &mut self.bits)
    }
    fn parts(&self, _: &Target<'_>) -> Result<Vec<Part>> {
        Ok(vec![Part::Base(Box::new(Rtn::new().bits(self.bits).group(16).check()?))])
    }
    fn segments(&self) -> Vec<Segment> {
        vec![Segment::number("w", "bits")]
    }
}

#[test]
fn a_registered_kind_is_a_method_like_any_other() {
    let mut stages = tersor::stages().clone();
    stages.register(Sixteen { bits: 4 });
    let kinds = Kinds { stages, ..tersor::kinds().clone() };

    let recipe = Recipe::from_name("w3-sixteen-lqer-r4", &kinds.stages).unwrap();
    let text = recipe.to_toml(&kinds.stages);
    assert!(text.contains("{ kind = \"sixteen\", bits = 3 }, { kind = \"lqer\", rank = 4 }"), "{text}");
    assert_eq!(Recipe::from_toml(&text, "text", &kinds.stages).unwrap(), recipe);
    assert!(Recipe::from_name("w7-sixteen", &kinds.stages).is_err());
    assert!(Recipe::from_name("w3-sixteen", tersor::stages()).unwrap_err().to_string().contains("sixteen"));
    let listed = recipe::list(&kinds.stages).into_iter().find(|k| k.kind == "sixteen").unwrap();
    assert_eq!(
        (listed.parameters[0].name.as_str(), listed.parameters[0].values.as_str()),
        ("bits", "an integer of 2 to 6")
    );

    let dir = tempfile::tempdir().unwrap();
    let (model, out) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/tiny-wiki"), dir.path().join("out"));
    let cx = Context::new();
    let plan = Pipeline::open(&model, "w3-sixteen", &kinds).unwrap().plan(&cx).unwrap();
    let bytes = plan.plan.weight_bytes().unwrap();
    assert_eq!(plan.compress(&out, &cx).unwrap().weight_bytes, bytes);
    assert!(verify(&out, &kinds, &cx).unwrap().matrices > 20);
}
