//! [`GemmTask`] and [`run_tasks`]: products that are cut into spans of weight rows, so that several run as one piece of parallel work.

use std::marker::PhantomData;
use std::ops::Range;

use crate::{Fault, fault, par};

/// Whether a product replaces its output ([`Set`](Self::Set)) or is added to it ([`Add`](Self::Add)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// The product replaces the output: `y = x Wᵀ`.
    Set,
    /// The product is added to the output: `y += x Wᵀ`.
    Add,
}

/// The output of a product: a matrix `[tokens, rows]` (`rows` is the number of weight rows) whose rows are `stride` elements apart in a
/// slice. Elements between the rows are not touched. The functions that take an output fail with `Fault::Length` if the stride or the slice
/// is too small.
pub struct Out<'a> {
    /// The elements of the output: that of token `t` and weight row `r` is at index `t * stride + r`. The slice needs at least
    /// `(tokens - 1) * stride + rows` elements; it may be empty if there are no tokens or no weight rows.
    pub data: &'a mut [f32],
    /// The number of elements from the beginning of one row of the output to that of the next, at least the number of weight rows.
    pub stride: usize,
}

impl Out<'_> {
    /// Fails with `Fault::Length` unless a matrix `[tokens, rows]` fits into the slice.
    pub(crate) fn check(&self, [tokens, rows]: [usize; 2]) -> Result<(), Fault> {
        if tokens == 0 || rows == 0 {
            return Ok(());
        }
        fault::at_least("stride of the output", rows, self.stride)?;
        let last = (tokens - 1).checked_mul(self.stride).and_then(|v| v.checked_add(rows));
        fault::at_least("output", last.ok_or(Fault::Overflow { what: "output" })?, self.data.len())
    }
}

/// A product `y = x Wᵀ` of `tokens()` tokens with a matrix `W` of `rows()` rows that can be computed for any range of rows of `W` at a
/// time. [`run_tasks`] computes several such products as one piece of parallel work: it cuts each into ranges of rows and calls
/// [`run`](Self::run) once for each range, possibly on several threads.
///
/// ```
/// use std::ops::Range;
/// use tersor_kernels::{GemmTask, Out, Tile, Write, run_tasks};
///
/// /// A product whose output is 1 everywhere.
/// struct Ones;
///
/// impl GemmTask for Ones {
///     fn rows(&self) -> usize {
///         3
///     }
///     fn tokens(&self) -> usize {
///         2
///     }
///     fn granularity(&self) -> usize {
///         1
///     }
///     fn granule_bytes(&self) -> usize {
///         4
///     }
///     fn run(&self, _rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
///         for t in 0..tile.tokens() {
///             tile.row(t).iter_mut().for_each(|y| *y = if write == Write::Add { *y + 1.0 } else { 1.0 });
///         }
///     }
/// }
///
/// let mut y = [0.5f32; 6];
/// run_tasks(vec![(&Ones, Write::Add, Out { data: &mut y, stride: 3 })], false).unwrap();
/// assert_eq!(y, [1.5; 6]);
/// ```
pub trait GemmTask: Sync {
    /// Returns the number of weight rows, that is of rows of `W` in the product `y = x Wᵀ`, which is the number of columns of the output.
    fn rows(&self) -> usize;
    /// Returns the number of tokens, which is the number of rows of the output.
    fn tokens(&self) -> usize;
    /// Returns the number of neighbouring weight rows that are computed together; 0 counts as 1. Every range given to [`run`](Self::run)
    /// begins at a multiple of it, and ends at a multiple of it or at [`rows`](Self::rows).
    fn granularity(&self) -> usize;
    /// Returns the number of bytes of stored weights of [`granularity`](Self::granularity) weight rows; 0 counts as 1. It only decides how
    /// the work is divided between threads.
    fn granule_bytes(&self) -> usize;
    /// Computes the columns `rows` of the output for all tokens. With [`Write::Set`] it must write every element of `tile`, whose elements
    /// may have any values before; with [`Write::Add`] it must add the product to them. [`run_tasks`] guarantees that `rows` begins and
    /// ends as [`granularity`](Self::granularity) says, and that the tile has [`tokens`](Self::tokens) tokens and exactly the columns
    /// `rows`; the tasks of this crate panic otherwise. A panic is passed on to the caller of [`run_tasks`].
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>);
}

