//! Products of dense f32 matrices, over the `gemm` crate. That crate chooses its own instruction set, so results of products of more than
//! two tokens may differ in the last bits between processors; [`Isa`] selects the loops of this crate only.
//!
//! Work is cut into blocks of [`ROW_BLOCK`] weight rows, whatever the number of threads, and each block is one serial product: any number
//! of threads gives the same bytes.
//!
//! ```
//! use tersor_kernels::{Isa, dense::{self, Options, Out, Write}};
//! // y = x Wᵀ for one token of 2 features and weights of 3 rows.
//! let (x, w, mut y) = ([1.0f32, 2.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0f32; 3]);
//! let options = Options { isa: Isa::detect(), write: Write::Set, parallel: false };
//! dense::product(options, &x, [1, 2], &w, 3, Out { data: &mut y, stride: 3 }).unwrap();
//! assert_eq!(y, [1.0, 2.0, 3.0]);
//! ```

use std::ops::Range;

use crate::gemm_task::{Cells, GemmTask, Tile};
pub use crate::gemm_task::{Out, Write};
use crate::{Fault, Isa, fault, par, vector};

/// The number of weight rows (128) that a dense product computes as one unit of work; the last unit of a matrix may have fewer. The cut
/// does not depend on the number of threads, and so neither do the bits of the result.
pub const ROW_BLOCK: usize = 128;

/// Options of the dense products [`product`] and [`product_by_rows`]: the instruction set, whether the product replaces the output or is
/// added to it, and whether threads share the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The instruction set of products of one or two tokens, which loops of this crate compute. Products of more tokens are computed by the
    /// `gemm` crate, which chooses the instruction set itself.
    pub isa: Isa,
    /// Whether the product replaces the output ([`Write::Set`]) or is added to it ([`Write::Add`]).
    pub write: Write,
    /// Whether the threads of the current rayon pool share the work, in blocks of [`ROW_BLOCK`] weight rows. If false, the calling thread
    /// does all of it. The result is the same.
    pub parallel: bool,
}

/// Computes `y[t, r] = Σ_k x[t, k] * w[r, k]` for weights `w` `[n, k]` that are produced on demand, so that a compressed matrix never
/// exists whole in f32. The product replaces `y` or is added to it, as `options.write` says. `x` is `[tokens, k]`, row-major without gaps;
/// `y` is `[tokens, n]` with rows `y.stride` elements apart.
///
/// `rows(range, buffer)` must overwrite `buffer`, `[range.len(), k]` row-major, with the weight rows `range`. It is called once for each
/// block of [`ROW_BLOCK`] weight rows, possibly by several threads; the last block may have fewer rows. It is not called if there are no
/// tokens.
///
/// Fails with `Fault::Length` if `x` does not have `tokens * k` values, if `y.stride` is less than `n` or if `y.data` is too short, and
/// with `Fault::Overflow` if a size does not fit in `usize`; then `rows` is not called and `y` is unchanged. If `rows` fails for a block,
/// the elements of `y` for its weight rows are unchanged, but all other blocks are computed. The error that is returned is the one for the
/// first block, in the order of the weight rows, for which `rows` failed.
pub fn product_by_rows<E: From<Fault> + Send>(
    options: Options,
    x: &[f32],
    [tokens, k]: [usize; 2],
    n: usize,
    rows: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    y: Out<'_>,
) -> Result<(), E> {
    fault::matrix("input", [tokens, k], x.len())?;
    y.check([tokens, n])?;
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let output = Columns { data: y.data.as_mut_ptr(), stride: y.stride };
    let block = |index: usize, buffer: &mut Vec<f32>| -> Result<(), E> {
        let range = index * ROW_BLOCK..((index + 1) * ROW_BLOCK).min(n);
        buffer.resize(range.len() * k, 0.0);
        rows(range.clone(), buffer)?;
        // SAFETY: columns `range` of each of the `tokens` rows lie inside `y`, and no other unit of work has this
        // range.
        unsafe { block_product(options, x, [tokens, k], buffer, range.start, output.cells(range)) };
        Ok(())
    };
    par::map(n.div_ceil(ROW_BLOCK), options.parallel, Vec::new, block).into_iter().collect()
}

