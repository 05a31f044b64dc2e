//! Rotary position embedding, in the layout of Hugging Face: dimension `i` turns with `i + head_dim / 2`.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use tersor_core::{Angles, Positions};

use crate::{DecoderConfig, RopeScaling};

/// Frequencies of a model.
#[derive(Debug)]
pub struct Rope {
    /// One for each pair of dimensions.
    frequencies: Vec<f32>,
    /// Factor on cosine and sine (YaRN).
    attention: f32,
    /// What [`Rope::angles`] gave: every layer asks for the same.
    known: RwLock<BTreeMap<u32, Arc<Angles>>>,
}

/// Positions that are kept.
const KNOWN: usize = 1 << 14;

impl Rope {
    /// From base, width and scaling of a configuration.
    pub fn new(config: &DecoderConfig) -> Self {
        let dim = config.head_dim as f64;
        let base = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / dim);
        let pairs = config.head_dim / 2;
        let mut attention = 1.0;
        let frequency = |i: usize| -> f64 {
            let f = base(i);
            match config.rope_scaling {
                RopeScaling::None => f,
                RopeScaling::Linear { factor } => f / factor,
                RopeScaling::Llama3 { factor, low, high, original } => {
                    let turns = original * f / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                }
                RopeScaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                    let dimension = |turns: f64| {
                        dim * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * config.rope_theta.ln())
                    };
                    let low = dimension(beta_fast).floor().max(0.0);
                    let high = dimension(beta_slow).ceil().min(dim - 1.0);
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                }
            }
        };
        let frequencies = (0..pairs).map(|i| frequency(i) as f32).collect();
        if let RopeScaling::Yarn { attention: a, .. } = config.rope_scaling {
            attention = a as f32;
        }
        Self { frequencies, attention, known: RwLock::default() }
    }
}

impl Positions for Rope {
    fn angles(&self, position: u32) -> Arc<Angles> {
        if let Some(known) = self.known.read().unwrap_or_else(|e| e.into_inner()).get(&position) {
            return Arc::clone(known);
        }
        // The angle is rounded to f32 as the reference does it; its sine is then exact.
        let angle = |f: &f32| f64::from(position as f32 * f);
        let cos = self.frequencies.iter().map(|f| angle(f).cos() as f32 * self.attention).collect();
        let sin = self.frequencies.iter().map(|f| angle(f).sin() as f32 * self.attention).collect();
        let made = Arc::new(Angles { cos, sin });
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        if known.len() < KNOWN {
            known.insert(position, Arc::clone(&made));
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tersor_kernels::{Isa, vector};

    fn rope(scaling: serde_json::Value) -> Rope {
        let json = json!({"model_type": "llama", "hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 128,
            "num_hidden_layers": 2, "vocab_size": 100, "rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": scaling});
        Rope::new(&DecoderConfig::from_json(&json).unwrap())
    }

    #[test]
    fn scaled_frequencies_have_the_published_shape() {
        let plain = rope(json!(null));
        assert!((plain.frequencies[1] - 500000f32.powf(-2.0 / 128.0)).abs() < 1e-6);
        let linear = rope(json!({"type": "linear", "factor": 4.0}));
        assert!((linear.frequencies[5] * 4.0 - plain.frequencies[5]).abs() < 1e-6);
        let llama = rope(
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        );
        assert_eq!(llama.frequencies[0], plain.frequencies[0], "fast turns are kept");
        assert!((llama.frequencies[63] * 8.0 / plain.frequencies[63] - 1.0).abs() < 1e-5, "slow ones are divided");
        let yarn = rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}));
        assert_eq!(yarn.frequencies[0], plain.frequencies[0]);
        assert!((yarn.frequencies[63] * 4.0 / plain.frequencies[63] - 1.0).abs() < 1e-5);
        assert!((yarn.attention - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn turning_depends_on_the_distance_alone() {
        let r = rope(json!(null));
        let (q, k): (Vec<f32>, Vec<f32>) = (0..128).map(|i| ((i as f32).sin(), (i as f32 * 0.3).cos())).unzip();
        let score = |a: u32, b: u32| {
            let (mut q, mut k) = (q.clone(), k.clone());
            vector::apply_rotary(Isa::detect(), &mut q, &r.angles(a).cos, &r.angles(a).sin);
            vector::apply_rotary(Isa::detect(), &mut k, &r.angles(b).cos, &r.angles(b).sin);
            q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((score(7, 3) - score(107, 103)).abs() < 1e-3);
        assert!((score(0, 0) - q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()).abs() < 1e-4);
    }
}
