//! Files of statistics.
//!
//! A file has the statistics of one or several ranges of windows, for each site that the recipe needs statistics of. The sum over all windows is the
//! sum of shards in their order. A file of a part of the shards stores each of them separately, so that the sum does not depend on how the windows
//! were distributed over processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;
use tersor_core::{Error, Limits, ParamError, Result, Site, StatNeeds, StatSet, TensorSource};
use tersor_formats::imatrix::{self, Importance};
use tersor_formats::safetensors::File;
use tersor_formats::{Content, describe};

use super::Wanted;
use crate::output::ABOUT;
use crate::output::hash_file;

/// Version of the file's format.
pub(super) const FORMAT: u64 = 1;

/// Keys of the description that must agree between files and with the plan.
pub(super) const KEYS: [&str; 10] = [
    "headers",
    "files",
    "config",
    "tokenizer",
    "seed",
    "version",
    "instruction set",
    "calibration text",
    "windows",
    "ctx",
];

/// What files of statistics are, for messages.
const WANTED: &str = "a file of `tersor calibrate` or an importance matrix of llama.cpp";

/// Opened files with statistics of the inputs of linear layers: all files that [`gather`](super::gather) wrote for one text, or one importance matrix
/// of llama.cpp (`imatrix`), which has the sum of squares of each input feature alone.
pub enum Statistics {
    /// Statistics that [`gather`](super::gather) or [`Plan::gather`](crate::Plan::gather) wrote.
    Gathered(Gathered),
    /// An importance matrix of llama.cpp: the path of the file, and the data of each weight matrix by the name of the weight in the model.
    Importance(PathBuf, BTreeMap<String, Importance>),
}

/// The statistics of all windows (token sequences) of a calibration text, in one or several opened files that [`gather`](super::gather) wrote. Values
/// are read when [`Statistics::site`] asks for them.
pub struct Gathered {
    /// Description of the first file.
    about: Json,
    /// Each range of windows: the first window, the number of windows, the index of the file.
    runs: Vec<(usize, usize, usize)>,
    files: Vec<(PathBuf, File)>,
}

impl Statistics {
    /// Opens the files at `paths`: files of [`gather`](super::gather) that together have all windows of a text, in any order, or a single importance
    /// matrix of llama.cpp, in GGUF or in the older binary format. Of `wanted`, the sites with their kinds of statistics and the inputs count. An
    /// importance matrix is read here; of other files, only the headers and descriptions are.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`](tersor_core::Error::Param) if `paths` is empty. An [`Error::Format`] with the path if a file is neither or has an unknown version, if an importance matrix is not the only file, if a file was
    /// made from another model, text or seed than the first file or than [`Wanted::inputs`] states (the message names the input), if windows are
    /// missing or are in two files, or if the statistics of a wanted site are missing. An [`Error::Tensor`] if saved statistics have another type or
    /// number of features than the site, or a value of an importance matrix is not finite. An [`Error::Io`] or [`Error::Limit`] if a file cannot be
    /// read or exceeds [`Limits::default`].
    pub fn open(paths: &[PathBuf], wanted: &Wanted) -> Result<Self> {
        if paths.is_empty() {
            return Err(ParamError::new("stats", "empty", "must name at least one file").into());
        }
        for path in paths {
            let content = describe(path)?;
            let importance = matches!(content, Content::Gguf | Content::Other);
            if !importance && content != Content::Safetensors {
                return Err(content.instead_of(WANTED, path));
            }
            if content == Content::Gguf && paths.len() > 1 {
                let what = "it is a GGUF file; an importance matrix must be the only file of statistics";
                return Err(Error::format(path.display().to_string(), what));
            }
        }
        if let [path] = paths
            && describe(path)? != Content::Safetensors
        {
            let read = imatrix::read(path, &Limits::default());
            let read = read.map_err(|e| match e {
                Error::Format { file, what } => Error::format(file, format!("{what}; {WANTED} is expected")),
                other => other,
            })?;
            let all = Self::Importance(path.clone(), read);
            for (site, needs) in &wanted.sites {
                all.site(site, *needs, wanted.seed)?;
            }
            return Ok(all);
        }
        Ok(Self::Gathered(Gathered::open(paths, wanted)?))
    }

