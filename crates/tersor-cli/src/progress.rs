//! Progress on stderr: bars if it is a terminal, otherwise a line now and then.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tersor::core::Progress;

/// The least time between two lines, and before the first one.
const EVERY: Duration = Duration::from_secs(30);

/// Draws one progress bar for the current stage if stderr is a terminal; otherwise long work prints a line at most every 30 seconds. Warnings are
/// always printed.
pub struct Bars {
    state: Mutex<State>,
    draw: bool,
}

struct State {
    bar: Option<ProgressBar>,
    lines: Lines,
}

/// Returns the progress of this process.
pub fn bars() -> Arc<Bars> {
    let state = State { bar: None, lines: Lines::new(Instant::now()) };
    Arc::new(Bars { state: Mutex::new(state), draw: std::io::stderr().is_terminal() })
}

impl Bars {
    fn with(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().unwrap_or_else(|e| e.into_inner()));
    }

    /// Prints a line of progress of a child process, which counts as one of this process.
    pub fn line(&self, line: &str) {
        self.with(|state| {
            state.lines.said = Instant::now();
            state.print(line);
        });
    }
}

impl State {
    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, total: u64) {
        if !self.draw {
            return self.with(|state| state.lines.begin(stage, total, Instant::now()));
        }
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
        self.with(|state| {
            let new = ProgressBar::new(total).with_prefix(stage.to_string());
            state.bar = Some(match style {
                Ok(style) => new.with_style(style),
                Err(_) => new,
            });
        });
    }
    fn advance(&self, steps: u64, item: &str) {
        self.with(|state| {
            if let Some(bar) = &state.bar {
                bar.set_message(item.to_string());
                bar.inc(steps);
            } else if let Some(line) = state.lines.advance(steps, Instant::now()) {
                eprintln!("{line}");
            }
        });
    }
    fn end(&self) {
        self.with(|state| {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
        });
    }
    fn warn(&self, message: &str) {
        self.with(|state| state.print(&format!("warning: {message}")));
    }
}

/// When lines of progress are printed, and what they say.
struct Lines {
    stage: String,
    done: u64,
    total: u64,
    began: Instant,
    /// Time of the last line; at first, of the begin of the work.
    said: Instant,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self { stage: String::new(), done: 0, total: 0, began: now, said: now }
    }

    fn begin(&mut self, stage: &str, total: u64, now: Instant) {
        (self.stage, self.done, self.total, self.began) = (stage.into(), 0, total, now);
    }

    /// Counts steps. Returns a line if it is time for one.
    fn advance(&mut self, steps: u64, now: Instant) -> Option<String> {
        self.done += steps;
        if now.duration_since(self.said) < EVERY {
            return None;
        }
        self.said = now;
        let (done, total) = (self.done, self.total);
        let taken = now.duration_since(self.began).as_secs_f64();
        let rest = total.saturating_sub(done) as f64 * taken / done.max(1) as f64;
        let rest = if done < total { format!(", about {} left", span(rest)) } else { String::new() };
        Some(format!("{}: {done} of {total} done{rest}", self.stage))
    }
}

/// Returns a time in its unit: `40 s`, `12 min`, `3.5 h`.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_work_prints_nothing_and_long_work_a_line_every_30_seconds() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut lines = Lines::new(start);
        lines.begin("verify files", 2, start);
        assert_eq!((lines.advance(1, at(1)), lines.advance(1, at(29))), (None, None));
        lines.begin("compress", 210, at(29));
        assert_eq!(lines.advance(10, at(39)).unwrap(), "compress: 10 of 210 done, about 3 min left");
        let said = (40..69).filter(|s| lines.advance(1, at(*s)).is_some()).count();
        assert_eq!(said, 0);
        assert_eq!(lines.advance(171, at(129)).unwrap(), "compress: 210 of 210 done");
        // Each of many short stages is too short for a line, and together they are not.
        let said: Vec<u64> = (130..250)
            .filter(|s| {
                lines.begin("evaluate", 4, at(*s));
                lines.advance(2, at(*s)).is_some()
            })
            .collect();
        assert_eq!(said, [159, 189, 219, 249]);
    }

    #[test]
    fn times_have_units() {
        assert_eq!([0.4, 40.0, 600.0, 12600.0].map(span), ["0 s", "40 s", "10 min", "3.5 h"]);
    }
}