/// Computes `y = x wᵀ` for `x` `[tokens, k]` and weights `w` `[n, k]`, both row-major without gaps. The product replaces `y` or is added to
/// it, as `options.write` says. `y` is `[tokens, n]` with rows `y.stride` elements apart. Fails with `Fault::Length` if `x` does not have
/// `tokens * k` values, `w` does not have `n * k`, `y.stride` is less than `n` or `y.data` is too short. Fails with `Fault::Overflow` if a
/// size does not fit in `usize`. `y` is unchanged then.
pub fn product(
    options: Options,
    x: &[f32],
    [tokens, k]: [usize; 2],
    w: &[f32],
    n: usize,
    y: Out<'_>,
) -> Result<(), Fault> {
    let task = Task::new(options.isa, x, [tokens, k], w, n)?;
    y.check([tokens, n])?;
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let output = Columns { data: y.data.as_mut_ptr(), stride: y.stride };
    let block = |index: usize, (): &mut ()| {
        let range = index * ROW_BLOCK..((index + 1) * ROW_BLOCK).min(n);
        // SAFETY: as in `product_by_rows`.
        unsafe { task.block(range.clone(), options.write, output.cells(range)) };
    };
    par::map(n.div_ceil(ROW_BLOCK), options.parallel, || (), block);
    Ok(())
}

/// A product `x wᵀ` of activations with f32 weights in memory, to be computed by [`run_tasks`](crate::run_tasks) together with other
/// products. The result has the same bits as that of [`product`].
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    isa: Isa,
    x: &'a [f32],
    w: &'a [f32],
    tokens: usize,
    k: usize,
    n: usize,
}

impl<'a> Task<'a> {
    /// Prepares the product `y[t, r] = Σ_k x[t, k] * w[r, k]` of `x` `[tokens, k]` with `w` `[n, k]`, both row-major without gaps. Nothing
    /// is computed before [`run_tasks`](crate::run_tasks) is called with the task. Fails with `Fault::Length` if `x` does not have
    /// `tokens * k` values or `w` does not have `n * k`, and with `Fault::Overflow` if such a product does not fit in `usize`.
    pub fn new(isa: Isa, x: &'a [f32], [tokens, k]: [usize; 2], w: &'a [f32], n: usize) -> Result<Self, Fault> {
        fault::matrix("input", [tokens, k], x.len())?;
        fault::matrix("weights", [n, k], w.len())?;
        Ok(Self { isa, x, w, tokens, k, n })
    }

    /// Computes one block of rows.
    ///
    /// # Safety
    /// As for [`block_product`].
    unsafe fn block(&self, range: Range<usize>, write: Write, y: Cells) {
        let options = Options { isa: self.isa, write, parallel: false };
        let w = &self.w[range.start * self.k..range.end * self.k];
        // SAFETY: the caller vouches for the cells.
        unsafe { block_product(options, self.x, [self.tokens, self.k], w, range.start, y) };
    }
}

impl GemmTask for Task<'_> {
    fn rows(&self) -> usize {
        self.n
    }
    fn tokens(&self) -> usize {
        self.tokens
    }
    fn granularity(&self) -> usize {
        ROW_BLOCK
    }
    fn granule_bytes(&self) -> usize {
        ROW_BLOCK * self.k * size_of::<f32>()
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        let cells = tile.cells(self.tokens, &rows);
        assert!(rows.start.is_multiple_of(ROW_BLOCK) && rows.end <= self.n, "rows {rows:?} of {}", self.n);
        for first in rows.clone().step_by(ROW_BLOCK) {
            let range = first..rows.end.min(first + ROW_BLOCK);
            // SAFETY: the tile has exclusive access to these columns.
            unsafe { self.block(range.clone(), write, cells.up_to(range.end)) };
        }
    }
}

/// An output whose columns are written by different units of work.
#[derive(Clone, Copy)]
struct Columns {
    data: *mut f32,
    stride: usize,
}
// SAFETY: units of work write disjoint columns (see `product_by_rows`), and the borrow of the output outlives them all.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    fn cells(&self, range: Range<usize>) -> Cells {
        Cells::new(self.data, self.stride, range.end)
    }
}

