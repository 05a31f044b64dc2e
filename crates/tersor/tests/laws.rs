//! Laws of calibrated methods, over every registered kind of stages.
//!
//! The kinds that need data are found in the registry, by all values of their flags and words, and the stages in the table [`LAWS`]. So a new kind is
//! tested by being registered, and the test fails until the table says what holds for it.

use std::collections::BTreeMap;

use tersor::core::stages::{Field, FieldKind, Fields, List, Section, Slot, StageSpec, Target, assemble, set};
use tersor::core::{
    Consumer, Context, DType, Error, Exec, FoldedRows, LinearOp, LinearOpExt, MatView, MemTensors, Method, OpSpec,
    Producer, Result, Rewrite, Role, RowSource, Seen, SeenSite, Site, StatNeeds, StatSet, Unseen, Value, Weights,
    read_finite,
};
use tersor::formats::Model;
use tersor::models::Architecture;
use tersor::operators::{GroupedLinear, TableLinear};
use tersor::pipeline::Recipe;

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

/// Returns weights whose largest magnitude is 1 in each column.
fn weights() -> Vec<f32> {
    let mut w: Vec<f32> = values(ROWS * COLS, 1).into_iter().map(|v| v.clamp(-0.99, 0.99)).collect();
    (0..COLS).for_each(|c| w[c % ROWS * COLS + c] = if c % 3 == 0 { -1.0 } else { 1.0 });
    w
}

/// Returns tokens that are uncorrelated and whose values have the magnitude 1: the rows of a Hadamard matrix.
fn even() -> Vec<f32> {
    let sign = |i: usize| if ((i / COLS) & (i % COLS)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..COLS * COLS).map(sign).collect()
}

/// Returns statistics of tokens that are correlated, some features larger than others.
fn uneven() -> Vec<f32> {
    let mut x = values(4 * COLS * COLS, 5);
    for token in x.chunks_exact_mut(COLS) {
        (1..COLS).for_each(|i| token[i] = 0.5 * token[i - 1] + token[i] * (1 + i % 7) as f32);
    }
    x
}

/// Returns statistics of everything that `needs` names, of tokens of this many features.
fn stats(needs: StatNeeds, x: &[f32], features: usize) -> StatSet {
    let mut stats = StatSet::new(features, needs, 0, 0).unwrap();
    if !x.is_empty() {
        stats.observe_window(&MatView::new(x, [x.len() / features, features]).unwrap(), None).unwrap();
    }
    stats
}

fn site() -> Site {
    Site {
        name: "site".into(),
        layer: Some(0),
        features: COLS,
        consumers: vec![Consumer { weight: "w".into(), shape: [ROWS, COLS], role: Role::Linear }],
        producer: Producer::Norm { weight: "norm".into() },
        writers: Vec::new(),
    }
}

/// A method with the rewrites in front of it.
struct Made {
    method: Box<dyn Method>,
    rewrites: Vec<Box<dyn Rewrite>>,
}

impl Made {
    fn needs(&self) -> StatNeeds {
        self.rewrites.iter().map(|r| r.needs(&site())).fold(self.method.needs(), StatNeeds::union)
    }
}

fn made(stages: &[Box<dyn StageSpec>]) -> Result<Made> {
    let site = site();
    let rules: [&[Box<dyn StageSpec>]; 1] = [stages];
    let at = Target {
        weight: "w",
        dtype: DType::F32,
        site: Some(&site),
        heads: 1,
        rules: &rules,
        own: 0,
        network: &[],
        kinds: tersor::stages(),
    };
    let all = assemble(&at)?;
    Ok(Made { method: all.method, rewrites: all.rewrites })
}

/// Parses the stages of a rule, as a recipe has them.
fn stages(toml: &str) -> Vec<Box<dyn StageSpec>> {
    let toml = format!("name = \"law\"\nrules = [{{ match = \"*\", stages = [{toml}] }}]");
    Recipe::from_toml(&toml, "law", tersor::stages()).unwrap().rules.remove(0).stages
}

fn of(toml: &str) -> Made {
    made(&stages(toml)).unwrap()
}

/// Compresses the matrix `w` with statistics.
fn compressed(method: &dyn Method, w: &dyn RowSource, stats: &StatSet) -> Result<(Box<dyn LinearOp>, f64, f64)> {
    let cx = Context::new();
    let done = method.prepare(stats, &cx)?.compress(w, 0..w.shape()[0], &cx)?;
    Ok((done.op, done.report.squared_error, done.report.data_error.unwrap_or(f64::NAN)))
}

