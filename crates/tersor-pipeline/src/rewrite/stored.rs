//! The changes that a rewrite makes, in files and by tensor.

use std::collections::BTreeMap;
use std::path::Path;

use tersor_core::{Changes, Fold, Limits, Result, TensorSink, TensorSource};
use tersor_formats::safetensors::{File, Writer};

/// Writes changes to the safetensors file `path`, for [`load`]. Errors if the file cannot be written, or a setting of the changes has a `.` in its
/// name.
pub(crate) fn save(path: &Path, changes: &Changes) -> Result<()> {
    let tensors = changes.to_tensors()?;
    let layout = tensors.names().into_iter().map(|n| Ok((n.clone(), tensors.info(&n)?)));
    let mut writer = Writer::create(path, layout.collect::<Result<BTreeMap<_, _>>>()?)?;
    for name in tensors.names() {
        writer.write_shared(&name, &tensors.info(&name)?, tensors.get(&name).unwrap_or_default())?;
    }
    writer.finish()
}

/// Reads the changes that [`save`] wrote to the file `path`. Errors if the file cannot be read or has other tensors.
pub(crate) fn load(path: &Path) -> Result<Changes> {
    Changes::from_tensors(&File::open(path, &Limits::default())?)
}

/// Returns the folds (changes of a stored weight) of the tensor `name`, in the order in which they apply. The last may be one that the running
/// network makes up for by changing the inputs of the matrix ([`Changes::online`]).
pub(crate) fn folds_of(changes: &Changes, name: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight == name).chain(changes.online(name)).cloned().collect()
}

/// Returns the folds of the tensors whose names begin with `prefix`, without those that the running network makes up for by changing inputs.
/// Calibration reads the weights of a layer with these folds.
pub(crate) fn merged(changes: &Changes, prefix: &str) -> Vec<Fold> {
    changes.folds.iter().filter(|f| f.weight.starts_with(prefix)).cloned().collect()
}