    /// Returns what the result of compression depends on, as names and values: the hash of the calibration text and the number of windows, or the
    /// hash of the importance matrix. Errors with [`Error::Io`] if the importance matrix cannot be read.
    pub(crate) fn inputs(&self) -> Result<Vec<(String, String)>> {
        Ok(match self {
            Self::Gathered(g) => g.inputs(),
            Self::Importance(path, _) => vec![("importance matrix".into(), hash_file(path)?.1)],
        })
    }

    /// Returns the number of windows (token sequences) over which the statistics were summed, and the maximum number of tokens of a window. None for
    /// an importance matrix, which does not state them.
    pub fn windows(&self) -> Option<[usize; 2]> {
        match self {
            Self::Gathered(g) => Some(g.windows()),
            Self::Importance(..) => None,
        }
    }

    /// Returns the BLAKE3 hash of each file, 64 hexadecimal digits, sorted, for the record of work in progress. Errors with [`Error::Io`] if a file
    /// cannot be read.
    pub(crate) fn hashes(&self) -> Result<Vec<String>> {
        match self {
            Self::Gathered(g) => g.hashes(),
            Self::Importance(path, _) => Ok(vec![hash_file(path)?.1]),
        }
    }

    /// Reads the statistics `needs` of the inputs of `site`, summed over all windows (token sequences) of the text. `seed` is the seed by which
    /// random samples were chosen when they were gathered ([`Wanted::seed`]); it does not matter without a sample. An importance matrix is looked up
    /// by the names of the site's weights, and the first that it has counts.
    ///
    /// # Errors
    ///
    /// An [`Error::Format`] with the path if a file lacks the site or a requested statistic, if stored statistics have another number of features, or
    /// if a sample has another seed or size than `seed` and `needs.sample`. An importance matrix fails on a request for anything but squares; a
    /// request for [`StatNeeds::windows`] alone is not refused here, and the result lacks these. An [`Error::Io`] if a file cannot be read.
    pub fn site(&self, site: &Site, needs: StatNeeds, seed: u64) -> Result<StatSet> {
        let (path, all) = match self {
            Self::Gathered(g) => return g.site(site, needs, seed),
            Self::Importance(path, all) => (path, all),
        };
        let refuse = |what: String| Error::format(path.display().to_string(), what);
        if needs.channel || needs.gram || needs.windows || needs.sample > 0 {
            let what = format!(
                "an importance matrix has sums of squares alone, and the method of {} needs more; use `tersor calibrate`",
                site.name
            );
            return Err(refuse(what));
        }
        let known = site.consumers.iter().find_map(|c| all.get(&c.weight));
        let known = known.ok_or_else(|| refuse(format!("it has no data for {}", site.name)))?;
        if known.squares.len() != site.features {
            let (has, wants) = (known.squares.len(), site.features);
            return Err(refuse(format!("it has {has} features for {}, which has {wants}", site.name)));
        }
        StatSet::from_squares(known.squares.clone(), known.count)
    }
}

