//! Compression of any network: a decoder through its tap equals its own path, networks of the test compress, and faults are errors.

use std::path::PathBuf;
use std::sync::Arc;

use tersor::core::network::{Batch, Forward, MemWeights, Part, Products, Scores, Stage, Stream, check_network};
use tersor::core::{
    Check, Context, Error, Exec, Input, LinearOp, MatViewMut, Method, Network, Result, RowSource, Site, StatSet, Tap,
    Weights, read_finite,
};
use tersor::models::{Calibration, Checkpoint, Encoder, Hooks, ModelNetwork, Tokenizer, Upstream};
use tersor::pipeline::network::{CompressedNetwork, choose_for_network, compress_network, original_scores};
use tersor::pipeline::{Pipeline, Recipe, Text};

fn examples(part: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples")).join(part)
}

fn recipe(name: &str) -> Recipe {
    Recipe::find(name, &tersor::kinds().stages).unwrap()
}

fn toml(text: &str) -> Recipe {
    Recipe::from_toml(&format!("version = 1\nname = \"test\"\n{text}"), "test", &tersor::kinds().stages).unwrap()
}

/// All values of an operator.
fn values(op: &dyn LinearOp) -> Vec<u32> {
    let [rows, cols] = op.shape();
    let mut out = vec![0f32; rows * cols];
    op.decompress_rows(0..rows, &mut out, &Exec::new()).unwrap();
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_decoder_through_its_tap_is_compressed_to_the_same_bytes() {
    let (model, kinds, cx) = (examples("models/tiny-wiki"), tersor::kinds(), Context::new());
    let text = Text::file(examples("data/wiki-calib.txt"));
    let checkpoint = Checkpoint::open(&model, &kinds.operators).unwrap();
    let network = ModelNetwork::new(checkpoint.architecture().unwrap()).unwrap();
    check_network(&network, &checkpoint).unwrap();
    let (windows, ctx) = (40, 64);
    let tokens = Tokenizer::of(&checkpoint).unwrap().encode(&text.read().unwrap()).unwrap();
    let all: Vec<&[u32]> = tokens.chunks_exact(ctx).take(windows).collect();
    let batches = ModelNetwork::batches(&all, ctx);
    assert_eq!(batches.len(), 2);
    for statistics in ["sequential", "layer", "original"] {
        let rules = r#"rules = [{ match = "@linear", stages = [{ kind = "gptq", bits = 4, group = 64 }] }]"#;
        let recipe = toml(&format!("statistics = \"{statistics}\"\n{rules}"));
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let model = tersor::formats::Model::open(&model, &Default::default()).unwrap();
        let pipeline = Pipeline::new(model, recipe.clone(), kinds).data(text.clone()).windows(windows).ctx(ctx);
        pipeline.plan(&cx).unwrap().compress(&out, &cx).unwrap();
        let own = Checkpoint::open(&out, &kinds.operators).unwrap();
        let made = compress_network(&network, &checkpoint, &batches, &recipe, kinds, &cx).unwrap();
        let sites = network.sites().iter().filter(|s| s.layer.is_some());
        for consumer in sites.flat_map(|s| &s.consumers) {
            let stored = own.matrix(&consumer.weight, consumer.shape).unwrap();
            let here = &made.operators[&consumer.weight];
            assert!(values(&**here) == values(&*stored), "{statistics}: {}", consumer.weight);
        }
        assert_eq!(made.operators.len(), 7 * checkpoint.architecture().unwrap().layers());
        // The compressed network predicts almost what the original predicts.
        let scores = made.scores(&network, &checkpoint, &batches[..1], &cx).unwrap();
        let original = original_scores(&network, &checkpoint, &batches[..1], &cx).unwrap();
        assert_eq!((scores.labelled, scores.compared), (original.labelled, original.labelled));
        assert!(scores.kl().unwrap() < 0.1 && scores.mean_loss().unwrap() < original.mean_loss().unwrap() + 0.1);
    }
}

#[test]
fn an_encoder_through_its_tap_has_the_statistics_of_its_own_path() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tersor-models/tests/golden-encoders/bert"));
    let (kinds, cx) = (tersor::kinds(), Context::new());
    let checkpoint = Checkpoint::open(&path, &kinds.operators).unwrap();
    let network = ModelNetwork::new(checkpoint.architecture().unwrap()).unwrap();
    check_network(&network, &checkpoint).unwrap();
    let windows: Vec<Vec<u32>> = (0..9u32).map(|i| (0..3 + i % 5).map(|t| (i * 7 + t * 3) % 30).collect()).collect();
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let batches = ModelNetwork::batches(&slices, 8);
    let r = toml(r#"rules = [{ match = "@linear", stages = [{ kind = "gptq", bits = 4, group = 16 }] }]"#);
    let made = compress_network(&network, &checkpoint, &batches, &r, kinds, &cx).unwrap();

    let method = tersor::groupwise::Gptq::new().bits(4).group(16).check().unwrap();
    let mut compress = |site: &Site, stats: &StatSet| {
        let prepared = method.prepare(stats, &cx)?;
        let one = |c: &tersor::core::Consumer| -> Result<Option<Arc<dyn LinearOp>>> {
            let rows = checkpoint.model().rows(&c.weight)?;
            let op: Arc<dyn LinearOp> = prepared.compress(&*rows, 0..c.shape[0], &cx)?.op.into();
            assert!(values(&*op) == values(&*made.operators[&c.weight]), "{}", c.weight);
            Ok(Some(op))
        };
        site.consumers.iter().map(one).collect()
    };
    let mut hooks = Hooks {
        upstream: Upstream::Compressed,
        cancel: &cx.cancel,
        seed: 0,
        needs: &|_| method.needs(),
        change: &|_| Ok(None),
        compress: &mut compress,
        rewriting: None,
        folds: Vec::new(),
    };
    let mut calibration = Calibration::new(&checkpoint, &slices, 0..slices.len(), 8, None).unwrap();
    calibration.embed(&mut |name, row, out| checkpoint.model().rows(name)?.read_rows(row..row + 1, out)).unwrap();
    for layer in 0..checkpoint.architecture().unwrap().layers() {
        calibration.layer(layer, &mut hooks).unwrap();
    }
    assert!(made.scores(&network, &checkpoint, &batches, &cx).unwrap().cosine().unwrap() > 0.9);
    let encoder = Encoder::load(&checkpoint).unwrap();
    let exact = encoder.embed(&windows[0], &Exec::new()).unwrap();
    assert!(exact.iter().all(|v| v.is_finite()));
}

#[test]
fn a_rotated_decoder_computes_the_same() {
    let (kinds, cx) = (tersor::kinds(), Context::new());
    let r = |by: &str| {
        toml(&format!(
            "network = [{{ kind = \"rotate\", by = \"{by}\" }}]\nrules = [{{ match = \"*\", stages = [{{ kind = \"f32\" }}] }}]"
        ))
    };
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tersor-models/tests/golden/qwen3"));
    let checkpoint = Checkpoint::open(&path, &kinds.operators).unwrap();
    let network = ModelNetwork::new(checkpoint.architecture().unwrap()).unwrap();
    let windows: Vec<Vec<u32>> = (0..4u32).map(|i| (0..12).map(|t| (i * 11 + t * 5) % 40).collect()).collect();
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let batches = ModelNetwork::batches(&slices, 12);
    for by in ["hadamard", "orthogonal"] {
        let made = compress_network(&network, &checkpoint, &batches, &r(by), kinds, &cx);
        let made = match made {
            Ok(made) => made,
            Err(e) => panic!("{by}: {e}"),
        };
        assert!(!made.changes.folds.is_empty());
        let scores = made.scores(&network, &checkpoint, &batches, &cx).unwrap();
        assert!(scores.kl().unwrap() < 1e-8 && scores.agreement() == Some(1.0), "{by}: {scores:?}");
    }
    // Principal directions add key rotations to the model, and a head that shares the embedding's matrix would become a tensor of its own.
    let said = compress_network(&network, &checkpoint, &batches, &r("pca"), kinds, &cx).map(drop).unwrap_err();
    assert!(said.to_string().contains("k_rotation"), "{said}");
    let tied = Checkpoint::open(&examples("models/tiny-wiki"), &kinds.operators).unwrap();
    let network = ModelNetwork::new(tied.architecture().unwrap()).unwrap();
    let batches = [Batch::of_tokens(vec![vec![1, 2, 3]])];
    let said = compress_network(&network, &tied, &batches, &r("hadamard"), kinds, &cx).map(drop).unwrap_err();
    assert!(matches!(said, Error::Tensor { .. }) && said.to_string().contains("network in memory"), "{said}");
}

/// Two linear layers, of 32 to 64 to 8 features, with a ReLU between them.
fn mlp() -> (impl Network, MemWeights, Vec<Batch>) {
    let mut state = 7u32;
    let mut random = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    let mut weights = MemWeights::new();
    weights.insert("first", [64, 32], random(64 * 32)).unwrap();
    weights.insert("second", [8, 64], random(8 * 64)).unwrap();
    let (mut batches, mixing) = (Vec::new(), random(6 * 32));
    for _ in 0..3 {
        // Features that six hidden ones determine but for noise, one of them large.
        let (hidden, mut x) = (random(100 * 6), random(100 * 32));
        for (i, x) in x.iter_mut().enumerate() {
            let mixed: f32 = (0..6).map(|j| hidden[i / 32 * 6 + j] * mixing[j * 32 + i % 32]).sum();
            *x = (mixed + 0.05 * *x) * if i % 32 == 5 { 5.0 } else { 1.0 };
        }
        batches.push(Batch::of_values(x, vec![100, 32], Vec::new()).unwrap());
    }
    let sites = vec![Site::linear("first", [64, 32]), Site::linear("second", [8, 64])];
    (Forward::new(sites, two_layers), weights, batches)
}

fn two_layers(x: Part, products: &Products<'_>) -> Result<Part> {
    let mut hidden = products.linear(0, &x)?;
    hidden.values.iter_mut().for_each(|v| *v = v.max(0.0));
    products.linear(1, &hidden)
}

fn kl(made: &CompressedNetwork, network: &dyn Network, weights: &dyn Weights, batches: &[Batch]) -> f64 {
    made.scores(network, weights, batches, &Context::new()).unwrap().kl().unwrap()
}

#[test]
fn a_network_of_the_caller_is_compressed_and_calibration_helps() {
    let (network, weights, batches) = mlp();
    let compress = |r: &Recipe, data: &[Batch]| {
        compress_network(&network, &weights, data, r, tersor::kinds(), &Context::new()).unwrap()
    };
    let rounded = compress(&recipe("w3-g32-rtn"), &[]);
    let bound = kl(&rounded, &network, &weights, &batches);
    assert!(bound > 0.0 && rounded.bits_per_weight() > 3.0 && rounded.bits_per_weight() < 5.0);
    for name in ["w3-g32-gptq", "w3-g32-awq", "w3-g32-gptq-lqer"] {
        let made = compress(&recipe(name), &batches);
        let found = kl(&made, &network, &weights, &batches);
        assert!(found < bound, "{name}: {found} against {bound}");
    }
    // Statistics of the original network are those of the sequential mode in the first site alone.
    let of = |statistics: &str| {
        let rules = r#"rules = [{ match = "*", stages = [{ kind = "gptq", bits = 3, group = 32 }] }]"#;
        compress(&toml(&format!("statistics = \"{statistics}\"\n{rules}")), &batches)
    };
    let (sequential, original, layer) = (of("sequential"), of("original"), of("layer"));
    let same =
        |a: &CompressedNetwork, b: &CompressedNetwork, w: &str| values(&*a.operators[w]) == values(&*b.operators[w]);
    assert!(same(&sequential, &original, "first") && !same(&sequential, &original, "second"));
    // A network of one stage has no predecessors.
    assert!(same(&layer, &original, "first") && same(&layer, &original, "second"));
    // The same bytes, whatever the number of threads.
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| of("sequential"));
        assert!(same(&again, &sequential, "first") && same(&again, &sequential, "second"));
    }
}

