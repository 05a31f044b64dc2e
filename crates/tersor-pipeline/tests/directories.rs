//! Output directories: their bytes do not depend on how the work was distributed, and work from other inputs is refused.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::*;
use tersor_core::{Context, Limits, Result};
use tersor_pipeline::compress::{Finished, Outcome, Part};
use tersor_pipeline::plan::Task;
use tersor_pipeline::{Pipeline, Planned, Text, verify};

/// Returns the plan of a recipe for a model, on a text.
fn planned_on(model: &Path, recipe: &str, text: Text, windows: usize, seed: u64) -> Result<Planned<'static>> {
    let pipeline = Pipeline::open(model, recipe, tersor::kinds())?;
    pipeline.data(text).windows(windows).ctx(64).seed(seed).plan(&Context::new())
}

fn planned(model: &Path, recipe: &str) -> Result<Planned<'static>> {
    planned_on(model, recipe, text(), 4, 0)
}

/// Returns a context of so many threads.
fn threads(n: usize) -> Context {
    Context::new().with_pool(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()))
}

fn compress(model: &Path, recipe: &str, out: &Path) -> Result<Finished> {
    planned(model, recipe)?.compress(out, &Context::new())
}

fn part(model: &Path, recipe: &str, out: &Path, part: Part) -> Result<Outcome> {
    planned(model, recipe)?.part(out, part, &Context::new())
}

/// Returns what the error of a call says, which is no bad usage.
fn refused<T>(done: Result<T>) -> String {
    let error = done.err().expect("an error");
    assert!(!error.is_usage(), "{error}");
    error.to_string()
}

#[test]
fn the_number_of_threads_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    for recipe in ["w4-g32-rtn", "w3-rtn-sym-mse", "bf16", "w4a4kv4-resq"] {
        let made = [1, 2, 64].map(|n| {
            let out = dir.path().join(format!("{recipe}-{n}"));
            planned(&model, recipe).unwrap().compress(&out, &threads(n)).unwrap();
            files(&out)
        });
        assert!(made[0] == made[1] && made[0] == made[2], "{recipe}");
    }
}

#[test]
fn a_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    let work = out.join(".tersor");
    fs::create_dir_all(&work).unwrap();
    let lock = fs::File::options().create(true).append(true).open(work.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(refused(compress(&model, "w4-rtn", &out)).contains("another process"));
    drop(lock);
    compress(&model, "w4-rtn", &out).unwrap();
    assert!(!work.exists());
}

#[test]
fn a_task_is_done_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, recipe) = (model(), dir.path().join("out"), "w3-g32-gptq");
    part(&model, recipe, &out, Part::Task(0)).unwrap();
    let open = |name: &str| fs::File::options().append(true).create(true).open(out.join(".tersor").join(name)).unwrap();
    let (shared, own) = (open("lock"), open("task-1.lock"));
    shared.lock_shared().unwrap();
    own.lock().unwrap();
    assert!(refused(part(&model, recipe, &out, Part::Task(1))).contains("task 1"));
    // While a task is running, the whole work and the merge are refused, and other tasks may run.
    for all in [Part::All, Part::Merge] {
        assert!(refused(part(&model, recipe, &out, all)).contains("another process"));
    }
    part(&model, recipe, &out, Part::Task(0)).unwrap();
    drop((shared, own));
    let lock = open("lock");
    lock.lock().unwrap();
    assert!(refused(part(&model, recipe, &out, Part::Task(1))).contains("another process"));
    drop(lock);
    part(&model, recipe, &out, Part::Task(1)).unwrap();
}

#[test]
fn verification_sees_every_change() {
    let (dir, kinds, cx) = (tempfile::tempdir().unwrap(), tersor::kinds(), Context::new());
    let model = Tiny::llama().write(&dir.path().join("m"));
    let out = dir.path().join("out");
    compress(&model, "w4-g32-rtn", &out).unwrap();
    verify(&out, kinds, &cx).unwrap();
    let file = out.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    for at in [9, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(refused(verify(&out, kinds, &cx)).contains("model.safetensors"));
    }
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(refused(verify(&out, kinds, &cx)).contains("bytes"));
    fs::write(&file, &good).unwrap();
    let manifest = out.join("tersor.json");
    let said = fs::read_to_string(&manifest).unwrap();
    for (was, is, what) in [
        ("\"format\": 1", "\"format\": 99", "99"),
        ("\"grouped\"", "\"hologram\"", "hologram"),
        ("model.safetensors", "../model.safetensors", "not the name of a file"),
    ] {
        fs::write(&manifest, said.replacen(was, is, 1)).unwrap();
        assert!(refused(verify(&out, kinds, &cx)).contains(what), "{what}");
    }
    fs::write(&manifest, said).unwrap();
    verify(&out, kinds, &cx).unwrap();
}

