//! The column sweep, held to quantizers of a user's own and to a reference in f64.

use std::ops::Range;

use tersor_core::*;
use tersor_linalg::sweep::in_row_spans;
use tersor_linalg::{Damping, Kept, Sweep, output_loss};
use tersor_operators::Dense;

/// Rounds to multiples of a step, `width` columns at a time.
struct Steps {
    step: f32,
    width: usize,
    /// `[cols, rows]`.
    values: Vec<f32>,
    shape: [usize; 2],
}

impl Steps {
    fn new(step: f32, width: usize, shape: [usize; 2]) -> Self {
        Self { step, width, values: vec![0.0; shape[0] * shape[1]], shape }
    }
    fn round(&self, v: f32) -> f32 {
        (v / self.step).round_ties_even() * self.step
    }
}

impl ColumnCoder for Steps {
    fn width(&self) -> usize {
        self.width
    }
    fn begin(&mut self, _: Option<&[u32]>) -> Result<()> {
        Ok(())
    }
    fn code(&mut self, rows: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()> {
        for (c, out) in out.chunks_exact_mut(rows.len()).enumerate() {
            out.iter_mut().zip(ahead.column(at + c)).for_each(|(o, v)| *o = self.round(*v));
            self.values[(at + c) * self.shape[0]..][rows.clone()].copy_from_slice(out);
        }
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>> {
        let [rows, cols] = self.shape;
        let values = (0..rows * cols).map(|i| self.values[i % cols * rows + i / cols]).collect();
        Ok(Box::new(Dense::new(values, self.shape, DType::F32)?))
    }
}

const ROWS: usize = 80;
const COLS: usize = 24;

fn noise(i: usize) -> f64 {
    ((i * 2_654_435_761) % 10_007) as f64 / 5003.5 - 1.0
}

/// Weights, and the Gram matrix of inputs whose features share a component.
fn case() -> (Vec<f32>, Vec<f64>) {
    let tokens = 300;
    let x: Vec<f64> = (0..tokens * COLS).map(|i| noise(i + 3) * 0.5 + noise(i / COLS * 17 + 1)).collect();
    let at = |i: usize, j: usize| (0..tokens).map(|t| x[t * COLS + i] * x[t * COLS + j]).sum::<f64>();
    let gram = (0..COLS * COLS).map(|i| at(i / COLS, i % COLS)).collect();
    ((0..ROWS * COLS).map(|i| noise(i * 5 + 11) as f32).collect(), gram)
}

fn loss(w: &[f32], back: &[f32], gram: &[f64]) -> f64 {
    let error: Vec<f32> = w.iter().zip(back).map(|(a, b)| a - b).collect();
    output_loss(&error, gram, COLS).unwrap()
}

#[test]
fn a_quantizer_of_ones_own_beats_rounding_to_nearest() {
    let (w, gram) = case();
    let factor = Damping::default().factor(&gram, COLS).unwrap();
    let mut coder = Box::new(Steps::new(0.4, 1, [ROWS, COLS]));
    let rounded: Vec<f32> = w.iter().map(|v| coder.round(*v)).collect();
    let swept = Sweep::new(&factor, 8).unwrap().run(w.clone(), &mut *coder, Kept::All, &Exec::new()).unwrap();
    let op = coder.finish().unwrap();
    assert_eq!(op.decompress().unwrap(), swept.values);
    let (fed_back, plain) = (loss(&w, &swept.values, &gram), loss(&w, &rounded, &gram));
    assert!(fed_back < 0.8 * plain, "{fed_back} against {plain}");
    assert!((swept.data_error - fed_back).abs() < 1e-3 * fed_back, "{} against {fed_back}", swept.data_error);
}

/// The sweep in f64, a row at a time, by solving for the remaining columns (Optimal Brain Surgeon): after columns `0..=j` are fixed, the others
/// move by `-e H_jr H_rr⁻¹` in effect; here through the factor of the inverse, with the same damping.
fn reference(w: &[f32], gram: &[f64], width: usize, step: f32, keeps: impl Fn(usize, usize) -> bool) -> Vec<f32> {
    let n = COLS;
    let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n as f64;
    let mut h = gram.to_vec();
    (0..n).for_each(|i| h[i * n + i] += 0.01 * mean);
    let u = tersor_linalg::inverse_factor(&h, n).unwrap();
    let mut out = Vec::new();
    for (r, row) in w.chunks(n).enumerate() {
        let mut w: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let mut q = vec![0f64; n];
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            for c in first..last {
                let v = if keeps(r, c) { w[c] as f32 } else { 0.0 };
                q[c] = f64::from((v / step).round_ties_even() * step);
            }
            for c in first..last {
                let e = (w[c] - q[c]) / u[c * n + c];
                (c + 1..n).for_each(|j| w[j] -= e * u[c * n + j]);
            }
        }
        out.extend(q.iter().map(|v| *v as f32));
    }
    out
}

#[test]
fn one_column_or_several_with_masks_or_without_equal_the_reference() {
    let (w, gram) = case();
    let factor = Damping::default().factor(&gram, COLS).unwrap();
    let mask = Mask::from_fn([ROWS, COLS], |r, c| (r + c) % 3 != 0).unwrap();
    for width in 1..=16 {
        for block in [8, 16, 64] {
            for masked in [false, true] {
                let mut coder = Steps::new(0.3, width, [ROWS, COLS]);
                let kept = if masked { Kept::Mask(&mask) } else { Kept::All };
                let sweep = Sweep::new(&factor, block).unwrap();
                let swept = sweep.run(w.clone(), &mut coder, kept, &Exec::new()).unwrap();
                let want = reference(&w, &gram, width, 0.3, |r, c| !masked || mask.keeps(r, c));
                // A value that f32 puts on the other side of a half takes the neighbouring step, and what follows differs.
                let rows = swept.values.chunks(COLS).zip(want.chunks(COLS));
                let equal = rows.filter(|(a, b)| a.iter().zip(*b).all(|(a, b)| (a - b).abs() < 1e-4)).count();
                assert!(equal >= ROWS - 2, "width {width}, block {block}, masked {masked}: {equal} rows");
                let dropped = swept.values.iter().enumerate().filter(|(i, _)| !mask.keeps(i / COLS, i % COLS));
                assert!(!masked || dropped.clone().all(|(_, v)| *v == 0.0));
            }
        }
    }
}

#[test]
fn masks_are_chosen_at_each_block_with_all_rows_at_hand() {
    let (w, gram) = case();
    let factor = Damping::default().factor(&gram, COLS).unwrap();
    let mut blocks = Vec::new();
    let mut choose = |block: Range<usize>, ahead: MatView<'_, f32>, diagonal: &[f32]| -> Result<Mask> {
        assert_eq!((ahead.shape(), diagonal.len()), ([ROWS, block.len()], COLS));
        // The smaller half of the block by SparseGPT's measure, over all rows.
        let values = ahead.to_f32();
        let score = |i: usize| (values[i] / diagonal[block.start + i % block.len()]).abs();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
        let mut mask = Mask::all([ROWS, block.len()])?;
        order[..values.len() / 2].iter().for_each(|i| mask.set(i / block.len(), i % block.len(), false));
        blocks.push(block);
        Ok(mask)
    };
    let mut coder = Steps::new(1e-6, 1, [ROWS, COLS]);
    let sweep = Sweep::new(&factor, 8).unwrap();
    let swept = sweep.run(w.clone(), &mut coder, Kept::Chosen(&mut choose), &Exec::new()).unwrap();
    assert_eq!(blocks, [0..8, 8..16, 16..24]);
    assert_eq!(swept.values.iter().filter(|v| **v == 0.0).count(), ROWS * COLS / 2);
    let mut magnitudes: Vec<f32> = w.iter().map(|v| v.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let magnitude: Vec<f32> = w.iter().map(|v| if v.abs() < magnitudes[ROWS * COLS / 2] { 0.0 } else { *v }).collect();
    assert!(loss(&w, &swept.values, &gram) < loss(&w, &magnitude, &gram) / 2.0);
}

#[test]
fn runs_of_rows_do_not_depend_on_threads_and_bad_input_is_refused() {
    let (w, gram) = case();
    let factor = Damping::default().by_importance(true).factor(&gram, COLS).unwrap();
    let sweep = Sweep::new(&factor, 8).unwrap();
    let run = |rows: Range<usize>| {
        let mut coder = Steps::new(0.3, 1, [rows.len(), COLS]);
        let part = w[rows.start * COLS..rows.end * COLS].to_vec();
        Ok(sweep.run(part, &mut coder, Kept::All, &Exec::serial())?.values)
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| in_row_spans(ROWS, true, run)).unwrap().concat()
    };
    assert_eq!(with(1), with(3));
    let order: Vec<u32> = factor.order().unwrap().to_vec();
    assert!(order.windows(2).all(|o| gram[o[0] as usize * 25] >= gram[o[1] as usize * 25]));
    assert!(Sweep::new(&factor, 0).is_err());
    let refused = |w: Vec<f32>, width: usize, kept: Kept<'_>| {
        sweep.run(w, &mut Steps::new(0.3, width, [ROWS, COLS]), kept, &Exec::new()).is_err()
    };
    assert!(refused(w[1..].to_vec(), 1, Kept::All) && refused(w.clone(), 17, Kept::All));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut broken = w.clone();
        broken[COLS + 3] = bad;
        assert!(refused(broken, 1, Kept::All));
    }
    let none = sweep.run(vec![], &mut Steps::new(0.3, 1, [0, COLS]), Kept::All, &Exec::new()).unwrap();
    assert!(none.values.is_empty() && none.data_error == 0.0);
    let narrow = Mask::all([ROWS, COLS - 1]).unwrap();
    assert!(refused(w.clone(), 1, Kept::Mask(&narrow)));
    let singular = vec![f64::NAN; COLS * COLS];
    assert!(Damping::default().factor(&singular, COLS).is_err() && Damping::new(0.0).is_err());
    // Symmetric, with a negative direction that no damping up to 0.16 mends.
    let negative: Vec<f64> = (0..COLS * COLS).map(|i| if i % (COLS + 1) == 0 { 1.0 } else { -1.0 }).collect();
    let failed = Damping::default().factor(&negative, COLS).unwrap();
    assert!(failed.failure().is_some() && Sweep::new(&failed, 8).is_err());
}

/// Rounds to -1 or 1.
struct Signs;

impl ColumnCoder for Signs {
    fn code(&mut self, _: Range<usize>, at: usize, ahead: &Ahead<'_>, out: &mut [f32]) -> Result<()> {
        out.iter_mut().zip(ahead.column(at)).for_each(|(o, v)| *o = if *v < 0.0 { -1.0 } else { 1.0 });
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<Box<dyn LinearOp>> {
        Ok(Box::new(Dense::new(vec![], [0, 0], DType::F32)?))
    }
}

#[test]
fn weights_are_not_dropped_on_a_grid_without_zero() {
    let (w, gram) = case();
    let factor = Damping::default().factor(&gram, COLS).unwrap();
    let mask = Mask::from_fn([ROWS, COLS], |r, c| (r + c) % 3 != 0).unwrap();
    let run = |kept: Kept<'_>| Sweep::new(&factor, 8).unwrap().run(w.clone(), &mut Signs, kept, &Exec::new());
    assert!(run(Kept::All).is_ok());
    assert!(matches!(run(Kept::Mask(&mask)), Err(Error::Unsupported { what: "mask", .. })));
}
