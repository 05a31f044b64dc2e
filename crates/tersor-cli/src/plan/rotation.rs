//! Rotations of a whole network: of the residual stream, of values in front of the output projection, both merged into the weights, and of the
//! inner activations of the feed-forward part when the network runs.
//!
//! Norms come first: their weights go into the matrices that read them, and what is left of them turns with the stream (QuaRot, arXiv 2404.00456;
//! SliceGPT, arXiv 2401.15024). A head that is the embedding becomes a matrix of its own.

use tersor::core::{Context, Error, Fold, ParamError, Producer, Result, Rotation, Side, Site, Transform, read_finite};
use tersor::formats::Model;
use tersor::linalg;
use tersor::llm::{Architecture, DecoderConfig};

/// The name of a head.
pub const HEAD: &str = "lm_head.weight";

/// The embedding.
pub const TABLE: &str = "model.embed_tokens.weight";

/// The rotations of a decoder.
pub struct Rotations {
    stream: Rotation,
    values: Rotation,
    inner: Rotation,
    layers: usize,
    sites: Vec<Site>,
}

/// What rotations ask of the weights.
pub struct Folds {
    /// What the network is calibrated with.
    pub merged: Vec<Fold>,
    /// What matrices are stored with besides: the other half of what happens in front of them.
    pub online: Vec<Fold>,
}

impl Rotations {
    /// By the name in a recipe: `hadamard` or `orthogonal` (with which the inner activations have a Hadamard matrix all the same: it is made of
    /// additions). Error when the network is no decoder.
    pub fn new(how: &str, network: Option<&Architecture>, seed: u64) -> Result<Self> {
        if !["hadamard", "orthogonal"].contains(&how) {
            return Err(ParamError::new("rotate", format!("`{how}`"), "must be hadamard or orthogonal").into());
        }
        let Some(Architecture::Decoder(c)) = network else {
            let rule = "is for decoders that are known: their norms leave the stream as it is";
            return Err(ParamError::new("rotate", "given", rule).into());
        };
        let cx = Context::new().with_seed(seed);
        let hadamard = |name: &str, dim: usize| linalg::rotation(dim, &mut cx.stream(name));
        let made = |name: &str, dim: usize| -> Result<Rotation> {
            if how == "hadamard" {
                return hadamard(name, dim);
            }
            let q: Vec<f32> = linalg::orthogonal(dim, &mut cx.stream(name))?.into_iter().map(|v| v as f32).collect();
            Rotation::new(&q, 1, &vec![1.0; dim])
        };
        Ok(Self {
            stream: made("rotation of the stream", c.hidden)?,
            values: made("rotation of values", c.head_dim)?,
            inner: hadamard("rotation of inner activations", c.intermediate)?,
            layers: c.layers,
            sites: untied(c).sites(),
        })
    }

    /// The rotation in front of a matrix when the network runs.
    pub fn online(&self, weight: &str) -> Option<&Rotation> {
        weight.ends_with(".mlp.down_proj.weight").then_some(&self.inner)
    }

    /// Vectors that change.
    pub fn vectors(&self) -> Vec<String> {
        let norms = self.sites.iter().filter_map(|s| match &s.producer {
            Producer::Norm { weight } => Some(weight.clone()),
            _ => None,
        });
        let bias = |part: &str| (0..self.layers).map(|l| format!("model.layers.{l}.{part}.bias")).collect::<Vec<_>>();
        norms.chain(["self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"].into_iter().flat_map(bias)).collect()
    }

    /// All folds. Error when a norm is missing or not finite.
    pub fn folds(&self, model: &Model) -> Result<Folds> {
        let mut merged = Vec::new();
        let mut push = |weight: &str, side, transform| merged.push(Fold { weight: weight.into(), side, transform });
        for site in &self.sites {
            let Producer::Norm { weight } = &site.producer else { continue };
            let rows = model.rows(weight)?;
            let norm = read_finite(&*rows, 0..rows.shape()[0]).map_err(|e| e.in_tensor(weight))?;
            if norm.len() != site.features {
                return Err(Error::shape("length of a norm", site.features, norm.len()).in_tensor(weight));
            }
            for c in &site.consumers {
                push(&c.weight, Side::Input, Transform::Scale(norm.clone()));
                push(&c.weight, Side::Input, Transform::Rotate(self.stream.clone()));
            }
            push(weight, Side::Input, Transform::Set(vec![1.0; norm.len()]));
        }
        push(TABLE, Side::Input, Transform::Rotate(self.stream.clone()));
        let mut online = Vec::new();
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for part in ["self_attn.o_proj", "mlp.down_proj"] {
                push(&name(&format!("{part}.weight")), Side::Output, Transform::Rotate(self.stream.clone()));
                push(&name(&format!("{part}.bias")), Side::Input, Transform::Rotate(self.stream.clone()));
            }
            push(&name("self_attn.v_proj.weight"), Side::Output, Transform::Rotate(self.values.clone()));
            push(&name("self_attn.v_proj.bias"), Side::Input, Transform::Rotate(self.values.clone()));
            push(&name("self_attn.o_proj.weight"), Side::Input, Transform::Rotate(self.values.clone()));
            let weight = name("mlp.down_proj.weight");
            online.push(Fold { weight, side: Side::Input, transform: Transform::Rotate(self.inner.clone()) });
        }
        Ok(Folds { merged, online })
    }
}

/// The same network with a head of its own.
pub fn untied(config: &DecoderConfig) -> DecoderConfig {
    DecoderConfig { tied: false, ..config.clone() }
}
