//! Files that appear under their name only when they are complete.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Result};

/// A file being written under the temporary name `.NAME.partial`, beside its final name. [`AtomicFile::finish`] syncs it and renames it;
/// dropping it earlier deletes the temporary file.
///
/// ```
/// use tersor_formats::AtomicFile;
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("weights.bin");
/// let mut file = AtomicFile::create(&path).unwrap();
/// file.write(b"abc").unwrap();
/// assert!(!path.exists());
/// file.finish().unwrap();
/// assert_eq!(std::fs::read(&path).unwrap(), b"abc");
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl AtomicFile {
    /// Creates (or overwrites) the temporary file of `path`. Errors if `path` has no file name, or the directory cannot be written to.
    pub fn create(path: &Path) -> Result<Self> {
        let name =
            path.file_name().ok_or_else(|| Error::format(path.display().to_string(), "not the name of a file"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let temporary = path.with_file_name(hidden);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(|e| Error::io(&temporary, e))?;
        Ok(Self { file, temporary, path: path.to_path_buf(), done: false })
    }

    /// Writes bytes at the current position: the end, unless [`AtomicFile::write_at`] or [`AtomicFile::read_at`] moved it. Errors if the system
    /// cannot write.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Sets the length to `len` bytes; added bytes are zero. Errors if the system cannot, for example when the disk is full.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Writes bytes at `offset` from the start of the file and moves the current position to their end. A gap before `offset` is filled with zeros.
    /// Errors if the system cannot write.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::io::{Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Fills `bytes` with what was written from `offset` on and moves the current position to their end. Errors if the file ends earlier, or the
    /// system cannot read.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Syncs the file, renames it to its final name (replacing an older file), and syncs the directory. Errors if one of these fails.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.temporary, e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))?;
        self.done = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.done {
            // Drop cannot report an error; the name `.NAME.partial` tells that the file is incomplete.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Syncs a directory, so that the creation and renaming of files in it survive a power failure. Does nothing where the system has no such call
/// (outside Unix). Errors if the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, e))?;
    }
    let _ = dir;
    Ok(())
}

/// Writes `bytes` as the whole content of the file at `path`, by way of an [`AtomicFile`]: after a crash the file is the old one or the new
/// one. Errors if the system cannot write.
///
/// ```
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("config.json");
/// tersor_formats::write_atomic(&path, b"{}").unwrap();
/// assert_eq!(std::fs::read(&path).unwrap(), b"{}");
/// ```
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}
