//! Compresses one matrix into a part, or copies a tensor as it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};
use tersor_core::method::ROW_UNIT;
use tersor_core::{
    Changes, Context, Error, Extent, Fold, FoldedRows, MatView, Method, NonFinite, Prepared, Repaired, Report, Result,
    RowSlot, RowSource, Side, StatSet, TensorInfo, TensorSink, Transform, check_finite, read_finite,
};
use tersor_formats::{Model, json as files};

use super::parts::Parts;
use super::{chain, rewrites};
use crate::kinds::Kinds;
use crate::plan::{Action, Entry, Plan};
use crate::rewrite::{self, Search};
use crate::rows::copy_rows;

/// A compression in progress.
pub(crate) struct Job<'a> {
    /// The model that is compressed.
    pub(crate) model: &'a Model,
    /// The plan that says what is done with each tensor.
    pub(crate) plan: &'a Plan,
    /// The progress, cancellation, threads and seed.
    pub(crate) cx: &'a Context,
    /// The kinds of operators, which load finished matrices.
    pub(crate) kinds: &'a Kinds,
    /// The finished matrices.
    pub(crate) parts: Parts,
    /// The index of the layer that was used last, with the changes of its sites; None before the first.
    pub(crate) smoothed: Mutex<Option<(usize, Arc<Changes>)>>,
    /// The changes of the whole network; None without a rotation, or before they are found.
    pub(crate) rotated: Option<Changes>,
    /// What is done with NaN and infinite values of a matrix, by its name.
    pub(crate) non_finite: BTreeMap<String, NonFinite>,
}

