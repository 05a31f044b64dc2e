//! Loaders of caches: stores, caches of a layer, and sets of caches. What was loaded is used, too.

use std::sync::Arc;

use tersor::core::cache::{CacheLoading, Prepared, Product, Rotary};
use tersor::core::{
    CacheSet, Check, DType, Exec, Heads, KvCache, KvStep, KvStore, LayerCache, MatView, MemTensors, OpSpec, Rotation,
    TensorSource,
};
use tersor::formats::json;
use tersor::kv::{IntegerCaches, Integers};
use tersor::operators::{DenseCaches, DenseRows, IntegerRows};

use super::operators::{joined, values};
use super::{parsed, split, stored};

/// Values of the rows, and of a token, of a cache that is used completely; larger ones are loaded only.
const MAX_ELEMENTS: usize = 1 << 14;

/// Width of the rows of seeds.
const DIM: usize = 8;

fn rotation() -> Rotation {
    Rotation::new(&[1.0], DIM, &[1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0]).unwrap()
}

/// Returns an empty store of each form.
fn stores() -> [Box<dyn KvStore>; 4] {
    [
        Box::new(DenseRows::new(DIM, DType::F32).unwrap()),
        Box::new(DenseRows::new(DIM, DType::F16).unwrap()),
        Box::new(IntegerRows::new(&[(5, 3), (3, 8)], None).unwrap()),
        Box::new(IntegerRows::new(&[(8, 4)], Some(Arc::new(rotation()))).unwrap()),
    ]
}

/// Returns a saved store of each form, caches of a layer of each form, one with evicted tokens, and sets.
pub fn caches() -> Vec<Vec<u8>> {
    let exec = &Exec::serial();
    let mut all = Vec::new();
    for mut store in stores() {
        let rows = values(3 * DIM);
        store.append(MatView::new(&rows, [3, DIM]).unwrap(), &[0, 1, 2], exec);
        let mut tensors = MemTensors::new();
        store.save("w", &mut tensors).unwrap();
        all.push(joined(&store.spec(), &tensors));
    }
    for (keys, values_of) in stores().into_iter().zip(stores().into_iter().rev()) {
        let mut cache = LayerCache::new(Heads::new(2, 1, DIM).unwrap(), vec![keys], vec![values_of]).unwrap();
        cache.append(&values(3 * DIM), &values(3 * DIM), &[0, 1, 5], exec).unwrap();
        let mut tensors = MemTensors::new();
        cache.save("w", &mut tensors).unwrap();
        all.push(joined(&cache.spec(), &tensors));
    }
    all.push(evicted());
    let integers = |bits| Integers::new(bits).high(2).key_rotation(rotation()).check().unwrap();
    let sets: [Box<dyn CacheSet>; 3] = [
        Box::new(DenseCaches::new(DType::F16).unwrap()),
        Box::new(IntegerCaches::new(Integers::new(4).check().unwrap())),
        Box::new(IntegerCaches::by_layer(vec![integers(3), integers(4)]).unwrap()),
    ];
    for set in sets {
        let mut tensors = MemTensors::new();
        set.save("w", &mut tensors).unwrap();
        all.push(joined(&set.spec(), &tensors));
    }
    all
}

/// Returns a saved cache of two key heads that kept three and two of seven tokens.
fn evicted() -> Vec<u8> {
    let mut tensors = MemTensors::new();
    let mut spec = OpSpec::new("layer-cache", [3, DIM])
        .size("query_heads", 2)
        .size("value_dim", DIM)
        .size("seen", 7)
        .int("evicted", 1)
        .int("sealed", 1)
        .size("positions", 2);
    for (head, kept) in [&[0u32, 3, 6][..], &[2, 6]].into_iter().enumerate() {
        let bytes: Vec<u8> = kept.iter().flat_map(|p| p.to_le_bytes()).collect();
        let info = tersor::core::TensorInfo { dtype: DType::U32, shape: vec![kept.len()] };
        tersor::core::TensorSink::write_shared(&mut tensors, &format!("w.positions.{head}"), &info, &bytes).unwrap();
        for (side, form) in [("keys", 2), ("values", 1)] {
            let [a, b, c, _] = stores();
            let mut store = [a, b, c].into_iter().nth(form).unwrap();
            let rows = values(kept.len() * DIM);
            store.append(MatView::new(&rows, [kept.len(), DIM]).unwrap(), kept, &Exec::serial());
            store.save(&format!("w.{side}.{head}"), &mut tensors).unwrap();
            spec = spec.part(&format!("{side}.{head}"), store.spec());
        }
    }
    joined(&spec, &tensors)
}

pub fn cache(bytes: &[u8]) -> bool {
    let Some((spec, file)) = split(bytes) else { return false };
    let spec = parsed(spec).and_then(|j| json::to_spec(&j).ok());
    let Some((spec, file)) = spec.zip(stored(file)) else { return false };
    let registry = tersor::cache_registry();
    match spec.kind.as_str() {
        "layer-cache" => layer(&spec, &file),
        DenseCaches::KIND | IntegerCaches::KIND => {
            registry.load_set(&spec, "w", &file).is_ok_and(|set| set_works(&*set))
        }
        _ => registry.load_store(&spec, "w", &file).is_ok_and(store_works),
    }
}

