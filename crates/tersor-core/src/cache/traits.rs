//! The traits of caches: one layer's cache, the caches of a network, and the method that learns them.

use crate::{Context, Exec, Heads, Layout, OpSpec, Result, Rotation, TensorSink};

/// The new tokens of a step of one attention layer: their queries, keys and values as the projections gave them, before the rotary
/// embedding, and their positions.
#[derive(Clone, Copy, Debug)]
pub struct KvStep<'a> {
    /// Keys of the new tokens before the rotary embedding, `[tokens, key_heads * key_dim]` row-major.
    pub keys: &'a [f32],
    /// Values of the new tokens, `[tokens, value_heads * value_dim]` row-major.
    pub values: &'a [f32],
    /// Queries of the new tokens before the rotary embedding, `[tokens, query_heads * key_dim]` row-major, not yet multiplied by
    /// [`Heads::scale`].
    pub queries: &'a [f32],
    /// Position of each new token in the text, `[tokens]`, strictly ascending and above those of all tokens of earlier steps. A cache
    /// refuses positions that do not ascend or are not above those of all cached tokens.
    pub positions: &'a [u32],
}

/// The key-value cache of one attention layer, for one text: it appends tokens, computes the attention output of their queries, and evicts
/// or removes tokens. A decoder uses caches through this trait; [`LayerCache`](super::LayerCache) implements it.
pub trait KvCache: Send {
    /// Appends the tokens of `step`, then writes the attention output of their queries into `out`, `[tokens, query_heads * value_dim]`
    /// row-major. A token attends to cached tokens at its own and earlier positions. Errors, with the cache unchanged, if a length is
    /// wrong, positions do not ascend, or a value is not finite or cannot be stored; errors, with the new tokens removed again, if cached
    /// rows cannot be fetched.
    ///
    /// After [`seal`](Self::seal) a step ends with an eviction. If the eviction fails, the step errors, but the tokens are cached and `out`
    /// is written. If it fails after rows were removed, if new tokens cannot be removed again, or if rows cannot be fetched after a scorer
    /// of tokens has observed some queries of the step, every later step, scoring, sealing and truncation errors until
    /// [`clear`](Self::clear).
    fn step(&mut self, step: KvStep<'_>, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Scores the cached tokens of the prompt, which has ended, and reports the scores to the budget of an eviction, which layers may
    /// share. The caller does this on the caches of all layers before it seals the first of them. Errors if a score is NaN or cannot be
    /// computed. Does nothing by default.
    fn score_prompt(&mut self, exec: &Exec) -> Result<()> {
        let _ = exec;
        Ok(())
    }

    /// Ends the prompt: a cache that evicts tokens does so here and after every later step. Errors if a score is NaN or cannot be computed,
    /// the budget cannot be met, or a store cannot remove or merge rows. Does nothing by default.
    fn seal(&mut self, exec: &Exec) -> Result<()> {
        let _ = exec;
        Ok(())
    }

    /// Keeps the first `len` tokens that were appended and removes the others; does nothing if there are no more than `len`. Errors if
    /// tokens were evicted or merged since the cache was empty, or if a store cannot remove rows.
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// Removes all tokens and ends the state of the text, so that the cache is as it was made and can take a new text.
    fn clear(&mut self);

    /// Returns the number of bytes that the cached keys and values take.
    fn bytes(&self) -> usize;

    /// Returns the number of tokens appended, evicted ones included.
    fn len(&self) -> usize;

    /// Returns whether no token was appended.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A method of caching keys and values: it learns its parameters (such as codebooks) from calibration data and returns a [`CacheSet`],
/// which makes the caches of all layers.
pub trait CacheMethod: Send + Sync {
    /// Returns how many calibration tokens, and which of their tensors, [`fit`](Self::fit) needs; nothing for a method that does not learn.
    fn needs(&self) -> CacheNeeds;

    /// Returns the cache set learned from a sample of all layers, which has at least what [`needs`](Self::needs) states. Errors if it has
    /// not, or if the heads do not suit the method.
    fn fit(&self, sample: &CacheSample<'_>, cx: &Context) -> Result<Box<dyn CacheSet>>;

    /// Returns the sizes of everything that will be stored, from the heads of each layer alone, in order. Errors if the heads do not suit
    /// the method.
    fn layout(&self, layers: &[Heads]) -> Result<CacheLayout>;
}

/// The sizes of what a [`CacheMethod`] stores for a network: the bytes of each cached token, and the learned tensors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheLayout {
    /// Bytes that the keys and values of one token take in the caches of all layers together, before eviction.
    pub bytes_per_token: usize,
    /// Name, type and shape of the learned tensors that [`CacheSet::save`] writes; no tensors for a method that does not learn. Names are
    /// without the prefix under which the set is saved.
    pub tensors: Layout,
}

/// The calibration data that a [`CacheMethod`] needs in each layer. By default it needs none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheNeeds {
    /// Number of calibration tokens whose keys and values are needed in each layer; 0 for none.
    pub tokens: usize,
    /// Whether the queries of the same calibration tokens are needed too.
    pub queries: bool,
}

/// Keys, values and, if they were needed, queries of calibration tokens in each layer of a network, from which a [`CacheMethod`] learns.
#[derive(Clone, Copy, Debug)]
pub struct CacheSample<'s> {
    /// The heads of each layer of the network, `[layers]`, in order: their numbers and widths, window and rotary embedding.
    pub heads: &'s [Heads],
    /// Keys, values, queries and positions of the calibration tokens of each layer, `[layers]`, in order, before the rotary embedding. The
    /// list is empty if no tokens were needed; the queries in it are empty if they were not needed.
    pub layers: &'s [KvStep<'s>],
    /// The rotations of keys that are stored with the network, `[layers]`, in order; None for a layer without one. Empty if the network
    /// has none.
    pub key_rotations: &'s [Option<Rotation>],
}

/// What a [`CacheMethod`] returns for a network: the parameters that it learned, such as codebooks, and the way in which keys and values
/// are stored. A cache set makes empty caches of all layers for each new text. It is saved by its own methods [`spec`](Self::spec) and
/// [`save`](Self::save), and loaded through a [`CacheRegistry`](super::CacheRegistry).
pub trait CacheSet: Send + Sync {
    /// Returns an empty cache for each layer, in order, given the heads of each layer. Errors if the number of layers or their heads do not
    /// suit the set.
    fn make(&self, layers: &[Heads]) -> Result<Vec<Box<dyn KvCache>>>;

    /// Returns the number of bytes that one token takes in the caches of all layers together, before eviction, given the heads of each
    /// layer. Errors if the number of layers or their heads do not suit the set.
    fn bytes_per_token(&self, layers: &[Heads]) -> Result<usize>;

    /// Returns the specification of the set: the kind under which its loader is registered, and its parameters.
    fn spec(&self) -> OpSpec;

    /// Writes the learned tensors under names that begin with `prefix`. Errors if the sink does.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()>;
}