#[test]
fn a_budget_is_kept_and_spent_where_the_network_is_sensitive() {
    let (network, weights, batches) = mlp();
    let (kinds, cx) = (tersor::kinds(), Context::new());
    let choose = |bits| choose_for_network(&network, &weights, &batches, bits, kinds, &cx);
    let mut last = f64::INFINITY;
    for bits in [4.5, 5.5, 7.0] {
        let chosen = choose(bits).unwrap();
        let made = compress_network(&network, &weights, &batches, &chosen, kinds, &cx).unwrap();
        assert!(made.bits_per_weight() <= bits && made.operators.len() == 2, "{}", made.bits_per_weight());
        let found = kl(&made, &network, &weights, &batches);
        assert!(found < last, "{bits} bits: {found} against {last}");
        last = found;
    }
    assert!(choose(0.5).unwrap_err().to_string().contains("at least"));
    assert!(choose(f64::NAN).unwrap_err().is_usage());
    assert!(choose_for_network(&network, &weights, &[], 4.0, kinds, &cx).is_err_and(|e| e.is_usage()));
}

#[test]
fn faults_of_a_network_name_the_site() {
    let (network, weights, batches) = mlp();
    let (r, kinds, cx) = (recipe("w3-g32-gptq"), tersor::kinds(), Context::new());
    let fails = |network: &dyn Network, weights: &dyn Weights, data: &[Batch], words: &[&str]| {
        let said = match compress_network(network, weights, data, &r, kinds, &cx) {
            Ok(_) => panic!("{words:?}"),
            Err(e) => e.to_string(),
        };
        assert!(words.iter().all(|w| said.contains(w)), "{said}");
    };
    // No data.
    fails(&network, &weights, &[], &["w3-g32-gptq", "calibration data"]);
    // A site without matrices.
    let mut empty = Site::linear("second", [8, 64]);
    empty.consumers.clear();
    let broken = Forward::new(vec![Site::linear("first", [64, 32]), empty], two_layers);
    fails(&broken, &weights, &batches, &["consumer", "`second`"]);
    // Sites that disagree with the weights, and with themselves.
    let broken = Forward::new(vec![Site::linear("first", [64, 32]), Site::linear("second", [9, 64])], two_layers);
    fails(&broken, &weights, &batches, &["`second`", "[9, 64]", "[8, 64]"]);
    let mut wide = Site::linear("second", [8, 64]);
    wide.features = 65;
    fails(
        &Forward::new(vec![Site::linear("first", [64, 32]), wide], two_layers),
        &weights,
        &batches,
        &["second", "65"],
    );
    let twice = Forward::new(vec![Site::linear("first", [64, 32]), Site::linear("first", [64, 32])], two_layers);
    fails(&twice, &weights, &batches, &["names of sites", "first"]);
    let unknown = Forward::new(vec![Site::linear("third", [8, 64])], two_layers);
    fails(&unknown, &weights, &batches, &["third"]);
    // A tap that is never called for a site, and one that is called twice.
    let sites = || vec![Site::linear("first", [64, 32]), Site::linear("second", [8, 64])];
    let never = Forward::new(sites(), |x: Part, p: &Products<'_>| p.linear(0, &x));
    fails(&never, &weights, &batches, &["second", "tap"]);
    let twice = Forward::new(sites(), |x: Part, p: &Products<'_>| {
        p.linear(0, &x)?;
        two_layers(x, p)
    });
    fails(&twice, &weights, &batches, &["products of a site", "first"]);
    // An input of another width, and a site that does not exist.
    let narrow = Forward::new(sites(), |x: Part, p: &Products<'_>| p.linear(1, &x));
    fails(&narrow, &weights, &batches, &["features of an input", "32"]);
    let none = Forward::new(sites(), |x: Part, p: &Products<'_>| p.linear(2, &x));
    fails(&none, &weights, &batches, &["site", "2"]);
    // NaN in the data, and in what the network computes.
    let mut bad = batches[0].clone();
    bad.values[33] = f32::NAN;
    fails(&network, &weights, &[bad], &["row 1", "column 1"]);
    assert!(Batch::of_values(vec![f32::INFINITY; 32], vec![1, 32], vec![]).is_err());
    let nan = Forward::new(sites(), |x: Part, p: &Products<'_>| {
        let mut hidden = p.linear(0, &x)?;
        hidden.values[70] = f32::NAN;
        p.linear(1, &hidden)
    });
    fails(&nan, &weights, &batches, &["second", "row 1", "column 6"]);
    // A matrix that reads two sites.
    let mut both = Site::linear("second", [8, 64]);
    both.consumers[0].weight = "first".into();
    both.consumers[0].shape = [64, 32];
    both.features = 32;
    fails(
        &Forward::new(vec![Site::linear("first", [64, 32]), both], two_layers),
        &weights,
        &batches,
        &["first", "one site"],
    );
    // A recipe that matches nothing.
    let nothing = toml(r#"rules = [{ match = "other", stages = [{ kind = "rtn", bits = 4 }] }]"#);
    let said = compress_network(&network, &weights, &batches, &nothing, kinds, &cx).map(drop).unwrap_err();
    assert!(said.to_string().contains("matches a matrix"), "{said}");
    cx.cancel.cancel();
    assert!(matches!(compress_network(&network, &weights, &batches, &r, kinds, &cx), Err(Error::Cancelled)));
}

/// Weights of which one is not finite.
struct Broken(MemWeights);

impl Weights for Broken {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        struct Rows<'a>(Box<dyn RowSource + 'a>);
        impl RowSource for Rows<'_> {
            fn shape(&self) -> [usize; 2] {
                self.0.shape()
            }
            fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
                self.0.read_rows(rows.clone(), out)?;
                if rows.contains(&3) {
                    out[(3 - rows.start) * self.0.shape()[1] + 4] = f32::NAN;
                }
                Ok(())
            }
        }
        Ok(Box::new(Rows(self.0.rows(name)?)))
    }
}

