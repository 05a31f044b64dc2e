//! A whole model: tokens per second of a prompt of 512 tokens (logits of the last one only) and of 128 tokens decoded from an empty context.
//!
//!     cargo bench -p tersor-benches --bench model -- DIRECTORY [THREADS] [SECONDS of prefill] [SECONDS of decode]
//!
//! With seconds, it runs prefill and decode for that long, for a profiler. Without, it answers each line `go` on its input with a line of JSON, so
//! that another program can alternate it with others.

use std::io::BufRead;
use std::time::Instant;

use tersor::core::{Exec, Result};
use tersor::models::{Checkpoint, Decoder};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(directory) = words.first() else { return Ok(()) };
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<f64>().ok());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number(1).unwrap_or(2.0) as usize).build();
    let Ok(pool) = pool else { return Ok(()) };
    pool.install(|| {
        let checkpoint = Checkpoint::open(directory.as_ref(), &tersor::registry())?;
        let decoder = Decoder::load(&checkpoint)?;
        let vocab = decoder.config().vocab;
        let prompt: Vec<u32> = (0..512).map(|i| ((i * 7919) % (vocab - 10) + 5) as u32).collect();
        let exec = Exec::new();
        let mut prefill = || -> Result<f64> {
            let start = Instant::now();
            decoder.next_logits(&prompt, &mut decoder.state()?, &Exec::new())?;
            Ok(prompt.len() as f64 / start.elapsed().as_secs_f64())
        };
        let mut decode = || -> Result<f64> {
            let (mut state, start) = (decoder.state()?, Instant::now());
            for token in &prompt[..128] {
                decoder.next_logits(&[*token], &mut state, &exec)?;
            }
            Ok(128.0 / start.elapsed().as_secs_f64())
        };
        if let (Some(p), Some(d)) = (number(2), number(3)) {
            for (seconds, work) in [(p, &mut prefill as &mut dyn FnMut() -> Result<f64>), (d, &mut decode)] {
                let start = Instant::now();
                while start.elapsed().as_secs_f64() < seconds {
                    println!("{:.1} tokens per second", work()?);
                }
            }
            return Ok(());
        }
        let median = |work: &mut dyn FnMut() -> Result<f64>| -> Result<f64> {
            let mut rates = [work()?, work()?, work()?];
            rates.sort_by(f64::total_cmp);
            Ok(rates[1])
        };
        for line in std::io::stdin().lock().lines() {
            if line.is_ok_and(|l| l.trim() == "go") {
                println!("{{\"prefill\": {}, \"decode\": {}}}", median(&mut prefill)?, median(&mut decode)?);
            }
        }
        Ok(())
    })
}
