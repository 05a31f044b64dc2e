//! Compression that is stopped at each of its steps, and continues to the same bytes.
//!
//! A listener to the progress copies the output directory at every step, as a killed process would leave it: system calls that have returned are not
//! undone by a kill. Between two steps, a file is written under a temporary name, gets its name, or gets its record; the copies are changed to be like
//! that, too.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::*;
use tersor_core::{Cancel, Context, Error, Progress};
use tersor_pipeline::compress::{Finished, Outcome, Part};
use tersor_pipeline::{Pipeline, Planned, Text, verify};

/// Returns the plan of a recipe for a small model in a directory, on two windows of 32 tokens.
fn planned(dir: &Path, recipe: &str) -> Planned<'static> {
    let text = dir.join("text");
    fs::write(&text, "The river runs from the hills to the sea. ".repeat(30)).unwrap();
    let model = Tiny::llama().write(&dir.join("model"));
    let pipeline = Pipeline::open(model, recipe, tersor::kinds()).unwrap();
    pipeline.data(Text::file(text)).windows(2).ctx(32).plan(&Context::new()).unwrap()
}

/// A listener that copies a directory into numbered folders: when a stage begins or ends, and at each step.
struct Copies {
    of: PathBuf,
    to: PathBuf,
    /// The name of each step.
    taken: Mutex<Vec<String>>,
}

impl Copies {
    fn new(of: &Path, to: &Path) -> Arc<Self> {
        Arc::new(Self { of: of.into(), to: to.into(), taken: Mutex::default() })
    }

    fn take(&self, name: &str) {
        let mut taken = self.taken.lock().unwrap();
        copy(&self.of, &self.to.join(taken.len().to_string()));
        taken.push(name.to_string());
    }

    /// Returns the name and the folder of each copy.
    fn all(&self) -> Vec<(String, PathBuf)> {
        let taken = self.taken.lock().unwrap();
        taken.iter().enumerate().map(|(i, name)| (name.clone(), self.to.join(i.to_string()))).collect()
    }
}

impl Progress for Copies {
    fn begin(&self, stage: &str, _: u64) {
        self.take(&format!("before {stage}"));
    }
    fn advance(&self, _: u64, item: &str) {
        self.take(item);
    }
    fn end(&self) {
        self.take("end");
    }
}

/// Returns the names of all records and files in the work in progress of a directory.
fn work(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join(".tersor")).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Makes of a copy what a process leaves that is killed a little later: files of the next step under temporary names.
fn leave_partial(copy: &Path) {
    for name in work(copy).iter().filter(|n| n.ends_with(".part")) {
        fs::write(copy.join(".tersor").join(format!(".{name}.partial")), "half of").unwrap();
    }
}

/// Makes of a copy what a process leaves that is killed a little earlier, after the copy `before`: without the last record, and with what was deleted
/// once the record was there. Returns whether there is such a record.
fn without_record(copy: &Path, before: &Path) -> bool {
    let (names, old) = (work(copy), work(before));
    let new = |n: &&String| n.ends_with(".json") && **n != "inputs.json" && !old.contains(n);
    let Some(record) = names.iter().filter(new).max() else { return false };
    fs::remove_file(copy.join(".tersor").join(record)).unwrap();
    for name in old.iter().filter(|n| !names.contains(n)) {
        fs::copy(before.join(".tersor").join(name), copy.join(".tersor").join(name)).unwrap();
    }
    true
}

/// Calls `check` on the states that a killed process can leave, in the folder `again`: each copy with files under temporary names, and each but the first
/// without its last record. The text says which.
fn states(copies: &Copies, again: &Path, mut check: impl FnMut(&str)) {
    let all = copies.all();
    for (i, (step, folder)) in all.iter().enumerate() {
        copy(folder, again);
        leave_partial(again);
        check(&format!("stopped after {step} ({i})"));
        fs::remove_dir_all(again).unwrap();
        let Some((_, before)) = i.checked_sub(1).map(|i| &all[i]) else { continue };
        copy(folder, again);
        if without_record(again, before) {
            check(&format!("stopped before the record of {step} ({i})"));
        }
        fs::remove_dir_all(again).unwrap();
    }
}

/// Compresses on so many threads.
fn finish(plan: &Planned<'_>, out: &Path, threads: usize) -> Finished {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    plan.compress(out, &Context::new().with_pool(pool)).unwrap()
}

