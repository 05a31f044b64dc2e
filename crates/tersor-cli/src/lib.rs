//! The `tersor` command as a library: recipes, plans, compression into directories, measurement, reports.

/// Prints a line on stdout. Whoever reads may have gone (`| head`): that is no error.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}
pub(crate) use say;

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

/// Runs a verb; what it found goes to stdout.
pub fn run(args: Args) -> Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    // The pool of the whole process; it is an error only when there is one already, and then that one serves.
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

/// Exit code of an error: 2 for bad usage, 1 for everything else.
pub fn exit_code(error: &Error) -> u8 {
    if error.is_usage() { 2 } else { 1 }
}

/// Lets an interrupt stop the work at its next step rather than in the middle of one.
pub(crate) fn cancel_on_signals(cancel: &tersor::core::Cancel) {
    let cancel = cancel.clone();
    // Where no handler can be set, the signal ends the process, which resumes as well.
    let _ = ctrlc::set_handler(move || cancel.cancel());
}

/// Prints one JSON object.
pub(crate) fn print_json(value: &serde_json::Value) {
    say!("{value:#}");
}

/// `12.3 MB`.
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
