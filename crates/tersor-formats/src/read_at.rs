//! Positioned reads: bytes at an offset, from any thread, without a memory map.

use std::fs::File;
use std::path::{Path, PathBuf};
use tersor_core::{Error, Result};

/// A source of bytes of fixed length that can be read at any offset, by several threads at once: a file ([`FileAt`]), or bytes in memory
/// (`Vec<u8>`).
///
/// ```
/// use tersor_formats::ReadAt;
/// let bytes = vec![1u8, 2, 3, 4];
/// let mut out = [0u8; 2];
/// bytes.read_at(1, &mut out).unwrap();
/// assert_eq!(out, [2, 3]);
/// assert!(bytes.read_at(3, &mut out).is_err());
/// ```
pub trait ReadAt: Send + Sync {
    /// Returns the length of the source in bytes, the same in every call.
    fn len(&self) -> u64;
    /// Returns whether the length of the source is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills all of `out` with the bytes from byte `offset` of the source on. Errors if `offset + out.len()` is beyond the end, or the
    /// system cannot read; the content of `out` is unspecified then.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;
    /// Returns the name by which error messages call the source: the path of a file, `bytes` for bytes in memory.
    fn name(&self) -> String;
}

/// A regular file that is open for reads at any offset ([`ReadAt`]). Its length is read once, when it is opened; [`ReadAt::len`] returns
/// this length even if the file changes later.
///
/// ```
/// use tersor_formats::{FileAt, ReadAt};
/// let path = tempfile::NamedTempFile::new().unwrap();
/// std::fs::write(&path, b"abcd").unwrap();
/// let file = FileAt::open(path.path()).unwrap();
/// let mut out = [0u8; 2];
/// file.read_at(2, &mut out).unwrap();
/// assert_eq!((file.len(), &out), (4, b"cd"));
/// ```
#[derive(Debug)]
pub struct FileAt {
    file: File,
    path: PathBuf,
    len: u64,
}

impl FileAt {
    /// Opens the file at `path` for reading. Errors if it does not exist, cannot be opened, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            let what =
                if meta.is_dir() { "it is a directory, where a file is expected" } else { "it is no regular file" };
            return Err(Error::format(path.display().to_string(), what));
        }
        Ok(Self { file, path: path.to_path_buf(), len: meta.len() })
    }

    /// Returns the path that the file was opened at, as it was given to [`FileAt::open`].
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
                let what =
                    format!("{} bytes at offset {offset} reach beyond the end at {}", out.len(), self.as_slice().len());
                Err(Error::format("bytes", what))
            }
        }
    }
    fn name(&self) -> String {
        "bytes".into()
    }
}