impl Job<'_> {
    /// Returns the model for which the changes of rewrites are computed, and how its weights are read.
    pub(crate) fn search(&self) -> Search<'_> {
        Search { model: self.model, non_finite: &self.non_finite, cx: self.cx }
    }

    /// Returns the index of the layer of the tensor `name` if the plan smooths sites; None if it does not, or the tensor is in no layer.
    pub(crate) fn smoothed_layer(&self, name: &str) -> Option<usize> {
        let layer = self.plan.network.as_ref().and_then(|n| n.layer_of(name));
        layer.filter(|_| !self.plan.smoothings.is_empty())
    }

    /// Compresses the matrix of the entry `number`, whose method needs no data, unless it is finished. Errors, naming the matrix, if it cannot be
    /// read or compressed.
    pub(crate) fn without_data(&self, number: usize) -> Result<()> {
        let entry = &self.plan.entries[number];
        let Action::Compress(method) = &entry.action else { return Ok(()) };
        if self.parts.finished(number)?.is_none() {
            let none = StatSet::none();
            let prepared = method.prepare(&none, self.cx).map_err(|e| e.in_tensor(&entry.name))?;
            let change = if self.rotated.is_some() { rewrites::input_change(self, &entry.name)? } else { None };
            let prepared = chain::with_input_change(change.as_ref(), prepared);
            self.matrix(number, &*prepared)?;
        }
        self.cx.progress.advance(1, &entry.name);
        Ok(())
    }

    /// Returns the folds (changes of a stored weight) of the tensor `name`. Errors if the changes of its layer have not been found yet.
    pub(crate) fn folds(&self, name: &str) -> Result<Vec<Fold>> {
        match (&self.rotated, self.smoothed_layer(name)) {
            (Some(changes), _) => Ok(rewrite::folds_of(changes, name)),
            (None, Some(layer)) => {
                let place = "the work in progress; its task comes first";
                let missing = || Error::missing(format!("factors of layer {layer}"), place);
                Ok(rewrite::folds_of(&*rewrites::of_layer(self, layer)?.ok_or_else(missing)?, name))
            }
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Compresses the matrix of the entry `number` by a prepared method, one block of rows after the other, and records it. Errors, naming the
    /// matrix, if a value is not finite, the method fails, a file cannot be read or written, or the work is cancelled.
    pub(crate) fn matrix(&self, number: usize, prepared: &dyn Prepared) -> Result<()> {
        let entry = &self.plan.entries[number];
        self.blocks(number, entry, prepared).map_err(|e| e.in_tensor(&entry.name))
    }

    fn blocks(&self, number: usize, entry: &Entry, prepared: &dyn Prepared) -> Result<()> {
        let Action::Compress(method) = &entry.action else { return Ok(()) };
        let (plan, cx) = (self.plan, self.cx);
        let source = HashedRows::new(self.model.rows(&entry.source)?);
        let repaired = Repaired::new(&source, plan.non_finite(entry));
        let folds = self.folds(&entry.name)?;
        let folded = FoldedRows::new(&repaired, &entry.name, &folds)?.with_isa(cx.isa());
        let shape = source.shape();
        let (mut report, mut spec, mut sample) = (Report::default(), None, Vec::new());
        let plain = self.plain(&**method, shape)?;
        let mut writer = self.parts.create(number, entry)?;
        let step = Plan::block_rows(shape, &**method);
        // If a rotation mixes all rows, the rotated matrix is computed once.
        let mixes = |f: &Fold| f.side == Side::Output && matches!(f.transform, Transform::Rotate(_));
        let (values, whole);
        let folded: &dyn RowSource = if folds.iter().any(mixes) {
            values = read_finite(&folded, 0..shape[0])?;
            whole = MatView::new(&values, shape)?;
            &whole
        } else {
            &folded
        };
        // An empty matrix is one empty block.
        for first in (0..shape[0].max(1)).step_by(step) {
            let rows = first..(first + step).min(shape[0]);
            let done = prepared.compress(folded, rows.clone(), cx)?;
            let at = RowSlot { first, total: shape[0] };
            done.op.save_block(&entry.name, at, &mut writer)?;
            if first == 0 && plain.is_some() {
                sample.resize(rows.len().min(ROW_UNIT) * shape[1], 0.0);
                done.op.decompress_rows(0..rows.len().min(ROW_UNIT), &mut sample, &cx.exec)?;
            }
            report.merge(&done.report);
            spec = Some(done.op.spec_block(at));
        }
        let spec = spec.ok_or_else(|| Error::shape("blocks of a matrix", "at least one", 0))?;
        report.replaced = repaired.count();
        if report.replaced > 0 {
            cx.progress.warn(&format!("{}: {} values were not finite and were replaced", entry.name, report.replaced));
        }
        for f in &report.fallbacks {
            cx.progress.warn(&format!("{}: {f}", entry.name));
        }
        let hash = source.hash();
        let mut manifest = json!({
            "spec": files::from_spec(&spec), "method": method.name(), "rule": entry.rule, "bytes": entry.bytes(),
            "source_blake3": hash, "report": report_json(&report),
        });
        if let Some(plain) = plain
            && self.stores(plain, entry, folded, &sample)?
        {
            manifest["report"][NO_EFFECT] = true.into();
        }
        self.parts.commit(number, writer, manifest, report.seconds)
    }

    /// Returns the form without data of a method that needs data, if it has one of the same size that is compressed by blocks of rows.
    fn plain<'m>(&self, method: &'m dyn Method, shape: [usize; 2]) -> Result<Option<&'m dyn Method>> {
        let plain = method.plain().filter(|p| method.needs().any_data() && !p.needs().any_data());
        let Some(plain) = plain.filter(|p| p.extent() == Extent::Blocks) else { return Ok(None) };
        Ok((method.layout(shape)?.bits()? == plain.layout(shape)?.bits()?).then_some(plain))
    }

    /// Returns whether the method `plain`, which needs no data, stores the first rows of the matrix `w` as `sample`.
    fn stores(&self, plain: &dyn Method, entry: &Entry, w: &dyn RowSource, sample: &[f32]) -> Result<bool> {
        let rows = sample.len().checked_div(w.shape()[1]).unwrap_or(0);
        if rows == 0 {
            return Ok(false);
        }
        let change = rewrites::input_change(self, &entry.name)?;
        let none = StatSet::none();
        let prepared = chain::with_input_change(change.as_ref(), plain.prepare(&none, self.cx)?);
        let op = match prepared.compress(w, 0..rows, self.cx) {
            Ok(done) => done.op,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // Without data the matrix cannot be stored at all.
            Err(_) => return Ok(false),
        };
        let mut values = vec![0f32; sample.len()];
        op.decompress_rows(0..rows, &mut values, &self.cx.exec)?;
        Ok(values.iter().zip(sample).all(|(a, b)| a.to_bits() == b.to_bits()))
    }
}

/// Key of a matrix's report that says that calibration had no effect on it.
const NO_EFFECT: &str = "calibration_had_no_effect";

/// Warns if calibration had no effect on any matrix of a calibrated method. `tensors` has the entries of all compressed matrices in the manifest.
pub(crate) fn warn_of_no_effect(plan: &Plan, tensors: &BTreeMap<String, Json>, cx: &Context) {
    let calibrated = || plan.entries.iter().filter(|e| e.needs().any_data());
    let same = |e: &Entry| tensors.get(&e.name).is_some_and(|t| t["report"][NO_EFFECT] == true);
    if calibrated().next().is_some() && calibrated().all(same) {
        let methods: BTreeSet<String> = calibrated().map(Entry::method_name).collect();
        let methods = methods.into_iter().collect::<Vec<_>>().join(", ");
        cx.progress.warn(&format!(
            "calibration had no effect: all {} matrices of calibrated methods ({methods}) are stored as without data; check the calibration data",
            calibrated().count()
        ));
    }
}

/// Returns the BLAKE3 hash of a tensor's values, 64 hexadecimal digits, as [`Job::matrix`] or [`copy`] reads them. Errors if the tensor cannot be
/// read.
pub(crate) fn source_hash(model: &Model, entry: &Entry) -> Result<String> {
    let Action::Compress(method) = &entry.action else {
        return copy(model, entry, None);
    };
    let rows = HashedRows::new(model.rows(&entry.source)?);
    let shape = rows.shape();
    let step = Plan::block_rows(shape, &**method).min(shape[0].max(1));
    let mut values = vec![0f32; step * shape[1]];
    for first in (0..shape[0]).step_by(step) {
        let last = (first + step).min(shape[0]);
        rows.read_rows(first..last, &mut values[..(last - first) * shape[1]])?;
    }
    Ok(rows.hash())
}

