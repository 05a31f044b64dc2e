//! [`KvStore`]: the keys, or the values, of one head.

use std::ops::Range;

use tersor_kernels::attention::{self, Product};
use tersor_kernels::{Out, vector};

use crate::{Error, Exec, MatView, OpSpec, Result, RowSource, TensorSink};

/// When keys receive the rotary embedding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rope {
    /// Keys are cached as they come from their projection. The store applies the rotary embedding when it multiplies, by the positions that
    /// [`KvStore::append`] gave.
    Before,
    /// Keys are cached after the rotary embedding, which [`LayerCache`](super::LayerCache) applies.
    After,
}

/// Queries in the form in which a store multiplies them with its keys, written by [`KvStore::prepare`]: rows of floats in the basis of the stored
/// rows (rotated if the store rotates its rows), integer codes, or lookup tables.
#[derive(Clone, Default, Debug)]
pub struct Prepared {
    /// The prepared queries as floats: `[queries, dim]`, times the scale of attention, by default; lookup tables in stores that use them.
    pub floats: Vec<f32>,
    /// The prepared queries as bytes, integer codes or lookup tables, for stores that multiply integers; empty otherwise.
    pub bytes: Vec<u8>,
    /// The number of prepared queries.
    pub queries: usize,
    /// Which product of prepared queries and keys a store computes: one row at a time or as a matrix.
    pub product: Product,
}

/// One side (keys or values) of one key or value head, in any stored form. [`LayerCache`](super::LayerCache) attends over two stores per head and
/// does everything else: positions, rotary embedding, grouping, windows, threads, eviction.
///
/// A new form implements the methods without a default: it appends and decodes rows. The products then decode a block of rows at a time; a form that
/// multiplies codes overrides [`dot`](Self::dot) and [`add_weighted`](Self::add_weighted). Ranges of rows lie inside `0..len()` and slices have the
/// stated lengths: `LayerCache` checks both. [`store_equals_its_rows`](super::check::store_equals_its_rows) tests an implementation.
pub trait KvStore: Send + Sync {
    /// Returns the number of cached rows.
    fn len(&self) -> usize;

    /// Returns whether no row is cached.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the width of a row.
    fn dim(&self) -> usize;

    /// Returns when keys receive the rotary embedding. Values have none.
    fn rope(&self) -> Rope {
        Rope::After
    }

    /// Checks a block `[tokens, dim]` for everything that [`append`](Self::append) could refuse. Errors if a value is not finite or its form cannot
    /// hold it.
    fn admit(&self, block: MatView<'_, f32>) -> Result<()>;

    /// Appends a block `[tokens, dim]` that [`admit`](Self::admit) accepted; `positions` are those of its tokens in the text.
    fn append(&mut self, block: MatView<'_, f32>, positions: &[u32], exec: &Exec);

    /// Writes rows in f32, `[rows.len(), dim]`, in the basis of the stored rows (rotated if the store rotates its rows), which is also that of
    /// prepared queries. Errors if rows cannot be fetched.
    fn decode(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Writes rows in f32, `[rows.len(), dim]`, in the basis in which they were appended. A form that rotates rows undoes it here. Errors if rows
    /// cannot be fetched.
    fn read(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        self.decode(rows, out, exec)
    }

    /// Prepares queries `[queries, dim]`, after their rotary embedding, for [`dot`](Self::dot), which is to return scores times `scale`. The caller
    /// has set `queries` and `product` of `out`. By default the rows times `scale` become `out.floats`.
    fn prepare(&self, queries: MatView<'_, f32>, scale: f32, out: &mut Prepared, exec: &Exec) -> Result<()> {
        copy_rows(queries, &mut out.floats)?;
        vector::scale(exec.isa(), scale, &mut out.floats);
        Ok(())
    }

    /// Writes scores `[queries, rows.len()]`: the products of prepared queries with cached keys. Errors if rows cannot be fetched.
    fn dot(&self, q: &Prepared, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
        dot_decoded(self, q, rows, out, exec)
    }

    /// Adds `p V` to `out` `[queries, dim]` for probabilities `p` `[queries, rows.len()]` and cached values `V`. Errors if rows cannot be fetched.
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

    /// Transforms sums of weighted values, `[queries, dim]`, in place to the basis in which values were appended. Does nothing by default.
    fn finish(&self, out: &mut [f32], exec: &Exec) {
        let _ = (out, exec);
    }

    /// Removes all rows except those of the ascending numbers `keep`. Errors if the form cannot remove single rows.
    fn retain(&mut self, keep: &[u32]) -> Result<()>;

    /// Replaces row `into` by `own` times itself plus the sum of the rows `from`, each times its factor. Errors, with the rows unchanged, if the form
    /// cannot merge rows or cannot hold the result. The default cannot.
    fn merge(&mut self, into: u32, own: f32, from: &[(u32, f32)], exec: &Exec) -> Result<()> {
        let _ = (into, own, from, exec);
        Err(Error::Unsupported { what: "merging of cached rows", value: self.spec().kind })
    }

    /// Removes the rows from number `rows` on. Errors if the form cannot.
    fn truncate(&mut self, rows: usize) -> Result<()>;

    /// Removes all rows.
    fn clear(&mut self);

    /// Returns the bytes of the cached rows; parts that stores share are not counted.
    fn bytes(&self) -> usize;

    /// Describes the store: the kind that its loader is registered under, `[len, dim]`, parameters.
    fn spec(&self) -> OpSpec;

    /// Writes the cached rows under `prefix`. Errors if the sink does.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()>;
}

/// Rows that are decoded at once for [`Product::Vector`]: few enough that they stay in the processor's cache.
const ROWS: usize = 32;

/// Decodes the rows `rows` of a store, which lie inside `0..len()`, a block at a time, all at once for [`Product::Matrix`]. Calls `work` with the
/// number of a block's first row, counted from the start of `rows`, and the block `[tokens, dim]`. Errors if rows cannot be fetched, or `work` does.
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

/// Writes scores `[queries, rows.len()]` as [`KvStore::dot`] does, for prepared queries that are rows of floats, from keys that are decoded by
/// [`by_blocks`]. Errors if rows cannot be fetched or a length does not match.
pub fn dot_decoded<S: KvStore + ?Sized>(
    store: &S,
    q: &Prepared,
    rows: Range<usize>,
    out: &mut [f32],
    exec: &Exec,
) -> Result<()> {
    let stride = rows.len();
    by_blocks(store, q.product, rows, exec, |at, keys| {
        let out = Out { data: &mut out[at..], stride };
        Ok(attention::scores(exec.isa(), q.product, &q.floats, keys, store.dim(), out)?)
    })
}

/// Adds weighted values to `out` `[queries, dim]` as [`KvStore::add_weighted`] does, from values that are decoded by [`by_blocks`]. Errors if rows
/// cannot be fetched or a length does not match.
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
        Ok(attention::add_weighted(exec.isa(), product, [&p[at..], values], stride, store.dim(), out)?)
    })
}

/// Replaces the content of `out` by the rows of a view, row-major. Errors if they do not fit the address space.
pub fn copy_rows(view: MatView<'_, f32>, out: &mut Vec<f32>) -> Result<()> {
    let shape = view.shape();
    out.clear();
    out.resize(crate::view::elements(shape)?, 0.0);
    view.read_rows(0..shape[0], out)
}
