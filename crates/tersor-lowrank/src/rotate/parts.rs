//! The parts of a decoder that rotations act on, found among its sites.

use tersor_core::{Error, Producer, Result, Role, Site};

/// A decoder as a rotation sees it.
pub(super) struct Parts<'s> {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Sites that read the stream through a norm, and the name of the norm.
    pub normed: Vec<(&'s Site, &'s str)>,
    /// Name of the embedding.
    pub embedding: &'s str,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The layers, in order.
    pub layers: Vec<LayerParts<'s>>,
}

/// The matrices of a layer.
pub(super) struct LayerParts<'s> {
    pub key: &'s str,
    pub value: &'s str,
    pub attention_output: &'s str,
    pub down: &'s str,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the inner activations.
    pub inner: usize,
}

impl<'s> Parts<'s> {
    /// Finds the parts. Errors unless every matrix that reads the stream reads it through a norm, and each layer has keys, an attention output and a
    /// down projection.
    pub fn find(sites: &'s [Site]) -> Result<Self> {
        let missing = |what: &str| Error::Unsupported {
            what: "rotation of a network",
            value: format!("without {what}; it is for decoders whose norms alone read the residual stream"),
        };
        let normed: Vec<(&Site, &str)> = sites
            .iter()
            .filter_map(|s| match &s.producer {
                Producer::Norm { weight } => Some((s, weight.as_str())),
                _ => None,
            })
            .collect();
        let head = normed.iter().find(|(s, _)| s.consumers.iter().any(|c| c.role == Role::Head));
        let (head, _) = head.ok_or_else(|| missing("a head behind a norm"))?;
        let embedding = head.writers.first().ok_or_else(|| missing("an embedding"))?;
        let tied = head.consumers.iter().any(|c| c.weight == *embedding);
        let consumer = |layer: usize, role: Role| {
            let of = sites.iter().filter(move |s| s.layer == Some(layer));
            of.flat_map(|s| s.consumers.iter().map(move |c| (s, c))).find(move |(_, c)| c.role == role)
        };
        let count = sites.iter().filter_map(|s| s.layer).max().map_or(0, |l| l + 1);
        let mut layers = Vec::with_capacity(count);
        for layer in 0..count {
            let (_, key) = consumer(layer, Role::Key).ok_or_else(|| missing("keys"))?;
            let (site, output) =
                consumer(layer, Role::AttentionOutput).ok_or_else(|| missing("an attention output"))?;
            let (inner, down) = consumer(layer, Role::Down).ok_or_else(|| missing("a down projection"))?;
            let Producer::Linear { weight: value, block, repeat } = &site.producer else {
                return Err(missing("values in front of the attention output"));
            };
            if inner.layer.is_none() || *block == 0 || *repeat == 0 {
                return Err(missing("heads"));
            }
            layers.push(LayerParts {
                key: &key.weight,
                value,
                attention_output: &output.weight,
                down: &down.weight,
                heads: site.features / block,
                kv_heads: site.features / (block * repeat),
                head_dim: *block,
                inner: inner.features,
            });
        }
        Ok(Self { hidden: head.features, normed, embedding, tied, layers })
    }
}
