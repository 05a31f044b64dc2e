//! Text generation, one token at a time.

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use tersor_core::{Error, Exec, ParamError, Result, metrics};

use crate::Decoder;

/// How [`generate`] chooses the next token from the logits `[vocab]`: the most probable one, or a random one at a temperature.
pub enum Sampling {
    /// Takes the token of the largest logit; among equal ones, that of the lowest number.
    Greedy,
    /// Draws a token from `softmax(logits / temperature)`. [`Sampling::at`] makes it from a temperature above 0.
    Temperature(Temperature),
}

/// A sampling temperature, finite and above 0, with its random number generator. [`Sampling::at`] makes it.
pub struct Temperature {
    temperature: f32,
    rng: Box<ChaCha8Rng>,
}

impl Sampling {
    /// Returns sampling from `softmax(logits / temperature)`, with random numbers from `rng`. Errors unless `temperature` is finite and
    /// above 0.
    pub fn at(temperature: f32, rng: ChaCha8Rng) -> Result<Self> {
        if !temperature.is_finite() || temperature <= 0.0 {
            return Err(ParamError::new("temperature", temperature, "must be finite and above 0").into());
        }
        Ok(Sampling::Temperature(Temperature { temperature, rng: Box::new(rng) }))
    }

    /// Returns the chosen token for logits `[vocab]`.
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

/// Continues the token sequence `prompt` by up to `count` tokens, which `sampling` chooses, and returns the new tokens only. Calls `each`
/// with every new token. Stops when there are `count` tokens, when `each` returns false (the token is still returned), or at an end-of-text
/// token of the model's configuration, which is neither passed to `each` nor returned. Errors if the prompt is empty or has a token outside
/// of the vocabulary, an input of a matrix is not finite, a layer cannot be read (in a decoder that [`Decoder::load_streamed`] made), or
/// the decoder's key-value caches cannot be made, refuse a token or fail to evict one.
///
/// ```
/// use tersor_core::Exec;
/// use tersor_models::{Checkpoint, Decoder, Sampling, generate};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let decoder = Decoder::load(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let mut seen = 0;
/// let tokens = generate(&decoder, &[1, 2, 3], 8, Sampling::Greedy, &Exec::new(), |_| {
///     seen += 1;
///     seen < 4
/// })?;
/// assert_eq!(tokens.len(), 4);
/// # Ok(())
/// # }
/// ```
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
        let logits = decoder.next_logits(&next, &mut state, exec)?;
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
