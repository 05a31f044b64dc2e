//! Guards of what is written: an output directory is new, in progress or finished, and an output file is new or replaces one of the same kind. A file
//! gets its final name when it is complete, and nothing that this crate did not write is replaced or deleted.

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
use tersor_models::{MANIFEST, Tokenizer};

/// Name of the directory for work in progress, inside the output directory.
const WORK: &str = ".tersor";

/// The state of an output directory that [`open`] found.
pub(crate) enum Output {
    /// The directory is new, or has unfinished work from the same inputs.
    Open(Work),
    /// The directory has finished work from the same inputs.
    Finished,
}

/// An output directory in progress. It is locked until the value is dropped.
pub(crate) struct Work {
    dir: PathBuf,
    _locks: Vec<File>,
}

/// Which processes may work in an output directory at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// This process only.
    Alone,
    /// Several processes, each on another task of a plan; this one on the task of this number.
    Task(usize),
}

/// Opens the output directory `dir` for work that depends on `inputs`, an object of hashes by name, and makes it if it does not exist. `beside` has
/// further inputs that are compared while work is in progress and not recorded in the result. The work is finished once the file `last` exists in
/// `dir`; that file must record `inputs` under the key `inputs`.
///
/// # Errors
///
/// An [`Error::Format`] with the directory if it has files that this crate did not write, if it has work from other inputs (the message names those
/// that differ), or if another process is working in it alone or on the same task. An [`Error::Io`] if it cannot be read or written.
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

/// The work in progress of an output directory, before [`open`] takes it. It is locked until the value is dropped.
pub(crate) struct Reserved {
    dir: PathBuf,
    _lock: File,
}

impl Reserved {
    /// Makes the output directory `dir` with its directory of work in progress, and locks it for this process alone.
    ///
    /// # Errors
    ///
    /// An [`Error::Format`] if `dir` has files that this crate did not write, or if another process is working in it. An [`Error::Io`] if it cannot
    /// be written.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let work = prepare(dir)?;
        let lock = lock(&work.join("lock"), File::try_lock)?;
        let busy = || Error::format(dir.display().to_string(), "another process is working in it");
        Ok(Self { dir: dir.to_path_buf(), _lock: lock.ok_or_else(busy)? })
    }

    /// Returns the path of the directory of work in progress, inside the output directory.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Deletes the work in progress, and the output directory if it is empty then. Failures are ignored.
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
    /// Deletes the work in progress, and the output directory if it is empty then. Failures are ignored.
    pub(crate) fn abandon(self) {
        abandon(&self.dir);
    }

    /// Returns the path of the directory of work in progress, inside the output directory.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Returns the path, in the directory of work in progress, at which the weight file of the name `file` is written before [`finish`](Self::finish)
    /// moves it.
    pub(crate) fn pending(&self, file: &str) -> PathBuf {
        self.dir.join(WORK).join(format!("{file}.done"))
    }

    /// Finishes the output directory: moves each file of `weights` from its [`pending`](Self::pending) path to its final name, writes the files
    /// `beside` (name and content), then the file `last`, and deletes the work in progress. `progress` is told the name of each file that has its
    /// final name, with 0 steps.
    ///
    /// # Errors
    ///
    /// An [`Error::Io`] if a file cannot be moved, written or deleted.
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

/// Returns name and content of the files that belong beside the weights of an output directory: `config` as `config.json` if it is given, the
/// tokenizer of the original model `model`, the small files of its directory that other programs read (settings of the tokenizer and of generation,
/// chat template), and an index of the weight files unless `model.safetensors` is the only one. `shards` has the name of each weight file with the
/// names of its tensors; `total` is the length of all tensors in bytes. A tokenizer or small file that the model lacks is left out, and so is a
/// tokenizer that cannot be read.
///
/// # Errors
///
/// An [`Error::Io`] if a small file exists and cannot be read.
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

/// Returns the length in bytes of the file `path`, and the BLAKE3 hash of its content as 64 hexadecimal digits.
///
/// # Errors
///
/// An [`Error::Io`] if the file cannot be read.
pub(crate) fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = blake3::Hasher::new();
    let n = std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io(path, e))?;
    Ok((n, hasher.finalize().to_hex().to_string()))
}

/// Returns one BLAKE3 hash, 64 hexadecimal digits, of the names and contents of all weight files of a model and of its configuration.
///
/// # Errors
///
/// An [`Error::Io`] if a file cannot be read.
pub(crate) fn hash_model(model: &Model) -> Result<String> {
    let (path, mut all) = (model.path(), blake3::Hasher::new());
    for (name, _) in model.files() {
        let file = if path.is_dir() { path.join(&name) } else { path.to_path_buf() };
        all.update(name.as_bytes()).update(b"\0").update(hash_file(&file)?.1.as_bytes()).update(b"\n");
    }
    all.update(&model.config().map(files::to_bytes).unwrap_or_default());
    Ok(all.finalize().to_hex().to_string())
}

/// Returns whether `dir` is a finished output directory of [`compress`](crate::compress()), that is, whether it has a file `tersor.json`.
pub fn is_compressed(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}
