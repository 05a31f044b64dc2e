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
use tersor_pipeline::{Pipeline, Planned, verify};

/// Returns the plan of a recipe for the model that ships, on two windows of 32 tokens.
fn planned(recipe: &str) -> Planned<'static> {
    let pipeline = Pipeline::open(model(), recipe, tersor::kinds()).unwrap();
    pipeline.data(text()).windows(2).ctx(32).plan(&Context::new()).unwrap()
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

/// Makes of a copy what a process leaves that is killed a little later: files of the next step under temporary names. With `record`, the record that is
/// there since the copy before is taken away, as if the process had been killed between file and record; returns whether there is one.
fn disturb(copy: &Path, before: Option<&Path>, record: bool) -> bool {
    let names = work(copy);
    if !record {
        for name in names.iter().filter(|n| n.ends_with(".part")).map(|n| format!(".{n}.partial")) {
            fs::write(copy.join(".tersor").join(name), "half of").unwrap();
        }
        return true;
    }
    let old = before.map(work).unwrap_or_default();
    let new = |n: &&String| n.ends_with(".json") && **n != "inputs.json" && !old.contains(n);
    let Some(name) = names.iter().filter(new).max() else { return false };
    fs::remove_file(copy.join(".tersor").join(name)).unwrap();
    true
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
    let plan = planned(recipe);
    let copies = Copies::new(&whole, &dir.path().join("copies"));
    plan.compress(&whole, &Context::new().with_progress(copies.clone())).unwrap();
    let want = files(&whole);
    let all = copies.all();
    for (i, (step, copied)) in all.iter().enumerate() {
        for record in [false, true] {
            copy(copied, &again);
            if !disturb(&again, i.checked_sub(1).map(|i| &*all[i].1), record) {
                fs::remove_dir_all(&again).unwrap();
                continue;
            }
            // What is not finished is not a model.
            let complete = again.join("tersor.json").exists();
            assert!(complete || verify(&again, tersor::kinds(), &Context::new()).is_err(), "{recipe}, {step}");
            assert_eq!(finish(&plan, &again, 1 + i % 2).finished_before, complete, "{recipe}, {step}");
            assert!(files(&again) == want, "{recipe}: stopped after {step} ({i}, without record: {record})");
            assert!(!again.join(".tersor").exists(), "{recipe}, {step}");
            fs::remove_dir_all(&again).unwrap();
        }
    }
    all.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn without_data() {
    let steps = from_every_step("w3-g32-rtn");
    // Each matrix, each tensor of the file, each file in its place.
    let count = |name: &str| steps.iter().filter(|s| *s == name).count();
    assert_eq!(count("model.layers.3.mlp.down_proj.weight"), 2);
    let last: Vec<&str> = steps.iter().rev().take(6).rev().map(String::as_str).collect();
    assert_eq!(last, ["model.safetensors", "config.json", "tokenizer.json", "timing.json", "tersor.json", "end"]);
}

#[test]
fn layer_by_layer() {
    assert!(from_every_step("w3-g32-gptq").len() > 60);
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
    let plan = planned(recipe);
    finish(&plan, &whole, 2);
    let cx = Context::new();
    for k in 0..plan.plan.tasks().len() {
        let copies = Copies::new(&out, &dir.path().join(format!("copies-{k}")));
        let task = |out: &Path, cx: &Context| assert_eq!(plan.part(out, Part::Task(k), cx).unwrap(), Outcome::Task(k));
        task(&out, &cx.clone().with_progress(copies.clone()));
        let want = left(&out);
        // The last copy is of a task that is done, with and without its last record.
        copies.take("the task");
        let all = copies.all();
        for (i, (step, copied)) in all.iter().enumerate() {
            for record in [false, true] {
                copy(copied, &again);
                if disturb(&again, i.checked_sub(1).map(|i| &*all[i].1), record) {
                    task(&again, &cx);
                    let mut found = left(&again);
                    found.retain(|name, _| !name.ends_with(".partial"));
                    assert!(found == want, "{recipe}, task {k} after {step}: {:?} {:?}", found.keys(), want.keys());
                }
                fs::remove_dir_all(&again).unwrap();
            }
        }
        fs::remove_dir_all(dir.path().join(format!("copies-{k}"))).unwrap();
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
    let plan = planned("w3-g32-gptq");
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
    assert!(stopped > 60 && !done.finished_before, "{stopped}");
    assert!(files(&out) == files(&whole));
}
