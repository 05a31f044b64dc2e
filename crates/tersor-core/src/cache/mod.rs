//! Caches of keys and values, and attention over them.
//!
//! A [`KvStore`] holds one side of one head in some form. [`LayerCache`] is the cache of a layer over two stores per head: it owns positions, applies
//! the rotary embedding, appends in blocks, attends, evicts and merges. A decoder knows the trait [`KvCache`] alone; a [`CacheSet`] makes the caches of
//! all layers, and a [`CacheMethod`] learns such a set. Stored forms are in `tersor-operators`.
//!
//! Keys are `[tokens, key_heads * key_dim]`, values `[tokens, value_heads * value_dim]`, queries `[tokens, query_heads * key_dim]`.

mod attend;
pub mod check;
mod evict;
mod heads;
mod layer;
mod mixed;
mod positions;
mod registry;
mod rotary;
mod store;
mod stored;
mod traits;

pub use attend::FORK;
pub use evict::{Budget, Eviction, Merge, Probs, Recall, TokenScorer};
pub use heads::Heads;
pub use layer::LayerCache;
pub use mixed::{MixedCaches, MixedLayer};
pub use registry::{CacheLoading, CacheRegistry, CacheSetLoader, StoreLoader};
pub use rotary::{Angles, Rotary, RotaryScaling};
pub use store::{KvStore, Prepared, Rope, add_weighted_decoded, by_blocks, copy_rows, dot_decoded};
pub use tersor_kernels::attention::Product;
pub use traits::{CacheLayout, CacheMethod, CacheNeeds, CacheSample, CacheSet, KvCache, KvStep};
