//! The `tersor` command as a library: recipes, plans, compression into directories, evaluation, conversion, reports.

/// Prints a line on stdout. A closed pipe (`| head`) is not an error.
macro_rules! outln {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}
pub(crate) use outln;

pub mod args;
mod calibrate;
mod compare;
mod compress;
mod convert;
mod eval;
mod generate;
mod inspect;
mod kv;
mod output;
mod plan;
mod progress;
pub mod recipe;
mod report;
mod statistics;
mod verify;
mod windows;

use args::{Args, Verb};
use tersor::core::{Error, Result};

/// Runs the subcommand of parsed arguments; its result goes to stdout, progress and warnings to stderr. Errors as the subcommand does.
pub fn run(args: Args) -> Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    // The global pool can be built only once per process; if there is one already, it is used.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let json = args.json;
    match args.verb {
        Verb::Inspect(a) => inspect::run(&a, json),
        Verb::Plan(a) => plan::run(&a, json),
        Verb::Calibrate(a) => calibrate::run(&a, json),
        Verb::Compress(a) => compress::run(&a, json),
        Verb::Eval(a) => eval::run(&a, json),
        Verb::Compare(a) => compare::run(&a, json, threads),
        Verb::Demo(a) => compare::demo(&a, json, threads),
        Verb::Report(a) => report::run(&a, json),
        Verb::Convert(a) => convert::run(&a, json),
        Verb::Verify(a) => verify::run(&a, json),
        Verb::Generate(a) => generate::run(&a, json),
    }
}

/// Returns the exit code of an error: 2 for bad usage, 1 for everything else.
pub fn exit_code(error: &Error) -> u8 {
    if error.is_usage() { 2 } else { 1 }
}

/// Sets a signal handler that cancels the work at its next step.
pub(crate) fn cancel_on_signals(cancel: &tersor::core::Cancel) {
    let cancel = cancel.clone();
    // If no handler can be set, a signal ends the process at once; the work can be resumed all the same.
    let _ = ctrlc::set_handler(move || cancel.cancel());
}

/// Prints one JSON object.
pub(crate) fn print_json(value: &serde_json::Value) {
    outln!("{value:#}");
}

/// Formats a number of bytes in decimal units: `12.30 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    let b = bytes as f64;
    if b >= 1e9 {
        format!("{:.2} GB", b / 1e9)
    } else if b >= 1e6 {
        format!("{:.2} MB", b / 1e6)
    } else {
        format!("{:.1} kB", b / 1e3)
    }
}
