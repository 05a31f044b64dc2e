//! Gathers the statistics of a plan into a file.

use std::path::Path;

use tersor_core::{Context, Error, ParamError, Result};
use tersor_formats::Model;
use tersor_models::Checkpoint;

use super::Plan;
use crate::calibrate;
use crate::kinds::Kinds;

/// What [`Plan::gather`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Calibrated {
    /// The number of sites (inputs of linear layers, [`Site`](tersor_core::Site)) whose statistics the file has.
    pub sites: usize,
    /// The number of calibration windows of the whole text, those of other parts included.
    pub windows: usize,
    /// The length of the file in bytes.
    pub bytes: u64,
}

impl Plan {
    /// Runs the original network of `model` on the calibration text of the plan, and writes the statistics that its methods need to the file `out`.
    /// The shards of the windows ([`Plan::shards`]) are divided into `n` parts; for `[i, n]`, `i` from 1 to `n`, the file has part `i`. The files of
    /// all parts together are the [`Data::Statistics`](super::Data::Statistics) of a later plan; plans with a rotation, smoothing or statistics that
    /// the recipe calls `sequential` do not accept them. With [`Plan::spill`], hidden states are kept in a temporary directory beside `out`. `kinds`
    /// has the operators; the seed is that of the plan, progress and cancellation are those of `cx`. An earlier file of statistics is replaced.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`] if the plan needs no data, if `i` is not in `1..=n`, or if `n` exceeds the number of shards. An [`Error::Missing`] if the
    /// plan has no text. An [`Error::Format`] if `out` is something else than an earlier file of statistics. [`Error::Cancelled`] if the work is
    /// cancelled; other errors if a tensor cannot be read or the file cannot be written.
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

    /// Returns the tokens of each calibration window of the plan's text.
    ///
    /// # Errors
    ///
    /// An [`Error::Missing`] if the plan has no text.
    pub fn cut(&self) -> Result<&[Vec<u32>]> {
        let tokens = self.tokens.as_ref().map(|t| t.as_slice());
        tokens.ok_or_else(|| Error::Missing { name: "calibration text".into(), place: "the plan".into() })
    }
}
