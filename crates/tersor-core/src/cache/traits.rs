//! The traits of caches: one layer's cache, the caches of a network, and the method that learns them.

use crate::{Context, Exec, Heads, Layout, OpSpec, Result, TensorSink};

/// The new tokens of one layer: their positions, and queries, keys and values as the projections gave them, before the rotary embedding.
#[derive(Clone, Copy, Debug)]
pub struct KvStep<'a> {
    /// Keys of the new tokens before the rotary embedding, `[tokens, key_heads * key_dim]` row-major.
    pub keys: &'a [f32],
    /// Values of the new tokens, `[tokens, value_heads * value_dim]` row-major.
    pub values: &'a [f32],
    /// Queries of the new tokens before the rotary embedding, `[tokens, query_heads * key_dim]` row-major.
    pub queries: &'a [f32],
    /// Positions of the new tokens in the text, ascending, above those of earlier steps.
    pub positions: &'a [u32],
}

/// The key-value cache of one attention layer: it appends tokens, returns the attention output of their queries, and evicts or removes tokens. A
/// decoder uses caches through this trait; [`LayerCache`](super::LayerCache) implements it.
pub trait KvCache: Send {
    /// Appends the tokens of `step`, then writes the attention output of their queries, `[tokens, query_heads * value_dim]`. A token attends to cached
    /// tokens at its own and earlier positions. Errors, with the cache unchanged, if a length is wrong, positions do not ascend, or a value is not
    /// finite or cannot be stored. After [`seal`](Self::seal) a step ends with an eviction: if that alone fails, the tokens are cached and `out` is
    /// written; if it fails after rows were removed, every later call but [`clear`](Self::clear) errors.
    fn step(&mut self, step: KvStep<'_>, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Scores the tokens of the prompt, which has ended, and reports the scores to a budget that spans layers. Called on the caches of all layers
    /// before the first of them is sealed. Errors if a score is NaN or cannot be computed.
    fn score_prompt(&mut self, exec: &Exec) -> Result<()> {
        let _ = exec;
        Ok(())
    }

    /// Ends the prompt: a cache that evicts tokens does so here and after every later step. Errors if scores are not finite or a store refuses.
    fn seal(&mut self, exec: &Exec) -> Result<()> {
        let _ = exec;
        Ok(())
    }

    /// Removes all tokens from number `len` on. Errors once tokens were evicted or merged.
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// Removes everything.
    fn clear(&mut self);

    /// Returns the bytes of cached keys and values.
    fn bytes(&self) -> usize;

    /// Returns the number of tokens seen, evicted ones included.
    fn len(&self) -> usize;

    /// Returns whether no token was seen.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A method of caching keys and values: it learns from calibration data and returns a [`CacheSet`].
pub trait CacheMethod: Send + Sync {
    /// Returns how many calibration tokens, and which of their tensors, [`fit`](Self::fit) needs.
    fn needs(&self) -> CacheNeeds;

    /// Returns the cache set learned from samples of all layers. Errors if they lack what [`needs`](Self::needs) states.
    fn fit(&self, sample: &CacheSample<'_>, cx: &Context) -> Result<Box<dyn CacheSet>>;

    /// Returns the sizes of what will be stored, from the heads of all layers alone. Errors if the heads do not suit.
    fn layout(&self, layers: &[Heads]) -> Result<CacheLayout>;
}

/// The sizes of what a [`CacheMethod`] stores for a network: bytes of each cached token, and the learned tensors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheLayout {
    /// Bytes that one token takes in the caches of all layers together, before eviction.
    pub bytes_per_token: usize,
    /// The learned tensors that [`CacheSet::save`] writes.
    pub tensors: Layout,
}

/// The samples that a [`CacheMethod`] needs; none by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheNeeds {
    /// Number of calibration tokens whose keys and values are needed, in each layer.
    pub tokens: usize,
    /// Whether the queries of these calibration tokens are needed too.
    pub queries: bool,
}

/// Keys, values and queries of calibration tokens.
#[derive(Clone, Copy, Debug)]
pub struct CacheSample<'s> {
    /// The heads of each layer of the network, in order: numbers, widths, window and rotary embedding.
    pub heads: &'s [Heads],
    /// Keys, values and queries of the calibration tokens of each layer, before the rotary embedding; empty if no tokens were needed. Queries are empty
    /// if they were not needed.
    pub layers: &'s [KvStep<'s>],
}

/// The caches of a network as a method learned them: makes empty caches of all layers for each new text, and is saved and loaded through a
/// [`CacheRegistry`](super::CacheRegistry).
pub trait CacheSet: Send + Sync {
    /// Returns empty caches, one for each of the layers' heads, in order. Errors if the heads do not suit.
    fn make(&self, layers: &[Heads]) -> Result<Vec<Box<dyn KvCache>>>;

    /// Returns the bytes of one token in the caches of all layers, before eviction. Errors if the heads do not suit.
    fn bytes_per_token(&self, layers: &[Heads]) -> Result<usize>;

    /// Returns the specification of the set: the kind under which its loader is registered, and parameters.
    fn spec(&self) -> OpSpec;

    /// Writes the learned tensors under `prefix`. Errors if the sink does.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()>;
}