/// Multiplies `x` with a block of weight rows, of which `first` is the number of the first one.
///
/// # Safety
/// `x` is `[tokens, k]`, `w` is `[y.end - first, k]`, and the elements of `y` for all tokens and for rows from `first` to `y.end` may be
/// written and are not accessed by anyone else.
unsafe fn block_product(options: Options, x: &[f32], [tokens, k]: [usize; 2], w: &[f32], first: usize, y: Cells) {
    let n = y.end - first;
    // A vector-matrix product is bound by memory: a dot product a row beats packing for a GEMM.
    if tokens <= 2 || k == 0 {
        for t in 0..tokens {
            for r in 0..n {
                let sum = vector::dot(options.isa, &x[t * k..(t + 1) * k], &w[r * k..(r + 1) * k]);
                // SAFETY: the caller vouches for this element.
                let cell = unsafe { &mut *y.at(t, first + r) };
                *cell = if options.write == Write::Add { *cell + sum } else { sum };
            }
        }
        return;
    }
    // SAFETY: pointers, sizes and strides describe exactly `x` as [tokens, k], `w` transposed as [k, n],
    // and the cells of `y` that the caller vouches for.
    unsafe {
        gemm::gemm(
            tokens,
            n,
            k,
            y.at(0, first),
            1,
            y.stride as isize,
            options.write == Write::Add,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Computes `y = x w` on the calling thread, for `x` `[m, k]`, `w` `[k, n]` and `y` `[m, n]`, all row-major without gaps; `w` is not
/// transposed. The `gemm` crate chooses the instruction set. Fails with `Fault::Length` if the length of a slice is not the product of its
/// two sizes, and with `Fault::Overflow` if such a product does not fit in `usize`; `y` is unchanged then.
pub fn product_plain(x: &[f32], [m, k]: [usize; 2], w: &[f32], n: usize, y: &mut [f32]) -> Result<(), Fault> {
    fault::matrix("left matrix", [m, k], x.len())?;
    fault::matrix("right matrix", [k, n], w.len())?;
    fault::matrix("output", [m, n], y.len())?;
    if k == 0 {
        y.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    let (xs, ws) = (k as isize, n as isize);
    // SAFETY: pointers, sizes and strides describe exactly the three slices, whose lengths were checked.
    unsafe {
        let (y, x, w, none) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr(), gemm::Parallelism::None);
        gemm::gemm(m, n, k, y, 1, ws, false, x, 1, xs, w, 1, ws, 0.0f32, 1.0f32, false, false, false, none);
    }
    Ok(())
}

/// Computes `y += x w` on the calling thread, for `x` `[m, k]` with rows `stride` elements apart, and for `w` `[k, n]` and `y` `[m, n]`
/// row-major without gaps. The last row of `x` may end after its `k` values. The `gemm` crate chooses the instruction set. Fails with
/// `Fault::Length` if a slice does not have the stated shape or `stride` is less than `k`, and with `Fault::Overflow` if a size does not
/// fit in `usize`; `y` is unchanged then.
pub fn add_product(
    x: &[f32],
    stride: usize,
    [m, k]: [usize; 2],
    w: &[f32],
    n: usize,
    y: &mut [f32],
) -> Result<(), Fault> {
    fault::matrix("right matrix", [k, n], w.len())?;
    fault::matrix("output", [m, n], y.len())?;
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    fault::at_least("stride of the left matrix", k, stride)?;
    let last = (m - 1).checked_mul(stride).and_then(|v| v.checked_add(k));
    fault::at_least("left matrix", last.ok_or(Fault::Overflow { what: "left matrix" })?, x.len())?;
    let (xs, ws) = (stride as isize, n as isize);
    // SAFETY: sizes and strides describe elements inside of the three slices, whose lengths were checked.
    unsafe {
        let (y, x, w, none) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr(), gemm::Parallelism::None);
        gemm::gemm(m, n, k, y, 1, ws, true, x, 1, xs, w, 1, ws, 1.0f32, 1.0f32, false, false, false, none);
    }
    Ok(())
}

/// Computes `y -= x w` on the calling thread, for `x` `[m, k]` row-major without gaps, `w` `[k, n]` with rows `stride` elements apart, and
/// `y` `[m, n]` with rows `y.stride` elements apart. The last row of `w` may end after its `n` values. The `gemm` crate chooses the
/// instruction set. Fails with `Fault::Length` if a slice does not have the stated shape or a stride is less than `n`, and with
/// `Fault::Overflow` if a size does not fit in `usize`; `y` is unchanged then.
pub fn subtract_product(
    x: &[f32],
    [m, k]: [usize; 2],
    w: &[f32],
    stride: usize,
    n: usize,
    y: Out<'_>,
) -> Result<(), Fault> {
    fault::matrix("left matrix", [m, k], x.len())?;
    y.check([m, n])?;
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    fault::at_least("stride of the right matrix", n, stride)?;
    let last = (k - 1).checked_mul(stride).and_then(|v| v.checked_add(n));
    fault::at_least("right matrix", last.ok_or(Fault::Overflow { what: "right matrix" })?, w.len())?;
    let (k_, s, none) = (k as isize, y.stride as isize, gemm::Parallelism::None);
    // SAFETY: sizes and strides describe `x`, and cells inside `w` and `y`, whose lengths were checked.
    unsafe {
        let (y, x, w) = (y.data.as_mut_ptr(), x.as_ptr(), w.as_ptr());
        gemm::gemm(m, n, k, y, 1, s, true, x, 1, k_, w, 1, stride as isize, 1.0f32, -1.0f32, false, false, false, none);
    }
    Ok(())
}

/// Tokens whose products are summed in f32 before they are added to the f64 sums.
const GRAM_TOKENS: usize = 512;

/// Adds the Gram matrix `XᵀX` of the activations `x` `[tokens, k]` to the symmetric matrix `g` `[k, k]`, both row-major without gaps. Only
/// the diagonal and the upper triangle of `g` are read. The lower triangle is overwritten by the mirror image of the new upper triangle.
/// Products are computed in f32 over blocks of 512 tokens and summed in f64. With `parallel` the threads of the current rayon pool share
/// the work, with the same result. The `gemm` crate chooses the instruction set.
///
/// Fails with `Fault::Length` if `x` does not have `tokens * k` values or `g` does not have `k * k`, and with `Fault::Overflow` if such a
/// product does not fit in `usize`; `g` is unchanged then.
pub fn add_gram(x: &[f32], [tokens, k]: [usize; 2], g: &mut [f64], parallel: bool) -> Result<(), Fault> {
    fault::matrix("input", [tokens, k], x.len())?;
    fault::matrix("output", [k, k], g.len())?;
    if k == 0 {
        return Ok(());
    }
    // A band of rows, from the diagonal on: the other half is its mirror image. The largest bands come first.
    let band = |index: usize, g: &mut [f64], _: &mut [()]| {
        let (first, rows) = (index * ROW_BLOCK, g.len() / k);
        let n = k - first;
        let mut sums = vec![0f32; rows * n];
        for x in x.chunks(GRAM_TOKENS * k) {
            // SAFETY: the left operand is columns `first..first + rows` of `x`, transposed by its strides; the right
            // one is its columns from `first` on; the output is `sums`, `[rows, n]`.
            unsafe {
                gemm::gemm(
                    rows,
                    n,
                    x.len() / k,
                    sums.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    x.as_ptr().add(first),
                    k as isize,
                    1,
                    x.as_ptr().add(first),
                    1,
                    k as isize,
                    0.0f32,
                    1.0f32,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
            for (g, sums) in g.chunks_exact_mut(k).zip(sums.chunks_exact(n)) {
                g[first..].iter_mut().zip(sums).for_each(|(g, &s)| *g += f64::from(s));
            }
        }
    };
    par::pairs(g, ROW_BLOCK * k, &mut vec![(); k.div_ceil(ROW_BLOCK)], 1, parallel, band);
    mirror(g, k);
    Ok(())
}

/// Copies the upper triangle to the lower one in square tiles: a column of a whole matrix would miss the cache at each step.
fn mirror(g: &mut [f64], k: usize) {
    const TILE: usize = 32;
    for top in (0..k).step_by(TILE) {
        for left in (0..=top).step_by(TILE) {
            for i in top..(top + TILE).min(k) {
                for j in left..(left + TILE).min(i) {
                    g[i * k + j] = g[j * k + i];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_tasks;

    fn numbers(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + salt) * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn every_shape_matches_the_definition() {
        let last = if cfg!(miri) { [9, 20, 17] } else { [17, 300, 65] };
        for [t, n, k] in [[0, 3, 4], [1, 1, 1], [1, 130, 33], [2, 5, 0], [3, 129, 31], last] {
            let (x, w) = (numbers(t * k, 1), numbers(n * k, 2));
            for parallel in [false, true] {
                for write in [Write::Set, Write::Add] {
                    let stride = n + 3;
                    let mut y = vec![0.5f32; t * stride];
                    let options = Options { isa: Isa::detect(), write, parallel };
                    product(options, &x, [t, k], &w, n, Out { data: &mut y, stride }).unwrap();
                    let mut again = vec![0.5f32; t * stride];
                    let task = Task::new(Isa::detect(), &x, [t, k], &w, n).unwrap();
                    run_tasks(vec![(&task, write, Out { data: &mut again, stride })], parallel).unwrap();
                    assert!(y.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
                    for i in 0..t {
                        for j in 0..n {
                            let sum: f64 = (0..k).map(|c| f64::from(x[i * k + c]) * f64::from(w[j * k + c])).sum();
                            let want = sum + if write == Write::Add { 0.5 } else { 0.0 };
                            assert!((f64::from(y[i * stride + j]) - want).abs() < 1e-4);
                        }
                        assert!(y[i * stride + n..(i + 1) * stride].iter().all(|&v| v == 0.5), "padding is left alone");
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut y = [0f32; 4];
        let options = Options { isa: Isa::SCALAR, write: Write::Set, parallel: false };
        let length = |what, expected, found| Err(Fault::Length { what, expected, found });
        let mut run =
            |x: &[f32], stride: usize| product(options, x, [2, 2], &[1.0; 4], 2, Out { data: &mut y, stride });
        assert_eq!(run(&[1.0; 3], 2), length("input", 4, 3));
        assert_eq!(run(&[1.0; 4], 1), length("stride of the output", 2, 1));
        assert_eq!(run(&[1.0; 4], 3), length("output", 5, 4));
        let by_rows = product_by_rows(options, &[1.0; 4], [2, 2], 2, |_, _| Ok(()), Out { data: &mut y, stride: 3 });
        assert_eq!(by_rows, length("output", 5, 4));
        let error = Err(Fault::Overflow { what: "a row" });
        let by_rows = product_by_rows(options, &[1.0; 4], [2, 2], 2, |_, _| error, Out { data: &mut y, stride: 2 });
        assert_eq!(by_rows, error);
        assert_eq!(add_gram(&[1.0; 4], [2, 2], &mut [0.0; 3], false), length("output", 4, 3));
        assert_eq!(product_plain(&[1.0; 4], [2, 2], &[1.0; 3], 2, &mut y), length("right matrix", 4, 3));
        let too_many = product_plain(&[], [usize::MAX, 2], &[1.0; 4], 2, &mut y);
        assert_eq!(too_many, Err(Fault::Overflow { what: "left matrix" }));
        product_plain(&[1.0, 2.0, 3.0, 4.0], [2, 2], &[5.0, 6.0, 7.0, 8.0], 2, &mut y).unwrap();
        assert_eq!(y, [19.0, 22.0, 43.0, 50.0]);
        // Two rows of three columns, four apart, from outputs three apart.
        let (w, mut y) = ([1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0], [100.0f32; 6]);
        let mut run = |w: &[f32], stride| {
            subtract_product(&[1.0, 0.0, 2.0, -1.0], [2, 2], w, stride, 3, Out { data: &mut y, stride: 3 })
        };
        assert_eq!(run(&w, 4), Ok(()));
        assert_eq!(run(&w[..6], 4), length("right matrix", 7, 6));
        assert_eq!(run(&w, 2), length("stride of the right matrix", 3, 2));
        assert_eq!(y, [99.0, 98.0, 97.0, 102.0, 101.0, 100.0]);
    }

    #[test]
    fn gram_is_symmetric_and_right() {
        let shapes = if cfg!(miri) { [(300, 3), (1030, 1), (7, 20)] } else { [(300, 9), (1030, 33), (70, 261)] };
        for (t, k) in shapes {
            let x = numbers(t * k, 3);
            let mut g = vec![0f64; k * k];
            add_gram(&x, [t, k], &mut g, true).unwrap();
            let mut serial = vec![0f64; k * k];
            add_gram(&x, [t, k], &mut serial, false).unwrap();
            assert_eq!(g, serial);
            for i in 0..k {
                for j in 0..k {
                    let want: f64 = (0..t).map(|r| f64::from(x[r * k + i]) * f64::from(x[r * k + j])).sum();
                    assert!((g[i * k + j] - want).abs() < 1e-3);
                    assert_eq!(g[i * k + j].to_bits(), g[j * k + i].to_bits());
                }
            }
        }
    }
}
