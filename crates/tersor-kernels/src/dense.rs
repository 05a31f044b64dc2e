//! Products of dense f32 matrices, over the `gemm` crate.
//!
//! Work is cut into blocks of [`ROW_BLOCK`] weight rows, whatever the number of threads, and each
//! block is one serial product: the same bytes come out of one thread and of many.

use std::ops::Range;

use crate::{Isa, par, vector};

/// Weight rows of one unit of work.
pub const ROW_BLOCK: usize = 128;

/// What a product does with its output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// `y = ...`
    Set,
    /// `y += ...`
    Add,
}

/// How a product runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct How {
    /// The instruction set of the loops that are ours.
    pub isa: Isa,
    /// What happens to the output.
    pub write: Write,
    /// Whether blocks run in the current rayon pool.
    pub parallel: bool,
}

/// A row-major output `[rows, cols]` whose rows are `stride` elements apart.
pub struct Out<'a> {
    /// The elements; rows begin at multiples of `stride`.
    pub data: &'a mut [f32],
    /// Elements from one row to the next, at least the number of columns.
    pub stride: usize,
}

/// A disjoint part of an output, handed to one unit of work.
#[derive(Clone, Copy)]
struct Columns {
    data: *mut f32,
    stride: usize,
}
// SAFETY: units of work write disjoint columns (see `product_by_rows`), and the borrow of the output
// outlives them all.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    fn get(&self) -> Self {
        *self
    }
}

/// `y[t, r] (+)= Σ_k x[t, k] * w[r, k]`, where `rows(range, buffer)` writes the weight rows of a block
/// (`[range.len(), k]`) on demand, so that a compressed matrix is never expanded whole.
///
/// `x` is `[tokens, k]`, contiguous; `y` is `[tokens, n]`. Returns the first error of `rows`, in block order; a wrong length of `x` or `y`
/// is answered with `false` in `Ok`, before anything is computed.
pub fn product_by_rows<E: Send>(
    how: How,
    x: &[f32],
    [tokens, k]: [usize; 2],
    n: usize,
    rows: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    y: Out<'_>,
) -> Result<bool, E> {
    if tokens.checked_mul(k) != Some(x.len()) || !fits(&y, tokens, n) {
        return Ok(false);
    }
    if tokens == 0 || n == 0 {
        return Ok(true);
    }
    let columns = Columns { data: y.data.as_mut_ptr(), stride: y.stride };
    let block = |index: usize, buffer: &mut Vec<f32>| -> Result<(), E> {
        let range = index * ROW_BLOCK..((index + 1) * ROW_BLOCK).min(n);
        buffer.resize(range.len() * k, 0.0);
        rows(range.clone(), buffer)?;
        let columns = columns.get();
        // SAFETY: `fits` has checked that columns `range` of each of the `tokens` rows lie inside `y`,
        // and no other unit of work has this range.
        unsafe { block_product(how, x, [tokens, k], buffer, range, columns) };
        Ok(())
    };
    par::map(n.div_ceil(ROW_BLOCK), how.parallel, Vec::new, block).into_iter().collect::<Result<(), E>>().map(|()| true)
}

/// [`product_by_rows`] for weights that lie in memory as f32, `[n, k]`.
pub fn product(how: How, x: &[f32], [tokens, k]: [usize; 2], w: &[f32], n: usize, y: Out<'_>) -> bool {
    if tokens.checked_mul(k) != Some(x.len()) || n.checked_mul(k) != Some(w.len()) || !fits(&y, tokens, n) {
        return false;
    }
    if tokens == 0 || n == 0 {
        return true;
    }
    let columns = Columns { data: y.data.as_mut_ptr(), stride: y.stride };
    let block = |index: usize, (): &mut ()| {
        let range = index * ROW_BLOCK..((index + 1) * ROW_BLOCK).min(n);
        let columns = columns.get();
        // SAFETY: as in `product_by_rows`.
        unsafe { block_product(how, x, [tokens, k], &w[range.start * k..range.end * k], range, columns) };
    };
    par::map(n.div_ceil(ROW_BLOCK), how.parallel, || (), block);
    true
}

