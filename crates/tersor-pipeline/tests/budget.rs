//! Budgets: measuring that is stopped and continued, and what it gives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tersor::core::{Cancel, Context, Error, Limits, Progress};
use tersor::formats::Model;
use tersor::pipeline::budget::{self, Limit, Store};
use tersor::pipeline::compress::{Outcome, Part};
use tersor::pipeline::plan::{Data, Options, Plan};
use tersor::pipeline::{Text, compress};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> Model {
    Model::open(&root().join("examples/models/tiny-wiki"), &Limits::default()).unwrap()
}

fn options() -> Options {
    let text = Text::file(root().join("examples/data/wiki-calib.txt"));
    Options { data: Data::Text(text), windows: 4, ctx: Some(64), generic: false }
}

/// Cancels the work after a number of steps, and counts those that were done anew.
struct StopAfter {
    steps: u64,
    done: AtomicU64,
    again: Mutex<Vec<String>>,
    cancel: Cancel,
}

impl Progress for StopAfter {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64, item: &str) {
        self.again.lock().unwrap().push(item.to_string());
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 >= self.steps {
            self.cancel.cancel();
        }
    }
    fn end(&self) {}
    fn warn(&self, _: &str) {}
}

/// A context that stops after some steps, with its progress.
fn stopping(steps: u64) -> (Context, Arc<StopAfter>) {
    let cx = Context::new();
    let progress =
        StopAfter { steps, done: AtomicU64::new(0), again: Mutex::new(Vec::new()), cancel: cx.cancel.clone() };
    let progress = Arc::new(progress);
    (cx.with_progress(progress.clone()), progress)
}

/// Compresses within a budget into `out`, with measuring saved after each layer.
fn run(out: &Path, cx: &Context) -> tersor::core::Result<Outcome> {
    let (model, kinds) = (model(), tersor::kinds());
    let limit = Limit::Bytes(1_100_000);
    let recipe = budget::choose_for(&model, limit, &options(), out, Some(Duration::ZERO), kinds, cx)?;
    let mut plan = Plan::new(&model, recipe, &options(), kinds, cx)?;
    plan.fit(&model, cx)?;
    compress(&model, &plan, out, Part::All, kinds, cx)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with("timing.json"));
    all.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())).collect()
}

#[test]
fn stopped_at_ten_moments_the_bytes_are_the_same_and_no_layer_is_measured_twice() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let (cx, seen) = stopping(u64::MAX);
    run(&whole, &cx).unwrap();
    let (steps, want) = (seen.done.load(Ordering::SeqCst), files(&whole));
    assert!(steps > 10 && want.contains_key("tersor.json"));
    for stop in (1..=steps).step_by((steps / 10).max(1) as usize) {
        let out = dir.path().join(format!("out{stop}"));
        let (cx, before) = stopping(stop);
        match run(&out, &cx) {
            Err(Error::Cancelled) => {}
            other => assert!(other.is_ok() && stop + 1 >= steps, "stopped at {stop}: {:?}", other.err()),
        }
        let (cx, after) = stopping(u64::MAX);
        run(&out, &cx).unwrap();
        assert!(files(&out) == want, "stopped at {stop}");
        // A layer that was saved is not measured again; the one at work may be.
        let layers = |s: &StopAfter| {
            s.again.lock().unwrap().iter().filter(|n| n.starts_with("layer ")).cloned().collect::<Vec<_>>()
        };
        let (first, second) = (layers(&before), layers(&after));
        let twice = second.iter().filter(|l| first.contains(l)).count();
        assert!(twice <= 1, "stopped at {stop}: {first:?} {second:?}");
    }
    // The finished directory has its recipe.
    match run(&whole, &Context::new()).unwrap() {
        Outcome::Finished(done) => assert!(done.finished_before),
        Outcome::Task(_) => panic!("no task was asked for"),
    }
    let e = budget::choose_for(&model(), Limit::Bits(5.0), &options(), &whole, None, tersor::kinds(), &Context::new());
    assert!(e.unwrap_err().to_string().contains("another directory"));
}

#[test]
fn measurements_know_what_they_were_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let (model, kinds, cx) = (model(), tersor::kinds(), Context::new());
    let file = dir.path().join("measured.json");
    let store = Store { every: Some(Duration::ZERO), ..Store::beside(&file) };
    let chosen = budget::choose(&model, Limit::Bits(4.5), &options(), &store, kinds, &cx).unwrap();
    assert!(file.is_file() && !dir.path().join("measured.json.progress").exists());
    let again = budget::choose(&model, Limit::Bits(4.5), &options(), &store, kinds, &cx).unwrap();
    assert!(again.recipe == chosen.recipe && again.memory.is_none());
    // Another text.
    let other = Options { windows: 5, ..options() };
    let e = budget::choose(&model, Limit::Bits(4.5), &other, &store, kinds, &cx).map(|c| c.loss).unwrap_err();
    assert!(e.to_string().contains("another model"), "{e}");
    // Another instruction set is a warning.
    let text = std::fs::read_to_string(&file).unwrap();
    let set = tersor::core::Isa::fingerprint();
    assert!(text.contains(&set));
    std::fs::write(&file, text.replace(&set, "another")).unwrap();
    let same = budget::choose(&model, Limit::Bits(4.5), &options(), &store, kinds, &cx).unwrap();
    assert!(same.recipe == chosen.recipe);
    // Files of others in the directory of progress stay.
    std::fs::remove_file(&file).unwrap();
    let work = dir.path().join("measured.json.progress");
    std::fs::create_dir(&work).unwrap();
    std::fs::write(work.join("note.txt"), "mine").unwrap();
    let e = budget::choose(&model, Limit::Bits(4.5), &options(), &store, kinds, &cx).map(|c| c.loss).unwrap_err();
    assert!(e.to_string().contains("did not write") && work.join("note.txt").is_file(), "{e}");
}
