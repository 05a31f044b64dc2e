//! The whole-model work as calls, on the model that ships.

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use tersor_core::{Cancel, Context, Error, Progress};
use tersor_pipeline::compress::{Outcome, Part};
use tersor_pipeline::export::{Exported, Format};
use tersor_pipeline::plan::{Plan, PlanFile};
use tersor_pipeline::{
    Measured, Pipeline, Planned, Recipe, Subject, compare, evaluate, export, inspect, recipe, verify,
};

/// Returns the plan of a recipe on four windows of 64 tokens.
fn planned(recipe: &str, cx: &Context) -> Planned<'static> {
    let pipeline = Pipeline::open(model(), recipe, tersor::kinds()).unwrap();
    pipeline.data(text()).windows(4).ctx(64).plan(cx).unwrap()
}

/// A listener that keeps warnings, and cancels the work after some steps.
struct Stop {
    after: Mutex<u64>,
    cancel: Cancel,
    warnings: Mutex<Vec<String>>,
}

impl Progress for Stop {
    fn advance(&self, steps: u64, _: &str) {
        let mut left = self.after.lock().unwrap();
        *left = left.saturating_sub(steps);
        if *left == 0 {
            self.cancel.cancel();
        }
    }
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_string());
    }
}

#[test]
fn stopped_work_and_tasks_give_the_bytes_of_one_call() {
    let (dir, cx) = (tempfile::tempdir().unwrap(), Context::new());
    let plan = planned("w4-g32-gptq", &cx);
    let whole = dir.path().join("whole");
    let done = plan.compress(&whole, &cx).unwrap();
    assert!(!done.finished_before);
    assert!(plan.compress(&whole, &cx).unwrap().finished_before);
    assert_eq!(done.weight_bytes, plan.summary().unwrap().weight_bytes);

    let tasks = dir.path().join("tasks");
    for k in 0..plan.plan.tasks().len() {
        assert_eq!(plan.part(&tasks, Part::Task(k), &cx).unwrap(), Outcome::Task(k));
    }
    plan.part(&tasks, Part::Merge, &cx).unwrap();
    assert!(files(&tasks) == files(&whole));

    let stopped = dir.path().join("stopped");
    let cancel = Cancel::new();
    let stop = Arc::new(Stop { after: 3.into(), cancel: cancel.clone(), warnings: Default::default() });
    let stopping = Context { cancel, ..Context::new().with_progress(stop.clone()) };
    assert!(matches!(plan.compress(&stopped, &stopping), Err(Error::Cancelled)));
    assert!(!stop.warnings.lock().unwrap().is_empty());
    plan.compress(&stopped, &cx).unwrap();
    assert!(files(&stopped) == files(&whole));
}

#[test]
fn the_memory_limit_is_that_of_the_context() {
    let cx = Context { max_memory: Some(1 << 20), ..Context::new() };
    let pipeline = Pipeline::open(model(), "w4-g32-gptq", tersor::kinds()).unwrap().data(text());
    let refused = pipeline.plan(&cx).err().unwrap();
    assert!(refused.is_usage() && refused.to_string().contains("max-memory"), "{refused}");
    // Hidden states on disk take less.
    let many = |cx: &Context| {
        let pipeline = Pipeline::open(model(), "w4-g32-gptq", tersor::kinds()).unwrap();
        pipeline.data(text()).windows(4000).ctx(64).plan(cx).unwrap()
    };
    let limit = many(&Context::new()).memory().values().sum::<u64>() - 1;
    let spilled = many(&Context { max_memory: Some(limit), ..Context::new() });
    assert!(spilled.plan.spill && spilled.memory().values().sum::<u64>() <= limit);
}

