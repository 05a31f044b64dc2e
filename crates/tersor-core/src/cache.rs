//! Caches of keys and values, which attend: one may keep its keys as codes and never unpack them.

use crate::{Exec, Result};

/// Keys and values of new tokens, as the projections gave them.
#[derive(Clone, Copy, Debug)]
pub struct KvBlock<'a> {
    /// `[tokens, kv_heads * head_dim]`, before the rotary embedding.
    pub keys: &'a [f32],
    /// `[tokens, kv_heads * head_dim]`.
    pub values: &'a [f32],
    /// Position of each token in the text.
    pub positions: &'a [u32],
}

/// Queries of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[tokens, heads * head_dim]`, before the rotary embedding.
    pub data: &'a [f32],
    /// Position of each token in the text; a token attends to keys at its own and earlier positions.
    pub positions: &'a [u32],
}

/// Hears the attention probabilities, for policies that score tokens by them.
pub trait ProbSink {
    /// The probabilities of one query of one head over the cached tokens, in their order.
    fn probs(&mut self, head: usize, position: u32, probs: &[f32]);
}

/// The cache of one layer, built with its rotary embedding.
pub trait KvCache: Send {
    /// Adds tokens. Error, with the cache unchanged, when lengths do not fit.
    fn append(&mut self, block: KvBlock<'_>, exec: &mut Exec) -> Result<()>;
    /// Writes the attention output `[tokens, heads * head_dim]`. Error when lengths do not fit, or a query has nothing to attend to.
    fn attend(
        &mut self,
        queries: Queries<'_>,
        out: &mut [f32],
        probs: Option<&mut dyn ProbSink>,
        exec: &mut Exec,
    ) -> Result<()>;
    /// The prompt has ended: policies that decide once do it here.
    fn seal(&mut self) -> Result<()> {
        Ok(())
    }
    /// Forgets all tokens from number `len` on. Refused by caches that have merged or evicted some of them.
    fn truncate(&mut self, len: usize) -> Result<()>;
    /// Forgets everything.
    fn clear(&mut self);
    /// Bytes of what is kept.
    fn bytes(&self) -> usize;
    /// Tokens seen.
    fn len(&self) -> usize;
    /// Whether none were.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
