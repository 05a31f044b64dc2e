//! `tersor compress`: a model in, a complete directory out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value as Json, json};
use tersor::core::{
    Context, Error, Limits, LinearOp, Method, NonFinite, ParamError, Repaired, Report, Result, RowSlot, RowSource,
    TensorInfo, TensorSink, check_finite,
};
use tersor::formats::safetensors::Writer;
use tersor::formats::{Model, json as files};
use tersor::llm::{MANIFEST, Manifest, bits_per_weight};

use crate::output::{self, Output};
use crate::plan::{Action, Entry, Plan, recipe_of};
use crate::recipe::Recipe;
use crate::{args, megabytes, print_json, progress};

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
        (None, Some(path)) => recipe_of(path).map(|(r, s, f)| (r, s, Some(f)))?,
        (None, None) => return Err(ParamError::new("recipe", "missing", "needed unless --plan is given").into()),
    };
    let plan = Plan::new(&model, recipe, seed, a.generic)?;
    if planned.is_some_and(|f| f != plan.fingerprint()) {
        return Err(Error::format("plan", "was made for another model, version or processor; plan again"));
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
    let start = Instant::now();
    let inputs = json!(plan.inputs);
    let work = match output::open(out, &inputs, MANIFEST)? {
        Output::Finished => return Ok(false),
        Output::Open(work) => work,
    };
    let mut tensors: BTreeMap<String, Json> = BTreeMap::new();
    let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
    let (mut shards, mut hashes) = (Vec::new(), BTreeMap::new());
    cx.progress.begin("compress", plan.entries.len() as u64);
    for (file, layout) in plan.files() {
        let names: Vec<String> = layout.keys().cloned().collect();
        let mut writer = Writer::create(&work.pending(&file), layout)?;
        for entry in plan.entries.iter().filter(|e| e.file == file) {
            cx.cancel.check()?;
            match &entry.action {
                Action::Copy => copy(model, entry, &mut writer)?,
                Action::Compress(method) => {
                    let done =
                        matrix(model, plan, entry, &**method, &mut writer, cx).map_err(|e| e.in_tensor(&entry.name))?;
                    seconds.insert(entry.name.clone(), done.1);
                    tensors.insert(entry.name.clone(), done.0);
                }
            }
            cx.progress.advance(1, &entry.name);
        }
        writer.finish()?;
        let (bytes, hash) = output::hash_file(&work.pending(&file))?;
        hashes.insert(file.clone(), json!({"bytes": bytes, "blake3": hash}));
        shards.push((file, names));
    }
    cx.progress.end();
    let recipe = serde_json::to_value(&plan.recipe).map_err(|e| Error::format("recipe", e.to_string()))?;
    let (all, body) = bits_per_weight(&plan.weights());
    let manifest = json!({
        "format": Manifest::FORMAT, "version": env!("CARGO_PKG_VERSION"), "recipe": recipe, "seed": plan.seed,
        "fingerprint": plan.fingerprint(), "inputs": inputs, "bits_per_weight": all, "body_bits_per_weight": body,
        "files": hashes, "tensors": tensors,
    });
    let total = plan.entries.iter().map(Entry::bytes).sum();
    let mut beside = output::companions(model, model.config().cloned(), &shards, total)?;
    let timing = json!({"compress_seconds": start.elapsed().as_secs_f64(), "tensors": seconds});
    beside.push((TIMING.into(), files::to_bytes(&timing)));
    let weights: Vec<String> = shards.into_iter().map(|(f, _)| f).collect();
    work.finish(&weights, &beside, (MANIFEST, files::to_bytes(&manifest)))?;
    Ok(true)
}

/// Hashes rows as they are read, in order.
struct HashedRows<'a>(Box<dyn RowSource + 'a>, Mutex<blake3::Hasher>);

impl RowSource for HashedRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.0.read_rows(rows, out)?;
        let mut hasher = self.1.lock().unwrap_or_else(|e| e.into_inner());
        let mut bytes = Vec::with_capacity(1 << 14);
        for part in out.chunks(1 << 12) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
            hasher.update(&bytes);
        }
        Ok(())
    }
}

