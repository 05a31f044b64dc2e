//! Output directories, which are new, in progress or finished, and output files. A final file name never belongs to an incomplete file, and nothing
//! that this crate did not make is replaced or deleted.

mod file;
mod record;

pub(crate) use file::{ABOUT, PAGE_MARK, RECIPE_HEAD, REFERENCE};
pub use file::{FileKind, check_distinct, check_file};
pub(crate) use record::{record_file, recorded};

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tersor_core::{Error, Limits, Progress};

type Result<T, E = Error> = std::result::Result<T, E>;
use tersor_formats::{Model, ModelKind, json as files, safetensors, sync_dir, write_atomic};
use tersor_llm::{MANIFEST, Tokenizer};

/// Name of the directory for work in progress, inside the output directory.
const WORK: &str = ".tersor";

/// The state of an output directory.
pub(crate) enum Output {
    /// New, or unfinished work from the same inputs.
    Open(Work),
    /// Finished work from the same inputs.
    Finished,
}

/// An output directory in progress, locked until dropped.
pub(crate) struct Work {
    dir: PathBuf,
    _locks: Vec<File>,
}

/// Which processes may work in a directory at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// This one only.
    Alone,
    /// Several, each on another task; this one on the task of this number.
    Task(usize),
}

/// Opens an output directory for work that depends on `inputs` (hashes by name; `beside` are further ones that are not recorded in the result). The
/// work is finished once the file `last` exists. Errors if the directory has other content or work from other inputs (naming those that differ), or
/// if another process is working in it.
pub(crate) fn open(dir: &Path, inputs: &Json, beside: &Json, last: &str, share: Share) -> Result<Output> {
    let refuse = |what: &str| Error::format(dir.display().to_string(), what);
    let finished = dir.join(last);
    if finished.is_file() {
        let before = files::read(&finished, &Limits::default())?;
        check_same(dir, &before["inputs"], inputs)?;
        // The process may have been stopped between writing the last file and deleting the work in progress.
        let _ = fs::remove_dir_all(dir.join(WORK));
        return Ok(Output::Finished);
    }
    let work = prepare(dir)?;
    let busy = "another process is working in it";
    let mut locks = Vec::new();
    match share {
        Share::Alone => locks.push(lock(&work.join("lock"), File::try_lock)?.ok_or_else(|| refuse(busy))?),
        Share::Task(k) => {
            locks.push(lock(&work.join("lock"), File::try_lock_shared)?.ok_or_else(|| refuse(busy))?);
            let own = lock(&work.join(format!("task-{k}.lock")), File::try_lock)?;
            locks.push(own.ok_or_else(|| refuse(&format!("another process is working on task {k}")))?);
        }
    }
    // Several tasks may start at the same time; the lock serializes their access to the record of inputs.
    let opening = work.join("opening.lock");
    let gate = File::options().create(true).append(true).open(&opening).map_err(|e| Error::io(&opening, e))?;
    gate.lock().map_err(|e| Error::io(&opening, e))?;
    let mut all = inputs.clone();
    for (key, value) in beside.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    let state = work.join("inputs.json");
    if state.is_file() {
        check_same(dir, &files::read(&state, &Limits::default())?, &all)?;
    } else {
        write_atomic(&state, &files::to_bytes(&all))?;
    }
    Ok(Output::Open(Work { dir: dir.to_path_buf(), _locks: locks }))
}

/// A directory for work in progress in front of [`open`], locked until dropped.
pub(crate) struct Reserved {
    dir: PathBuf,
    _lock: File,
}

impl Reserved {
    /// Makes the directory of work in progress in the output directory `dir`, and locks it. Errors if `dir` has other content, or if another process is
    /// working in it.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let work = prepare(dir)?;
        let lock = lock(&work.join("lock"), File::try_lock)?;
        let busy = || Error::format(dir.display().to_string(), "another process is working in it");
        Ok(Self { dir: dir.to_path_buf(), _lock: lock.ok_or_else(busy)? })
    }

    /// Returns the directory for work in progress.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Deletes the work in progress, and the directory if it is empty then.
    pub(crate) fn abandon(self) {
        abandon(&self.dir);
    }
}

/// Makes an output directory with its directory of work in progress, and returns the latter. Errors if the directory has other content.
fn prepare(dir: &Path) -> Result<PathBuf> {
    let work = dir.join(WORK);
    let refuse = |what: &str| Error::format(dir.display().to_string(), what);
    if dir.exists() && !dir.is_dir() {
        return Err(refuse("it exists and is not a directory; choose another name"));
    }
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let empty = fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.next().is_none();
    if !empty && !work.is_dir() {
        return Err(refuse("it has files that tersor did not write; choose a new or empty directory"));
    }
    fs::create_dir_all(&work).map_err(|e| Error::io(&work, e))?;
    Ok(work)
}

/// Deletes the work in progress in an output directory, and the directory if it is empty then.
fn abandon(dir: &Path) {
    // Failures are ignored: the error that led here is reported instead.
    let _ = fs::remove_dir_all(dir.join(WORK));
    let _ = fs::remove_dir(dir);
}

