//! Bytes at positions, from any thread, without a memory map.

use std::fs::File;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Result};

/// Something with a length that can be read anywhere.
pub trait ReadAt: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `out` from `offset` on. Error when the end comes first.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;
    /// Its name, for errors.
    fn name(&self) -> String;
}

/// An open file.
#[derive(Debug)]
pub struct FileAt {
    file: File,
    path: PathBuf,
    len: u64,
}

impl FileAt {
    /// Opens a file for reading. Error when there is none, or it is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            return Err(Error::format(path.display().to_string(), "not a regular file"));
        }
        Ok(Self { file, path: path.to_path_buf(), len: meta.len() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        #[cfg(unix)]
        let done = std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset);
        #[cfg(windows)]
        let done = read_exact_windows(&self.file, out, offset);
        #[cfg(not(any(unix, windows)))]
        let done: std::io::Result<()> = {
            let _ = (out, offset);
            Err(std::io::Error::other("positioned reads are not available on this system"))
        };
        done.map_err(|e| Error::io(&self.path, e))
    }
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(windows)]
fn read_exact_windows(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        let n = file.seek_read(out, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[n..];
        offset += n as u64;
    }
    Ok(())
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|s| self.get(s..s.checked_add(out.len())?));
        match part {
            Some(part) => {
                out.copy_from_slice(part);
                Ok(())
            }
            None => {
                Err(Error::format("bytes", format!("{} bytes at {offset} leave {}", out.len(), self.as_slice().len())))
            }
        }
    }
    fn name(&self) -> String {
        "bytes".into()
    }
}