impl Gathered {
    /// Opens files that together cover all windows. Errors if one is of another model or text than the others or `wanted`, if windows are missing or
    /// duplicated, or if a wanted site is missing.
    fn open(paths: &[PathBuf], wanted: &Wanted) -> Result<Self> {
        let mut files = Vec::new();
        let (mut runs, mut about): (Vec<(usize, usize, usize)>, Option<Json>) = (Vec::new(), None);
        for (number, path) in paths.iter().enumerate() {
            let refuse = |what: String| Error::format(path.display().to_string(), what);
            let file = File::open(path, &Limits::default())?;
            let json = read_about(&file).map_err(|e| refuse(format!("it is no file of statistics: {e}")))?;
            for key in KEYS {
                let first = about.as_ref().unwrap_or(&json);
                let planned = wanted.inputs.get(key).map(|v| Json::from(v.as_str()));
                if json[key] != first[key] || planned.is_some_and(|p| p != json[key]) {
                    return Err(refuse(format!("it is of another model, text or seed: {key} differs")));
                }
            }
            for run in json["runs"].as_array().into_iter().flatten() {
                let pair = (run[0].as_u64(), run[1].as_u64());
                let (Some(first), Some(count)) = pair else {
                    return Err(refuse("its list `runs` is not made of pairs of numbers".into()));
                };
                runs.push((first as usize, count as usize, number));
            }
            about = about.or(Some(json));
            files.push((path.clone(), file));
        }
        runs.sort_unstable();
        let about = about.unwrap_or_default();
        let windows = about["windows"].as_u64().unwrap_or(0) as usize;
        let mut next = 0;
        for &(first, count, number) in &runs {
            if first != next {
                let name = files[number].0.display().to_string();
                let what = if first > next {
                    format!("it begins at window {first}, and windows {next} to {} are in no file", first - 1)
                } else {
                    format!("it has windows from {first} on, which another file has as well")
                };
                return Err(Error::format(name, what));
            }
            next = next.saturating_add(count);
        }
        if next != windows {
            let name = paths.last().map_or(String::new(), |p| p.display().to_string());
            return Err(Error::format(name, format!("windows {next} to {} are in no file", windows.saturating_sub(1))));
        }
        let all = Self { about, runs, files };
        for (site, needs) in &wanted.sites {
            all.check(site, *needs)?;
        }
        Ok(all)
    }

    /// Errors unless the files have the statistics `needs` of a site.
    fn check(&self, site: &Site, needs: StatNeeds) -> Result<()> {
        for &(first, _, number) in &self.runs {
            let (path, file) = &self.files[number];
            StatSet::check_saved(&prefix(&site.name, first), file, site.features, needs).map_err(|e| match e {
                Error::Missing { name, .. } => {
                    let what = format!("it has no `{name}`, which the recipe needs for {}", site.name);
                    Error::format(path.display().to_string(), what)
                }
                other => other,
            })?;
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<(String, String)> {
        let text = self.about["calibration text"].as_str().unwrap_or_default().to_string();
        let [windows, ctx] = self.windows();
        vec![("calibration text".into(), text), ("calibration windows".into(), format!("{windows} of {ctx}"))]
    }

    fn windows(&self) -> [usize; 2] {
        ["windows", "ctx"].map(|k| self.about[k].as_u64().unwrap_or(0) as usize)
    }

    fn hashes(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for (path, _) in &self.files {
            all.push(hash_file(path)?.1);
        }
        all.sort();
        Ok(all)
    }

    fn site(&self, site: &Site, needs: StatNeeds, seed: u64) -> Result<StatSet> {
        let mut total = StatSet::new(site.features, needs, seed, 0)?;
        for &(first, _, number) in &self.runs {
            let (path, file) = &self.files[number];
            let wrap = |e: Error| Error::format(path.display().to_string(), e.to_string());
            let part = StatSet::load(&prefix(&site.name, first), file).map_err(wrap)?.only(needs);
            total.merge(&part).map_err(wrap)?;
        }
        Ok(total)
    }
}

/// Returns the prefix of the tensor names of a site for the range of windows that begins at `first`.
pub(super) fn prefix(site: &str, first: usize) -> String {
    format!("{site}.{first}")
}

/// Reads and checks the description of a file.
fn read_about(file: &File) -> Result<Json> {
    let info = file.info(ABOUT)?;
    Limits::check("length of the description", info.bytes()? as u64, 1 << 20)?;
    let mut bytes = vec![0u8; info.bytes()?];
    file.read_at(ABOUT, 0, &mut bytes)?;
    let json: Json = serde_json::from_slice(&bytes).map_err(|e| Error::format(ABOUT, e.to_string()))?;
    match json["format"].as_u64() {
        Some(FORMAT) => Ok(json),
        other => Err(Error::Unsupported { what: "format of a file of statistics", value: format!("{other:?}") }),
    }
}
