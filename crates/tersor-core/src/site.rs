//! [`Site`]: one input of a network, the matrices that consume it, and what produces it.

/// One input, the matrices that consume it, and what produces it. A network is an ordered list of sites.
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    /// A name that is unique in the network: `model.layers.3.self_attn.qkv`.
    pub name: String,
    /// Transformer layer, counted from 0; none for embedding and head.
    pub layer: Option<usize>,
    /// Features of the input.
    pub features: usize,
    /// The matrices that read it, in order.
    pub consumers: Vec<Consumer>,
    /// What the input comes out of.
    pub producer: Producer,
    /// Where the input is read from the residual stream through a norm: the weights of all matrices that wrote to the stream before, in order.
    pub writers: Vec<String>,
}

/// A matrix that reads a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// Name of its weight, as in the model file.
    pub weight: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// What the matrix does in the network.
    pub role: Role,
}

/// What a matrix does in a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Role {
    /// Makes queries.
    Query,
    /// Makes keys.
    Key,
    /// Makes values.
    Value,
    /// Reads the attention output and writes to the stream.
    AttentionOutput,
    /// Makes the gate of a feed-forward part.
    Gate,
    /// Makes the inner activations of a feed-forward part.
    Up,
    /// Reads the inner activations and writes to the stream.
    Down,
    /// Is looked up by tokens.
    Embedding,
    /// Makes logits.
    Head,
    /// Any other matrix.
    Linear,
}

/// What an input comes out of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Producer {
    /// A norm with an elementwise weight, into which factors fold.
    Norm {
        /// Name of its weight.
        weight: String,
    },
    /// Rows of a matrix: its outputs are the features of the site, in order, each block of `block` features used `repeat` times side by side
    /// (query heads of a group share their values).
    Linear {
        /// Name of its weight.
        weight: String,
        /// Features of one head, or all of them.
        block: usize,
        /// How often each block is used.
        repeat: usize,
    },
    /// Something that nothing folds into.
    Opaque,
}

/// Where factors go that inputs are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folding {
    /// Into what produces the inputs: nothing is left to do when the network runs.
    Producer,
    /// In front of the matrices, when the network runs.
    Online,
    /// Nowhere: what produces the inputs uses each of its features several times, and they would have to share factors.
    Shared,
}

impl Site {
    /// Returns where factors that divide the inputs would go.
    pub fn folding(&self) -> Folding {
        match self.producer {
            Producer::Norm { .. } | Producer::Linear { repeat: 1, .. } => Folding::Producer,
            Producer::Linear { .. } => Folding::Shared,
            Producer::Opaque => Folding::Online,
        }
    }
}

/// Returns the name of the bias beside a weight: `….bias` for `….weight`; none for other names.
pub fn bias_name(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|w| format!("{w}.bias"))
}
