//! A measurement in progress: it is saved between two layers, so that a later run continues from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, Result};
use tersor_formats::{json as files, write_atomic};
use tersor_models::{Calibration, Sensitivity};

use super::item::Item;
use crate::output::{record_file, recorded};

/// The directory of a measurement in progress.
pub(crate) struct Progress {
    dir: PathBuf,
    every: Duration,
    saved: Instant,
}

/// What was measured before the run was stopped.
#[derive(Serialize, Deserialize)]
pub(crate) struct Before {
    /// The number of layers that were measured.
    pub(crate) layers: usize,
    /// The measured matrices, without their effect.
    pub(crate) items: Vec<Item>,
    /// The names of the networks, each of which has one matrix stored with a large error, in order.
    pub(crate) networks: Vec<String>,
}

impl Progress {
    /// Opens or makes the directory `dir` of a measurement that depends on `inputs`. It is saved when the time `every` has passed since the last
    /// save. Errors if the directory has other files or other inputs, or cannot be read or written.
    pub(crate) fn open(dir: &Path, inputs: &Json, every: Duration) -> Result<Self> {
        let about = dir.join("inputs.json");
        let refuse = |what: &str| Error::format(dir.display().to_string(), what);
        if about.is_file() {
            if files::read(&about, &Limits::default())? != *inputs {
                return Err(refuse("it has a measurement in progress of another model, text or machine; remove it"));
            }
        } else {
            fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            if fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.next().is_some() {
                return Err(refuse("it has files that tersor did not write; choose another name for the measurement"));
            }
            write_atomic(&about, &files::to_bytes(inputs))?;
        }
        Ok(Self { dir: dir.to_path_buf(), every, saved: Instant::now() })
    }

    fn networks(&self, layers: usize) -> PathBuf {
        self.dir.join(format!("networks-{layers:06}"))
    }

    fn stream(&self, layers: usize) -> PathBuf {
        self.dir.join(format!("stream-{layers:06}"))
    }

    /// Returns the measurement that was saved behind the largest number of layers, at most `max`; None if none was. Errors if a file has changed
    /// since it was recorded, or cannot be read.
    pub(crate) fn before(&self, max: usize) -> Result<Option<Before>> {
        for layers in (1..=max).rev() {
            let Some(json) = recorded(&self.networks(layers))? else { continue };
            if recorded(&self.stream(layers))?.is_none() {
                continue;
            }
            let place = self.networks(layers).display().to_string();
            let before = serde_json::from_value(json["before"].clone());
            return before.map(Some).map_err(|e| Error::format(place, e.to_string()));
        }
        Ok(None)
    }

    /// Gives `calibration` the hidden states that were saved behind `layers` layers, and returns the path of the file of networks. Errors if the
    /// states cannot be read.
    pub(crate) fn resume(&self, layers: usize, calibration: &mut Calibration<'_>) -> Result<PathBuf> {
        calibration.resume(&self.stream(layers))?;
        Ok(self.networks(layers))
    }

    /// Saves what was measured behind `layers` layers if the time between two saves has passed, and deletes what was saved before. Errors if a file
    /// cannot be written or deleted.
    pub(crate) fn save(
        &mut self,
        layers: usize,
        items: &[Item],
        networks: &Sensitivity<'_>,
        calibration: &mut Calibration<'_>,
    ) -> Result<()> {
        if self.saved.elapsed() < self.every {
            return Ok(());
        }
        let before = Before { layers, items: items.to_vec(), networks: networks.names() };
        let before = serde_json::to_value(before).map_err(|e| Error::format("measurement", e.to_string()))?;
        calibration.save(&self.stream(layers))?;
        record_file(&self.stream(layers), json!({}))?;
        networks.save(&self.networks(layers))?;
        record_file(&self.networks(layers), json!({"before": before}))?;
        for old in 0..layers {
            for path in [self.networks(old), self.stream(old)] {
                // The record goes first: without it the file is nothing.
                for path in [path.with_extension("json"), path] {
                    if path.is_file() {
                        fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
                    }
                }
            }
        }
        self.saved = Instant::now();
        Ok(())
    }

    /// Deletes the directory. Errors if that fails.
    pub(crate) fn finish(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))
    }
}

/// Returns whether a measurement is saved in the directory `dir` of a measurement in progress; false if it cannot be read.
pub(crate) fn any(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("networks-"))
}
