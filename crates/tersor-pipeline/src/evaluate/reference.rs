//! [`Reference`]: a file with the predictions of an original network, so that it runs once for many comparisons.
//!
//! A file has the final hidden states of every token in f32, from which the output head of the original computes the logits again, and the inputs of
//! the sampled tokens at every site (an input of linear layers with the matrices that read it). The logits, which take `vocab / hidden` times the
//! space of the hidden states, are stored too if [`Options::reference_logits`] allows that many bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value as Json, json};
use tersor_core::{Context, DType, Error, Limits, Result, TensorInfo, TensorSink, TensorSource};
use tersor_formats::safetensors::{File, Writer};
use tersor_formats::{Model, json as files};
use tersor_models::{Checkpoint, DecoderConfig, KeepPredictions, States, StoredPredictions};

use super::{Options, cut};
use crate::kinds::Kinds;
use crate::output::{REFERENCE, hash_file};
use crate::plan::hash;

use crate::text::Text;

/// Version of the file's format.
const FORMAT: u64 = 1;

/// Names of the tensors beside the description.
const HIDDEN: &str = "hidden";
const SITES: &str = "sites";
const HASHES: &str = "hashes";
const LOGITS: &str = "logits";
const LOGIT_HASHES: &str = "logit_hashes";

/// Length of a hash in bytes.
const HASH: usize = 32;

/// An opened file with the predictions of an original network on the windows (runs of tokens of one length) of a text. [`decoder`](super::decoder)
/// writes and reads such files ([`Options::reference`]). Figures that are computed with a file are the same to the last bit as without it. It is a
/// safetensors file with these tensors:
///
/// - `hidden`, f32 `[windows * ctx, hidden]`: the final hidden states after the last norm
/// - `sites`, f32 `[windows, values]`: for each window the inputs of all sites of the layers in the order of execution, `[sampled, features]` each,
///   of the sampled tokens ([`States::sampled`]); a [`Site`](tersor_core::Site) is an input of linear layers with the matrices that read it
/// - `hashes`, u8 `[windows, 32]`: the BLAKE3 hash of the values of each window in the two tensors
/// - `logits`, f32 `[windows * (ctx - 1), vocab]`, and `logit_hashes`, u8 `[windows * (ctx - 1), 32]`, if logits are stored: the logits after all
///   tokens of a window but the last, and the BLAKE3 hash of each row
/// - `reference`, u8: a description in JSON, with the sizes and with hashes of everything that the predictions depend on
pub struct Reference {
    path: PathBuf,
    file: File,
    inputs: BTreeMap<String, String>,
    sizes: Sizes,
}

/// The sizes of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sizes {
    windows: usize,
    ctx: usize,
    hidden: usize,
    /// Features of each site.
    features: Vec<usize>,
    /// Number of tokens in the vocabulary, if logits are stored.
    vocab: Option<usize>,
}

impl Sizes {
    /// Returns the sizes for the predictions of a network, with its logits if these take at most `max_logits` bytes.
    fn of(config: &DecoderConfig, windows: usize, ctx: usize, max_logits: u64) -> Self {
        let [windows_, tokens, vocab] = [windows, ctx.saturating_sub(1), config.vocab].map(|n| n as u64);
        let bytes = windows_.saturating_mul(tokens).saturating_mul(vocab).saturating_mul(4);
        let vocab = (bytes <= max_logits).then_some(config.vocab);
        Self { windows, ctx, hidden: config.hidden, features: States::features(config), vocab }
    }

    fn read(about: &Json) -> Option<Self> {
        let size = |v: &Json| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let features = about["features"].as_array()?.iter().map(size).collect::<Option<_>>()?;
        let [windows, ctx, hidden] = ["windows", "ctx", "hidden"].map(|k| size(&about[k]));
        let vocab = if about["vocab"].is_null() { None } else { Some(size(&about["vocab"])?) };
        Some(Self { windows: windows?, ctx: ctx?, hidden: hidden?, features, vocab })
    }

    /// Returns the number of values of all sites in a window. Errors if it overflows.
    fn values(&self) -> Result<usize> {
        let sampled = States::sampled(self.ctx);
        let sum = self.features.iter().try_fold(0usize, |sum, f| sum.checked_add(f.checked_mul(sampled)?));
        sum.ok_or_else(|| Error::Overflow { what: "inputs of the sites of a window".into() })
    }

