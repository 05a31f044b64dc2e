//! Stages of recipes make the same methods as the builders of the crates.

use tersor::blockwise::{Blockwise, LlmInt8};
use tersor::core::stages::{Field, FieldKind, Fields, List, Section, Slot, StageSpec, Target, assemble, set, value_of};
use tersor::core::{
    Check, Consumer, Context, DType, MatView, MemTensors, Method, OpSpec, Producer, Result, Role, Site, StatNeeds,
    StatSet, Value,
};
use tersor::groupwise::gptq::{Dead, Groups, OnFailure};
use tersor::groupwise::{Clip, Dgq, Gptq, Grid, OutputClip, Qqq, Rtn};
use tersor::lowrank::{Corrected, LowRank, Norm, Rank, Subspaces};
use tersor::operators::{ActPlan, ActQuant, ActRange, Cast, WithActivations};

const ROWS: usize = 24;
const COLS: usize = 64;

fn values(n: usize, salt: u32) -> Vec<f32> {
    let mut state = salt.wrapping_mul(747_796_405) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next() * next()).collect()
}

fn stats() -> StatSet {
    let needs = StatNeeds { squares: true, channel: true, gram: true, sample: 64, windows: false };
    let mut stats = StatSet::new(COLS, needs, 0, 0).unwrap();
    let mut x = values(200 * COLS, 3);
    // A dead feature.
    x.iter_mut().skip(7).step_by(COLS).for_each(|v| *v = 0.0);
    stats.observe(&MatView::new(&x, [200, COLS]).unwrap()).unwrap();
    stats
}

fn site(role: Role) -> Site {
    let consumer = |name: &str, role| Consumer { weight: name.into(), shape: [ROWS, COLS], role };
    Site {
        name: "site".into(),
        layer: Some(0),
        features: COLS,
        consumers: vec![consumer("w", role), consumer("other", Role::Value)],
        producer: Producer::Opaque,
        writers: Vec::new(),
    }
}

/// Returns the method and the names of the rewrites that `stages` make for the matrix `w` of a site, whose other matrix has them too.
fn made(stages: Vec<Box<dyn StageSpec>>, role: Role) -> Result<(Box<dyn Method>, Vec<String>)> {
    let (kinds, site) = (tersor::stages(), site(role));
    let rules: [&[Box<dyn StageSpec>]; 2] = [&stages, &stages];
    let at = Target {
        weight: "w",
        dtype: DType::BF16,
        site: Some(&site),
        heads: 4,
        rules: &rules,
        own: 0,
        network: &[],
        kinds,
    };
    let all = assemble(&at)?;
    Ok((all.method, all.rewrites.iter().map(|r| r.name()).collect()))
}

/// Returns what a method stores for the test matrix.
fn stored(method: &dyn Method) -> (OpSpec, MemTensors) {
    let (w, cx, stats) = (values(ROWS * COLS, 1), Context::new(), stats());
    let w = MatView::new(&w, [ROWS, COLS]).unwrap();
    let op = method.prepare(&stats, &cx).unwrap().compress(&w, 0..ROWS, &cx).unwrap().op;
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    (op.spec(), file)
}

fn boxed<C: Check<Checked: Method + 'static>>(builder: C) -> Box<dyn Method> {
    Box::new(builder.check().map_err(|e| e.to_string()).unwrap())
}

/// Returns a stage with these values of its fields.
fn stage(kind: &str, fields: &[(&str, Value)]) -> Box<dyn StageSpec> {
    let mut stage = tersor::stages().make(kind).unwrap();
    fields.iter().for_each(|(name, value)| set(&mut *stage, name, value.clone()).unwrap());
    stage
}

fn int(n: i64) -> Value {
    Value::Int(n)
}

fn text(word: &str) -> Value {
    Value::Text(word.into())
}

const ON: Value = Value::Bool(true);

/// Stages, and the method that they should make.
type Case = (Vec<Box<dyn StageSpec>>, Box<dyn Method>);

