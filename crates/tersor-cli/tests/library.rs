//! The library gives the bytes of the command.

mod common;

use common::*;
use tersor::core::Context;
use tersor::pipeline::{Pipeline, Text};

#[test]
fn the_library_gives_the_bytes_of_the_command() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["w4-g32-gptq", "w4-g32-rtn"] {
        let (by_command, by_library) =
            (dir.path().join(format!("{recipe}-command")), dir.path().join(format!("{recipe}-library")));
        let printed = run(&compress(&shipped(), recipe, &by_command, ["4", "64"]), &[]);
        let cx = Context::new();
        let pipeline = Pipeline::open(shipped(), recipe, tersor::kinds()).unwrap();
        let plan = pipeline.data(Text::file(data("wiki-calib.txt"))).windows(4).ctx(64).plan(&cx).unwrap();
        let done = plan.compress(&by_library, &cx).unwrap();
        assert_eq!(printed["fingerprint"], done.fingerprint.as_str());
        assert!(result(&by_command) == result(&by_library), "{recipe}");
    }
}
