//! Gathers the statistics of a plan into a file.

use std::path::Path;

use tersor_core::{Context, Error, ParamError, Result};
use tersor_formats::Model;
use tersor_llm::Checkpoint;

use super::Plan;
use crate::calibrate;
use crate::kinds::Kinds;

/// What [`Plan::gather`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Calibrated {
    /// Number of sites of which statistics were gathered.
    pub sites: usize,
    /// Number of calibration windows of the text.
    pub windows: usize,
    /// Length of the file in bytes.
    pub bytes: u64,
}

impl Plan {
    /// Gathers the statistics that the plan needs on its calibration text, in the original network, into the file `out`: part `i` of `n` for
    /// `[i, n]`, counted from 1. Files of all parts together are the [`Data::Statistics`](super::Data::Statistics) of a later plan. Errors if the plan
    /// needs no data or has no text, if there are more parts than shards, if the file cannot be written, or if the work is cancelled.
    pub fn gather(
        &self,
        model: &Model,
        [i, n]: [usize; 2],
        out: &Path,
        kinds: &Kinds,
        cx: &Context,
    ) -> Result<Calibrated> {
        if !self.needs_data() {
            let rule = "it needs no statistics, so there is nothing to gather";
            return Err(ParamError::new("recipe", format!("`{}`", self.recipe.name), rule).into());
        }
        let checkpoint = Checkpoint::open(model.path(), &kinds.operators)?;
        let windows = self.cut()?;
        let shards = self.shards();
        if n > shards || i == 0 || i > n {
            let rule = format!("must have at most {shards} parts, the number of shards of these windows");
            return Err(ParamError::new("shard", format!("{i}/{n}"), rule).into());
        }
        let part = (i - 1) * shards / n..i * shards / n;
        let scratch = if self.spill {
            let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let made = tempfile::Builder::new().prefix(".tersor-").tempdir_in(dir);
            Some(made.map_err(|e| Error::io(dir, e))?)
        } else {
            None
        };
        let (scratch, wanted) = (scratch.as_ref().map(|d| d.path()), self.wanted());
        calibrate::gather(&checkpoint, &wanted, windows, part, out, scratch, cx)?;
        let bytes = std::fs::metadata(out).map_err(|e| Error::io(out, e))?.len();
        Ok(Calibrated { sites: wanted.sites.len(), windows: windows.len(), bytes })
    }

    /// Returns the tokens of the calibration windows of the plan's text. Errors if the plan has no text.
    pub(crate) fn cut(&self) -> Result<&[Vec<u32>]> {
        let tokens = self.tokens.as_ref().map(|t| t.as_slice());
        tokens.ok_or_else(|| Error::Missing { name: "calibration text".into(), place: "the plan".into() })
    }
}
