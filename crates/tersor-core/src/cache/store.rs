//! [`KvStore`]: the keys, or the values, of one head.

use std::ops::Range;

use tersor_kernels::attention::{self, Product};
use tersor_kernels::{Out, vector};

use crate::{Error, Exec, MatView, OpSpec, Result, RowSource, TensorSink};

/// Whether a store caches keys before (`Before`) or after (`After`) the rotary embedding is applied to them. By default [`KvStore::rope`]
/// returns `After`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rope {
    /// Keys are cached as they come from their projection. The store applies the rotary embedding to them in [`KvStore::dot`], by the
    /// positions that [`KvStore::append`] gave; [`KvStore::read`] returns them without it.
    Before,
    /// Keys are cached after the rotary embedding, which [`LayerCache`](super::LayerCache) applies before it appends them.
    After,
}

/// The queries of one call of attention, in the form in which a store multiplies them with its keys: [`KvStore::prepare`] writes them and
/// [`KvStore::dot`] reads them. This form is rows of floats in the basis of the stored rows (rotated if the store rotates its rows),
/// integer codes, or lookup tables.
#[derive(Clone, Default, Debug)]
pub struct Prepared {
    /// The prepared queries as floats: by default the queries, `[queries, dim]` row-major for keys of `dim` values, times the factor
    /// `scale` that [`KvStore::prepare`] was given for the products of queries and keys; lookup tables in stores that use them.
    pub floats: Vec<f32>,
    /// The prepared queries as integer codes or lookup tables, in the layout of the store that wrote them; empty in stores that multiply
    /// floats, and by default.
    pub bytes: Vec<u8>,
    /// The number of prepared queries: query tokens times the query heads that share the key head. The caller of [`KvStore::prepare`] sets
    /// it.
    pub queries: usize,
    /// Whether a store multiplies the prepared queries with one key at a time ([`Product::Vector`], the default) or as a matrix product
    /// ([`Product::Matrix`]). The caller of [`KvStore::prepare`] sets it.
    pub product: Product,
}

/// The cached keys, or the cached values, of one head in some stored form: one row of `dim` values for each cached token.
/// [`LayerCache`](super::LayerCache) attends over such stores, one for each key head and one for each value head, and does everything else:
/// positions, rotary embedding, grouping of query heads, windows, threads, eviction.
///
/// A new form implements the methods without a default: it appends and decodes rows. By default, [`dot`](Self::dot) and
/// [`add_weighted`](Self::add_weighted) decode a block of rows at a time; a form that multiplies its codes directly overrides them.
/// `LayerCache` guarantees that ranges of rows lie inside `0..len()` and that slices have the stated lengths.
/// [`store_equals_its_rows`](super::check::store_equals_its_rows) tests an implementation.
pub trait KvStore: Send + Sync {
    /// Returns the number of cached rows, one for each token.
    fn len(&self) -> usize;

    /// Returns whether no row is cached.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the width of a row in values: that of a key or value head.
    fn dim(&self) -> usize;

    /// Returns whether the store receives keys before or after the rotary embedding; the default is after. Stores of values keep the
    /// default.
    fn rope(&self) -> Rope {
        Rope::After
    }

