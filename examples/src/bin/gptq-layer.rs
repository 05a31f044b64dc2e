//! Times GPTQ of one square layer from raw files: `gptq-layer WEIGHT GRAM N` with f32 weights and an f64 Gram matrix, both
//! row-major. Prints the seconds, factorization included, and the error in the norm of the Gram matrix.

use std::time::Instant;

use tersor::groupwise::{Check, Context, Gptq, MatView};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [weight, gram, n] = &args[..] else { return Err("usage: gptq-layer WEIGHT GRAM N".into()) };
    let n: usize = n.parse()?;
    let weight: Vec<f32> = std::fs::read(weight)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let gram: Vec<f64> = std::fs::read(gram)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let gptq = Gptq::new().bits(4).group(128).check()?;
    let start = Instant::now();
    let factor = gptq.factor(&gram, n)?;
    eprintln!("factor {:.3}", start.elapsed().as_secs_f64());
    let (_, report) = gptq.quantize_with(&MatView::new(&weight, [n, n])?, &factor, &Context::new())?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds} {}", report.data_error.unwrap_or(f64::NAN));
    Ok(())
}