    /// Returns the tensors beside the description.
    fn layout(&self) -> Result<BTreeMap<&'static str, TensorInfo>> {
        let tokens = self.windows.checked_mul(self.ctx);
        let tokens = tokens.ok_or_else(|| Error::Overflow { what: "tokens of all windows".into() })?;
        let info = |dtype, rows, cols| TensorInfo { dtype, shape: vec![rows, cols] };
        let mut layout = BTreeMap::from([
            (HIDDEN, info(DType::F32, tokens, self.hidden)),
            (SITES, info(DType::F32, self.windows, self.values()?)),
            (HASHES, info(DType::U8, self.windows, HASH)),
        ]);
        if let Some(vocab) = self.vocab {
            let scored = self.scored(0)?..self.scored(self.windows)?;
            layout.insert(LOGITS, info(DType::F32, scored.len(), vocab));
            layout.insert(LOGIT_HASHES, info(DType::U8, scored.len(), HASH));
        }
        for info in layout.values() {
            info.bytes()?;
        }
        Ok(layout)
    }

    /// Returns the number of scored tokens in the windows before `window`. Errors if it overflows.
    fn scored(&self, window: usize) -> Result<usize> {
        let all = window.checked_mul(self.ctx.saturating_sub(1));
        all.ok_or_else(|| Error::Overflow { what: "scored tokens of all windows".into() })
    }
}

