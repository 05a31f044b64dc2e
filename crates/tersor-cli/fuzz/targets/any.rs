//! The parser that the environment variable `TERSOR_FUZZ_TARGET` names: one program for all of them, which is built faster than one for each. With
//! `TERSOR_FUZZ_SEEDS=FOLDER` it writes the valid files of every parser into folders of that folder, and ends.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use tersor_fuzz::parsers::{PARSERS, Parser, parser};

static PARSER: LazyLock<&Parser> = LazyLock::new(|| parser(&std::env::var("TERSOR_FUZZ_TARGET").unwrap_or_default()));

libfuzzer_sys::fuzz_target!(
    init: {
        tersor_fuzz::unwind();
        if let Ok(folder) = std::env::var("TERSOR_FUZZ_SEEDS") {
            write_seeds(Path::new(&folder)).unwrap();
            std::process::exit(0);
        }
    },
    |bytes: &[u8]| {
        (PARSER.parse)(bytes);
    }
);

fn write_seeds(folder: &Path) -> std::io::Result<()> {
    for parser in &PARSERS {
        std::fs::create_dir_all(folder.join(parser.name))?;
        for (i, seed) in (parser.seeds)().iter().enumerate() {
            std::fs::write(folder.join(parser.name).join(format!("valid-{i:02}")), seed)?;
        }
    }
    Ok(())
}