fn saved(op: &dyn LinearOp) -> (OpSpec, MemTensors) {
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    (op.spec(), file)
}

/// Returns what a method stores for `w`, with statistics of the tokens `x`.
fn stored(method: &dyn Method, w: &[f32], x: &[f32]) -> (OpSpec, MemTensors) {
    let w = MatView::new(w, [ROWS, COLS]).unwrap();
    saved(&*compressed(method, &w, &stats(method.needs(), x, COLS)).unwrap().0)
}

/// A site that was observed with these statistics and this sample.
struct Observed<'a> {
    site: Site,
    stats: StatSet,
    sample: &'a [f32],
    plain: Vec<Option<&'a dyn Method>>,
}

impl Seen for Observed<'_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        let output = |x: &[f32], ops: &[&dyn LinearOp], _: bool| -> Result<Vec<f32>> {
            let view = MatView::new(x, [x.len() / COLS, COLS])?;
            Ok(ops.iter().map(|op| op.matmul_vec(&view)).collect::<Result<Vec<_>>>()?.concat())
        };
        f(&[SeenSite {
            site: &self.site,
            stats: &self.stats,
            sample: self.sample,
            output: &output,
            keys_and_values: &|_| Ok(None),
            plain: &self.plain,
        }])
    }
}

/// The matrix `w`, and a norm.
struct Matrix(Vec<f32>, Vec<f32>);

impl Weights for Matrix {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        Ok(if name == "w" {
            Box::new(MatView::new(&self.0, [ROWS, COLS])?)
        } else {
            Box::new(MatView::new(&self.1, [1, COLS])?)
        })
    }
}

/// Rewrites and compresses the matrix with statistics, as a pipeline does; returns the values of the rewritten matrix, and what is stored for it.
fn rewritten(made: &Made, w: &[f32], stats: &StatSet, sample: &[f32]) -> Result<(Vec<f32>, (OpSpec, MemTensors))> {
    let (network, cx) = (Matrix(w.to_vec(), vec![1.0; COLS]), Context::new());
    let mut folds = Vec::new();
    for rewrite in &made.rewrites {
        let plain = vec![made.method.plain()];
        let seen = Observed { site: site(), stats: stats.clone(), sample, plain };
        folds.extend(rewrite.rewrite(&[site()], &network, &seen, &cx)?.folds);
    }
    let rows = network.rows("w")?;
    let folded = FoldedRows::new(&*rows, "w", &folds)?;
    let values = read_finite(&folded, 0..ROWS)?;
    Ok((values, saved(&*compressed(&*made.method, &folded, stats)?.0)))
}

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// The kinds that need data
// ---------------------------------------------------------------------------------------------------------------------------------------------------

/// The fields of a stage: the values of flags and words to try, and whether there are lists.
#[derive(Default)]
struct Choices {
    values: Vec<(&'static str, Value)>,
    lists: bool,
}

impl Fields for Choices {
    fn value(&mut self, field: &Field, _: &mut Option<Value>) -> Result<()> {
        match &field.kind {
            FieldKind::Flag => self.values.push((field.name, Value::Bool(true))),
            FieldKind::Word(words) | FieldKind::IntOrWord(_, words) | FieldKind::FloatOrWord(_, words) => {
                self.values.extend(words.iter().map(|w| (field.name, Value::Text(w.to_string()))));
            }
            _ => {}
        }
        Ok(())
    }
    fn nested(&mut self, _: &Field, _: &mut Vec<Box<dyn StageSpec>>) -> Result<()> {
        self.lists = true;
        Ok(())
    }
    fn tables(&mut self, _: &Field, _: &mut dyn List) -> Result<()> {
        self.lists = true;
        Ok(())
    }
}

fn choices(kind: &dyn StageSpec) -> Choices {
    let mut all = Choices::default();
    kind.clone_stage().fields(&mut all).unwrap();
    all
}

/// Returns the stages of rules with one of `kind` that need data, with up to two flags or words set. `split` and the like have theirs in the table.
fn that_need_data(kind: &dyn StageSpec) -> Vec<Vec<Box<dyn StageSpec>>> {
    let values = choices(kind).values;
    let none = std::iter::once(Vec::new());
    let one = values.iter().map(|v| vec![v]);
    let two = values.iter().enumerate().flat_map(|(i, a)| values[i + 1..].iter().map(move |b| vec![a, b]));
    let mut all = Vec::new();
    for set_to in none.chain(one).chain(two) {
        let mut stage = kind.clone_stage();
        let valid = set_to.iter().all(|(name, value)| set(&mut *stage, name, value.clone()).is_ok());
        let rtn = || tersor::stages().make("rtn").unwrap();
        let rule = match kind.slot() {
            Slot::Transform | Slot::Prune => vec![stage, rtn()],
            Slot::Repair | Slot::Activations => vec![rtn(), stage],
            _ => vec![stage],
        };
        if valid && made(&rule).is_ok_and(|m| m.needs().any_data()) {
            all.push(rule);
        }
    }
    all
}

fn kinds_of_rules() -> impl Iterator<Item = &'static dyn StageSpec> {
    tersor::stages().kinds().filter(|s| s.slot().section() == Section::Rules)
}