/// Exclusive access to the part of an output `[tokens, rows]` that one call of [`GemmTask::run`] computes: for every token, the elements of
/// the weight rows [`Tile::rows`].
pub struct Tile<'a> {
    cells: Cells,
    tokens: usize,
    first: usize,
    output: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// # Safety
    /// Elements `token * stride + row` of `data` may be written for all tokens and for `row` in `rows`, and nobody else accesses them
    /// during the life of the tile.
    pub(crate) unsafe fn new(data: *mut f32, stride: usize, tokens: usize, rows: Range<usize>) -> Self {
        Self { cells: Cells::new(data, stride, rows.end), tokens, first: rows.start, output: PhantomData }
    }

    /// Returns the number of tokens, which is the number of rows of the output matrix.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the range of weight rows that the tile covers, counted from 0 in the whole matrix. They are columns of the output.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.first..self.cells.end
    }

    /// Returns the elements of the tile that belong to token number `token`, counted from 0: one for each weight row in [`Tile::rows`], in
    /// order. Panics unless `token` is less than [`Tile::tokens`].
    pub fn row(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        let at = self.cells.data.wrapping_add(token * self.cells.stride + self.first);
        // SAFETY: `new` has been promised these elements, and the result borrows the tile.
        unsafe { std::slice::from_raw_parts_mut(at, self.cells.end - self.first) }
    }

    /// Returns unchecked access to the tile. Panics unless the tile is the columns `rows` of an output of `tokens` tokens.
    pub(crate) fn cells(&mut self, tokens: usize, rows: &Range<usize>) -> Cells {
        assert!(self.tokens == tokens && self.rows() == *rows, "the tile belongs to another product");
        self.cells
    }
}

/// Unchecked access to the columns up to `end` of an output. Which elements may be written is up to the caller.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    data: *mut f32,
    pub(crate) stride: usize,
    /// The end of the columns that may be written.
    pub(crate) end: usize,
}

impl Cells {
    pub(crate) fn new(data: *mut f32, stride: usize, end: usize) -> Self {
        Self { data, stride, end }
    }

    /// Returns the same with an earlier end.
    pub(crate) fn up_to(self, end: usize) -> Self {
        Self { end: end.min(self.end), ..self }
    }

    /// Returns the address of the element of a token and a weight row.
    pub(crate) fn at(self, token: usize, row: usize) -> *mut f32 {
        debug_assert!(row < self.end);
        self.data.wrapping_add(token * self.stride + row)
    }

    /// Writes the values of one token for the `N` weight rows from `first` on, or adds them; values past the end are dropped.
    ///
    /// # Safety
    /// `first` is below the end, and the elements of the token from there to the end may be written and are not accessed by anyone else.
    #[inline]
    pub(crate) unsafe fn put<const N: usize>(self, token: usize, first: usize, values: &[f32; N], write: Write) {
        debug_assert!(first < self.end, "rows from {first} on, where there are {}", self.end);
        let count = self.end.saturating_sub(first).min(N);
        // SAFETY: the caller vouches for these elements.
        let cells =
            unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(token * self.stride + first), count) };
        match (write, cells.first_chunk_mut::<N>()) {
            (Write::Set, Some(cells)) => *cells = *values,
            (Write::Set, None) => cells.copy_from_slice(&values[..count]),
            (Write::Add, _) => cells.iter_mut().zip(values).for_each(|(c, v)| *c += v),
        }
    }
}

/// Bytes of weights, times tokens, from which products run in parallel.
const FORK_BYTES: usize = 1 << 17;

/// Minimum and maximum bytes of weights of one unit of work, for one token and for more. Within these, a unit is a third of a thread's
/// share. A product of one token is bound by memory, which is read fastest in long pieces.
const UNIT_BYTES: [[usize; 2]; 2] = [[1 << 12, 1 << 20], [1 << 12, 1 << 16]];

/// A task with its output, cut into units of work.
struct Work<'a> {
    task: &'a dyn GemmTask,
    write: Write,
    data: *mut f32,
    stride: usize,
    tokens: usize,
    rows: usize,
    /// Weight rows of a unit.
    step: usize,
    /// The number of units of this task and of all tasks before it.
    end: usize,
}
// SAFETY: tasks are `Sync`; units of work write disjoint columns (see `run_tasks`), and the borrows of the outputs
// outlive them all.
unsafe impl Sync for Work<'_> {}
// SAFETY: as above.
unsafe impl Send for Work<'_> {}