#[test]
fn fields_set_the_parameters_of_the_builders() {
    let mxint = || boxed(Rtn::mxint(8));
    let base = || boxed(Rtn::new().bits(3));
    let act = |plan| Box::new(WithActivations::planned(plan, boxed(Rtn::new()))) as Box<dyn Method>;
    let with_act = |fields: &[(&str, Value)]| vec![stage("rtn", &[]), stage("act", fields)];
    let cases: Vec<Case> = vec![
        (vec![stage("keep", &[])], Box::new(Cast::new(DType::BF16).unwrap())),
        (vec![stage("f16", &[])], Box::new(Cast::new(DType::F16).unwrap())),
        (vec![stage("rtn", &[])], boxed(Rtn::new())),
        (
            vec![stage(
                "rtn",
                &[("bits", int(3)), ("group", int(16)), ("grid", text("sym")), ("scales", text("f32")), ("mse", ON)],
            )],
            boxed(Rtn::new().bits(3).group(16).grid(Grid::SymFull).scales(DType::F32).clip(Clip::Search { norm: 2.4 })),
        ),
        (
            vec![stage(
                "rtn",
                &[("bits", int(8)), ("group", text("tensor")), ("grid", text("sym")), ("mse", ON), ("importance", ON)],
            )],
            boxed(Rtn::new().bits(8).per_tensor().symmetric().clip(Clip::Search { norm: 2.4 }).importance(true)),
        ),
        (vec![stage("mxint", &[("bits", int(5))])], boxed(Rtn::mxint(5))),
        (
            vec![stage(
                "gptq",
                &[
                    ("bits", int(3)),
                    ("group", int(16)),
                    ("damping", Value::Float(0.1)),
                    ("block", int(32)),
                    ("act_order", ON),
                    ("static_groups", ON),
                    ("dead", text("keep")),
                    ("on_failure", text("error")),
                ],
            )],
            boxed(
                Gptq::new()
                    .bits(3)
                    .group(16)
                    .damping(0.1)
                    .block(32)
                    .act_order(true)
                    .groups(Groups::Static)
                    .dead(Dead::Keep)
                    .on_failure(OnFailure::Error),
            ),
        ),
        (vec![stage("dgq", &[("group", int(16))])], boxed(Dgq::new().group(16))),
        (vec![stage("qqq", &[("group", int(32))])], boxed(Qqq::new().group(32))),
        (vec![stage("nf4", &[("block", int(32)), ("nested", ON)])], boxed(Blockwise::nf4().block(32).nested(true))),
        (vec![stage("fp4", &[])], boxed(Blockwise::fp4())),
        (vec![stage("dynamic", &[])], boxed(Blockwise::dynamic())),
        (vec![stage("int8", &[])], Box::new(LlmInt8)),
        (vec![stage("svd", &[("rank", int(5))])], boxed(LowRank::new(Rank::Fixed(5)).factors(mxint()))),
        (
            vec![
                stage("rtn", &[("bits", int(3))]),
                stage("lqer", &[("rank_bits", Value::Float(2.0)), ("factors", text("f16"))]),
            ],
            boxed(Corrected::lqer(base()).rank(Rank::Bits(2.0)).factors(Box::new(Cast::new(DType::F16).unwrap()))),
        ),
        (
            vec![stage("rtn", &[("bits", int(3))]), stage("l2qer", &[])],
            boxed(Corrected::l2qer(base()).rank(Rank::Fixed(32)).factors(mxint())),
        ),
        (
            vec![stage("rtn", &[("bits", int(3))]), stage("gram", &[("rank", int(4))])],
            boxed(Corrected::lqer(base()).norm(Norm::Gram).rank(Rank::Fixed(4)).factors(mxint())),
        ),
        (with_act(&[]), act(ActPlan::Ready(ActQuant::per_token(8).unwrap()))),
        (
            with_act(&[("bits", int(4)), ("scale", text("asym"))]),
            act(ActPlan::Ready(ActQuant::asymmetric(4, 4).unwrap())),
        ),
        (with_act(&[("scale", text("tensor"))]), act(ActPlan::Ready(ActQuant::per_tensor(8).unwrap()))),
        (with_act(&[("scale", text("mxint"))]), act(ActPlan::Ready(ActQuant::mxint(8, 16).unwrap()))),
        (
            with_act(&[("scale", text("static")), ("range", text("mse"))]),
            act(ActPlan::fixed(8, ActRange::Mse, false).unwrap()),
        ),
        (
            with_act(&[("scale", text("static_channel")), ("range", Value::Float(99.0))]),
            act(ActPlan::fixed(8, ActRange::Percentile(99.0), true).unwrap()),
        ),
        (
            vec![
                stage("awq", &[("clip", ON)]),
                stage("gptq", &[("bits", int(3)), ("group", int(16))]),
                stage("lqer", &[]),
            ],
            boxed(
                Corrected::lqer(boxed(
                    OutputClip::before(boxed(Gptq::new().bits(3).group(16))).bits(3).group(Some(16)).grid(Grid::Asym),
                ))
                .factors(mxint()),
            ),
        ),
    ];
    for (stages, expected) in cases {
        let name = stages.iter().map(|s| s.kind()).collect::<Vec<_>>().join(" ");
        let (method, _) = made(stages, Role::Value).unwrap();
        assert_eq!(method.name(), expected.name(), "{name}");
        assert!(stored(&*method) == stored(&*expected), "{name}");
    }
}

#[test]
fn queries_and_keys_are_not_clipped() {
    let stages = || vec![stage("awq", &[("clip", ON)]), stage("rtn", &[])];
    for (role, clips) in [(Role::Query, false), (Role::Key, false), (Role::Value, true), (Role::Gate, true)] {
        let needs = made(stages(), role).unwrap().0.needs();
        assert_eq!(needs.gram, clips, "{role:?}");
    }
}

