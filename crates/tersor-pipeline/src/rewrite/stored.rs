//! The changes that a rewrite makes, in files and by tensor.

use std::collections::BTreeMap;
use std::path::Path;

use tersor_core::{Changes, Fold, Limits, Result, TensorSink, TensorSource};
use tersor_formats::safetensors::{File, Writer};

/// Writes changes to a file. Errors if the file cannot be written.
pub(crate) fn save(path: &Path, changes: &Changes) -> Result<()> {
    let tensors = changes.to_tensors()?;
    let layout = tensors.names().into_iter().map(|n| Ok((n.clone(), tensors.info(&n)?)));
    let mut writer = Writer::create(path, layout.collect::<Result<BTreeMap<_, _>>>()?)?;
    for name in tensors.names() {
        writer.write_shared(&name, &tensors.info(&name)?, tensors.get(&name).unwrap_or_default())?;
    }
    writer.finish()
}

/// Reads changes that [`save`] wrote. Errors if the file is invalid.
pub(crate) fn load(path: &Path) -> Result<Changes> {
    Changes::from_tensors(&File::open(path, &Limits::default())?)
}

/// Returns the folds of a tensor, including those whose inverse is applied to its inputs when the network runs.
pub(crate) fn folds_of(changes: &Changes, name: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight == name).chain(changes.online(name)).cloned().collect()
}

/// Returns the folds of tensors whose names begin with `prefix`, without those whose inverse is applied when the network runs: a layer is read with
/// these for calibration.
pub(crate) fn merged(changes: &Changes, prefix: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight.starts_with(prefix)).cloned().collect()
}
