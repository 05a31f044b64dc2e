//! [`Site`]: an input of a network with the matrices that consume it and what produces it.

/// One input of a network, the matrices that consume it (such as q, k and v), and its producer. A network is an ordered list of sites.
///
/// ```
/// use tersor_core::{Consumer, Folding, Producer, Role, Site};
/// let weight = |part: &str| format!("model.layers.0.mlp.{part}_proj.weight");
/// let consumer = |part: &str, role: Role| Consumer { weight: weight(part), shape: [64, 16], role };
/// let site = Site {
///     name: "model.layers.0.mlp.gate_up".into(),
///     layer: Some(0),
///     features: 16,
///     consumers: vec![consumer("gate", Role::Gate), consumer("up", Role::Up)],
///     producer: Producer::Norm { weight: "model.layers.0.post_attention_layernorm.weight".into() },
///     writers: vec![],
/// };
/// // Factors that divide these inputs fold into the norm.
/// assert_eq!(site.folding(), Folding::Producer);
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    /// The name of the site, unique in its network, such as `model.layers.3.self_attn.qkv`.
    pub name: String,
    /// The transformer layer that the [`Site`] (the matrices that read one input) belongs to, counted from 0; None for embedding and head.
    pub layer: Option<usize>,
    /// The number of features of the site's input.
    pub features: usize,
    /// The matrices that read the site's input, in order.
    pub consumers: Vec<Consumer>,
    /// The origin of the site's input: a norm, a matrix, or anything else.
    pub producer: Producer,
    /// If the site reads the residual stream through a norm: the names of all weights that wrote to the stream before, in order. Empty
    /// otherwise.
    pub writers: Vec<String>,
}

/// A matrix that reads the input of a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// The name of the consumer's weight, as in the model file.
    pub weight: String,
    /// `[out_features, in_features]` of the consumer's weight.
    pub shape: [usize; 2],
    /// The role of the consumer in the network.
    pub role: Role,
}

/// The role of a matrix in a network, such as the query projection or the head.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Role {
    /// Projects to queries.
    Query,
    /// Projects to keys.
    Key,
    /// Projects to values.
    Value,
    /// Projects the attention output to the residual stream.
    AttentionOutput,
    /// Projects to the gate of a feed-forward block.
    Gate,
    /// Projects to the inner activations of a feed-forward block.
    Up,
    /// Projects the inner activations of a feed-forward block to the residual stream.
    Down,
    /// The token embedding.
    Embedding,
    /// Projects to logits.
    Head,
    /// Any other matrix.
    Linear,
}

/// The origin of the input of a [`Site`]: a norm, a matrix, or anything else. Scales and rotations of the input can be folded into a norm or a matrix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Producer {
    /// A norm with an elementwise weight, into which factors can be folded.
    Norm {
        /// The name of the norm's weight.
        weight: String,
    },
    /// The output of a matrix: its rows are the features of the site, in order, and each block of `block` features is repeated `repeat`
    /// times side by side (grouped-query attention: the query heads of a group share their values).
    Linear {
        /// The name of the producing matrix's weight.
        weight: String,
        /// The number of features of a block, such as one head.
        block: usize,
        /// The number of times each block is used.
        repeat: usize,
    },
    /// Anything that factors cannot be folded into.
    Opaque,
}

/// Where the inputs of a [`Site`] can be divided by one factor for each feature, as smoothing does (the weights are multiplied by the same
/// factors).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folding {
    /// In the producer of the inputs, whose weights are divided: nothing is left to compute at run time.
    Producer,
    /// In front of the site's matrices: the division is computed at run time.
    Online,
    /// Nowhere without loss: the producer's features are used several times, so that the copies of a feature would have to share a factor.
    Shared,
}

impl Site {
    /// Returns where the inputs of this site can be divided by factors: in the producer if it is a norm, or a matrix whose features are
    /// used once; nowhere if it is a matrix whose features are repeated; at run time otherwise.
    pub fn folding(&self) -> Folding {
        match self.producer {
            Producer::Norm { .. } | Producer::Linear { repeat: 1, .. } => Folding::Producer,
            Producer::Linear { .. } => Folding::Shared,
            Producer::Opaque => Folding::Online,
        }
    }
}

/// Returns the name of the bias beside a weight, `….bias` for `….weight`; None for names of another form.
pub fn bias_name(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|w| format!("{w}.bias"))
}
