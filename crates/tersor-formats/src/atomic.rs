//! Files that appear under their name only when they are complete.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Result};

/// A file that is written under the temporary name `.NAME.partial`, in the directory of its final name `NAME`. [`AtomicFile::finish`] syncs
/// it to disk and renames it to `NAME`; dropping it without `finish` deletes the temporary file.
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
    /// Creates the temporary file `.NAME.partial` for the final path `path`, `DIR/NAME`. It is empty, with the current position at byte 0;
    /// an older temporary file of the same name is overwritten. Errors if `path` has no file name, or the temporary file cannot be created.
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

    /// Writes `bytes` at the current position and moves the position behind them. The position begins at byte 0; [`AtomicFile::write_at`]
    /// and [`AtomicFile::read_at`] move it, [`AtomicFile::set_len`] does not. Errors if the system cannot write.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Cuts or extends the file to `len` bytes; added bytes are zero. The current position stays where it is. Errors if the system cannot,
    /// for example when the disk is full.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Writes `bytes` from byte `offset` of the file on and moves the current position behind them. Bytes between the old end of the file
    /// and `offset` become zero. Errors if the system cannot write.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::io::{Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Fills `bytes` from byte `offset` of the file on and moves the current position behind the last byte read. Errors if the file ends
    /// before `bytes` is full, or the system cannot read.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Syncs the file to disk, renames it to its final name (replacing an older file of that name), and syncs the directory. Errors if one
    /// of these steps fails. If syncing or renaming the file failed, the temporary file is deleted; if only the directory could not be
    /// synced, the file has its final name.
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

/// Syncs the directory `dir` to disk, so that the creation and renaming of files in it survive a power failure. An empty path is the
/// current directory. Errors if the directory cannot be opened or synced. On a system other than Unix, does nothing and never errors.
pub fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, e))?;
    }
    let _ = dir;
    Ok(())
}

/// Writes `bytes` as the whole content of the file at `path`: first to a temporary file beside it (an [`AtomicFile`]), which then replaces
/// an older file at `path`. After a crash the file has either its old or its new content. Errors if `path` has no file name, or the system
/// cannot write, sync or rename.
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
