//! The model that ships, its text, and directories of files.
#![allow(dead_code, unused_imports)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tersor_pipeline::Text;
#[allow(unused_imports)]
pub use tiny::Tiny;

mod tiny;

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

pub fn model() -> PathBuf {
    examples().join("models/tiny-wiki")
}

pub fn text() -> Text {
    Text::file(examples().join("data/wiki-calib.txt"))
}

/// Returns every file of a directory, by name, except the timings. Folders in it are left out.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let named = entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap()));
    named.filter(|(name, _)| name != "timing.json").collect()
}

/// Copies a directory with its folders.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