    /// Checks a block `[tokens, dim]` for everything that [`append`](Self::append) could refuse. Errors if a value is not finite or the
    /// stored form cannot hold it. Called for the stores of all heads before any of them is appended to.
    fn admit(&self, block: MatView<'_, f32>) -> Result<()>;

    /// Appends a block `[tokens, dim]` that [`admit`](Self::admit) has accepted, so that it cannot fail. `positions` are the positions of
    /// its tokens in the text, `[tokens]`, ascending.
    fn append(&mut self, block: MatView<'_, f32>, positions: &[u32], exec: &Exec);

    /// Writes rows in f32 into `out`, `[rows.len(), dim]` row-major, in the basis of the stored rows (rotated if the store rotates its
    /// rows), which is also that of prepared queries. Errors if rows cannot be fetched.
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Writes rows in f32 into `out`, `[rows.len(), dim]` row-major, in the basis in which they were appended: a form that rotates rows
    /// undoes the rotation here. Errors if rows cannot be fetched. The default is [`decode`](Self::decode).
    fn read(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.decode(rows, out, exec)
    }

    /// Prepares queries `[queries, dim]`, after their rotary embedding, for [`dot`](Self::dot), which is to return their products with keys
    /// times `scale`. The caller has set `queries` and `product` of `out`. By default, `out.floats` becomes the queries times `scale`.
    /// Errors if the queries cannot be brought into this form; the attention fails then.
    fn prepare(&self, queries: MatView<'_, f32>, scale: f32, out: &mut Prepared, exec: &Exec) -> Result<()> {
        copy_rows(queries, &mut out.floats)?;
        vector::scale(exec.isa(), scale, &mut out.floats);
        Ok(())
    }

    /// Writes scores into `out`, `[queries, rows.len()]` row-major: the products of the prepared queries with the cached keys `rows`, times
    /// the scale that [`prepare`](Self::prepare) was given. Every element is overwritten. Errors if rows cannot be fetched.
    fn dot(&self, q: &Prepared, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        dot_decoded(self, q, rows, out, exec)
    }

    /// Adds `p V` to `out`, `[queries, dim]` row-major, for probabilities `p`, `[queries, rows.len()]` row-major, and the cached values `V`
    /// of `rows`, in the basis of the stored rows. Errors if rows cannot be fetched.
    fn add_weighted(
        &self,
        p: &[f32],
        product: Product,
        rows: Range<usize>,
        out: &mut [f32],
        exec: &Exec,
    ) -> Result<()> {
        add_weighted_decoded(self, p, product, rows, out, exec)
    }

    /// Transforms sums of weighted values, `[queries, dim]` row-major, in place from the basis of the stored rows to the basis in which
    /// values were appended. Does nothing by default.
    fn finish(&self, out: &mut [f32], exec: &Exec) {
        let _ = (out, exec);
    }

    /// Removes all rows except those with the indices `keep`, which are ascending and counted from 0. Errors if the form cannot remove
    /// single rows.
    fn retain(&mut self, keep: &[u32]) -> Result<()>;

    /// Replaces row `into` by `own` times itself plus the sum of the rows `from`, each times its factor; rows are counted from 0. Errors,
    /// with the rows unchanged, if the form cannot merge rows or cannot hold the result. The default always errors.
    fn merge(&mut self, into: u32, own: f32, from: &[(u32, f32)], exec: &Exec) -> Result<()> {
        let _ = (into, own, from, exec);
        Err(Error::Unsupported { what: "merging of cached rows", value: self.spec().kind })
    }

    /// Keeps the first `rows` rows and removes the others; does nothing if there are no more than `rows`. Errors if the form cannot remove
    /// rows.
    fn truncate(&mut self, rows: usize) -> Result<()>;

    /// Removes all rows.
    fn clear(&mut self);

    /// Returns the number of bytes that the cached rows take; parts that stores share, such as codebooks, are not counted.
    fn bytes(&self) -> usize;

    /// Returns the specification of the store: the kind under which its loader is registered, the shape `[len, dim]`, and parameters.
    fn spec(&self) -> OpSpec;

    /// Writes the cached rows as the tensor `prefix`, or as tensors whose names begin with `prefix.`, for the loader of this kind. Errors
    /// if the sink does.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()>;
}

/// Rows that are decoded at once for [`Product::Vector`]: few enough that they stay in the processor's cache.
const ROWS: usize = 32;

/// Decodes the rows `rows` of a store in order and calls `work` for each block of consecutive rows. `work` gets the index of the block's
/// first row, counted from the start of `rows`, and the values of the block in f32, `[block rows, dim]` row-major for rows of `dim` values.
/// If the argument `product` is [`Product::Vector`], a block has at most 32 rows; if it is [`Product::Matrix`], one block has all rows. If
/// `rows` is empty or reversed, `work` is not called.
///
/// The caller must keep `rows` inside of `0..store.len()`; otherwise [`KvStore::decode`] may panic or error, depending on the store. Errors
/// at the first block whose rows cannot be fetched or for which `work` errors.
pub fn by_blocks<S: KvStore + ?Sized>(
    store: &S,
    product: Product,
    rows: Range<usize>,
    exec: &Exec,
    mut work: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let step = if product == Product::Matrix { rows.len() } else { ROWS.min(rows.len()) };
    let dim = store.dim();
    let mut block = exec.scratch(step * dim);
    for first in rows.clone().step_by(step.max(1)) {
        let part = first..rows.end.min(first + step);
        let block = &mut block[..part.len() * dim];
        store.decode(part, block, exec)?;
        work(first - rows.start, block)?;
    }
    Ok(())
}

/// Implements [`KvStore::dot`] by decoding keys: writes the products of the prepared queries `q.floats`, `[queries, dim]`, with the cached
/// keys `rows` into `out`, `[queries, rows.len()]` row-major.
///
/// The caller must keep `rows` inside of `0..store.len()`; otherwise [`KvStore::decode`] may panic or error, depending on the store. Errors
/// if rows cannot be fetched, if `q.floats` is not a whole number of rows of `dim` values, or if `out` is shorter than its shape; `out` may
/// be partly written then.
pub fn dot_decoded<S: KvStore + ?Sized>(
    store: &S,
    q: &Prepared,
    rows: Range<usize>,
    out: &mut [f32],
    exec: &Exec,
) -> Result<()> {
    let stride = rows.len();
    by_blocks(store, q.product, rows, exec, |at, keys| {
        let len = out.len();
        let data = out.get_mut(at..).ok_or_else(|| Error::shape("products of queries and keys", stride, len))?;
        let out = Out { data, stride };
        Ok(attention::scores(exec.isa(), q.product, &q.floats, keys, store.dim(), out)?)
    })
}

/// Implements [`KvStore::add_weighted`] by decoding values: adds `p V` to `out`, `[queries, dim]` row-major, for probabilities `p`,
/// `[queries, rows.len()]` row-major, and the cached values `V` of `rows`.
///
/// The caller must keep `rows` inside of `0..store.len()`; otherwise [`KvStore::decode`] may panic or error, depending on the store. Errors
/// if rows cannot be fetched, if `out` is not a whole number of rows of `dim` values, or if `p` is shorter than its shape; `out` may be
/// partly summed then.
pub fn add_weighted_decoded<S: KvStore + ?Sized>(
    store: &S,
    p: &[f32],
    product: Product,
    rows: Range<usize>,
    out: &mut [f32],
    exec: &Exec,
) -> Result<()> {
    let stride = rows.len();
    by_blocks(store, product, rows, exec, |at, values| {
        let p = p.get(at..).ok_or_else(|| Error::shape("probabilities of the rows", stride, p.len()))?;
        Ok(attention::add_weighted(exec.isa(), product, [p, values], stride, store.dim(), out)?)
    })
}

/// Replaces the content of `out` by all values of the matrix `view`, `[rows, cols]` row-major without gaps. Errors if they exceed the
/// address space.
pub fn copy_rows(view: MatView<'_, f32>, out: &mut Vec<f32>) -> Result<()> {
    let shape = view.shape();
    out.clear();
    out.resize(crate::view::elements(shape)?, 0.0);
    view.read_rows(0..shape[0], out)
}
