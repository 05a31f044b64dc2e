//! Calibration: the statistics of what flows into the sites of a network.
//!
//! A *site* is one input and the matrices that read it, such as the input of q, k and v. A *window* is a piece of the calibration text of a fixed
//! number of tokens. A *shard* is a fixed range of windows, so that statistics can be gathered by several processes and added in order.

mod statistics;
mod windows;

pub use statistics::{Gathered, Statistics};
pub use windows::{cut, sentences};

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::json;
use tersor_core::tensors::join;
use tersor_core::{Context, DType, Result, Site, StatNeeds, StatSet, TensorInfo, TensorSink};
use tersor_formats::safetensors::Writer;
use tersor_models::{Calibration, Checkpoint, Hooks, Upstream, shard_windows};

use crate::output::{ABOUT, FileKind, check_file};
use statistics::{FORMAT, KEYS, prefix};

/// The statistics that a plan needs, and what they depend on.
pub struct Wanted {
    /// The sites of which statistics are needed, with these statistics.
    pub sites: Vec<(Site, StatNeeds)>,
    /// Number of calibration windows.
    pub windows: usize,
    /// Tokens per window.
    pub ctx: usize,
    /// Seed of random samples.
    pub seed: u64,
    /// Everything that the statistics depend on, as hashes by name. Files record them, and files of other inputs are refused.
    pub inputs: BTreeMap<String, String>,
}

impl Wanted {
    /// Returns the number of shards of the windows.
    pub fn shards(&self) -> usize {
        self.windows.div_ceil(shard_windows(self.ctx))
    }
}

/// Gathers statistics of the original network on `windows`, the tokens of all calibration windows, into the file `out`, for the shards in `part`
/// (of `wanted.shards()`). If these are all shards, their sum is stored, otherwise each separately. Hidden states are kept in the directory `scratch`
/// if one is given, otherwise in memory. Errors if `out` exists and is no earlier file of statistics, a tensor cannot be read, the file cannot be written, or the work is cancelled.
pub fn gather(
    checkpoint: &Checkpoint,
    wanted: &Wanted,
    windows: &[Vec<u32>],
    part: Range<usize>,
    out: &Path,
    scratch: Option<&Path>,
    cx: &Context,
) -> Result<()> {
    check_file(out, FileKind::Statistics, &[checkpoint.model().path()])?;
    let (model, sites, cancel) = (checkpoint.model(), &wanted.sites, &cx.cancel);
    let slices: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let ctx = wanted.ctx;
    let of_shard = shard_windows(ctx);
    let whole = part == (0..wanted.shards());
    // A file of all shards has one range of windows; a file of a part has one for each shard.
    let cut = |r: Range<usize>| (r.start * of_shard).min(windows.len())..(r.end * of_shard).min(windows.len());
    let runs: Vec<Range<usize>> =
        if whole { vec![cut(part)] } else { part.map(|s| cut(s..s + 1)).filter(|r| !r.is_empty()).collect() };
    let mut about = json!({
        "format": FORMAT, "windows": windows.len(), "ctx": ctx,
        "runs": runs.iter().map(|r| [r.start, r.len()]).collect::<Vec<_>>(),
    });
    for key in KEYS.into_iter().filter(|k| !matches!(*k, "windows" | "ctx")) {
        about[key] = wanted.inputs.get(key).cloned().into();
    }
    let about = about.to_string().into_bytes();
    let about_info = TensorInfo { dtype: DType::U8, shape: vec![about.len()] };
    let mut layout = BTreeMap::from([(ABOUT.to_string(), about_info.clone())]);
    for run in &runs {
        let tokens: usize = windows[run.clone()].iter().map(Vec::len).sum();
        for (site, needs) in sites {
            for (suffix, info) in StatSet::layout(site.features, *needs, tokens as u64) {
                layout.insert(join(&prefix(&site.name, run.start), &suffix), info);
            }
        }
    }
    let mut writer = Writer::create(out, layout)?;
    writer.write_shared(ABOUT, &about_info, &about)?;
    let layers = checkpoint.architecture()?.layers();
    cx.progress.begin("calibrate", (runs.len() * layers) as u64);
    for run in runs {
        let mut calibration = Calibration::new(checkpoint, &slices, run.clone(), ctx, scratch)?;
        calibration.embed(&mut |name, row, out| model.rows(name)?.read_rows(row..row + 1, out))?;
        let needs = |site: &Site| sites.iter().find(|s| s.0.name == site.name).map(|s| s.1).unwrap_or_default();
        let save = &mut |site: &Site, stats: &StatSet| {
            if needs(site).any_data() {
                stats.save(&prefix(&site.name, run.start), &mut writer)?;
            }
            Ok(Vec::new())
        };
        let mut hooks = Hooks {
            upstream: Upstream::Original,
            cancel,
            seed: wanted.seed,
            needs: &needs,
            change: &|_| Ok(None),
            compress: save,
            rewriting: None,
            folds: Vec::new(),
        };
        for layer in 0..layers {
            calibration.layer(layer, &mut hooks)?;
            cx.progress.advance(1, &format!("layer {layer}"));
        }
        if let Some((site, needs)) = sites.iter().find(|(s, _)| s.layer.is_none()) {
            let stats = calibration.head(*needs, wanted.seed, cancel)?;
            stats.save(&prefix(&site.name, run.start), &mut writer)?;
        }
    }
    cx.progress.end();
    writer.finish()
}
