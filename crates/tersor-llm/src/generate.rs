//! Text, a token at a time.

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use tersor_core::{Error, Exec, ParamError, Result, metrics};

use crate::Decoder;

/// How the next token is chosen.
pub enum Sampling {
    /// The likeliest; of equals the lowest number.
    Greedy,
    /// By `softmax(logits / temperature)`: see [`Sampling::at`].
    Temperature(Temperature),
}

/// A checked temperature and where its randomness comes from.
pub struct Temperature {
    temperature: f32,
    rng: Box<ChaCha8Rng>,
}

impl Sampling {
    /// Draws at a temperature. Error unless it is finite and above 0.
    pub fn at(temperature: f32, rng: ChaCha8Rng) -> Result<Self> {
        if !temperature.is_finite() || temperature <= 0.0 {
            return Err(ParamError::new("temperature", temperature, "must be finite and above 0").into());
        }
        Ok(Sampling::Temperature(Temperature { temperature, rng: Box::new(rng) }))
    }

    fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        let (temperature, rng) = match self {
            Sampling::Greedy => return Ok(metrics::argmax(logits) as u32),
            Sampling::Temperature(t) => (t.temperature, &mut t.rng),
        };
        let scaled: Vec<f32> = logits.iter().map(|l| l / temperature).collect();
        let total = metrics::log_sum_exp(&scaled);
        let draw = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut sum = 0.0;
        for (i, &l) in scaled.iter().enumerate() {
            sum += (f64::from(l) - total).exp();
            if draw < sum {
                return Ok(i as u32);
            }
        }
        Ok(metrics::argmax(logits) as u32)
    }
}

/// Continues a prompt by up to `count` tokens; stops at one that ends a text, or when `each` answers false. Returns
/// the new tokens. Error on an empty prompt.
pub fn generate(
    decoder: &Decoder,
    prompt: &[u32],
    count: usize,
    mut sampling: Sampling,
    exec: &Exec,
    mut each: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    if prompt.is_empty() {
        return Err(Error::shape("tokens of the prompt", "at least one", 0));
    }
    let mut state = decoder.state()?;
    let mut out = Vec::new();
    let mut next = prompt.to_vec();
    while out.len() < count {
        let logits = decoder.next(&next, &mut state, exec)?;
        if out.is_empty() {
            state.seal(exec)?;
        }
        let token = sampling.pick(&logits)?;
        if decoder.config().eos.contains(&token) {
            break;
        }
        out.push(token);
        if !each(token) {
            break;
        }
        next = vec![token];
    }
    Ok(out)
}
