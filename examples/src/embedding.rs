//! The stable embedding layer.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::ops::layer_norm_slow;
use rand::Rng;
use tersor_candle::VarOptimizer;

/// The stable embedding layer for training with 8-bit moments (arXiv 2110.02861, section 2.3): vectors have a Xavier-uniform initialization, are
/// normalized before position embeddings are added, and keep their moments in f32.
pub struct StableEmbedding {
    weight: Var,
    scale: Var,
    shift: Var,
    padding: Option<u32>,
}

impl StableEmbedding {
    /// Returns an embedding of `tokens` vectors of `width` features, in f32. The vector of the token `padding` is zero and gets no gradient. Errors if
    /// candle does, or if `padding` is no token.
    pub fn new(tokens: usize, width: usize, padding: Option<u32>, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        let bound = (6.0 / (tokens + width) as f32).sqrt();
        let mut values: Vec<f32> = (0..tokens * width).map(|_| rng.random_range(-bound..=bound)).collect();
        if let Some(token) = padding {
            let at = token as usize * width;
            let row = values.get_mut(at..at + width);
            row.ok_or_else(|| candle_core::Error::Msg(format!("padding {token} of {tokens} tokens")))?.fill(0.0);
        }
        Ok(Self {
            weight: Var::from_vec(values, (tokens, width), device)?,
            scale: Var::ones(width, DType::F32, device)?,
            shift: Var::zeros(width, DType::F32, device)?,
            padding,
        })
    }

    /// Returns the embedding vectors, `[tokens, width]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// Returns the trainable variables: vectors, and scale and shift of the norm.
    pub fn vars(&self) -> Vec<Var> {
        vec![self.weight.clone(), self.scale.clone(), self.shift.clone()]
    }

    /// Makes an optimizer keep the moments of the vectors in f32. Errors if they are not among its variables.
    pub fn stabilize(&self, optimizer: &mut VarOptimizer) -> Result<()> {
        Ok(optimizer.keep_f32(&self.weight)?)
    }
}

impl Module for StableEmbedding {
    /// Returns the normalized vectors of token ids of any shape, `[.., width]` in f32.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let flat = ids.flatten_all()?;
        let mut vectors = self.weight.index_select(&flat, 0)?;
        if let Some(padding) = self.padding {
            let keep = flat.ne(padding)?.to_dtype(DType::F32)?.unsqueeze(1)?;
            vectors = vectors.broadcast_mul(&keep)?;
        }
        // Candle's fast layer norm has no gradient.
        let normal = layer_norm_slow(&vectors, self.scale.as_tensor(), self.shift.as_tensor(), 1e-5)?;
        let mut shape = ids.dims().to_vec();
        shape.push(self.weight.dim(1)?);
        normal.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::Optimizer as _;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tersor::blockwise::optimizer::OptimizerConfig;

    use super::*;

    #[test]
    fn vectors_begin_as_the_paper_says_and_train_with_moments_in_f32() {
        let (tokens, width) = (300, 32);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let layer = StableEmbedding::new(tokens, width, Some(7), &mut rng, &Device::Cpu).unwrap();
        let start = layer.weight().to_vec2::<f32>().unwrap();
        let bound = (6.0f32 / 332.0).sqrt();
        let largest = start.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest <= bound && largest > 0.99 * bound && start[7].iter().all(|v| *v == 0.0));

        let ids = Tensor::new(&[[1u32, 7], [299, 1]], &Device::Cpu).unwrap();
        let out = layer.forward(&ids).unwrap();
        assert_eq!(out.dims(), [2, 2, width]);
        let rows = out.reshape((4, width)).unwrap().to_vec2::<f32>().unwrap();
        let mean = rows[0].iter().sum::<f32>() / width as f32;
        let square = rows[0].iter().map(|v| v * v).sum::<f32>() / width as f32;
        assert!(mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-2 && rows[1].iter().all(|v| *v == 0.0));

        let mut optimizer = VarOptimizer::new(layer.vars(), OptimizerConfig::adam().min_8bit_size(0)).unwrap();
        layer.stabilize(&mut optimizer).unwrap();
        let weights = Tensor::arange(0f32, width as f32, &Device::Cpu).unwrap();
        let loss = layer.forward(&ids).unwrap().broadcast_mul(&weights).unwrap().sqr().unwrap().sum_all().unwrap();
        optimizer.backward_step(&loss).unwrap();
        let after = layer.weight().to_vec2::<f32>().unwrap();
        assert!(after[1] != start[1] && after[7] == start[7] && after[2] == start[2]);
        // Vectors in f32, the norm's in 8 bits.
        assert_eq!(optimizer.state_bytes(), 8 * tokens * width + 2 * 2 * (width + 4));
    }

    #[test]
    fn padding_must_be_a_token() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert!(StableEmbedding::new(5, 3, Some(5), &mut rng, &Device::Cpu).is_err());
    }
}
