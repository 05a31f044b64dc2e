//! [`Site`]: an input of a network with the matrices that consume it and what produces it.

/// An input of one or more linear layers of a network, such as the input of q, k and v: the weight matrices that read it (consumers) and
/// what computes it (the producer). A network is a list of sites in the order of execution.
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
    /// The name of the site (an input of one or more linear layers), unique in its network, such as `model.layers.3.self_attn.qkv`.
    pub name: String,
    /// The index of the transformer layer that the site (an input of one or more linear layers) belongs to, counted from 0; None outside of
    /// the layers, as for the output head.
    pub layer: Option<usize>,
    /// The number of features of the site's input, which one or more linear layers share. Each of the weight matrices of these layers has
    /// this number of columns.
    pub features: usize,
    /// The weight matrices of the linear layers that share the site's input, such as those of q, k and v, in this order.
    pub consumers: Vec<Consumer>,
    /// What computes the site's input, which one or more linear layers share: a norm, a matrix (through attention or a gate, for example),
    /// or anything else. Factors for the features of the input can be multiplied into the stored weight of a norm or a matrix, but not into
    /// anything else.
    pub producer: Producer,
    /// If the site (an input of one or more linear layers) is the residual stream after a norm, which is then its `producer`: the names of
    /// all weights whose outputs make up the stream at this site, in the order of execution. These are the embedding and then the output
    /// and down projections in front of the site. Empty for all other sites.
    pub writers: Vec<String>,
}

/// A weight matrix that multiplies the input of a [`Site`], which one or more linear layers share, such as the matrix of q.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// The name of the weight, as in the model file.
    pub weight: String,
    /// The shape `[out_features, in_features]` of the weight.
    pub shape: [usize; 2],
    /// What the matrix computes, such as queries or logits.
    pub role: Role,
}

/// What a weight matrix computes in a network: queries, keys, values, the attention output, gate, up or down projection, embedding, logits,
/// or anything else.
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

/// What computes the input of a [`Site`], which one or more linear layers share: a norm, a matrix (through attention or a gate, for
/// example), or anything else. Factors for the features of the input can be folded (multiplied) into the stored weight of a norm or matrix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Producer {
    /// A norm with an elementwise weight, into which factors can be folded.
    Norm {
        /// The name of the norm's weight.
        weight: String,
    },
    /// A matrix whose rows are the features of the site, in order, except that each block of `block` neighbouring features is repeated
    /// `repeat` times side by side (grouped-query attention: the query heads of a group share their values). Its outputs may pass through
    /// attention or be multiplied by a gate before the site reads them: a factor of a row is a factor of the feature.
    Linear {
        /// The name of the producing matrix's weight.
        weight: String,
        /// The number of features of a block, such as the dimension of a head.
        block: usize,
        /// The number of times that each block occurs among the features of the site; 1 if nothing is repeated.
        repeat: usize,
    },
    /// Anything that factors cannot be folded into.
    Opaque,
}

/// Where the inputs of a [`Site`], which one or more linear layers share, can be divided by one factor for each feature, as smoothing does
/// while it multiplies the columns of the site's matrices by the same factors: in the stored weight that produces the inputs, at run time,
/// or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folding {
    /// In the stored weight of the norm or matrix that produces the inputs: nothing is left to compute at run time.
    Producer,
    /// At run time, in front of the site's matrices.
    Online,
    /// Nowhere without loss: the producer's features are used several times, so that the copies of a feature would have to share a factor.
    Shared,
}

impl Site {
    /// Returns the site of one weight matrix, `[out_features, in_features]`, that is known to be nothing more than a linear layer: the name of the
    /// site and of the weight are `weight`, and factors cannot be folded into what produces its input.
    ///
    /// ```
    /// let site = tersor_core::Site::linear("first.weight", [16, 4]);
    /// assert_eq!((site.features, site.consumers.len()), (4, 1));
    /// ```
    pub fn linear(weight: &str, shape: [usize; 2]) -> Self {
        Self {
            name: weight.into(),
            layer: None,
            features: shape[1],
            consumers: vec![Consumer { weight: weight.into(), shape, role: Role::Linear }],
            producer: Producer::Opaque,
            writers: Vec::new(),
        }
    }

    /// Returns where the inputs of this site, which one or more linear layers share, can be divided by one factor for each feature. The
    /// result is [`Folding::Producer`] (in the stored weight of the producer, which computes the inputs) if the producer is a norm, or a
    /// matrix each of whose outputs is one feature of the site. It is [`Folding::Shared`] (nowhere without loss) if the producer is a
    /// matrix whose outputs are repeated among the features, as the values of grouped-query attention are. It is [`Folding::Online`] (at
    /// run time) for any other producer.
    pub fn folding(&self) -> Folding {
        match self.producer {
            Producer::Norm { .. } | Producer::Linear { repeat: 1, .. } => Folding::Producer,
            Producer::Linear { .. } => Folding::Shared,
            Producer::Opaque => Folding::Online,
        }
    }
}

/// Returns the name of the bias that goes with the weight `weight`: `x.bias` for `x.weight`, whether or not there is such a tensor; None if
/// the name does not end in `.weight`.
pub fn bias_name(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|w| format!("{w}.bias"))
}
