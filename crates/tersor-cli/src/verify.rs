//! `tersor verify`: checks that a directory is an unchanged output of `compress`.

use serde_json::json;
use tersor::core::Result;
use tersor::pipeline::verify;

use crate::{args, context, print_json};

pub fn run(a: &args::Verify, json: bool) -> Result<()> {
    let found = verify(&a.dir, tersor::kinds(), &context(0, None))?;
    let (n, m) = (found.files, found.matrices);
    if json {
        return print_json(&json!({"ok": true, "files": n, "matrices": m, "weight_bytes": found.weight_bytes}));
    }
    outln!(
        "{}: {n} file(s) have the recorded hashes, {m} matrices have the right shapes, all values are finite",
        a.dir.display()
    );
    Ok(())
}