#[test]
fn values_that_are_not_finite_are_replaced_where_a_rule_says_so() {
    let (network, weights, batches) = mlp();
    let broken = Broken(weights);
    let compress = |how: &str| {
        let stages = r#"stages = [{ kind = "gptq", bits = 4, group = 32 }]"#;
        let r = toml(&format!("rules = [{{ match = \"*\", {how} {stages} }}]"));
        compress_network(&network, &broken, &batches, &r, tersor::kinds(), &Context::new())
    };
    let said = compress("").map(drop).unwrap_err().to_string();
    assert!(said.contains("first") && said.contains("row 3, column 4"), "{said}");
    let made = compress(r#"non_finite = "zero","#).unwrap();
    assert_eq!([made.reports["first"].replaced, made.reports["second"].replaced], [1, 1]);
}

#[test]
fn a_compressed_network_is_saved_and_opened_again() {
    let (network, weights, batches) = mlp();
    let (kinds, cx, dir) = (tersor::kinds(), Context::new(), tempfile::tempdir().unwrap());
    let made = compress_network(&network, &weights, &batches, &recipe("w4-g32-gptq"), kinds, &cx).unwrap();
    let mut all = weights.clone();
    all.insert("bias", [1, 8], (0..8).map(|i| i as f32).collect()).unwrap();
    let out = dir.path().join("out");
    assert!(matches!(made.save(&out, &all, &["none"]), Err(Error::Missing { .. })));
    assert!(matches!(made.save(&out, &all, &["first"]), Err(Error::Order { .. })));
    made.save(&out, &all, &["bias"]).unwrap();
    let said = made.save(&out, &all, &["bias"]).unwrap_err().to_string();
    assert!(said.contains("choose a new directory"), "{said}");
    let again = Checkpoint::open(&out, &kinds.operators).unwrap();
    for (name, op) in &made.operators {
        assert!(values(&*again.matrix(name, op.shape()).unwrap()) == values(&**op), "{name}");
    }
    assert_eq!(again.vector("bias", 8).unwrap()[7], 7.0);
    assert!(again.architecture().is_err());
    assert_eq!(tersor::pipeline::verify(&out, kinds, &cx).unwrap().matrices, 2);
    // Two saves are the same bytes, and a changed byte is found.
    let other = dir.path().join("other");
    made.save(&other, &all, &["bias"]).unwrap();
    let read = |dir: &std::path::Path, file: &str| std::fs::read(dir.join(file)).unwrap();
    for file in ["model.safetensors", "tersor.json"] {
        assert!(read(&out, file) == read(&other, file), "{file}");
    }
    let mut bytes = read(&other, "model.safetensors");
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(other.join("model.safetensors"), bytes).unwrap();
    assert!(tersor::pipeline::verify(&other, kinds, &cx).is_err());
}

/// A network of two stages, each with one site, whose error the framework around it has wrapped.
struct Wrapped(Vec<Site>);

impl Network for Wrapped {
    fn sites(&self) -> &[Site] {
        &self.0
    }
    fn enter(&self, batch: &Batch, _: &dyn Weights, _: &Exec) -> Result<Stream> {
        Stream::of("x", batch.shape.clone(), batch.values.clone())
    }
    fn stage<'n>(&'n self, index: usize, weights: &dyn Weights) -> Result<Box<dyn Stage + 'n>> {
        Ok(Box::new(One { index, site: &self.0[index], scale: weights.vector(&format!("scale.{index}"), 16)? }))
    }
    fn score(&self, out: &Stream, reference: Option<&Stream>, batch: &Batch, _: &dyn Weights) -> Result<Scores> {
        Scores::of_logits(out.part("x")?, reference.map(|r| r.part("x")).transpose()?, &batch.labels)
    }
}