#[test]
fn parts_of_the_columns_have_stages_of_their_own() {
    let kinds = tersor::stages();
    let mut split = kinds.make("split").unwrap();
    /// Makes two parts.
    struct Two<'k>(&'k tersor::core::stages::Stages, usize);
    impl Fields for Two<'_> {
        fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
            if field.name == "share" {
                *value = Some(Value::Float([0.75, 0.25][self.1]));
            }
            Ok(())
        }
        fn nested(&mut self, field: &Field, value: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
            assert!(matches!(&field.kind, FieldKind::Stages(slots) if slots.contains(&Slot::Quantize)));
            let mut rtn = self.0.make("rtn")?;
            set(&mut *rtn, "bits", int([4, 8][self.1]))?;
            *value = vec![rtn];
            Ok(())
        }
        fn tables(&mut self, _: &Field, list: &mut dyn List) -> Result<()> {
            list.resize(2);
            for i in 0..2 {
                self.1 = i;
                list.fields(i, self)?;
            }
            Ok(())
        }
    }
    split.fields(&mut Two(kinds, 0)).unwrap();
    let expected = Subspaces::new().heads(4).part(0.75, boxed(Rtn::new())).part(0.25, boxed(Rtn::new().bits(8)));
    let (method, _) = made(vec![split], Role::AttentionOutput).unwrap();
    assert!(stored(&*method) == stored(&*boxed(expected)));
}

#[test]
fn contradictions_are_bad_usage() {
    let refused = |stages: Vec<Box<dyn StageSpec>>| made(stages, Role::Value).err().is_some_and(|e| e.is_usage());
    let (rtn, act) = (|| stage("rtn", &[]), || stage("act", &[]));
    assert!(refused(vec![]), "no stored form");
    assert!(refused(vec![act()]), "no stored form");
    assert!(refused(vec![rtn(), stage("gptq", &[])]), "two stored forms");
    assert!(refused(vec![act(), rtn()]), "out of order");
    assert!(refused(vec![stage("awq", &[("clip", ON)]), stage("nf4", &[])]), "no grid to clip for");
    assert!(refused(vec![rtn(), stage("lqer", &[("rank", int(4)), ("rank_bits", Value::Float(1.0))])]), "two ranks");
    assert!(refused(vec![rtn(), stage("act", &[("range", text("mse"))])]), "a range of scales that are not fixed");
    assert!(refused(vec![stage("rtn", &[("importance", ON)])]), "importance without a search");
    assert!(refused(vec![stage("gptq", &[("group", text("tensor"))])]), "one scale for the matrix");
    for (kind, field, value) in [
        ("rtn", "bitz", int(4)),
        ("rtn", "bits", text("four")),
        ("rtn", "grid", text("round")),
        ("rtn", "bits", int(9)),
        ("act", "range", Value::Float(f64::NAN)),
    ] {
        let e = set(&mut *tersor::stages().make(kind).unwrap(), field, value).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(field), "{e}");
    }
}

#[test]
fn every_kind_shows_its_fields_with_defaults_in_range() {
    struct Shown(&'static str, usize);
    impl Fields for Shown {
        fn value(&mut self, field: &Field, value: &mut Option<Value>) -> Result<()> {
            self.1 += 1;
            assert!(field.help.ends_with('.') && !field.name.is_empty(), "{} {}", self.0, field.name);
            let fits = value.as_ref().is_none_or(|v| field.check(v).is_ok());
            assert!(fits, "{} {} {value:?}", self.0, field.name);
            Ok(())
        }
    }
    let mut kinds = Vec::new();
    for mut stage in tersor::stages().kinds().map(|s| s.clone_stage()) {
        assert!(stage.help().ends_with('.') && stage.slot().name() != "", "{}", stage.kind());
        let mut shown = Shown(stage.kind(), 0);
        stage.fields(&mut shown).unwrap();
        kinds.push((stage.slot().section(), stage.kind()));
    }
    let of = |section: Section| kinds.iter().filter(|k| k.0 == section).map(|k| k.1).collect::<Vec<_>>().join(" ");
    let known = "act adaptive awq bf16 clip dgq dynamic f16 f32 fp4 gptq gram int8 keep l2qer lqer mxint nf4 percentile qqq rtn smoothquant split svd";
    assert_eq!(
        (of(Section::Network), of(Section::Rules), of(Section::Cache)),
        ("rotate".into(), known.into(), "f16 f32 int".into())
    );
    // The documentation has every kind and parameter.
    let page = include_str!("../../../docs/recipes.md");
    for stage in tersor::stages().kinds() {
        struct Names(Vec<&'static str>);
        impl Fields for Names {
            fn value(&mut self, field: &Field, _: &mut Option<Value>) -> Result<()> {
                self.0.push(field.name);
                Ok(())
            }
        }
        let mut names = Names(vec![stage.kind()]);
        stage.clone_stage().fields(&mut names).unwrap();
        for name in names.0 {
            assert!(page.contains(&format!("`{name}`")), "docs/recipes.md lacks `{name}` of `{}`", stage.kind());
        }
    }
    assert_eq!(value_of(&*stage("gptq", &[("bits", int(3))]), "bits"), Some(int(3)));
    assert_eq!(value_of(&*stage("gptq", &[]), "no such field"), None);
}