/// What is held for a kind.
struct Law {
    kind: &'static str,
    /// Stages that need data.
    stages: &'static str,
    /// What holds: with compensation off, the result is that without data.
    holds: fn(&str),
}

/// For every kind of rules that needs data, what its result equals if there is nothing to compensate.
const LAWS: [Law; 16] = [
    Law { kind: "gptq", stages: r#"{ kind = "gptq", bits = 3, group = 16 }"#, holds: as_plain },
    Law {
        kind: "gptq",
        stages: r#"{ kind = "gptq", bits = 4, group = 32, grid = "sym", mse = true }"#,
        holds: as_plain,
    },
    Law { kind: "split", stages: SPLIT, holds: as_plain_split },
    Law {
        kind: "rtn",
        stages: r#"{ kind = "rtn", bits = 3, group = 16, mse = true, importance = true }"#,
        holds: as_plain,
    },
    Law { kind: "qqq", stages: r#"{ kind = "qqq", group = 32 }"#, holds: as_tables_of_plain },
    Law { kind: "qqq", stages: r#"{ kind = "qqq" }"#, holds: as_form_without_data },
    Law {
        kind: "gptq",
        stages: r#"{ kind = "gptq", bits = 3, group = 16, act_order = true, static_groups = true }"#,
        holds: as_form_without_data,
    },
    Law { kind: "dgq", stages: r#"{ kind = "dgq", group = 16 }"#, holds: by_the_error_of_weights },
    Law {
        kind: "clip",
        stages: r#"{ kind = "clip" }, { kind = "rtn", bits = 3, group = 16 }"#,
        holds: grid_is_unclipped,
    },
    Law {
        kind: "awq",
        stages: r#"{ kind = "awq", clip = true }, { kind = "rtn", bits = 3, group = 16 }"#,
        holds: grid_is_unclipped,
    },
    Law { kind: "awq", stages: r#"{ kind = "awq" }, { kind = "rtn", bits = 3, group = 16 }"#, holds: factors_are_one },
    Law {
        kind: "smoothquant",
        stages: r#"{ kind = "smoothquant" }, { kind = "rtn", bits = 3, group = 16 }"#,
        holds: factors_are_one,
    },
    Law {
        kind: "adaptive",
        stages: r#"{ kind = "adaptive" }, { kind = "rtn", bits = 3, group = 16 }"#,
        holds: factors_are_equal,
    },
    Law {
        kind: "percentile",
        stages: r#"{ kind = "percentile" }, { kind = "rtn", bits = 3, group = 16 }"#,
        holds: factors_are_one,
    },
    Law {
        kind: "act",
        stages: r#"{ kind = "rtn", bits = 3 }, { kind = "act", scale = "static" }"#,
        holds: products_are_those_of_tokens,
    },
    Law {
        kind: "l2qer",
        stages: r#"{ kind = "rtn", bits = 3, group = 16 }, { kind = "l2qer", rank = 4 }"#,
        holds: as_lqer,
    },
];

/// A kind of which the correction is a root of the Gram matrix: it is equal to [`as_lqer`]'s within rounding.
const GRAM: Law = Law {
    kind: "gram",
    stages: r#"{ kind = "rtn", bits = 3, group = 16 }, { kind = "gram", rank = 4, factors = "f32" }"#,
    holds: near_lqer,
};

const SPLIT: &str = r#"{ kind = "split", parts = [{ share = 0.75, stages = [{ kind = "gptq", bits = 3 }] }, { share = 0.25, stages = [{ kind = "gptq", bits = 8 }] }] }"#;

fn laws() -> impl Iterator<Item = Law> {
    LAWS.into_iter().chain([GRAM])
}

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// Laws
// ---------------------------------------------------------------------------------------------------------------------------------------------------

/// On uncorrelated inputs of equal second moments, the bytes are those of round-to-nearest with the same parameters.
fn as_plain(toml: &str) {
    let (method, plain) = (of(toml).method, of(&toml.replace("gptq", "rtn").replace(", importance = true", "")).method);
    assert!(!plain.needs().any_data(), "{toml}");
    let want = stored(&*plain, &weights(), &[]);
    assert!(stored(&*method, &weights(), &even()) == want, "{toml}");
    assert!(stored(&*method, &weights(), &uneven()) != want, "{toml}: data has no effect");
    // So are those of the form without data, which has no search of ranges.
    if !toml.contains("mse") {
        as_form_without_data(toml);
    }
}

/// On uncorrelated inputs of equal second moments, the bytes are those of the form of the method without data.
fn as_form_without_data(toml: &str) {
    let method = of(toml).method;
    let want = stored(method.plain().unwrap(), &weights(), &[]);
    assert!(stored(&*method, &weights(), &even()) == want, "{toml}");
    assert!(stored(&*method, &weights(), &uneven()) != want, "{toml}: data has no effect");
}

/// The same for parts of the columns, each by a method without data.
fn as_plain_split(toml: &str) {
    let plain = of(&toml.replace("gptq", "rtn")).method;
    let method = of(toml).method;
    assert!(stored(&*method, &weights(), &even()) == stored(&*plain, &weights(), &even()), "{toml}");
    assert!(stored(&*method, &weights(), &uneven()) != stored(&*plain, &weights(), &uneven()), "{toml}");
}

/// On uncorrelated inputs of equal second moments, the tables are those of the rounded matrix.
fn as_tables_of_plain(toml: &str) {
    let method = of(toml).method;
    let (spec, file) = stored(method.plain().unwrap(), &weights(), &[]);
    let tables = TableLinear::of_grouped(&GroupedLinear::load(&spec, "w", &file).unwrap(), &Exec::new()).unwrap();
    assert!(stored(&*method, &weights(), &even()) == saved(&tables), "{toml}");
    assert!(stored(&*method, &weights(), &uneven()) != saved(&tables), "{toml}: data has no effect");
}

/// On uncorrelated inputs of equal second moments, what is minimized is the error of the weights, and only ratios of inputs count.
fn by_the_error_of_weights(toml: &str) {
    let (method, w) = (of(toml).method, weights());
    let w = MatView::new(&w, [ROWS, COLS]).unwrap();
    let twice: Vec<f32> = even().iter().map(|v| v * 2.0).collect();
    let found = |x: &[f32]| compressed(&*method, &w, &stats(method.needs(), x, COLS)).unwrap();
    let (once, twice) = (found(&even()), found(&twice));
    assert!(saved(&*once.0) == saved(&*twice.0), "{toml}");
    for ((_, weights, outputs), energy) in [(once, 64.0), (twice, 256.0)] {
        assert!((outputs / (energy * weights) - 1.0).abs() < 1e-5, "{toml}: {outputs} {weights}");
    }
    let other = found(&uneven()).0;
    assert!(saved(&*other) != saved(&*found(&even()).0), "{toml}: data has no effect");
}

/// A matrix that is on the grid loses nothing without clipping, so that it is not clipped, whatever the inputs.
fn grid_is_unclipped(toml: &str) {
    let made = of(toml);
    let plain = made.method.plain().unwrap();
    let rounded = |w: &[f32]| {
        let (w, none) = (MatView::new(w, [ROWS, COLS]).unwrap(), StatSet::none());
        compressed(plain, &w, &none).unwrap().0
    };
    // Every group of 16 has all codes of 3 bits, and a scale that f16 holds.
    let on_grid: Vec<f32> = (0..ROWS * COLS).map(|i| ((i * 5 + i / COLS) % 8) as f32 * 0.125 - 0.5).collect();
    assert!(rounded(&on_grid).decompress().unwrap() == on_grid);
    assert!(stored(&*made.method, &on_grid, &uneven()) == saved(&*rounded(&on_grid)), "{toml}");
    assert!(stored(&*made.method, &weights(), &uneven()) != saved(&*rounded(&weights())), "{toml}: data has no effect");
}

/// Inputs, and columns of the weights, of constant magnitude have factors of 1, so that the bytes are those without rewrite.
fn factors_are_one(toml: &str) {
    let made = of(toml);
    let even = even();
    let needs = made.needs();
    let (values, bytes) = rewritten(&made, &weights(), &stats(needs, &even, COLS), &even).unwrap();
    assert!(values == weights(), "{toml}");
    assert!(bytes == stored(&*made.method, &weights(), &even), "{toml}");
    // Inputs of other magnitudes have others. Percentile smoothing leaves one outlier among fewer than 100 as it is.
    let outlier: Vec<f32> = even.iter().enumerate().map(|(i, v)| if i % COLS == 5 { v * 40.0 } else { *v }).collect();
    let (values, _) = rewritten(&made, &weights(), &stats(needs, &outlier, COLS), &outlier).unwrap();
    assert!(made.rewrites[0].name() == "percentile" || values != weights(), "{toml}: data has no effect");
}

/// Inputs of constant magnitude have equal factors, which divide all inputs alike; the search does not tell one common factor from another.
fn factors_are_equal(toml: &str) {
    let (made, even, w) = (of(toml), even(), weights());
    let factor = |x: &[f32]| {
        let (values, _) = rewritten(&made, &w, &stats(made.needs(), x, COLS), x).unwrap();
        let ratios = values.iter().zip(&w).filter(|(_, w)| w.abs() > 1e-3).map(|(v, w)| v / w);
        ratios.fold((f32::MAX, 0f32), |(min, max), r| (min.min(r), max.max(r)))
    };
    let (min, max) = factor(&even);
    assert!(max / min - 1.0 < 1e-5 && min >= 1.0, "{toml}: {min} {max}");
    let outlier: Vec<f32> = even.iter().enumerate().map(|(i, v)| if i % COLS == 5 { v * 40.0 } else { *v }).collect();
    let (min, max) = factor(&outlier);
    assert!(max / min > 1.5, "{toml}: {min} {max}: data has no effect");
}

/// The weights are those without quantized inputs, and a fixed scale of inputs of constant magnitude is that of each token.
fn products_are_those_of_tokens(toml: &str) {
    let (method, dynamic) = (of(toml).method, of(&toml.replace("static", "token")).method);
    let (w, x) = (weights(), even());
    let (w, tokens) = (MatView::new(&w, [ROWS, COLS]).unwrap(), MatView::new(&x, [COLS, COLS]).unwrap());
    let fixed = compressed(&*method, &w, &stats(method.needs(), &x, COLS)).unwrap().0;
    let dynamic = compressed(&*dynamic, &w, &StatSet::none()).unwrap().0;
    assert!(fixed.decompress().unwrap() == dynamic.decompress().unwrap(), "{toml}");
    assert!(fixed.matmul_vec(&tokens).unwrap() == dynamic.matmul_vec(&tokens).unwrap(), "{toml}");
}

/// With inputs of constant magnitude, the correction is that of the weights' error.
fn as_lqer(toml: &str) {
    let (method, plain) = (of(toml).method, of(&toml.replace("l2qer", "lqer")).method);
    assert!(stored(&*method, &weights(), &even()) == stored(&*plain, &weights(), &[]), "{toml}");
    assert!(stored(&*method, &weights(), &uneven()) != stored(&*plain, &weights(), &[]), "{toml}: data has no effect");
}

/// With uncorrelated inputs of equal second moments, the correction is that of the weights' error, within rounding.
fn near_lqer(toml: &str) {
    let (method, plain) = (of(toml).method, of(&toml.replace("gram", "lqer")).method);
    let w = weights();
    let w = MatView::new(&w, [ROWS, COLS]).unwrap();
    let found =
        |m: &dyn Method, x: &[f32]| compressed(m, &w, &stats(m.needs(), x, COLS)).unwrap().0.decompress().unwrap();
    let want = found(&*plain, &[]);
    let error = |have: &[f32]| have.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(error(&found(&*method, &even())) < 1e-5, "{toml}");
    assert!(error(&found(&*method, &uneven())) > 1e-3, "{toml}: data has no effect");
}

#[test]
fn without_compensation_the_result_is_that_without_data() {
    for law in laws() {
        (law.holds)(law.stages);
    }
}

#[test]
fn every_kind_that_needs_data_has_a_law() {
    let known: Vec<&str> = laws().map(|l| l.kind).collect();
    for kind in kinds_of_rules() {
        let needs = !that_need_data(kind).is_empty() || choices(kind).lists;
        assert_eq!(needs, known.contains(&kind.kind()), "`{}`: the table must say what holds for it", kind.kind());
    }
    for law in laws() {
        assert!(of(law.stages).needs().any_data(), "{}", law.stages);
    }
}

/// Returns whether an error says that statistics are missing or of other sizes.
fn says_so(error: &Error) -> bool {
    match error {
        Error::Tensor { source, .. } => says_so(source),
        other => matches!(other, Error::Missing { .. } | Error::Shape { .. } | Error::Range { .. }),
    }
}

#[test]
fn statistics_that_cannot_be_used_are_errors() {
    let (wide, narrow) = (values(300 * 2 * COLS, 9), values(300 * COLS / 2, 9));
    let from_table = laws().map(|l| (l.kind, stages(l.stages)));
    let registered = kinds_of_rules().flat_map(|k| that_need_data(k).into_iter().map(|rule| (k.kind(), rule)));
    let mut tried: BTreeMap<&str, usize> = BTreeMap::new();
    for (kind, rule) in from_table.chain(registered) {
        let made = made(&rule).unwrap();
        let needs = made.needs();
        let name = rule.iter().map(|s| tersor::pipeline::recipe::stage_text(&**s)).collect::<Vec<_>>().join(", ");
        let mut unseen = StatSet::new(COLS, needs, 0, 0).unwrap();
        if !needs.windows {
            unseen.observe(&MatView::new(&[0f32; 0], [0, COLS]).unwrap()).unwrap();
        }
        let missing = stats(StatNeeds::none(), &even(), COLS);
        let cases: [(&str, StatSet, &[f32]); 6] = [
            ("more features", stats(needs, &wide, 2 * COLS), &wide),
            ("fewer features", stats(needs, &narrow, COLS / 2), &narrow),
            ("no token", unseen, &[]),
            ("nothing observed", missing, &even()),
            ("none", StatSet::none(), &[]),
            ("no feature", StatSet::from_squares(Vec::new(), 5).unwrap(), &[]),
        ];
        for (what, stats, sample) in cases {
            match rewritten(&made, &weights(), &stats, sample) {
                Ok(_) => panic!("{name}: statistics of {what} are accepted"),
                Err(e) => assert!(says_so(&e), "{name}: {what}: {e}"),
            }
        }
        *tried.entry(kind).or_default() += 1;
    }
    let kinds: Vec<&str> = tried.into_keys().collect();
    assert_eq!(kinds.join(" "), "act adaptive awq clip dgq gptq gram l2qer percentile qqq rtn smoothquant split");
}

#[test]
fn changes_of_the_network_need_what_they_observe() {
    /// Sites of which no token was observed.
    struct NoToken<'a>(&'a [Site], &'a dyn Rewrite);
    impl Seen for NoToken<'_> {
        fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
            self.0.iter().try_for_each(|site| {
                let stats = StatSet::new(site.features, self.1.needs(site), 0, 0)?;
                f(&[SeenSite {
                    site,
                    stats: &stats,
                    sample: &[],
                    output: &|_, _, _| Ok(Vec::new()),
                    keys_and_values: &|_| Ok(None),
                    plain: &[],
                }])
            })
        }
    }
    struct Stored(Model);
    impl Weights for Stored {
        fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
            self.0.rows(name)
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
    let model = Model::open(path.as_ref(), &tersor::formats::Limits::default()).unwrap();
    let sites = Architecture::of(&model).unwrap().sites();
    let (stored, cx) = (Stored(model), Context::new());
    let mut found = Vec::new();
    for kind in tersor::stages().kinds().filter(|s| s.slot().section() == Section::Network) {
        for (name, value) in choices(kind).values {
            let mut stage = kind.clone_stage();
            set(&mut *stage, name, value.clone()).unwrap();
            for part in stage.parts(&Target::none(tersor::stages())).unwrap_or_default() {
                let tersor::core::stages::Part::Rewrite(rewrite) = part else { continue };
                if !sites.iter().any(|s| rewrite.needs(s).any_data()) {
                    continue;
                }
                let unseen: [&dyn Seen; 2] = [&Unseen, &NoToken(&sites, &*rewrite)];
                for seen in unseen {
                    let error = rewrite.rewrite(&sites, &stored, seen, &cx).err();
                    assert!(error.is_some_and(|e| says_so(&e)), "{} {value:?}", kind.kind());
                }
                found.push(kind.kind());
            }
        }
    }
    // With a rotation there is nothing to compensate: any orthogonal matrix leaves the network's function as it is, principal or not.
    assert!(found.contains(&"rotate"), "{found:?}");
}