/// Loads a cache for the heads that its specification fits, and uses it.
fn layer(spec: &OpSpec, file: &dyn TensorSource) -> bool {
    let count = |side: &str| spec.parts.keys().filter(|k| k.starts_with(side)).count();
    let size = |name: &str| spec.get_size(name).ok().filter(|n| *n < MAX_ELEMENTS);
    let Some((query, value_dim)) = size("query_heads").zip(size("value_dim")) else { return false };
    let (key_heads, key_dim) = (count("keys."), spec.shape[1]);
    if key_dim.max(value_dim).saturating_mul(query) > MAX_ELEMENTS {
        return false;
    }
    let heads = Heads::new(query, key_heads, key_dim).and_then(|h| h.with_values(count("values."), value_dim));
    // Where a width can have a rotary embedding, keys have one.
    let heads = heads.and_then(|h| match Rotary::new(key_dim, 100.0) {
        Ok(rotary) => h.with_rotary(Arc::new(rotary)),
        Err(_) => Ok(h),
    });
    let Ok(heads) = heads else { return false };
    let registry = tersor::cache_registry();
    let load = |spec: &OpSpec, file: &dyn TensorSource| {
        LayerCache::load(heads.clone(), None, spec, "w", &CacheLoading::new(&registry, file))
    };
    let Ok(mut cache) = load(spec, file) else { return false };
    let mut tensors = MemTensors::new();
    cache.save("w", &mut tensors).unwrap();
    let again = load(&cache.spec(), &tensors);
    assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
    let exec = &Exec::serial();
    for head in 0..key_heads {
        let n = cache.keys(head).unwrap().len();
        assert_eq!(cache.positions(head).len(), n, "positions of head {head}");
        let small = n * key_dim.max(value_dim) < MAX_ELEMENTS;
        if !small || cache.read_keys(head, 0..n, &mut vec![0.0; n * key_dim], exec).is_err() {
            return small;
        }
    }
    let mut ok = true;
    for head in 0..heads.value_heads() {
        let n = cache.values(head).unwrap().len();
        ok &= cache.read_values(head, 0..n, &mut vec![0.0; n * value_dim], exec).is_ok();
    }
    let next = (0..key_heads).filter_map(|h| cache.positions(h).last()).max().map_or(Some(0), |p| p.checked_add(1));
    if let Some(next) = next {
        ok &= steps(&mut cache, &heads, next);
    }
    let _ = cache.seal(exec);
    let _ = cache.truncate(cache.len() / 2);
    cache.clear();
    ok & steps(&mut cache, &heads, 0)
}

/// Appends a token at a position, and attends. Returns whether there was no error.
fn steps(cache: &mut dyn KvCache, heads: &Heads, position: u32) -> bool {
    let keys = values(heads.key_heads() * heads.key_dim());
    let values_of = values(heads.value_heads() * heads.value_dim());
    let queries = values(heads.query_heads() * heads.key_dim());
    let mut out = vec![0.0; heads.query_heads() * heads.value_dim()];
    let step = KvStep { keys: &keys, values: &values_of, queries: &queries, positions: &[position] };
    cache.step(step, &mut out, &Exec::serial()).is_ok()
}

/// Makes the caches of one layer and of two, and uses them.
fn set_works(set: &dyn CacheSet) -> bool {
    let mut tensors = MemTensors::new();
    set.save("w", &mut tensors).unwrap();
    let again = tersor::cache_registry().load_set(&set.spec(), "w", &tensors);
    assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
    let heads = Heads::new(2, 1, DIM).unwrap();
    let mut ok = false;
    for layers in 1..3 {
        let all = vec![heads.clone(); layers];
        let Ok(mut caches) = set.make(&all) else { continue };
        assert!(set.bytes_per_token(&all).is_ok(), "caches without a size");
        ok |= caches.iter_mut().all(|c| steps(&mut **c, &heads, 0) && steps(&mut **c, &heads, 3));
    }
    ok
}

/// Uses every method of a store.
fn store_works(mut store: Box<dyn KvStore>) -> bool {
    let (n, dim) = (store.len(), store.dim());
    if n.saturating_add(1).saturating_mul(dim) > MAX_ELEMENTS {
        return true;
    }
    let mut tensors = MemTensors::new();
    store.save("w", &mut tensors).unwrap();
    let again = tersor::cache_registry().load_store(&store.spec(), "w", &tensors);
    assert!(again.is_ok(), "what was saved does not load: {}", again.err().unwrap());
    let exec = &Exec::serial();
    let (row, mut rows) = (values(dim), vec![0.0; n * dim]);
    let block = MatView::new(&row, [1, dim]).unwrap();
    let mut ok = store.decode(0..n, &mut rows, exec).is_ok() && store.read(0..n, &mut rows, exec).is_ok();
    for product in [Product::Vector, Product::Matrix] {
        let mut prepared = Prepared { queries: 1, product, ..Prepared::default() };
        ok &= store.prepare(block, 0.5, &mut prepared, exec).is_ok();
        ok &= store.dot(&prepared, 0..n, &mut vec![0.0; n], exec).is_ok();
        let mut out = vec![0.0; dim];
        ok &= store.add_weighted(&vec![0.5; n], product, 0..n, &mut out, exec).is_ok();
        store.finish(&mut out, exec);
    }
    if store.admit(block).is_ok() {
        store.append(block, &[n as u32], exec);
        assert_eq!(store.len(), n + 1);
    }
    let _ = store.merge(0, 0.5, &[(n as u32 / 2, 0.5)], exec);
    let every_second: Vec<u32> = (0..n as u32).step_by(2).collect();
    ok &= store.retain(&every_second).is_ok() && store.len() == every_second.len();
    ok &= store.truncate(1).is_ok();
    store.clear();
    ok && store.is_empty()
}