#[test]
fn work_in_progress_of_other_inputs_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, recipe) = (dir.path().join("m"), dir.path().join("out"), "w3-g32-gptq");
    copy(&common::model(), &model);
    for k in [0, 1, 2] {
        part(&model, recipe, &out, Part::Task(k)).unwrap();
    }
    let before = files(&out.join(".tersor"));
    let changed = |recipe: &str, text: Text, windows: usize, seed: u64| {
        refused(planned_on(&model, recipe, text, windows, seed).unwrap().compress(&out, &Context::new()))
    };
    assert!(changed("w2-g32-gptq", text(), 4, 0).contains("recipe changed"));
    let other = Text::file(examples().join("data/wiki-eval.txt"));
    assert!(changed(recipe, other, 4, 0).contains("calibration text changed"));
    assert!(changed(recipe, text(), 5, 0).contains("calibration windows changed"));
    assert!(changed(recipe, text(), 4, 4).contains("seed changed"));
    let state = out.join(".tersor/inputs.json");
    let good = fs::read_to_string(&state).unwrap();
    fs::write(&state, good.replace(env!("CARGO_PKG_VERSION"), "0.0.1")).unwrap();
    assert!(refused(compress(&model, recipe, &out)).contains("version changed"));
    fs::write(&state, &good).unwrap();

    // A changed byte of the model: in a finished matrix, in a norm of a finished layer, in a norm of a later layer.
    let weights = model.join("model.safetensors");
    let stored = fs::read(&weights).unwrap();
    let file = tersor::formats::safetensors::File::open(&weights, &Limits::default()).unwrap();
    let flip = |name: &str| {
        let at = file.header().tensors[name].offset as usize;
        let mut bad = stored.clone();
        bad[at] ^= 1;
        fs::write(&weights, &bad).unwrap();
    };
    for name in
        ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"]
    {
        flip(name);
        for which in [Part::All, Part::Task(3)] {
            // A task checks the hidden states that it starts from.
            if which == Part::All || name.contains("norm") {
                let said = refused(part(&model, recipe, &out, which));
                assert!(said.contains(name) && said.contains("another directory"), "{said}");
            }
        }
    }
    // A changed part, or changed hidden states.
    fs::write(&weights, &stored).unwrap();
    for name in [".tersor/000003.part", ".tersor/stream-000002"] {
        let path = out.join(name);
        let good = fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(&path, &bad).unwrap();
        let said = refused(compress(&model, recipe, &out));
        assert!(said.contains("not what was written") && said.contains("delete"), "{said}");
        fs::write(&path, &good).unwrap();
    }
    let now = files(&out.join(".tersor"));
    assert!(now.iter().filter(|(n, _)| !n.contains("lock")).all(|(n, b)| before.get(n).is_none_or(|old| old == b)));
    compress(&model, recipe, &out).unwrap();
    let whole = dir.path().join("whole");
    compress(&model, recipe, &whole).unwrap();
    assert!(files(&out) == files(&whole));
    // A finished directory is refused for another model.
    flip("model.norm.weight");
    assert!(refused(compress(&model, recipe, &out)).contains("model.norm.weight"));
}

#[test]
fn principal_directions_are_found_once_for_all_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    for recipe in ["w4a4kv4-resq", "w4a4kv4-resq-rtn"] {
        let [whole, parts, other] = ["whole", "parts", "other"].map(|n| dir.path().join(format!("{n}-{recipe}")));
        let plan = planned(&model, recipe).unwrap();
        let made = plan.compress(&whole, &threads(1)).unwrap();
        let summary = plan.summary().unwrap();
        assert_eq!(made.weight_bytes, summary.weight_bytes);
        let tasks = plan.plan.tasks();
        assert_eq!(tasks[0], Task::Directions);
        // No matrix is compressed before the directions are known.
        assert!(refused(plan.part(&parts, Part::Task(1), &threads(3))).contains("principal directions"));
        for k in 0..tasks.len() {
            plan.part(&parts, Part::Task(k), &threads(3)).unwrap();
        }
        plan.part(&parts, Part::Merge, &threads(3)).unwrap();
        assert!(files(&whole) == files(&parts), "{recipe}");
        // The text determines the directions, and the seed the random rotation of the coefficients.
        planned_on(&model, recipe, text(), 4, 9).unwrap().compress(&other, &Context::new()).unwrap();
        assert_ne!(files(&whole)["model.safetensors"], files(&other)["model.safetensors"]);
    }
}

#[test]
fn directions_of_another_model_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::llama().write(&dir.path().join("m"));
    let (out, recipe) = (dir.path().join("out"), "w4a4kv4-resq");
    part(&model, recipe, &out, Part::Task(0)).unwrap();
    let path = out.join(".tersor/rotations");
    let found = fs::read(&path).unwrap();
    part(&model, recipe, &out, Part::Task(0)).unwrap();
    assert!(found == fs::read(&path).unwrap());
    let mut other = Tiny::llama();
    other.set("model.layers.1.mlp.up_proj.weight", 5, 0.25);
    other.write(&model);
    assert!(refused(compress(&model, recipe, &out)).contains("model.layers.1.mlp.up_proj.weight"));
    Tiny::llama().write(&model);
    let mut cut = found.clone();
    *cut.last_mut().unwrap() ^= 1;
    fs::write(&path, &cut).unwrap();
    assert!(refused(compress(&model, recipe, &out)).contains("rotations"));
    fs::write(&path, &found).unwrap();
    compress(&model, recipe, &out).unwrap();
}
