#![doc = include_str!("../README.md")]

#[cfg(feature = "blockwise")]
pub use tersor_blockwise as blockwise;
pub use tersor_core as core;
#[cfg(feature = "formats")]
pub use tersor_formats as formats;
#[cfg(feature = "groupwise")]
pub use tersor_groupwise as groupwise;
#[cfg(feature = "kv")]
pub use tersor_kv as kv;
#[cfg(feature = "linalg")]
pub use tersor_linalg as linalg;
#[cfg(feature = "lowrank")]
pub use tersor_lowrank as lowrank;
#[cfg(feature = "models")]
pub use tersor_models as models;
pub use tersor_operators as operators;
pub use tersor_operators::registry;
#[cfg(feature = "pipeline")]
pub use tersor_pipeline as pipeline;

/// Returns a registry that loads saved key-value caches from their specification and tensors. It has loaders of the
/// [`KvStore`](core::KvStore) kinds (the cached keys or values of one head) `dense-rows` and `integer-rows`, and of the
/// [`CacheSet`](core::CacheSet) kinds (the caches of all layers) `dense-caches` and, with the feature `kv`, `integer-caches`. Loading any
/// other kind errors.
///
/// ```
/// use tersor::core::{MemTensors, OpSpec};
/// let registry = tersor::cache_registry();
/// let unknown = registry.load_store(&OpSpec::new("no such store", [1, 1]), "keys", &MemTensors::new());
/// assert!(unknown.is_err_and(|e| e.to_string().contains("no such store")));
/// ```
pub fn cache_registry() -> core::CacheRegistry {
    #[allow(unused_mut)]
    let mut registry = tersor_operators::cache_registry();
    #[cfg(feature = "kv")]
    tersor_kv::register_caches(&mut registry);
    registry
}

/// Returns the registry that makes stages with default parameters by the names of their kinds; to add kinds, clone it. A stage is one step
/// of the compression of a matrix, such as smoothing, quantization or a low-rank correction; a recipe lists the stages for each matrix. The
/// kinds are those of the crate [`operators`] (float types and quantized activations) and, with the features `groupwise`, `blockwise` and
/// `lowrank`, of the crates of these names.
///
/// ```
/// let stages = tersor::stages();
/// assert_eq!(stages.make("gptq")?.kind(), "gptq");
/// assert!(stages.make("gtpq").is_err_and(|e| e.to_string().contains("gptq")));
/// # Ok::<(), tersor::core::Error>(())
/// ```
pub fn stages() -> &'static core::stages::Stages {
    // Registered once: each registration makes a stage, some of which make tables.
    static ALL: std::sync::LazyLock<core::stages::Stages> = std::sync::LazyLock::new(|| {
        let mut stages = core::stages::Stages::new();
        tersor_operators::register_stages(&mut stages);
        #[cfg(feature = "groupwise")]
        tersor_groupwise::register_stages(&mut stages);
        #[cfg(feature = "blockwise")]
        tersor_blockwise::register_stages(&mut stages);
        #[cfg(feature = "lowrank")]
        tersor_lowrank::register_stages(&mut stages);
        #[cfg(feature = "kv")]
        tersor_kv::register_stages(&mut stages);
        stages
    });
    &ALL
}

/// Returns all kinds of operators and stages, with which a [`pipeline`] works.
///
/// ```
/// use tersor::pipeline::Recipe;
/// let recipe = Recipe::find("w4-g32-gptq", &tersor::kinds().stages)?;
/// assert_eq!(recipe.rules.len(), 2);
/// # Ok::<(), tersor::core::Error>(())
/// ```
#[cfg(feature = "pipeline")]
pub fn kinds() -> &'static pipeline::Kinds {
    static ALL: std::sync::LazyLock<pipeline::Kinds> =
        std::sync::LazyLock::new(|| pipeline::Kinds { operators: registry(), stages: stages().clone() });
    &ALL
}

/// The examples of the design page, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/design.md")]
mod design {}

/// The example of the page on recipes, as a documentation test.
#[cfg(all(doctest, feature = "pipeline"))]
#[doc = include_str!("../../../docs/recipes.md")]
mod recipes {}