/// Takes a file lock, which the system releases when this process ends. None if another process holds it.
fn lock(path: &Path, take: impl Fn(&File) -> Result<(), std::fs::TryLockError>) -> Result<Option<File>> {
    let file = File::options().create(true).append(true).open(path).map_err(|e| Error::io(path, e))?;
    match take(&file) {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io(path, e)),
    }
}

/// Errors, naming the keys, if two records of inputs differ.
fn check_same(dir: &Path, before: &Json, now: &Json) -> Result<()> {
    let keys = [now, before].map(|j| j.as_object().into_iter().flatten().map(|(k, _)| k.as_str()));
    let keys: std::collections::BTreeSet<&str> = keys.into_iter().flatten().collect();
    let differ: Vec<&str> = keys.into_iter().filter(|k| before.get(k) != now.get(k)).collect();
    if differ.is_empty() {
        return Ok(());
    }
    let what = format!("it has work from other inputs: {} changed; choose another directory", differ.join(", "));
    Err(Error::format(dir.display().to_string(), what))
}

impl Work {
    /// Deletes the work in progress, and the directory if it is empty then.
    pub(crate) fn abandon(self) {
        abandon(&self.dir);
    }

    /// Returns the directory for work in progress.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Returns the path of a weight file before it is moved to its final name.
    pub(crate) fn pending(&self, file: &str) -> PathBuf {
        self.dir.join(WORK).join(format!("{file}.done"))
    }

    /// Finishes the directory: moves the weight files to their final names, writes the files `beside` them, then the file `last`, and deletes the work
    /// in progress. `progress` hears of each file that has its final name, without a step, and nothing else happens meanwhile.
    pub(crate) fn finish(
        self,
        weights: &[String],
        beside: &[(String, Vec<u8>)],
        last: (&str, Vec<u8>),
        progress: &dyn Progress,
    ) -> Result<()> {
        for file in weights {
            let to = self.dir.join(file);
            fs::rename(self.pending(file), &to).map_err(|e| Error::io(&to, e))?;
            progress.advance(0, file);
        }
        sync_dir(&self.dir)?;
        for (name, bytes) in beside {
            write_atomic(&self.dir.join(name), bytes)?;
            progress.advance(0, name);
        }
        write_atomic(&self.dir.join(last.0), &last.1)?;
        progress.advance(0, last.0);
        let work = self.dir.join(WORK);
        fs::remove_dir_all(&work).map_err(|e| Error::io(&work, e))
    }
}

/// Returns name and content of the files that belong beside the weights of an output directory: `config` as `config.json` if it is given, the tokenizer of
/// the original model `model`, the small files of its directory that other tools read (tokenizer settings, generation settings, chat template), and an
/// index of shards unless `model.safetensors` is the only weight file. `shards` has the name of each weight file and of its tensors; `total` is the
/// length of all tensors in bytes. A model without tokenizer or small files has none of them in the result. Errors if a small file is there and cannot be
/// read.
pub(crate) fn companions(
    model: &Model,
    config: Option<Json>,
    shards: &[(String, Vec<String>)],
    total: u64,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut out = Vec::new();
    if let Some(config) = config {
        out.push(("config.json".to_string(), files::to_bytes(&config)));
    }
    if let Ok(tokenizer) = Tokenizer::json_of(model) {
        out.push(("tokenizer.json".to_string(), tokenizer));
    }
    if let ModelKind::Safetensors(_) = model.kind()
        && model.path().is_dir()
    {
        for name in
            ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"]
        {
            let path = model.path().join(name);
            if path.is_file() {
                out.push((name.to_string(), fs::read(&path).map_err(|e| Error::io(&path, e))?));
            }
        }
    }
    let sharded = shards.len() > 1 || shards.iter().any(|(f, _)| f != "model.safetensors");
    if sharded {
        let map: serde_json::Map<String, Json> =
            shards.iter().flat_map(|(f, names)| names.iter().map(|n| (n.clone(), f.clone().into()))).collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        out.push((safetensors::INDEX.to_string(), files::to_bytes(&index)));
    }
    Ok(out)
}

/// Returns the length and the BLAKE3 hash of a file.
pub(crate) fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = blake3::Hasher::new();
    let n = std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io(path, e))?;
    Ok((n, hasher.finalize().to_hex().to_string()))
}

/// Returns one hash of the contents of all weight files of a model and of its configuration. Errors if a file cannot be read.
pub(crate) fn hash_model(model: &Model) -> Result<String> {
    let (path, mut all) = (model.path(), blake3::Hasher::new());
    for (name, _) in model.files() {
        let file = if path.is_dir() { path.join(&name) } else { path.to_path_buf() };
        all.update(name.as_bytes()).update(b"\0").update(hash_file(&file)?.1.as_bytes()).update(b"\n");
    }
    all.update(&model.config().map(files::to_bytes).unwrap_or_default());
    Ok(all.finalize().to_hex().to_string())
}

/// Returns whether a directory is an output of `compress`.
pub fn is_compressed(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}
