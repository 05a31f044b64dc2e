//! `tersor report`: writes an HTML page with tables and charts of results.

use serde_json::json;
use tersor::core::Result;
use tersor::formats::write_atomic;
use tersor::pipeline::report::page;

use crate::{args, print_json};

pub fn run(a: &args::Report, json: bool) -> Result<()> {
    write_atomic(&a.out, page(&a.dirs)?.as_bytes())?;
    if json {
        return print_json(&json!({"report": a.out}));
    }
    outln!("{}", a.out.display());
    Ok(())
}