/// Compresses by `recipe`, continues from a copy of each step, and asserts the same bytes. Returns the names of the steps.
fn from_every_step(recipe: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    let plan = planned(dir.path(), recipe);
    let copies = Copies::new(&whole, &dir.path().join("copies"));
    plan.compress(&whole, &Context::new().with_progress(copies.clone())).unwrap();
    let want = files(&whole);
    let mut count = 0;
    states(&copies, &again, |state| {
        // What is not finished is not a model.
        let complete = again.join("tersor.json").exists();
        assert!(complete || verify(&again, tersor::kinds(), &Context::new()).is_err(), "{recipe}, {state}");
        count += 1;
        assert_eq!(finish(&plan, &again, 1 + count % 2).finished_before, complete, "{recipe}, {state}");
        assert!(files(&again) == want, "{recipe}, {state}");
        assert!(!again.join(".tersor").exists(), "{recipe}, {state}");
    });
    copies.all().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn without_data() {
    let steps = from_every_step("w3-g32-rtn");
    // Each matrix, each tensor of the file, each file in its place.
    let count = |name: &str| steps.iter().filter(|s| *s == name).count();
    assert_eq!(count("model.layers.1.mlp.down_proj.weight"), 2);
    let last: Vec<&str> = steps.iter().rev().take(6).rev().map(String::as_str).collect();
    assert_eq!(last, ["model.safetensors", "config.json", "tokenizer.json", "timing.json", "tersor.json", "end"]);
}

#[test]
fn layer_by_layer() {
    assert!(from_every_step("w3-g32-gptq").len() > 40);
}

#[test]
fn with_factors_of_layers() {
    from_every_step("w4a8-g32-smooth");
}

#[test]
fn with_principal_directions() {
    let steps = from_every_step("w4a4kv4-resq-rtn");
    assert!(steps.iter().any(|s| s == "before principal directions"));
}

/// Returns what tasks leave for other tasks, by name: all work in progress but locks, and records, which have times.
fn left(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = files(&out.join(".tersor"));
    all.retain(|name, _| !name.ends_with("lock") && !name.ends_with(".json"));
    all
}

/// Does all tasks of a plan one after the other, and each again from a copy of each of its steps; asserts the same results.
fn tasks_from_every_step(recipe: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out, again) = (dir.path().join("whole"), dir.path().join("out"), dir.path().join("again"));
    let plan = planned(dir.path(), recipe);
    finish(&plan, &whole, 2);
    let cx = Context::new();
    for k in 0..plan.plan.tasks().len() {
        let copies = Copies::new(&out, &dir.path().join(format!("copies-{k}")));
        let task = |out: &Path, cx: &Context| assert_eq!(plan.part(out, Part::Task(k), cx).unwrap(), Outcome::Task(k));
        copies.take("the task before");
        task(&out, &cx.clone().with_progress(copies.clone()));
        copies.take("the task");
        let want = left(&out);
        states(&copies, &again, |state| {
            task(&again, &cx);
            let mut found = left(&again);
            found.retain(|name, _| !name.ends_with(".partial"));
            assert!(found == want, "{recipe}, task {k} {state}: {:?} {:?}", found.keys(), want.keys());
        });
    }
    plan.part(&out, Part::Merge, &cx).unwrap();
    assert!(files(&out) == files(&whole), "{recipe}");
    assert!(!out.join(".tersor").exists());
}

#[test]
fn tasks_of_a_chain() {
    tasks_from_every_step("w3-g32-gptq");
}

#[test]
fn tasks_after_principal_directions() {
    tasks_from_every_step("w4a4kv4-resq-rtn");
}

/// A listener that cancels the work after so many steps.
struct Stop {
    left: Mutex<usize>,
    cancel: Cancel,
}

impl Progress for Stop {
    fn advance(&self, _: u64, _: &str) {
        let mut left = self.left.lock().unwrap();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.cancel.cancel();
        }
    }
}

#[test]
fn cancelled_one_step_later_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let plan = planned(dir.path(), "w3-g32-gptq");
    finish(&plan, &whole, 2);
    let mut stopped = 0;
    let done = loop {
        let cancel = Cancel::new();
        let stop = Stop { left: (stopped + 1).into(), cancel: cancel.clone() };
        match plan.compress(&out, &Context { cancel, ..Context::new().with_progress(Arc::new(stop)) }) {
            Err(Error::Cancelled) => stopped += 1,
            other => break other.unwrap(),
        }
        assert!(!out.join("tersor.json").exists());
    };
    assert!(stopped > 30 && !done.finished_before, "{stopped}");
    assert!(files(&out) == files(&whole));
}