/// One matrix, a block of rows at a time: what the manifest says of it, and the seconds it took.
fn matrix(
    model: &Model,
    plan: &Plan,
    entry: &Entry,
    method: &dyn Method,
    sink: &mut dyn TensorSink,
    cx: &Context,
) -> Result<(Json, f64)> {
    let source = HashedRows(model.rows(&entry.name)?, Mutex::new(blake3::Hasher::new()));
    let policy = entry.rule.and_then(|r| plan.recipe.rules.get(r)).map_or(Ok(NonFinite::Refuse), |r| r.non_finite())?;
    let repaired = Repaired::new(&source, policy);
    let shape = source.shape();
    let prepared = method.prepare(None, cx)?;
    let (mut report, mut spec) = (Report::default(), None);
    let step = Plan::block_rows(shape, method);
    // An empty matrix is one empty block.
    for first in (0..shape[0].max(1)).step_by(step) {
        let rows = first..(first + step).min(shape[0]);
        let done = prepared.compress(&repaired, rows, cx)?;
        let at = RowSlot { first, total: shape[0] };
        done.op.save(&entry.name, at, sink)?;
        report.merge(&done.report);
        spec = Some(done.op.spec(at));
    }
    let spec = spec.ok_or_else(|| Error::shape("blocks of a matrix", "at least one", 0))?;
    report.replaced = repaired.count();
    if report.replaced > 0 {
        cx.progress.warn(&format!("{}: {} values were not finite and were replaced", entry.name, report.replaced));
    }
    let hash = source.1.into_inner().unwrap_or_else(|e| e.into_inner()).finalize().to_hex().to_string();
    for f in &report.fallbacks {
        cx.progress.warn(&format!("{}: {f}", entry.name));
    }
    let json = json!({
        "spec": files::from_spec(&spec), "method": method.name(), "rule": entry.rule, "bytes": entry.bytes(),
        "source_blake3": hash, "report": report_json(&report),
    });
    Ok((json, report.seconds))
}

fn report_json(r: &Report) -> Json {
    let mut out = json!({"squared_error": r.squared_error, "energy": r.energy, "relative_error": r.relative_error()});
    let mut put = |name: &str, value: Option<f64>| {
        if let Some(v) = value {
            out[name] = v.into();
        }
    };
    put("data_error", r.data_error);
    put("data_energy", r.data_energy);
    put("damping", r.damping);
    if r.dead_columns > 0 {
        out["dead_columns"] = r.dead_columns.into();
    }
    if r.replaced > 0 {
        out["replaced"] = r.replaced.into();
    }
    if !r.fallbacks.is_empty() {
        out["fallbacks"] = json!(r.fallbacks);
    }
    out
}

/// A tensor as it is stored; of block types, its values. Floats are checked.
pub fn copy(model: &Model, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let (name, info) = &entry.tensors[0];
    let fail = |e: Error| e.in_tensor(name);
    let Some(stored) = model.stored() else {
        let rows = model.rows(name)?;
        let [n, cols] = rows.shape();
        let mut values = vec![0f32; tersor::core::view::elements([n, cols])?];
        rows.read_rows(0..n, &mut values)?;
        check_finite(&values, cols, 0).map_err(fail)?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        return sink.write_shared(name, info, &bytes);
    };
    let total = info.bytes().map_err(fail)?;
    let rows = info.shape.first().copied().unwrap_or(1).max(1);
    let width = total / rows;
    // Tensors that are copied are norms and biases, of strange models anything: in parts of whole entries.
    let step = ((8usize << 20) / width.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let n = step.min(rows - first);
        let mut bytes = vec![0u8; if total == 0 { 0 } else { n * width }];
        stored.read_at(name, (first * width) as u64, &mut bytes)?;
        if info.dtype.is_weight() {
            let mut values = vec![0f32; bytes.len() / info.dtype.size()];
            info.dtype.widen_bytes(&bytes, &mut values);
            check_finite(&values, values.len(), 0).map_err(|e| fail(place(e, info, first)))?;
        }
        if info.shape.is_empty() {
            sink.write_shared(name, info, &bytes)?;
        } else {
            sink.write_rows(name, info, first, &bytes)?;
        }
    }
    Ok(())
}

/// An error in a part of a tensor that begins at entry `first`, by the row and column in the whole.
fn place(e: Error, info: &TensorInfo, first: usize) -> Error {
    let Error::NonFinite { col, value, .. } = e else { return e };
    let (cols, entry) = (info.shape.last().copied().unwrap_or(1).max(1), info.shape.iter().skip(1).product::<usize>());
    let at = first * entry + col;
    Error::NonFinite { row: at / cols, col: at % cols, value }
}

/// Reads every row of an operator, for the checks of `verify` and the writing of `convert`.
pub fn each_block(op: &dyn LinearOp, mut f: impl FnMut(usize, Vec<f32>) -> Result<()>) -> Result<()> {
    let [rows, cols] = op.shape();
    let step = ((8usize << 20) / 4 / cols.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let mut block = vec![0f32; (last - first) * cols];
        op.decompress_rows(first..last, &mut block)?;
        check_finite(&block, cols, first)?;
        f(first, block)?;
    }
    Ok(())
}