impl Reference {
    /// Opens the file at `path` and reads its description. The predictions are read later, window by window (a window is a run of tokens). Errors
    /// with [`Error::Format`], with the path, if it is no file of predictions, or if its tensors do not have the types and shapes that follow from
    /// its description. Errors with [`Error::Unsupported`] if the file has another version of the format. Errors with [`Error::Io`] if it cannot be
    /// read, and with [`Error::Limit`] if a size exceeds [`Limits::default`].
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |what: String| Error::format(path.display().to_string(), what);
        let file = File::open(path, &Limits::default())?;
        let info = file.info(REFERENCE).map_err(|e| bad(format!("it is no file of predictions: {e}")))?;
        let length = info.bytes()?;
        Limits::check("length of the description", length as u64, 1 << 20)?;
        let mut bytes = vec![0u8; length];
        file.read_at(REFERENCE, 0, &mut bytes)?;
        let about: Json = serde_json::from_slice(&bytes).map_err(|e| bad(format!("its description: {e}")))?;
        if about["format"].as_u64() != Some(FORMAT) {
            let value = format!("{} (this version reads {FORMAT})", about["format"]);
            return Err(Error::Unsupported { what: "format of a file of predictions", value });
        }
        let sizes = Sizes::read(&about).ok_or_else(|| bad("its description lacks a size".into()))?;
        let inputs = serde_json::from_value(about["inputs"].clone()).map_err(|e| bad(format!("its inputs: {e}")))?;
        for (name, wanted) in sizes.layout().map_err(|e| bad(e.to_string()))? {
            let found = file.info(name).map_err(|e| bad(e.to_string()))?;
            if found != wanted {
                let what = format!("its tensor `{name}` has another type or shape than its description states");
                return Err(bad(what));
            }
        }
        Ok(Self { path: path.to_path_buf(), file, inputs, sizes })
    }

    /// Checks that the file has the predictions of the decoder of the model at `model` on the windows (runs of tokens) that `options` cuts from
    /// `text`: that weights, configuration, tokens, the version of this crate and the instruction set, on which the last bits depend, are the same.
    /// All weight files are read for their hashes. Of `options`, [`ctx`](Options::ctx) and [`windows`](Options::windows) count. `kinds` loads the
    /// operators; warnings go to `cx`.
    ///
    /// Errors with [`Error::Format`], with the path of the file and the names of the inputs that differ, if it has other predictions. Errors with
    /// [`Error::Param`] if a field of `options` is out of range. Errors with [`Error::Io`], [`Error::Format`], [`Error::Limit`], [`Error::Missing`]
    /// or [`Error::Unsupported`] if the model or the text cannot be read, or the model is no decoder.
    pub fn matches(&self, model: &Path, text: &Text, options: &Options, kinds: &Kinds, cx: &Context) -> Result<()> {
        let checkpoint = Checkpoint::open(model, &kinds.operators)?;
        let windows = cut(&checkpoint, text, options, cx)?.1;
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        self.check(&checkpoint, &windows)
    }

    /// Errors unless the file has the predictions of the decoder of a checkpoint on the windows of tokens.
    pub(super) fn check(&self, checkpoint: &Checkpoint, windows: &[&[u32]]) -> Result<()> {
        let now = inputs(checkpoint, windows)?;
        let keys: std::collections::BTreeSet<&String> = now.keys().chain(self.inputs.keys()).collect();
        let differ: Vec<&str> =
            keys.into_iter().filter(|k| now.get(*k) != self.inputs.get(*k)).map(String::as_str).collect();
        let config = checkpoint.architecture()?.decoder()?;
        let sizes = Sizes::of(config, windows.len(), windows.first().map_or(0, |w| w.len()), 0);
        let sizes = Sizes { vocab: self.sizes.vocab.and(Some(config.vocab)), ..sizes };
        let what = match differ.is_empty() {
            true if sizes == self.sizes => return Ok(()),
            true => "its sizes are not those of the model".to_string(),
            false => format!("it has predictions of other inputs: {} differs", differ.join(", ")),
        };
        Err(Error::format(self.path.display().to_string(), format!("{what}; remove it or choose another name")))
    }

    /// Reads the predictions for the window (run of tokens) of the index `index`, counted from 0: the final hidden states of its tokens, and the
    /// inputs of the sampled tokens at each site (an input of linear layers with the matrices that read it). Errors with [`Error::Range`] if there is
    /// no such window, with [`Error::Format`], with the path, if the values do not have the hash that was recorded with them, and with [`Error::Io`]
    /// if the file cannot be read.
    pub fn window(&self, index: usize) -> Result<States> {
        let Sizes { windows, ctx, hidden, features, .. } = &self.sizes;
        if index >= *windows {
            return Err(Error::range("window", 0..*windows, index));
        }
        let (values, sampled) = (self.sizes.values()?, States::sampled(*ctx));
        let mut hasher = blake3::Hasher::new();
        let mut read = |name: &str, n: usize| -> Result<Vec<f32>> {
            let mut bytes = vec![0u8; 4 * n];
            self.file.read_at(name, (index * bytes.len()) as u64, &mut bytes)?;
            hasher.update(&bytes);
            Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let (hidden, all) = (read(HIDDEN, ctx * hidden)?, read(SITES, values)?);
        let mut wanted = [0u8; HASH];
        self.file.read_at(HASHES, (index * HASH) as u64, &mut wanted)?;
        if hasher.finalize() != wanted {
            let what = format!("the values of window {index} are not those that were written; remove the file");
            return Err(Error::format(self.path.display().to_string(), what));
        }
        let mut rest = all.as_slice();
        let mut next = |f: &usize| {
            let (site, after) = rest.split_at(f * sampled);
            rest = after;
            site.to_vec()
        };
        Ok(States { hidden, sites: features.iter().map(&mut next).collect() })
    }

    /// Reads the logits after the tokens `tokens` of window `window` to `out`, `[tokens, vocab]`, and returns true; false if the file has no logits.
    /// Errors if there are no such tokens, `out` has another length, the file cannot be read, or the values are not those that were written.
    fn read_logits(&self, window: usize, tokens: Range<usize>, out: &mut [f32]) -> Result<bool> {
        let Some(vocab) = self.sizes.vocab else { return Ok(false) };
        let scored = self.sizes.scored(1)?;
        if window >= self.sizes.windows || tokens.end > scored {
            return Err(Error::range("window and tokens", (0..self.sizes.windows, 0..scored), (window, tokens)));
        }
        if out.len() != tokens.len() * vocab {
            return Err(Error::shape("logits of tokens", tokens.len() * vocab, out.len()));
        }
        let first = self.sizes.scored(window)? + tokens.start;
        let mut hashes = vec![0u8; tokens.len() * HASH];
        self.file.read_at(LOGIT_HASHES, (first * HASH) as u64, &mut hashes)?;
        let read = |(t, (row, wanted)): (usize, (&mut [f32], &[u8]))| {
            let mut bytes = vec![0u8; 4 * vocab];
            self.file.read_at(LOGITS, ((first + t) * bytes.len()) as u64, &mut bytes)?;
            if blake3::hash(&bytes).as_bytes() != wanted {
                let what = format!("the logits of window {window} are not those that were written; remove the file");
                return Err(Error::format(self.path.display().to_string(), what));
            }
            for (v, b) in row.iter_mut().zip(bytes.chunks_exact(4)) {
                *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
            Ok(())
        };
        let rows = out.par_chunks_exact_mut(vocab).zip(hashes.par_chunks_exact(HASH));
        rows.enumerate().map(read).collect::<Result<Vec<()>>>()?;
        Ok(true)
    }
}

impl StoredPredictions for Reference {
    fn states(&mut self, window: usize) -> Result<States> {
        self.window(window)
    }
    fn logits(&mut self, window: usize, tokens: Range<usize>, out: &mut [f32]) -> Result<bool> {
        self.read_logits(window, tokens, out)
    }
}

/// Returns what predictions depend on, by name: hashes of the model's content and of the tokens, the version and the instruction set.
fn inputs(checkpoint: &Checkpoint, windows: &[&[u32]]) -> Result<BTreeMap<String, String>> {
    let mut tokens = blake3::Hasher::new();
    for window in windows {
        let bytes: Vec<u8> = window.iter().flat_map(|t| t.to_le_bytes()).collect();
        tokens.update(&bytes);
    }
    let ctx = windows.first().map_or(0, |w| w.len());
    let all = [
        ("original", content(checkpoint)?),
        ("text", tokens.finalize().to_hex().to_string()),
        ("ctx", ctx.to_string()),
        ("windows", windows.len().to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("instruction set", tersor_core::Isa::fingerprint()),
    ];
    Ok(all.map(|(k, v)| (k.to_string(), v)).into())
}

/// Returns a hash of a model's configuration, manifest and weight files.
fn content(checkpoint: &Checkpoint) -> Result<String> {
    let model: &Model = checkpoint.model();
    let mut all = vec![hash(&model.config().map(files::to_bytes).unwrap_or_default())];
    all.extend(checkpoint.manifest().map(|m| hash(&files::to_bytes(&m.json))));
    for (name, _) in model.files() {
        let path = if model.path().is_dir() { model.path().join(name) } else { model.path().to_path_buf() };
        all.push(hash_file(&path)?.1);
    }
    Ok(hash(all.join("\n").as_bytes()))
}

/// A file of predictions in progress. It appears under its name when [`finish`](Self::finish) succeeds.
pub(super) struct Recorder {
    writer: Writer,
    sizes: Sizes,
    hashes: Vec<u8>,
}

impl Recorder {
    /// Begins the file `path` for the decoder of a checkpoint on windows of tokens, which all have the same length, with logits if these take at most
    /// `max_logits` bytes. Errors if the model is no decoder or cannot be read, or the file cannot be written.
    pub(crate) fn create(path: &Path, checkpoint: &Checkpoint, windows: &[&[u32]], max_logits: u64) -> Result<Self> {
        let config = checkpoint.architecture()?.decoder()?;
        let sizes = Sizes::of(config, windows.len(), windows.first().map_or(0, |w| w.len()), max_logits);
        let about = json!({
            "format": FORMAT, "inputs": inputs(checkpoint, windows)?, "windows": sizes.windows, "ctx": sizes.ctx,
            "hidden": sizes.hidden, "features": sizes.features, "vocab": sizes.vocab,
        });
        let about = about.to_string().into_bytes();
        let info = TensorInfo { dtype: DType::U8, shape: vec![about.len()] };
        let mut layout: BTreeMap<String, TensorInfo> =
            sizes.layout()?.into_iter().map(|(name, info)| (name.to_string(), info)).collect();
        layout.insert(REFERENCE.to_string(), info.clone());
        let mut writer = Writer::create(path, layout)?;
        writer.write_shared(REFERENCE, &info, &about)?;
        Ok(Self { writer, sizes, hashes: Vec::new() })
    }

    /// Completes the file. Errors unless the predictions for all windows were added, or if the file cannot be written.
    pub(crate) fn finish(mut self) -> Result<()> {
        let layout = self.sizes.layout()?;
        self.writer.write_rows(HASHES, &layout[HASHES], 0, &self.hashes)?;
        self.writer.finish()
    }
}

impl KeepPredictions for Recorder {
    fn states(&mut self, window: usize, states: &States) -> Result<()> {
        let (hidden, sites) = (le_bytes(&states.hidden), le_bytes(&states.sites.concat()));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&hidden).update(&sites);
        self.hashes.extend_from_slice(hasher.finalize().as_bytes());
        let layout = self.sizes.layout()?;
        self.writer.write_rows(HIDDEN, &layout[HIDDEN], window * self.sizes.ctx, &hidden)?;
        self.writer.write_rows(SITES, &layout[SITES], window, &sites)
    }

    fn logits(&mut self, window: usize, tokens: Range<usize>, logits: &[f32]) -> Result<()> {
        let Some(vocab) = self.sizes.vocab else { return Ok(()) };
        let (layout, first) = (self.sizes.layout()?, self.sizes.scored(window)? + tokens.start);
        let bytes = le_bytes(logits);
        let rows: Vec<blake3::Hash> = bytes.par_chunks_exact(4 * vocab).map(blake3::hash).collect();
        let hashes: Vec<u8> = rows.iter().flat_map(|hash| *hash.as_bytes()).collect();
        self.writer.write_rows(LOGITS, &layout[LOGITS], first, &bytes)?;
        self.writer.write_rows(LOGIT_HASHES, &layout[LOGIT_HASHES], first, &hashes)
    }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