/// Checks that the hash of a tensor's values is `recorded`, the one that was recorded when it was read. Errors, naming the tensor, if it is another
/// one or none was recorded, or if the tensor cannot be read.
pub(crate) fn check_source(model: &Model, entry: &Entry, recorded: Option<&str>) -> Result<()> {
    if Some(source_hash(model, entry)?.as_str()) != recorded {
        let what = "its values have changed since the work in progress was made from them; choose another directory";
        return Err(Error::format(model.path().display().to_string(), what).in_tensor(&entry.name));
    }
    Ok(())
}

/// A sink that hashes the bytes and passes them to the next sink, if there is one.
struct HashSink<'a> {
    hasher: blake3::Hasher,
    next: Option<&'a mut dyn TensorSink>,
}

impl TensorSink for HashSink<'_> {
    fn write_rows(&mut self, name: &str, info: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.next.as_mut().map_or(Ok(()), |s| s.write_rows(name, info, first, bytes))
    }
    fn write_shared(&mut self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.next.as_mut().map_or(Ok(()), |s| s.write_shared(name, info, bytes))
    }
}

/// Rows that are hashed as they are read, in order.
struct HashedRows<'a>(Box<dyn RowSource + 'a>, Mutex<blake3::Hasher>);

impl<'a> HashedRows<'a> {
    fn new(rows: Box<dyn RowSource + 'a>) -> Self {
        Self(rows, Mutex::new(blake3::Hasher::new()))
    }
    fn hash(&self) -> String {
        self.1.lock().unwrap_or_else(|e| e.into_inner()).finalize().to_hex().to_string()
    }
}

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

/// Returns a report as JSON.
pub(crate) fn report_json(r: &Report) -> Json {
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

/// Writes a vector in f32 with its folds (changes such as factors) applied into `sink`. Returns the hash of the original values. Errors, naming the
/// tensor, if a value is not finite or its changes have not been found yet.
pub(crate) fn fold(job: &Job<'_>, entry: &Entry, sink: &mut dyn TensorSink) -> Result<String> {
    let hash = copy(job.model, entry, None)?;
    let rows = job.model.rows(&entry.name)?;
    let folds = job.folds(&entry.name)?;
    let folded = FoldedRows::new(&*rows, &entry.name, &folds)?;
    let values = read_finite(&folded, 0..rows.shape()[0]).map_err(|e| e.in_tensor(&entry.name))?;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, info) = &entry.tensors[0];
    sink.write_shared(name, info, &bytes)?;
    Ok(hash)
}

/// Copies a tensor as it is stored (a GGUF block type as f32 values) into `next`; if that is None, the tensor is only read. Returns the BLAKE3 hash
/// of the copied bytes. Errors if a float is not finite or the tensor cannot be read.
pub(crate) fn copy(model: &Model, entry: &Entry, next: Option<&mut dyn TensorSink>) -> Result<String> {
    let mut sink = HashSink { hasher: blake3::Hasher::new(), next };
    pass(model, entry, &mut sink)?;
    Ok(sink.hasher.finalize().to_hex().to_string())
}

/// Copies a tensor into a sink.
fn pass(model: &Model, entry: &Entry, sink: &mut dyn TensorSink) -> Result<()> {
    let (name, info) = &entry.tensors[0];
    let fail = |e: Error| e.in_tensor(name);
    let Some(stored) = model.stored() else {
        let rows = model.rows(name)?;
        let [n, cols] = rows.shape();
        let mut values = vec![0f32; tersor_core::view::elements([n, cols])?];
        rows.read_rows(0..n, &mut values)?;
        check_finite(&values, cols, 0).map_err(fail)?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        return sink.write_shared(name, info, &bytes);
    };
    // The type is that of the model; a folded vector is converted to f32 later.
    let info = &stored.info(name)?;
    let check = |first: usize, bytes: &[u8]| {
        if !info.dtype.is_weight() {
            return Ok(());
        }
        let mut values = vec![0f32; bytes.len() / info.dtype.size()];
        info.dtype.widen_bytes(bytes, &mut values)?;
        check_finite(&values, values.len(), 0).map_err(|e| place(e, info, first))
    };
    copy_rows(stored, name, info, check, sink)
}

/// Converts the position in an error from a block, which begins at index `first` of the first axis, to row and column of the whole tensor.
fn place(e: Error, info: &TensorInfo, first: usize) -> Error {
    let Error::NonFinite { col, value, .. } = e else { return e };
    let (cols, entry) = (info.shape.last().copied().unwrap_or(1).max(1), info.shape.iter().skip(1).product::<usize>());
    let at = first * entry + col;
    Error::NonFinite { row: at / cols, col: at % cols, value }
}
