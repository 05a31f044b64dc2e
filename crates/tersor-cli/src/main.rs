//! The `tersor` command: arguments, progress bars, printing, exit codes. The work is that of `tersor::pipeline`.

/// Prints a line on stdout. A closed pipe (`| head`) is not an error.
macro_rules! outln {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}

mod args;
mod calibrate;
mod compare;
mod compress;
mod convert;
mod eval;
mod generate;
mod inspect;
mod plan;
mod progress;
mod recipes;
mod report;
mod verify;

use args::{Args, Verb};
use clap::Parser;
use std::process::ExitCode;
use tersor::core::{Cancel, Context, Error, Result};

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(exit_code(&e))
        }
    }
}

/// Runs the subcommand of parsed arguments; its result goes to stdout, progress and warnings to stderr. Errors as the subcommand does.
fn run(args: Args) -> Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    // The global pool can be built only once per process; if there is one already, it is used.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let json = args.json;
    match args.verb {
        Verb::Inspect(a) => inspect::run(&a, json),
        Verb::Recipes(a) => recipes::run(&a, json),
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

/// Returns the exit code of an error: 2 for bad usage, 130 if the work was interrupted, 1 for everything else.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Cancelled => 130,
        e if e.is_usage() => 2,
        _ => 1,
    }
}

/// Returns the context of work with a seed and a maximum memory in bytes; it shows progress and warnings on stderr.
fn context(seed: u64, max_memory: Option<u64>) -> Context {
    Context { max_memory, ..Context::new().with_seed(seed).with_progress(progress::bars()) }
}

/// Sets a signal handler that cancels the work at its next step.
fn cancel_on_signals(cancel: &Cancel) {
    let cancel = cancel.clone();
    // If no handler can be set, a signal ends the process at once; the work can be resumed all the same.
    let _ = ctrlc::set_handler(move || cancel.cancel());
}

/// Prints one JSON object.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let value = serde_json::to_value(value).map_err(|e| Error::format("result", e.to_string()))?;
    outln!("{value:#}");
    Ok(())
}
