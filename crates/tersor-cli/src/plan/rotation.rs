//! Rotations of a whole network: of the residual stream, of values in front of the output projection, both merged into the weights, and of the
//! inner activations of the feed-forward part when the network runs.
//!
//! Norms come first: their weights go into the matrices that read them, and what is left of them turns with the stream (QuaRot, arXiv 2404.00456;
//! SliceGPT, arXiv 2401.15024). A head that is the embedding becomes a matrix of its own.
//!
//! Random rotations are known beforehand; principal ones (ResQ, arXiv 2412.14363) are found on a calibration text: then values have a rotation for each
//! head, and keys one for each layer, which the cache applies behind their rotary embedding.

use std::collections::BTreeMap;

use tersor::core::{Context, Error, Fold, ParamError, Producer, Result, Rotation, Side, Site, Transform, read_finite};
use tersor::formats::Model;
use tersor::linalg;
use tersor::llm::{Architecture, DecoderConfig, key_rotation_name};
use tersor::lowrank::{Blocks, widths};

/// The name of a head.
pub const HEAD: &str = "lm_head.weight";

/// The embedding.
pub const TABLE: &str = "model.embed_tokens.weight";

/// Subspaces of a recipe that says nothing of them: an eighth of all directions has more bits (arXiv 2412.14363, section 4.1).
pub const SHARES: [f64; 2] = [0.875, 0.125];

/// What the rotations are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Hadamard,
    Orthogonal,
    /// Principal directions; whether coefficients are turned inside each subspace.
    Principal {
        mixed: bool,
    },
}

/// How a decoder is rotated.
pub struct Rotations {
    how: How,
    config: DecoderConfig,
    sites: Vec<Site>,
    cx: Context,
    inner: Rotation,
    /// Shares of the subspaces, and whether the attention output is put in their order.
    shares: Vec<f64>,
    ordered: bool,
}

/// The rotations.
pub struct Found {
    /// Of the stream.
    pub stream: Rotation,
    /// Of values, for each layer: of all heads, or of each kept head.
    pub values: Vec<Vec<Rotation>>,
    /// Of keys behind their rotary embedding, for each layer; none where they stay as they are.
    pub keys: Vec<Rotation>,
}

/// What rotations ask of the weights, by name.
#[derive(Default)]
pub struct Folds {
    /// What the network is calibrated with.
    merged: BTreeMap<String, Vec<Fold>>,
    /// What matrices are stored with besides: the other half of what happens in front of them.
    online: BTreeMap<String, Fold>,
}

impl Folds {
    fn push(&mut self, weight: &str, side: Side, transform: Transform) {
        let fold = Fold { weight: weight.into(), side, transform };
        self.merged.entry(fold.weight.clone()).or_default().push(fold);
    }

    /// Those that the network is calibrated with, of tensors whose names begin so.
    pub fn merged(&self, prefix: &str) -> Vec<Fold> {
        let from = self.merged.range(prefix.to_string()..).take_while(|(name, _)| name.starts_with(prefix));
        from.flat_map(|(_, folds)| folds).cloned().collect()
    }

    /// All of a tensor.
    pub fn of(&self, name: &str) -> Vec<Fold> {
        self.merged.get(name).into_iter().flatten().chain(self.online.get(name)).cloned().collect()
    }
}

impl Rotations {
    /// By the name in a recipe: `hadamard`, `orthogonal`, `resq`, or `pca` (`resq` without turning coefficients inside a subspace). Inner activations
    /// have a Hadamard matrix with all of them: it is made of additions. `shares` are those of the subspaces, if matrices have any. Error when the
    /// network is no decoder.
    pub fn new(how: &str, network: Option<&Architecture>, seed: u64, shares: Option<Vec<f64>>) -> Result<Self> {
        let how = match how {
            "hadamard" => How::Hadamard,
            "orthogonal" => How::Orthogonal,
            "resq" => How::Principal { mixed: true },
            "pca" => How::Principal { mixed: false },
            _ => {
                let rule = "must be hadamard, orthogonal, resq or pca";
                return Err(ParamError::new("rotate", format!("`{how}`"), rule).into());
            }
        };
        let Some(Architecture::Decoder(c)) = network else {
            let rule = "is for decoders that are known: their norms leave the stream as it is";
            return Err(ParamError::new("rotate", "given", rule).into());
        };
        let (config, cx) = (untied(c), Context::new().with_seed(seed));
        Ok(Self {
            how,
            sites: config.sites(),
            inner: linalg::rotation(c.intermediate, &mut cx.stream("rotation of inner activations"))?,
            ordered: shares.is_some(),
            shares: shares.unwrap_or(SHARES.to_vec()),
            config,
            cx,
        })
    }

    /// The decoder, with a head of its own.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Whether they are found on a calibration text.
    pub fn needs_data(&self) -> bool {
        matches!(self.how, How::Principal { .. })
    }

    /// What happens in front of a matrix when the network runs.
    pub fn online(&self, weight: &str) -> Option<Transform> {
        if weight.ends_with(".mlp.down_proj.weight") {
            return Some(Transform::Rotate(vec![self.inner.clone()]));
        }
        (self.ordered && weight.ends_with(".self_attn.o_proj.weight")).then(|| Transform::Permute(self.order()))
    }

