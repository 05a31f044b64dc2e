//! The `tersor` command.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = tersor_cli::args::Args::parse();
    match tersor_cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(tersor_cli::exit_code(&e))
        }
    }
}