#[test]
fn statistics_of_parts_are_the_data_of_a_plan() {
    let (dir, cx) = (tempfile::tempdir().unwrap(), Context::new());
    let file = dir.path().join("statistics");
    let found = planned("w4-g32-gptq", &cx).gather([1, 1], &file, &cx).unwrap();
    assert_eq!((found.windows, found.bytes), (4, std::fs::metadata(&file).unwrap().len()));
    let pipeline = Pipeline::open(model(), "w4-g32-gptq", tersor::kinds()).unwrap();
    let plan = pipeline.statistics(vec![file]).plan(&cx).unwrap();
    assert_eq!(plan.plan.windows, [4, 64]);
    plan.compress(&dir.path().join("out"), &cx).unwrap();
}

#[test]
fn plan_files_know_what_they_were_made_for() {
    let (dir, cx) = (tempfile::tempdir().unwrap(), Context::new());
    let path = dir.path().join("plan.json");
    let plan = planned("w4-g32-rtn", &cx).plan;
    plan.save(&path, tersor::kinds()).unwrap();
    let file = PlanFile::read(&path, tersor::kinds()).unwrap();
    assert_eq!((&file.recipe, file.seed), (&plan.recipe, 0));
    file.check(&plan, &cx).unwrap();
    let other: Plan = planned("w4-g32-rtn", &cx.clone().with_seed(1)).plan;
    assert!(file.check(&other, &cx).unwrap_err().to_string().contains("seed"));
}

#[test]
fn a_comparison_in_this_process() {
    let (dir, cx, kinds) = (tempfile::tempdir().unwrap(), Context::new(), tersor::kinds());
    let names = ["bf16", "w4-g32-rtn"];
    let recipes = names.map(|n| Recipe::find(n, &kinds.stages).unwrap());
    let options = evaluate::Options { ctx: Some(64), windows: Some(2), ..Default::default() };
    let measure = |subject: Subject<'_>| {
        let (at, against, seconds) = match subject {
            Subject::Original => (model(), None, 0.0),
            Subject::Recipe(i, out) => {
                let done = planned(names[i], &cx).compress(out, &cx)?;
                (out.to_path_buf(), Some(model()), done.compress_seconds)
            }
        };
        let figures = evaluate::decoder(&at, &text(), against.as_deref(), &options, kinds, &cx)?;
        Ok(Measured { compress_seconds: seconds, compress_peak_rss_bytes: None, figures })
    };
    let found = compare(&model(), &recipes, &dir.path().join("compared"), &cx, measure).unwrap();
    let rows: Vec<&str> = found.rows.iter().map(|r| r.recipe.as_str()).collect();
    assert_eq!(rows, ["original", "bf16", "w4-g32-rtn"]);
    assert!(found.rows[0].figures.kl_mean.is_none() && found.rows[2].figures.kl_mean.unwrap() > 0.0);
    assert!(std::fs::read_to_string(&found.report).unwrap().contains("w4-g32-rtn"));

    let compressed = found.out.join("w4-g32-rtn");
    assert_eq!(verify(&compressed, kinds, &cx).unwrap().files, 1);
    assert_eq!(inspect(&compressed, kinds).unwrap().parameters, inspect(&model(), kinds).unwrap().parameters);
    assert!(Pipeline::open(&compressed, "bf16", kinds).is_err(), "a compressed model is not compressed again");
    let format = Format::from_name("f16").unwrap();
    let Exported::Plain(plain) = export(&compressed, format, &dir.path().join("f16"), kinds, &cx).unwrap() else {
        panic!("another format");
    };
    assert_eq!(plain.to, "F16");
}

#[test]
fn an_application_can_register_kinds_of_its_own() {
    let none = tersor_pipeline::Kinds::default();
    assert!(Recipe::find("w4-g32-rtn", &none.stages).is_err());
    assert!(recipe::Recipe::find("w4-g32-rtn", &tersor::kinds().clone().stages).is_ok());
}

#[test]
fn the_readme_has_the_program_that_is_run() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let program = read("examples/compress/src/main.rs");
    assert!(program.lines().count() <= 15);
    assert!(read("README.md").contains(&program));
}
