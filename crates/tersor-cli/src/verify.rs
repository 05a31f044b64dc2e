//! `tersor verify`: checks that a directory is an unchanged output of `compress`.

use serde_json::json;
use tersor::core::{Error, Result};
use tersor::llm::{Checkpoint, MANIFEST};

use crate::compress::each_block;
use crate::output::hash_file;
use crate::{args, print_json};

pub fn run(a: &args::Verify, json: bool) -> Result<()> {
    let bad = |what: String| Error::format(a.dir.display().to_string(), what);
    let manifest = a.dir.join(MANIFEST);
    if !manifest.is_file() {
        return Err(bad(format!("it has no {MANIFEST}, so it is not a finished output of `compress`")));
    }
    let recorded = tersor::formats::json::read(&manifest, &tersor::core::Limits::default())?;
    let files = recorded["files"].as_object().ok_or_else(|| bad(format!("{MANIFEST} has no object `files`")))?;
    let mut total = 0;
    for (name, was) in files {
        let plain = std::path::Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        if !plain {
            return Err(bad(format!("`{name}` in {MANIFEST} is not the name of a file")));
        }
        let (bytes, hash) = hash_file(&a.dir.join(name))?;
        if was["bytes"].as_u64() != Some(bytes) {
            return Err(bad(format!("`{name}` has {bytes} bytes; it had {} when it was written", was["bytes"])));
        }
        if was["blake3"].as_str() != Some(&hash) {
            return Err(bad(format!("`{name}` has changed since it was written: its hash differs")));
        }
        total += bytes;
    }
    let checkpoint = Checkpoint::open(&a.dir, &tersor::registry())?;
    let specs = checkpoint.manifest().map(|m| m.specs.clone()).unwrap_or_default();
    for (name, spec) in &specs {
        let op = checkpoint.matrix(name, spec.shape)?;
        each_block(&*op, |_, _| Ok(())).map_err(|e| e.in_tensor(name))?;
    }
    let vectors: Vec<_> = checkpoint.model().tensors().into_iter().filter(|t| t.shape.len() == 1).collect();
    for t in vectors.iter().filter(|t| tersor::core::DType::from_name(&t.dtype).is_some_and(|d| d.is_weight())) {
        checkpoint.vector(&t.name, t.shape[0])?;
    }
    let (n, m) = (files.len(), specs.len());
    if json {
        print_json(&json!({"ok": true, "files": n, "matrices": m, "weight_bytes": total}));
    } else {
        crate::outln!(
            "{}: {n} file(s) have the recorded hashes, {m} matrices have the right shapes, all values are finite",
            a.dir.display()
        );
    }
    Ok(())
}
