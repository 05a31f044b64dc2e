//! Storage of the activations of all calibration windows between two steps: in memory, or in a file.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use tersor_core::{Error, Result};

/// The activations of all windows, one after the other.
pub(super) enum Store {
    /// In memory.
    Memory(Vec<f32>),
    /// In a file: little-endian f32.
    Disk(Spill),
}

/// A file of f32 values, deleted when dropped unless it was saved.
pub(super) struct Spill {
    path: PathBuf,
    file: File,
    temporary: bool,
}

impl Drop for Spill {
    fn drop(&mut self) {
        if self.temporary {
            // Drop cannot report an error; the file is in a directory of work in progress, which is deleted as a whole.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Returns the values in `range`.
    pub(super) fn read(&mut self, range: Range<usize>) -> Result<Cow<'_, [f32]>> {
        match self {
            Store::Memory(values) => {
                let place = "the calibration; it starts with the embeddings or with saved ones";
                values.get(range).map(Cow::Borrowed).ok_or_else(|| Error::missing("hidden states", place))
            }
            Store::Disk(spill) => {
                let mut values = vec![0f32; range.len()];
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
                let at = SeekFrom::Start(range.start as u64 * 4);
                let done = spill.file.seek(at).and_then(|_| spill.file.read_exact(bytes));
                done.map_err(|e| Error::io(&spill.path, e))?;
                if cfg!(target_endian = "big") {
                    values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits().swap_bytes()));
                }
                Ok(Cow::Owned(values))
            }
        }
    }

    /// Opens a file of `len` values that [`Store::save`] wrote; reads it into memory unless `on_disk`. Errors if the file has another length.
    pub(super) fn open(path: &Path, len: usize, on_disk: bool) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if bytes != len as u64 * 4 {
            let what = format!("it has {bytes} bytes instead of {}", len as u64 * 4);
            return Err(Error::format(path.display().to_string(), what));
        }
        let mut store = Store::Disk(Spill { path: path.to_path_buf(), file, temporary: false });
        if on_disk { Ok(store) } else { Ok(Store::Memory(store.read(0..len)?.into_owned())) }
    }

    /// Saves the values to a file at `path`, which is synced and appears under its name when it is complete.
    pub(super) fn save(&mut self, path: &Path) -> Result<()> {
        match self {
            Store::Memory(values) => {
                let mut file = tersor_formats::AtomicFile::create(path)?;
                for part in values.chunks(1 << 18) {
                    file.write(&le_bytes(part))?;
                }
                file.finish()
            }
            Store::Disk(spill) => {
                let done = spill.file.sync_all().and_then(|()| std::fs::rename(&spill.path, path));
                done.map_err(|e| Error::io(path, e))?;
                (spill.path, spill.temporary) = (path.to_path_buf(), false);
                tersor_formats::sync_dir(path.parent().unwrap_or(Path::new(".")))
            }
        }
    }
}

pub(super) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A new store that is filled from front to back.
pub(super) enum Filling {
    /// The values so far.
    Memory(Vec<f32>),
    /// Path and file.
    Disk(PathBuf, BufWriter<File>),
}

impl Filling {
    /// Starts a store for `len` values, in memory or, if `scratch` is given, in a new file `name` there.
    pub(super) fn new(len: usize, scratch: Option<&Path>, name: &str) -> Result<Self> {
        match scratch {
            None => {
                let mut values: Vec<f32> = Vec::new();
                let reserved = values.try_reserve_exact(len);
                reserved.map_err(|_| Error::Overflow { what: format!("hidden states of {len} values") })?;
                Ok(Filling::Memory(values))
            }
            Some(dir) => {
                let path = dir.join(name);
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
                Ok(Filling::Disk(path.clone(), BufWriter::new(file.map_err(|e| Error::io(&path, e))?)))
            }
        }
    }

    pub(super) fn push(&mut self, values: &[f32]) -> Result<()> {
        match self {
            Filling::Memory(all) => all.extend_from_slice(values),
            Filling::Disk(path, file) => file.write_all(&le_bytes(values)).map_err(|e| Error::io(&*path, e))?,
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Store> {
        match self {
            Filling::Memory(values) => Ok(Store::Memory(values)),
            Filling::Disk(path, file) => {
                let file = file.into_inner().map_err(|e| Error::io(&path, e.into_error()))?;
                Ok(Store::Disk(Spill { path, file, temporary: true }))
            }
        }
    }
}

/// The replacement of a store's values by as many others, from front to back.
pub(super) enum Rewriting {
    /// Overwrites values in memory; the number overwritten so far.
    InPlace(usize),
    /// Fills another file.
    NewFile(Filling),
}

impl Rewriting {
    pub(super) fn new(store: &Store, len: usize, scratch: Option<&Path>, name: &str) -> Result<Self> {
        Ok(match store {
            Store::Memory(_) => Rewriting::InPlace(0),
            Store::Disk(_) => Rewriting::NewFile(Filling::new(len, scratch, name)?),
        })
    }

    pub(super) fn push(&mut self, store: &mut Store, values: &[f32]) -> Result<()> {
        match (self, store) {
            (Rewriting::InPlace(at), Store::Memory(all)) => {
                all[*at..*at + values.len()].copy_from_slice(values);
                *at += values.len();
                Ok(())
            }
            (Rewriting::NewFile(filling), _) => filling.push(values),
            (Rewriting::InPlace(_), Store::Disk(spill)) => {
                Err(Error::format(spill.path.display().to_string(), "a file cannot be rewritten in place"))
            }
        }
    }

    pub(super) fn finish(self, store: &mut Store) -> Result<()> {
        if let Rewriting::NewFile(filling) = self {
            *store = filling.finish()?;
        }
        Ok(())
    }
}
