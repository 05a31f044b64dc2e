//! The parts of a decoder that rotations act on, found among its sites.

use tersor_core::{Error, Producer, Result, Role, Site};

/// The parts of a decoder that are rotated.
pub(super) struct Parts<'s> {
    /// Number of features of the residual stream.
    pub hidden: usize,
    /// Each [`Site`] (an input of one or more linear layers, such as q, k and v, with their matrices) whose input is the residual stream
    /// after a norm, with the name of the norm's weight.
    pub normed: Vec<(&'s Site, &'s str)>,
    /// Name of the token embedding's weight.
    pub embedding: &'s str,
    /// Whether the output head (the projection to logits) shares the weight of the token embedding.
    pub tied: bool,
    /// The names of the matrices, the numbers of heads and the sizes of each decoder layer, in the order of the layers.
    pub layers: Vec<LayerParts<'s>>,
}

/// The matrices of a layer, by the names of their weights, and its sizes.
pub(super) struct LayerParts<'s> {
    /// Name of the weight of the key projection.
    pub key: &'s str,
    /// Name of the weight of the value projection.
    pub value: &'s str,
    /// Name of the weight of the output projection of the attention.
    pub attention_output: &'s str,
    /// Name of the weight of the down projection of the feed-forward part.
    pub down: &'s str,
    /// Number of query heads of the layer.
    pub heads: usize,
    /// Number of key/value heads of the layer; query heads are a multiple of it.
    pub kv_heads: usize,
    /// Number of features of one head.
    pub head_dim: usize,
    /// Number of inner features of the feed-forward part: the inputs of its down projection.
    pub inner: usize,
}

impl<'s> Parts<'s> {
    /// Returns the names and sizes of the matrices of a decoder that rotations change. `sites` are the inputs of all its linear layers,
    /// each with the matrices that read it. Errors unless the output head reads the residual stream through a norm, some weight writes to
    /// that stream (the first one is taken as the embedding), and each layer has a key projection, an output projection of the attention
    /// whose inputs are the outputs of a value projection, and a down projection.
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
        let (head, _) = head.ok_or_else(|| missing("a head that reads a norm"))?;
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
