//! Progress bars on stderr, if it is a terminal.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};

use indicatif::{ProgressBar, ProgressStyle};
use tersor::core::Progress;

/// Draws one progress bar for the current stage. Warnings are printed on stderr even if no bar is drawn.
pub struct Bars {
    bar: Mutex<Option<ProgressBar>>,
    draw: bool,
}

/// Returns the progress bars of this process.
pub fn bars() -> Arc<Bars> {
    Arc::new(Bars { bar: Mutex::new(None), draw: std::io::stderr().is_terminal() })
}

impl Bars {
    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        f(&mut self.bar.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, total: u64) {
        if !self.draw {
            return;
        }
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
        self.with(|bar| {
            let new = ProgressBar::new(total).with_prefix(stage.to_string());
            *bar = Some(match style {
                Ok(style) => new.with_style(style),
                Err(_) => new,
            });
        });
    }
    fn advance(&self, steps: u64, item: &str) {
        self.with(|bar| {
            if let Some(bar) = bar {
                bar.set_message(item.to_string());
                bar.inc(steps);
            }
        });
    }
    fn end(&self) {
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
    fn warn(&self, message: &str) {
        self.with(|bar| match bar {
            Some(bar) => bar.suspend(|| eprintln!("warning: {message}")),
            None => eprintln!("warning: {message}"),
        });
    }
}
