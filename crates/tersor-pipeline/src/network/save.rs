//! Writes a compressed network as a model directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};
use tersor_core::tensors::write_floats;
use tersor_core::{Error, MemTensors, Result, RowSlot, TensorSink, TensorSource, Weights, read_finite};
use tersor_formats::safetensors::Writer;
use tersor_formats::{json as files, write_atomic};
use tersor_models::{MANIFEST, Manifest};

use super::CompressedNetwork;
use super::plan::Folded;
use crate::compress::report_json;
use crate::output::hash_file;

/// The file with all tensors.
const FILE: &str = "model.safetensors";

impl CompressedNetwork {
    /// Writes the network to the directory `out`, which is made if it does not exist and must be empty. The directory gets every compressed matrix,
    /// and the tensors of `weights`, the original weights, whose names `others` has, in f32. These have the changes that were made before compression
    /// ([`changes`](Self::changes)) applied; a matrix has the shape `[rows, cols]`, and a weight of one row is stored as a vector.
    ///
    /// The directory has the form of an output of [`compress`](crate::compress()), without `config.json` and tokenizer:
    /// [`Checkpoint::open`](tersor_models::Checkpoint::open) loads its matrices, [`verify`](crate::verify()) checks it, and
    /// [`weights`](crate::evaluate::weights) compares it with an original. Its manifest is written last; after an error, the files written so far
    /// remain.
    ///
    /// Errors with [`Error::Format`] if `out` has files, and with [`Error::Order`] if two tensors have the same name. Errors with [`Error::Tensor`],
    /// with the name, if a tensor has a value that is not finite, and with an error of `weights` if it lacks one. Errors with [`Error::Io`] if a file
    /// cannot be written.
    pub fn save(&self, out: &Path, weights: &dyn Weights, others: &[&str]) -> Result<()> {
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        if std::fs::read_dir(out).map_err(|e| Error::io(out, e))?.next().is_some() {
            let what = "it has files; choose a new directory";
            return Err(Error::format(out.display().to_string(), what));
        }
        let mut tensors = MemTensors::new();
        let mut entries = serde_json::Map::new();
        for (name, op) in &self.operators {
            let at = RowSlot::whole(op.shape()[0]);
            op.save_block(name, at, &mut tensors).map_err(|e| e.in_tensor(name))?;
            let report = self.reports.get(name).map(report_json).unwrap_or(Json::Null);
            entries.insert(name.clone(), json!({"spec": files::from_spec(&op.spec_block(at)), "report": report}));
        }
        let folded = Folded { weights, folds: &self.changes.folds };
        for name in others {
            let rows = folded.rows(name)?;
            let shape = rows.shape();
            if self.operators.contains_key(*name) || tensors.info(name).is_ok() {
                return Err(Error::order("names of tensors", "each occurs once", name));
            }
            let values = read_finite(&*rows, 0..shape[0]).map_err(|e| e.in_tensor(name))?;
            let stored = if shape[0] == 1 { &shape[1..] } else { &shape[..] };
            write_floats(&mut tensors, name, stored, &values)?;
        }
        let layout: BTreeMap<_, _> =
            tensors.names().into_iter().map(|n| Ok((n.clone(), tensors.info(&n)?))).collect::<Result<_>>()?;
        let path = out.join(FILE);
        let mut writer = Writer::create(&path, layout.clone())?;
        for (name, info) in &layout {
            writer.write_shared(name, info, tensors.get(name).unwrap_or_default())?;
        }
        writer.finish()?;
        let (bytes, hash) = hash_file(&path)?;
        let manifest = json!({
            "format": Manifest::FORMAT, "version": env!("CARGO_PKG_VERSION"), "recipe": self.recipe.to_json(),
            "bits_per_weight": self.bits_per_weight(), "files": {FILE: {"bytes": bytes, "blake3": hash}}, "tensors": entries,
        });
        write_atomic(&out.join(MANIFEST), &files::to_bytes(&manifest))
    }
}