    /// The attention output with the first subspace of every head first, then the next of every head.
    fn order(&self) -> Vec<u32> {
        let (dim, mut at, mut order) = (self.config.head_dim, 0, Vec::new());
        for width in widths(self.shares.iter().copied(), dim) {
            for head in 0..self.config.heads {
                order.extend((head * dim + at..head * dim + at + width).map(|i| i as u32));
            }
            at += width;
        }
        order
    }

    /// Vectors that change.
    pub fn vectors(&self) -> Vec<String> {
        let norms = self.sites.iter().filter_map(|s| match &s.producer {
            Producer::Norm { weight } => Some(weight.clone()),
            _ => None,
        });
        let layers = 0..self.config.layers;
        let bias = |part: &str| layers.clone().map(|l| format!("model.layers.{l}.{part}.bias")).collect::<Vec<_>>();
        norms.chain(["self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"].into_iter().flat_map(bias)).collect()
    }

    /// Tensors that are made: rotations of keys, each with the weight whose file it goes to, and its shape.
    pub fn made(&self) -> Vec<(String, String, Vec<usize>)> {
        let layers = if self.needs_data() { self.config.layers } else { 0 };
        let shape = vec![1, self.config.head_dim, self.config.head_dim];
        let made =
            |l: usize| (key_rotation_name(l), format!("model.layers.{l}.self_attn.k_proj.weight"), shape.clone());
        (0..layers).map(made).collect()
    }

    /// What turns coefficients of so many features inside their subspaces: the same for whatever has so many.
    pub fn blocks(&self, features: usize) -> Result<Blocks> {
        let sizes = widths(self.shares.iter().copied(), features);
        match self.how {
            How::Principal { mixed: false } => Ok(Blocks::identity(&sizes)),
            _ => Blocks::random(&sizes, &mut self.cx.stream(&format!("blocks of {features} features"))),
        }
    }

    /// Those that need no data.
    pub fn random(&self) -> Result<Found> {
        let made = |name: &str, dim: usize| -> Result<Rotation> {
            let rng = &mut self.cx.stream(name);
            if self.how == How::Hadamard {
                return linalg::rotation(dim, rng);
            }
            let q: Vec<f32> = linalg::orthogonal(dim, rng)?.into_iter().map(|v| v as f32).collect();
            Rotation::dense(&q)
        };
        Ok(Found {
            stream: made("rotation of the stream", self.config.hidden)?,
            values: vec![vec![made("rotation of values", self.config.head_dim)?]; self.config.layers],
            keys: Vec::new(),
        })
    }

    /// The weights of norms, moved into the matrices that read them. Error when one is missing or not finite.
    pub fn norms(&self, model: &Model) -> Result<Folds> {
        let mut folds = Folds::default();
        for site in &self.sites {
            let Producer::Norm { weight } = &site.producer else { continue };
            let rows = model.rows(weight)?;
            let norm = read_finite(&*rows, 0..rows.shape()[0]).map_err(|e| e.in_tensor(weight))?;
            if norm.len() != site.features {
                return Err(Error::shape("length of a norm", site.features, norm.len()).in_tensor(weight));
            }
            for c in &site.consumers {
                folds.push(&c.weight, Side::Input, Transform::Scale(norm.clone()));
            }
            folds.push(weight, Side::Input, Transform::Set(vec![1.0; norm.len()]));
        }
        Ok(folds)
    }

    /// All folds. Error as for [`Rotations::norms`], or when a layer has no rotation.
    pub fn folds(&self, model: &Model, found: &Found) -> Result<Folds> {
        let mut folds = self.norms(model)?;
        let stream = || Transform::Rotate(vec![found.stream.clone()]);
        for site in self.sites.iter().filter(|s| matches!(s.producer, Producer::Norm { .. })) {
            for c in &site.consumers {
                folds.push(&c.weight, Side::Input, stream());
            }
        }
        folds.push(TABLE, Side::Input, stream());
        for layer in 0..self.config.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let missing = || Error::Missing { name: name("rotation of values"), place: "the rotations".into() };
            let values = || found.values.get(layer).map(|v| Transform::Rotate(v.clone())).ok_or_else(missing);
            for part in ["self_attn.o_proj", "mlp.down_proj"] {
                folds.push(&name(&format!("{part}.weight")), Side::Output, stream());
                folds.push(&name(&format!("{part}.bias")), Side::Input, stream());
            }
            folds.push(&name("self_attn.v_proj.weight"), Side::Output, values()?);
            folds.push(&name("self_attn.v_proj.bias"), Side::Input, values()?);
            folds.push(&name("self_attn.o_proj.weight"), Side::Input, values()?);
            for weight in ["self_attn.o_proj.weight", "mlp.down_proj.weight"].map(name) {
                if let Some(transform) = self.online(&weight) {
                    folds.online.insert(weight.clone(), Fold { weight, side: Side::Input, transform });
                }
            }
        }
        Ok(folds)
    }
}

/// The same network with a head of its own.
pub fn untied(config: &DecoderConfig) -> DecoderConfig {
    DecoderConfig { tied: false, ..config.clone() }
}