/// Computes several products as one piece of parallel work, so that products with few weight rows share the threads. Each element of
/// `tasks` is a product, whether it replaces its output or is added to it, and the output `[tokens, rows]`. With `parallel` the threads of
/// the current rayon pool share the work if there is enough of it; otherwise the calling thread does it. The results of the tasks of this
/// crate do not depend on the threads.
///
/// Fails with `Fault::Length` if the stride or the slice of an output is too small for its task, and with `Fault::Overflow` if the size of
/// an output does not fit in `usize`; no output is written then.
pub fn run_tasks(tasks: Vec<(&dyn GemmTask, Write, Out<'_>)>, parallel: bool) -> Result<(), Fault> {
    let (mut works, mut units, mut bytes) = (Vec::with_capacity(tasks.len()), 0, 0usize);
    for (task, write, y) in tasks {
        let (tokens, rows) = (task.tokens(), task.rows());
        y.check([tokens, rows])?;
        if tokens == 0 || rows == 0 {
            continue;
        }
        // A unit has as many granules as make it worth its start.
        let (granularity, granule_bytes) = (task.granularity().max(1), task.granule_bytes().max(1));
        let size = rows.div_ceil(granularity).saturating_mul(granule_bytes);
        let [min, max] = UNIT_BYTES[usize::from(tokens > 1)];
        let granules = ((size / (3 * par::threads())).clamp(min, max) + granule_bytes / 2) / granule_bytes;
        let step = granules.max(1).saturating_mul(granularity);
        units += rows.div_ceil(step);
        bytes = bytes.saturating_add(size.saturating_mul(tokens));
        let (data, stride) = (y.data.as_mut_ptr(), y.stride);
        works.push(Work { task, write, data, stride, tokens, rows, step, end: units });
    }
    let fork = parallel && par::worth(bytes, FORK_BYTES);
    let unit = |i: usize, (): &mut ()| {
        let at = works.partition_point(|w| w.end <= i);
        let Work { task, write, data, stride, tokens, rows, step, .. } = works[at];
        let first = (i - at.checked_sub(1).map_or(0, |before| works[before].end)) * step;
        let rows = first..rows.min(first + step);
        // SAFETY: `check` has found the output `[tokens, rows]` inside of its slice; no other unit has these rows, and
        // `map` calls once for each unit while the slice is borrowed.
        let mut tile = unsafe { Tile::new(data, stride, tokens, rows.clone()) };
        task.run(rows, write, &mut tile);
    };
    par::map(units, fork, || (), unit);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y[t, r] = 100 t + r`, in runs of three rows.
    struct Numbers {
        shape: [usize; 2],
        granule_bytes: usize,
    }

    impl GemmTask for Numbers {
        fn rows(&self) -> usize {
            self.shape[1]
        }
        fn tokens(&self) -> usize {
            self.shape[0]
        }
        fn granularity(&self) -> usize {
            3
        }
        fn granule_bytes(&self) -> usize {
            self.granule_bytes
        }
        fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
            assert!(rows == tile.rows() && tile.tokens() == self.shape[0] && rows.start.is_multiple_of(3));
            for t in 0..tile.tokens() {
                for (r, y) in rows.clone().zip(tile.row(t)) {
                    let value = (100 * t + r) as f32;
                    *y = if write == Write::Add { *y + value } else { value };
                }
            }
        }
    }

    #[test]
    fn every_element_is_written_once_whatever_the_cut() {
        for granule_bytes in [0, 1, 1000, 100_000, usize::MAX] {
            let tasks = [[3, 50], [0, 5], [1, 1], [2, 0], [7, 22]].map(|shape| Numbers { shape, granule_bytes });
            for (parallel, write) in [(false, Write::Set), (true, Write::Add)] {
                let mut outs = tasks.each_ref().map(|t| vec![0.5f32; t.shape[0] * (t.shape[1] + 2)]);
                let list = tasks
                    .iter()
                    .zip(&mut outs)
                    .map(|(t, y)| (t as &dyn GemmTask, write, Out { data: &mut y[..], stride: t.shape[1] + 2 }));
                run_tasks(list.collect(), parallel).unwrap();
                for (task, y) in tasks.iter().zip(&outs) {
                    let ([_, rows], stride) = (task.shape, task.shape[1] + 2);
                    let before = if write == Write::Add { 0.5 } else { 0.0 };
                    let want = |i: usize| {
                        if i % stride < rows { (i / stride * 100 + i % stride) as f32 + before } else { 0.5 }
                    };
                    assert!(y.iter().enumerate().all(|(i, y)| *y == want(i)));
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_when_one_output_does_not_fit() {
        let task = Numbers { shape: [2, 4], granule_bytes: 1 };
        let run = |len: usize, stride: usize| {
            let (mut first, mut second) = (vec![0f32; 8], vec![0f32; len]);
            let outs = [Out { data: &mut first, stride: 4 }, Out { data: &mut second, stride }];
            let result = run_tasks(outs.map(|y| (&task as &dyn GemmTask, Write::Set, y)).into(), false);
            assert!(result.is_ok() || first.iter().chain(&second).all(|v| *v == 0.0));
            result
        };
        assert_eq!(run(8, 4), Ok(()));
        assert_eq!(run(8, 3), Err(Fault::Length { what: "stride of the output", expected: 4, found: 3 }));
        assert_eq!(run(8, 5), Err(Fault::Length { what: "output", expected: 9, found: 8 }));
        assert_eq!(run(8, usize::MAX), Err(Fault::Overflow { what: "output" }));
    }

    #[test]
    #[should_panic(expected = "token 2 of 2")]
    fn a_tile_has_no_more_tokens_than_its_output() {
        struct Wrong;
        impl GemmTask for Wrong {
            fn rows(&self) -> usize {
                4
            }
            fn tokens(&self) -> usize {
                2
            }
            fn granularity(&self) -> usize {
                1
            }
            fn granule_bytes(&self) -> usize {
                1
            }
            fn run(&self, _: Range<usize>, _: Write, tile: &mut Tile<'_>) {
                tile.row(2).fill(1.0);
            }
        }
        let _ = run_tasks(vec![(&Wrong, Write::Set, Out { data: &mut [0.0; 8], stride: 4 })], false);
    }
}
