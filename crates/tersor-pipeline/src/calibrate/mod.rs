//! Calibration: the statistics of the inputs of linear layers while the original network runs on a text.
//!
//! A *site* ([`Site`]) is an input of one or more linear layers with their weight matrices, such as the input of q, k and v. A *window* is a sequence
//! of tokens of the calibration text: of a fixed number of tokens for a decoder, one line of the text for an encoder. A *shard* is a run of
//! [`shard_windows`] consecutive windows. The statistics of all windows are those of the shards, added in their order, so that several processes can
//! gather shards and the sum has the same bits.
//!
//! [`cut`] makes windows of a text, [`gather`] writes statistics to a file, and [`Statistics::open`] reads such files.
//! [`Plan::gather`](crate::Plan::gather) does the first two for the methods of a plan.

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

/// Which statistics [`gather`] gathers and [`Statistics::open`] demands, and what they depend on.
pub struct Wanted {
    /// The sites of the network (a [`Site`] is an input of one or more linear layers) of which statistics are needed, each with the kinds of
    /// statistics.
    pub sites: Vec<(Site, StatNeeds)>,
    /// The number of calibration windows (token sequences). [`Statistics::open`] ignores it.
    pub windows: usize,
    /// The maximum number of tokens of a window; at least 1. [`Statistics::open`] ignores it.
    pub ctx: usize,
    /// The seed by which the tokens of random samples of inputs are chosen.
    pub seed: u64,
    /// Everything that the statistics depend on, as hashes or plain values by name. The names that count are `headers`, `files`, `config`,
    /// `tokenizer`, `seed`, `version`, `instruction set` and `calibration text`. [`gather`] records their values in the file, and
    /// [`Statistics::open`] refuses a file that has another value for one of them. A name that is missing here is recorded as missing and is not
    /// compared.
    pub inputs: BTreeMap<String, String>,
}

impl Wanted {
    /// Returns the number of shards of the windows: `windows / shard_windows(ctx)`, rounded up. A shard is a run of [`shard_windows`] consecutive
    /// windows. It cannot fail.
    pub fn shards(&self) -> usize {
        self.windows.div_ceil(shard_windows(self.ctx))
    }
}

/// Runs the original network of `checkpoint` on calibration windows, layer by layer, and writes the statistics of its sites to the safetensors file
/// `out`. `windows` has the token numbers of each window of the whole text; each has 1 to `wanted.ctx` tokens. `part` is the range of shards to
/// gather, within `0..wanted.shards()`. A file of all shards has one sum over all windows; a file of fewer has the sum of each shard, so that files
/// of different parts add up to the same bits. Hidden states (the activations between two layers, of all windows of a shard or of the text) are kept
/// in files in the existing directory `scratch`, or in memory if it is None. Progress and cancellation are those of `cx`; the seed is `wanted.seed`.
///
/// An earlier file of statistics at `out` is replaced. The file appears under its name when it is complete.
///
/// # Errors
///
/// An [`Error::Format`](tersor_core::Error::Format) with the path if `out` is the model, a directory, or a file other than an earlier file of
/// statistics. [`Error::Cancelled`](tersor_core::Error::Cancelled) if the work is cancelled. An error if the architecture of the checkpoint is
/// unknown, if `windows` is empty, if a window is empty, is longer than `wanted.ctx` or has a token outside of the vocabulary, if a weight is
/// missing, has another shape or is not finite (the error names it), or if a file cannot be written.
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
