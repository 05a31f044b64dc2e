//! `tersor compress`: a model in, a complete directory out.

mod calibrated;
mod matrix;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tersor::core::{Context, Error, Limits, ParamError, Result};
use tersor::formats::safetensors::Writer;
use tersor::formats::{Model, json as files};
use tersor::llm::{MANIFEST, Manifest, bits_per_weight};

use crate::output::{self, Output};
use crate::plan::{Calibration, Entry, Plan, recipe_of};
use crate::recipe::Recipe;
use crate::{args, megabytes, print_json, progress};
use matrix::Job;
pub use matrix::each_block;

/// Name of the file with what differs from run to run.
pub const TIMING: &str = "timing.json";

pub fn run(a: &args::Compress, json: bool) -> Result<()> {
    let model = Model::open(&a.model, &Limits::default())?;
    if output::is_compressed(&a.model) {
        return Err(Error::Unsupported {
            what: "compressing what is already compressed",
            value: a.model.display().to_string(),
        });
    }
    let (recipe, seed, planned) = match (&a.recipe, &a.plan) {
        (Some(name), _) => (Recipe::find(name)?, a.seed, None),
        (None, Some(path)) => recipe_of(path).map(|(r, s, inputs)| (r, s, Some(inputs)))?,
        (None, None) => return Err(ParamError::new("recipe", "missing", "needed unless --plan is given").into()),
    };
    let plan = Plan::new(&model, recipe, seed, a.generic, &Calibration::from_args(&a.calibration, a.ctx))?;
    // A plan may have been made before there was a calibration text; what it does name must hold.
    let differ: Vec<String> = (planned.into_iter().flatten())
        .filter(|(name, hash)| plan.inputs.get(name) != Some(hash))
        .map(|(name, _)| name)
        .collect();
    if !differ.is_empty() {
        let what = format!("was made for another model or machine: {} changed; plan again", differ.join(", "));
        return Err(Error::format("plan", what));
    }
    let cx = Context::new().with_seed(seed).with_progress(progress::bars());
    let start = Instant::now();
    let fresh = compress(&model, &plan, &a.out, &cx)?;
    let (all, body) = bits_per_weight(&plan.weights());
    let seconds = if fresh { start.elapsed().as_secs_f64() } else { recorded_seconds(&a.out) };
    let bytes = plan.weight_bytes()?;
    if json {
        print_json(&json!({
            "recipe": plan.recipe.name, "out": a.out, "finished_before": !fresh, "bits_per_weight": all,
            "body_bits_per_weight": body, "weight_bytes": bytes, "compress_seconds": seconds, "fingerprint": plan.fingerprint(),
            "peak_rss_bytes": crate::eval::peak_rss(),
        }));
    } else if fresh {
        println!("{}: {all:.3} bits a weight, {} in {seconds:.1} s", a.out.display(), megabytes(bytes));
    } else {
        println!("{} is finished already: {all:.3} bits a weight, {}", a.out.display(), megabytes(bytes));
    }
    Ok(())
}

fn recorded_seconds(dir: &Path) -> f64 {
    let timing = files::read(&dir.join(TIMING), &Limits::default());
    timing.ok().and_then(|t| t["compress_seconds"].as_f64()).unwrap_or(0.0)
}

/// Compresses into `out`; false when it was finished before.
fn compress(model: &Model, plan: &Plan, out: &Path, cx: &Context) -> Result<bool> {
    if plan.needs_data() && plan.calibration.is_none() {
        let rule = format!("`{}` needs a calibration text: --calib FILE", plan.recipe.name);
        return Err(ParamError::new("calib", "missing", rule).into());
    }
    let start = Instant::now();
    let inputs = json!(plan.inputs);
    let work = match output::open(out, &inputs, MANIFEST)? {
        Output::Finished => return Ok(false),
        Output::Open(work) => work,
    };
    let files = plan.files();
    let mut job = Job { model, plan, cx, writers: BTreeMap::new(), tensors: BTreeMap::new(), seconds: BTreeMap::new() };
    for (file, layout) in &files {
        job.writers.insert(file.clone(), Writer::create(&work.pending(file), layout.clone())?);
    }
    cx.progress.begin("compress", plan.entries.len() as u64);
    if plan.needs_data() {
        calibrated::run(&mut job)?;
    } else {
        for entry in &plan.entries {
            job.alone(entry, &mut |_, _| Ok(()))?;
        }
    }
    cx.progress.end();
    let (mut shards, mut hashes) = (Vec::new(), BTreeMap::new());
    for (file, writer) in std::mem::take(&mut job.writers) {
        writer.finish()?;
        let (bytes, hash) = output::hash_file(&work.pending(&file))?;
        hashes.insert(file.clone(), json!({"bytes": bytes, "blake3": hash}));
        shards.push((file.clone(), files[&file].keys().cloned().collect::<Vec<_>>()));
    }
    let recipe = serde_json::to_value(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
    let (all, body) = bits_per_weight(&plan.weights());
    let manifest = json!({
        "format": Manifest::FORMAT, "version": env!("CARGO_PKG_VERSION"), "recipe": recipe, "seed": plan.seed,
        "fingerprint": plan.fingerprint(), "inputs": inputs, "bits_per_weight": all, "body_bits_per_weight": body,
        "files": hashes, "tensors": job.tensors,
    });
    let total = plan.entries.iter().map(Entry::bytes).sum();
    let mut beside = output::companions(model, model.config().cloned(), &shards, total)?;
    let timing = json!({"compress_seconds": start.elapsed().as_secs_f64(), "tensors": job.seconds});
    beside.push((TIMING.into(), files::to_bytes(&timing)));
    let weights: Vec<String> = shards.into_iter().map(|(f, _)| f).collect();
    work.finish(&weights, &beside, (MANIFEST, files::to_bytes(&manifest)))?;
    Ok(true)
}
