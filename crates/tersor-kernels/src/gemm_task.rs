//! Products that can be cut into runs of weight rows, so that several run as one piece of parallel work.

use std::marker::PhantomData;
use std::ops::Range;

use crate::{Fault, fault, par};

/// What a product does with its output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// `y = ...`
    Set,
    /// `y += ...`
    Add,
}

/// A row-major output `[tokens, rows]` whose rows are `stride` elements apart.
pub struct Out<'a> {
    /// The elements; rows begin at multiples of `stride`.
    pub data: &'a mut [f32],
    /// Elements from one row to the next, at least the number of columns.
    pub stride: usize,
}

impl Out<'_> {
    /// `Fault::Length` unless a matrix `[tokens, rows]` lies inside.
    pub(crate) fn check(&self, [tokens, rows]: [usize; 2]) -> Result<(), Fault> {
        if tokens == 0 || rows == 0 {
            return Ok(());
        }
        fault::at_least("stride of the output", rows, self.stride)?;
        let last = (tokens - 1).checked_mul(self.stride).and_then(|v| v.checked_add(rows));
        fault::at_least("output", last.ok_or(Fault::Overflow { what: "output" })?, self.data.len())
    }
}

/// One product `y = x Wᵀ` (or that added to `y`) that can be cut into runs of rows of `W`, so that several products run
/// as one piece of parallel work; see [`run_tasks`].
pub trait GemmTask: Sync {
    /// Rows of `W`: columns of the output.
    fn rows(&self) -> usize;
    /// Tokens: rows of the output.
    fn tokens(&self) -> usize;
    /// Runs of rows begin at multiples of this.
    fn granularity(&self) -> usize;
    /// Bytes of weights that `granularity` rows take: how much work a run is.
    fn run_bytes(&self) -> usize;
    /// Writes columns `rows` of the output through the tile, or adds to them. The tasks of this crate panic unless the
    /// tile belongs to a product of their shape and has these columns.
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>);
}

/// Columns [`Tile::rows`] of an output `[tokens, rows]`: all that one run of a [`GemmTask`] can write.
pub struct Tile<'a> {
    cells: Cells,
    tokens: usize,
    first: usize,
    output: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// # Safety
    /// Elements `token * stride + row` of `cells` may be written for all tokens and for `row` in `rows`, and nobody
    /// else touches them while the tile lives.
    pub(crate) unsafe fn new(data: *mut f32, stride: usize, tokens: usize, rows: Range<usize>) -> Self {
        Self { cells: Cells::new(data, stride, rows.end), tokens, first: rows.start, output: PhantomData }
    }

    /// Number of tokens: rows of the output.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the weights that the tile belongs to: columns of the output.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.first..self.cells.end
    }

    /// The part of one token's output that the tile has: the columns [`Tile::rows`]. Panics unless `token` is less than
    /// [`Tile::tokens`].
    pub fn row(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        let at = self.cells.data.wrapping_add(token * self.cells.stride + self.first);
        // SAFETY: `new` has been promised these elements, and the result borrows the tile.
        unsafe { std::slice::from_raw_parts_mut(at, self.cells.end - self.first) }
    }

    /// The same without a check at each access. Panics unless the tile is `rows` of an output of so many tokens.
    pub(crate) fn cells(&mut self, tokens: usize, rows: &Range<usize>) -> Cells {
        assert!(self.tokens == tokens && self.rows() == *rows, "the tile belongs to another product");
        self.cells
    }
}

/// Where a run of rows goes: columns up to `end` of an output. Which elements may be written is known to whoever has
/// it.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    data: *mut f32,
    pub(crate) stride: usize,
    /// The end of the rows that may be written.
    pub(crate) end: usize,
}

impl Cells {
    pub(crate) fn new(data: *mut f32, stride: usize, end: usize) -> Self {
        Self { data, stride, end }
    }

    /// The same with an earlier end.
    pub(crate) fn up_to(self, end: usize) -> Self {
        Self { end: end.min(self.end), ..self }
    }

    /// Where the value of a token and row goes.
    pub(crate) fn at(self, token: usize, row: usize) -> *mut f32 {
        debug_assert!(row < self.end);
        self.data.wrapping_add(token * self.stride + row)
    }

    /// Puts the values of one token and of `N` rows from `first` on where they belong, as many as there are rows.
    ///
    /// # Safety
    /// `first` is below the end, and the elements of the token from there to the end may be written and are not touched
    /// by anyone else.
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

/// Bytes of weights below which one token's product is not worth forking.
const FORK_BYTES: usize = 1 << 17;

/// Bytes of weights of one unit of work, for one token and for many: a third of what a thread has to do, within these.
/// One token's product is bound by memory, which is read fastest in long pieces.
const UNIT_BYTES: [[usize; 2]; 2] = [[1 << 12, 1 << 20], [1 << 12, 1 << 16]];

/// A task that is cut into units of work.
struct Work<'a> {
    task: &'a dyn GemmTask,
    write: Write,
    data: *mut f32,
    stride: usize,
    tokens: usize,
    rows: usize,
    /// Rows of a unit.
    step: usize,
    /// Units of this and of all before it.
    end: usize,
}
// SAFETY: tasks are `Sync`; units of work write disjoint columns (see `run_tasks`), and the borrows of the outputs
// outlive them all.
unsafe impl Sync for Work<'_> {}
// SAFETY: as above.
unsafe impl Send for Work<'_> {}

/// Runs several products as one piece of parallel work, each into its output `[tokens, rows]`: products with few rows
/// share threads. Where the work is cut depends on shapes and on the number of threads, and does not show in the
/// results of the tasks of this crate. Fails with `Fault::Length` or `Fault::Overflow`, before anything is written,
/// when an output has less room than its task needs.
pub fn run_tasks(tasks: Vec<(&dyn GemmTask, Write, Out<'_>)>, parallel: bool) -> Result<(), Fault> {
    let (mut works, mut units, mut bytes) = (Vec::with_capacity(tasks.len()), 0, 0usize);
    for (task, write, y) in tasks {
        let (tokens, rows) = (task.tokens(), task.rows());
        y.check([tokens, rows])?;
        if tokens == 0 || rows == 0 {
            continue;
        }
        // So many runs that a unit is worth its start.
        let (granularity, run_bytes) = (task.granularity().max(1), task.run_bytes().max(1));
        let size = rows.div_ceil(granularity).saturating_mul(run_bytes);
        let [min, max] = UNIT_BYTES[usize::from(tokens > 1)];
        let runs = ((size / (3 * par::threads())).clamp(min, max) + run_bytes / 2) / run_bytes;
        let step = runs.max(1).saturating_mul(granularity);
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
        run_bytes: usize,
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
        fn run_bytes(&self) -> usize {
            self.run_bytes
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
        for run_bytes in [0, 1, 1000, 100_000, usize::MAX] {
            let tasks = [[3, 50], [0, 5], [1, 1], [2, 0], [7, 22]].map(|shape| Numbers { shape, run_bytes });
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
        let task = Numbers { shape: [2, 4], run_bytes: 1 };
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
            fn run_bytes(&self) -> usize {
                1
            }
            fn run(&self, _: Range<usize>, _: Write, tile: &mut Tile<'_>) {
                tile.row(2).fill(1.0);
            }
        }
        let _ = run_tasks(vec![(&Wrong, Write::Set, Out { data: &mut [0.0; 8], stride: 4 })], false);
    }
}