struct One<'n> {
    index: usize,
    site: &'n Site,
    scale: Vec<f32>,
}

impl Stage for One<'_> {
    fn run(&self, mut stream: Stream, tap: &Arc<dyn Tap>, exec: &Exec) -> Result<Stream> {
        let mut x = stream.take("x")?;
        x.values.iter_mut().zip(self.scale.iter().cycle()).for_each(|(x, s)| *x *= s);
        let rows = x.shape[0];
        let (input, mut y) = (Input::new(&x.values, [rows, 16])?, vec![0f32; rows * 16]);
        let done = tap.apply(self.index, 0, &input, &mut [MatViewMut::new(&mut y, [rows, 16])?], exec);
        done.map_err(|e| Error::Numerical(format!("the framework says: {e}")))?;
        assert_eq!(self.site.features, 16);
        stream.set("x", vec![rows, 16], y)?;
        Ok(stream)
    }
}

#[test]
fn rewrites_fold_into_what_a_stage_reads_and_wrapped_errors_stop_it_too() {
    let site = |i: usize| {
        let mut site = Site::linear(&format!("w.{i}"), [16, 16]);
        site.layer = Some(i);
        site.producer = tersor::core::Producer::Norm { weight: format!("scale.{i}") };
        site
    };
    let (network, mut weights) = (Wrapped(vec![site(0), site(1)]), MemWeights::new());
    for i in 0..2 {
        let w = (0..256).map(|j| ((j * 37 + i * 11) % 64) as f32 / 32.0 - 1.0).collect();
        weights.insert(&format!("w.{i}"), [16, 16], w).unwrap();
        weights.insert(&format!("scale.{i}"), [1, 16], (1..17).map(|s| s as f32).collect()).unwrap();
    }
    assert_eq!((network.stages(), network.waves(1)), (2, vec![vec![1]]));
    let x = (0..50 * 16).map(|j| ((j * 29) % 101) as f32 / 50.0 - 1.0).collect();
    let data = [Batch::of_values(x, vec![50, 16], vec![]).unwrap()];
    let recipe = recipe("w8a8-smooth");
    let made = compress_network(&network, &weights, &data, &recipe, tersor::kinds(), &Context::new()).unwrap();
    // Two matrices and their norms are folded; the norm is what the stage reads.
    assert_eq!(made.changes.folds.len(), 4);
    assert!(kl(&made, &network, &weights, &data) < 0.05);
    let before = read_finite(&*weights.rows("scale.0").unwrap(), 0..1).unwrap();
    assert_eq!(before[15], 16.0);
}
