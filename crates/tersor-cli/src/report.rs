//! `tersor report`: writes an HTML page with tables and charts of results.

use serde_json::json;
use tersor::core::Result;
use tersor::pipeline::report::save;

use crate::{args, print_json};

pub fn run(a: &args::Report, json: bool) -> Result<()> {
    save(&a.dirs, &a.out)?;
    if json {
        return print_json(&json!({"report": a.out}));
    }
    outln!("{}", a.out.display());
    Ok(())
}
