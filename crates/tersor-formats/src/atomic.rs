//! Files that are absent or complete.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Result};

/// A file under a temporary name beside its final one. [`AtomicFile::finish`] syncs and renames it; dropped
/// before, it is deleted.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl AtomicFile {
    /// Creates (or overwrites) the temporary file. Error when the directory cannot be written to.
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

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Makes it `len` bytes long, new ones zero.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Writes at a position.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::io::{Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Reads at a position what was written.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(bytes));
        done.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Syncs, renames, and syncs the directory: from now on the file exists, whole.
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
            // Nothing can be done about a file that cannot be deleted; its name says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes renames in a directory last, where the system can.
pub fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, e))?;
    }
    let _ = dir;
    Ok(())
}

/// Writes a small file whole.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}