fn fits(y: &Out<'_>, tokens: usize, n: usize) -> bool {
    if tokens == 0 || n == 0 {
        return true;
    }
    let last = (tokens - 1).checked_mul(y.stride).and_then(|v| v.checked_add(n));
    y.stride >= n && last.is_some_and(|v| v <= y.data.len())
}

/// # Safety
/// `x` is `[tokens, k]`, `w` is `[range.len(), k]`, and the elements `t * stride + r` of `y` for every
/// `t < tokens`, `r` in `range` may be written and are not touched by anyone else.
unsafe fn block_product(how: How, x: &[f32], [tokens, k]: [usize; 2], w: &[f32], range: Range<usize>, y: Columns) {
    let n = range.len();
    // A vector-matrix product is bound by memory: a dot product a row beats packing for a GEMM.
    if tokens <= 2 || k == 0 {
        for t in 0..tokens {
            for r in 0..n {
                let sum = vector::dot(how.isa, &x[t * k..(t + 1) * k], &w[r * k..(r + 1) * k]);
                // SAFETY: the caller vouches for this element.
                let cell = unsafe { &mut *y.data.add(t * y.stride + range.start + r) };
                *cell = if how.write == Write::Add { *cell + sum } else { sum };
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
            y.data.add(range.start),
            1,
            y.stride as isize,
            how.write == Write::Add,
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

/// `y = x w` on the calling thread, for `x = [m, k]`, `w = [k, n]`, `y = [m, n]`, all contiguous and row-major.
/// Returns false, with `y` unchanged, when a length is wrong.
pub fn product_plain(x: &[f32], [m, k]: [usize; 2], w: &[f32], n: usize, y: &mut [f32]) -> bool {
    if m.checked_mul(k) != Some(x.len()) || k.checked_mul(n) != Some(w.len()) || m.checked_mul(n) != Some(y.len()) {
        return false;
    }
    if k == 0 {
        y.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return true;
    }
    let (xs, ws) = (k as isize, n as isize);
    // SAFETY: pointers, sizes and strides describe exactly the three slices, whose lengths were checked.
    unsafe {
        let (y, x, w, none) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr(), gemm::Parallelism::None);
        gemm::gemm(m, n, k, y, 1, ws, false, x, 1, xs, w, 1, ws, 0.0f32, 1.0f32, false, false, false, none);
    }
    true
}

/// `y -= x w` on the calling thread, for contiguous `x = [m, k]`, and `w = [k, n]` whose rows are `stride` elements apart,
/// of which the last may be short. Returns false, with `y` unchanged, when a length is wrong.
pub fn subtract_product(x: &[f32], [m, k]: [usize; 2], w: &[f32], stride: usize, n: usize, y: Out<'_>) -> bool {
    let reach = |rows: usize, stride: usize| (rows - 1).checked_mul(stride).and_then(|v| v.checked_add(n));
    if m.checked_mul(k) != Some(x.len()) || !fits(&y, m, n) {
        return false;
    }
    if m == 0 || n == 0 || k == 0 {
        return true;
    }
    if stride < n || reach(k, stride).is_none_or(|r| r > w.len()) {
        return false;
    }
    let (k_, s, none) = (k as isize, y.stride as isize, gemm::Parallelism::None);
    // SAFETY: sizes and strides describe `x`, and cells inside `w` and `y`, whose lengths were checked.
    unsafe {
        let (y, x, w) = (y.data.as_mut_ptr(), x.as_ptr(), w.as_ptr());
        gemm::gemm(m, n, k, y, 1, s, true, x, 1, k_, w, 1, stride as isize, 1.0f32, -1.0f32, false, false, false, none);
    }
    true
}

/// Tokens whose products are summed in f32 before they go to the f64 sums.
const GRAM_TOKENS: usize = 512;

/// `g += XᵀX` for `x = [tokens, k]` and `g = [k, k]`, both triangles: f32 products over blocks of 512 tokens, summed in f64.
/// `g` must be symmetric: what lies below its diagonal is replaced by what lies above. Returns false, with `g` unchanged, when a
/// length is wrong.
pub fn add_gram(x: &[f32], [tokens, k]: [usize; 2], g: &mut [f64], parallel: bool) -> bool {
    if tokens.checked_mul(k) != Some(x.len()) || k.checked_mul(k) != Some(g.len()) {
        return false;
    }
    if k == 0 {
        return true;
    }
    // A band of rows, from the diagonal on: the other half is its mirror image. The largest bands come first.
    let band = |(index, g): (usize, &mut [f64])| {
        let (first, rows) = (index * ROW_BLOCK, g.len() / k);
        let n = k - first;
        let mut sums = vec![0f32; rows * n];
        for x in x.chunks(GRAM_TOKENS * k) {
            // SAFETY: the left operand is columns `first..first + rows` of `x`, transposed by its strides; the right one is its
            // columns from `first` on; the output is `sums`, `[rows, n]`.
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
    #[cfg(feature = "rayon")]
    if parallel {
        use rayon::prelude::*;
        g.par_chunks_mut(ROW_BLOCK * k).enumerate().for_each(band);
        mirror(g, k);
        return true;
    }
    let _ = parallel;
    g.chunks_mut(ROW_BLOCK * k).enumerate().for_each(band);
    mirror(g, k);
    true
}

/// Copies what lies above the diagonal below it, a tile at a time: a column of a whole matrix would miss the cache at each step.
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

    fn numbers(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + salt) * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn every_shape_matches_the_definition() {
        for [t, n, k] in [[0, 3, 4], [1, 1, 1], [1, 130, 33], [2, 5, 0], [3, 129, 31], [17, 300, 65]] {
            let (x, w) = (numbers(t * k, 1), numbers(n * k, 2));
            for parallel in [false, true] {
                for write in [Write::Set, Write::Add] {
                    let stride = n + 3;
                    let mut y = vec![0.5f32; t * stride];
                    assert!(product(
                        How { isa: Isa::detect(), write, parallel },
                        &x,
                        [t, k],
                        &w,
                        n,
                        Out { data: &mut y, stride }
                    ));
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
        let how = How { isa: Isa::SCALAR, write: Write::Set, parallel: false };
        assert!(!product(how, &[1.0; 3], [2, 2], &[1.0; 4], 2, Out { data: &mut y, stride: 2 }));
        assert!(!product(how, &[1.0; 4], [2, 2], &[1.0; 4], 2, Out { data: &mut y, stride: 1 }));
        assert!(!add_gram(&[1.0; 4], [2, 2], &mut [0.0; 3], false));
        assert!(!product_plain(&[1.0; 4], [2, 2], &[1.0; 3], 2, &mut y));
        assert!(product_plain(&[1.0, 2.0, 3.0, 4.0], [2, 2], &[5.0, 6.0, 7.0, 8.0], 2, &mut y));
        assert_eq!(y, [19.0, 22.0, 43.0, 50.0]);
        // Two rows of three columns, four apart, from outputs three apart.
        let (w, mut y) = ([1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0], [100.0f32; 6]);
        let mut run = |w: &[f32], stride| {
            subtract_product(&[1.0, 0.0, 2.0, -1.0], [2, 2], w, stride, 3, Out { data: &mut y, stride: 3 })
        };
        assert!(run(&w, 4) && !run(&w[..6], 4) && !run(&w, 2));
        assert_eq!(y, [99.0, 98.0, 97.0, 102.0, 101.0, 100.0]);
    }

    #[test]
    fn gram_is_symmetric_and_right() {
        for (t, k) in [(300, 9), (1030, 33), (70, 261)] {
            let x = numbers(t * k, 3);
            let mut g = vec![0f64; k * k];
            assert!(add_gram(&x, [t, k], &mut g, true));
            let mut serial = vec![0f64; k * k];
            assert!(add_gram(&x, [t, k], &mut serial, false));
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
