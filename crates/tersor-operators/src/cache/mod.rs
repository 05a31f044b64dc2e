//! Stored forms of cached keys and values.

mod dense;
mod integers;
mod set;

use tersor_core::CacheRegistry;
use tersor_core::cache::MixedCaches;

pub use dense::DenseRows;
pub use integers::IntegerRows;
pub use set::DenseCaches;
pub use tersor_kernels::cached_rows::row_bytes as integer_row_bytes;

/// Adds the loaders of this crate's caches to `registry`, each under the `KIND` of its type: the stores of cached rows [`DenseRows`] and
/// [`IntegerRows`], and [`DenseCaches`], the caches of all layers. Each replaces a loader that the registry has for its kind.
pub fn register_caches(registry: &mut CacheRegistry) {
    registry.register_store(DenseRows::KIND, dense::load);
    registry.register_store(IntegerRows::KIND, integers::load);
    registry.register_set(DenseCaches::KIND, set::load);
}

/// Returns a new registry with the loaders of [`DenseRows`], [`IntegerRows`] and [`DenseCaches`], as [`register_caches`] adds them.
///
/// ```
/// use tersor_core::{CacheSet, MemTensors};
/// use tersor_operators::{DenseCaches, cache_registry};
/// # fn main() -> tersor_operators::Result<()> {
/// let spec = DenseCaches::f32().spec();
/// let again = cache_registry().load_set(&spec, "cache", &MemTensors::new())?;
/// assert_eq!(again.spec(), spec);
/// # Ok(())
/// # }
/// ```
pub fn cache_registry() -> CacheRegistry {
    let mut registry = CacheRegistry::new();
    MixedCaches::register(&mut registry);
    register_caches(&mut registry);
    registry
}

/// Moves rows of `width` elements so that those of the ascending numbers `keep` come first; truncates to them.
fn retain_rows<T: Copy>(rows: &mut Vec<T>, width: usize, keep: &[u32]) -> tersor_core::Result<()> {
    let len = rows.len() / width.max(1);
    check_keep(len, keep)?;
    for (to, &from) in keep.iter().enumerate() {
        rows.copy_within(from as usize * width..(from as usize + 1) * width, to * width);
    }
    rows.truncate(keep.len() * width);
    Ok(())
}

fn check_keep(len: usize, keep: &[u32]) -> tersor_core::Result<()> {
    if let Some(pair) = keep.windows(2).find(|k| k[0] >= k[1]) {
        return Err(tersor_core::Error::order("retained rows", "ascending", pair));
    }
    match keep.last().filter(|k| **k as usize >= len) {
        Some(k) => Err(tersor_core::Error::range("retained row", 0..len, k)),
        None => Ok(()),
    }
}

/// Returns `own` times row `into` plus the weighted sum of rows `from`, in the basis of the stored rows. Errors if a row does not exist.
fn merged(
    store: &dyn tersor_core::KvStore,
    into: u32,
    own: f32,
    from: &[(u32, f32)],
    exec: &tersor_core::Exec,
) -> tersor_core::Result<Vec<f32>> {
    let (dim, len) = (store.dim(), store.len());
    let (mut sum, mut row) = (vec![0f32; dim], vec![0f32; dim]);
    for &(i, weight) in [(into, own)].iter().chain(from) {
        if i as usize >= len {
            return Err(tersor_core::Error::range("merged row", 0..len, i));
        }
        store.decode(i as usize..i as usize + 1, &mut row, exec)?;
        tersor_kernels::vector::axpy(exec.isa(), weight, &row, &mut sum);
    }
    tersor_core::check_finite(&sum, dim, into as usize)?;
    Ok(sum)
}
