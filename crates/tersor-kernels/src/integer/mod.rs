//! Products of packed integer weights with integer activations, exact in 32 bits.
//!
//! A weight is `scale * (code - zero)` with a scale and a zero point for each row and group of columns. Activations are one plane of 8-bit
//! codes with a scale for each token, or three planes that together hold 24 bits: these are as accurate as f32, and their products are
//! three times the integer work instead of a conversion of the weights to floats. Sums of codes are integers and therefore exact; groups
//! are added in f32, in order, by fused multiply-add, so every instruction set gives the same bits.
//!
//! [`product`] computes one product. Several products that share their input are [`Task`]s for [`run_tasks`], with [`Tokens`] that are
//! packed once for each [`TokenLayout`].
//!
//! ```
//! use tersor_kernels::{Isa, Out, Write, bits, integer::{self, Activations, Panels}};
//! let isa = Isa::detect();
//! // W = 0.5 * (code - 8), `[2, 4]`, one group of four columns a row.
//! let codes = [8, 9, 10, 11, 8, 7, 6, 5];
//! let mut packed = [0u8; 4];
//! bits::pack(isa, &codes, 4, &mut packed);
//! let w = Panels::new(isa, &packed, 4, [2, 4], 4, |_row, _group| (0.5, 8)).unwrap();
//! let x = Activations::exact(isa, &[1.0, 1.0, 0.0, 2.0], 1, w.padding()).unwrap();
//! let mut y = [0f32; 2];
//! integer::product(isa, &x, &w, Write::Set, Out { data: &mut y, stride: 2 }, false).unwrap();
//! assert!((y[0] - 3.5).abs() < 1e-5 && (y[1] + 3.5).abs() < 1e-5);
//! ```

mod activations;
mod panels;
mod scalar;
pub mod tables;
mod tokens;

use std::ops::Range;
use std::sync::Arc;

pub use activations::{Activations, Padding, quantize_rows};
pub use panels::{LANES, Panels};
pub(crate) use panels::{Line, PanelScales};
pub(crate) use tokens::{TokenBlock, TokenView};
pub use tokens::{TokenLayout, Tokens};

use crate::gemm_task::{GemmTask, Out, Tile, Write, run_tasks};
use crate::{Fault, Isa};
use tokens::Packed;

/// Panels that a micro-kernel processes at once.
pub(crate) const PANELS: usize = 2;

/// Computes `y[t, r] = Σ_k x[t, k] * w[r, k]`, or adds it to `y`, for activations `x` `[tokens, cols]`, weights `w` `[rows, cols]` and an
/// output `y` `[tokens, rows]`. `x[t, k]` and `w[r, k]` are the real values that the integer codes stand for, with scales and zero points
/// applied. With `parallel` the threads of the current rayon pool share a product that is large enough, with the same result.
///
/// Fails with `Fault::Length` if the layout of the columns of `x` is not [`Panels::padding`] of `w` or if `y` is too small, and with
/// `Fault::Overflow` if a size does not fit in `usize`; `y` is unchanged then. Without tokens or weight rows it succeeds and checks
/// nothing.
pub fn product(isa: Isa, x: &Activations, w: &Panels, write: Write, y: Out<'_>, parallel: bool) -> Result<(), Fault> {
    if x.tokens() == 0 || w.rows() == 0 {
        return Ok(());
    }
    let packed = Packed::new(x, w.token_layout(isa))?;
    run_tasks(vec![(&Product { x: packed.view(x), w }, write, y)], parallel)
}

/// A product of activations with a matrix of integer codes, to be computed by [`run_tasks`] together with other products. The activations
/// are packed beforehand ([`Tokens`]), so that several products with the same input can share them.
///
/// ```
/// use std::sync::Arc;
/// use tersor_kernels::{GemmTask, Isa, Out, Write, run_tasks};
/// use tersor_kernels::integer::{Activations, Panels, Task, Tokens};
/// let isa = Isa::detect();
/// // Two matrices [1, 4] of 8-bit codes with the zero point 0 share an input.
/// let a = Panels::new(isa, &[1, 2, 3, 4], 8, [1, 4], 4, |_, _| (1.0, 0)).unwrap();
/// let b = Panels::new(isa, &[0, 0, 0, 9], 8, [1, 4], 4, |_, _| (0.5, 0)).unwrap();
/// assert_eq!(a.token_layout(isa), b.token_layout(isa));
/// let x = Activations::from_codes(&[1, 1, 1, 1], &[2.0], a.padding()).unwrap();
/// let tokens = Arc::new(Tokens::pack(Arc::new(x), a.token_layout(isa)).unwrap());
/// let tasks = [Task::new(tokens.clone(), &a).unwrap(), Task::new(tokens, &b).unwrap()];
/// let (mut ya, mut yb) = ([0f32; 1], [0f32; 1]);
/// let outs = [Out { data: &mut ya, stride: 1 }, Out { data: &mut yb, stride: 1 }];
/// let list = tasks.iter().zip(outs).map(|(task, out)| (task as &dyn GemmTask, Write::Set, out));
/// run_tasks(list.collect(), true).unwrap();
/// assert_eq!((ya, yb), ([20.0], [9.0]));
/// ```
#[derive(Clone, Debug)]
pub struct Task<'w> {
    x: Arc<Tokens>,
    w: &'w Panels,
}

impl<'w> Task<'w> {
    /// Prepares the product `x wᵀ` of packed activations `[tokens, cols]` with weights `[rows, cols]`; [`run_tasks`] computes it, at the
    /// instruction-set level that `x` was packed for. The layout of `x` must be equal to [`Panels::token_layout`] of `w` at that level.
    /// Fails with `Fault::Length` if the columns of `x` are not laid out as [`Panels::padding`] of `w`. Fails with `Fault::Range` if the
    /// two layouts have different zero points, or if only one of them has a zero point (which it has if all rows and groups of the weights
    /// share one).
    pub fn new(x: Arc<Tokens>, w: &'w Panels) -> Result<Self, Fault> {
        let (given, needed) = (x.layout(), w.token_layout(x.layout().isa()));
        needed.padding().check(&given.padding())?;
        needed.check_zero(given)?;
        // `pairs` follows from the columns of a block, which are equal.
        assert_eq!(given, needed);
        Ok(Self { x, w })
    }

    fn product(&self) -> Product<'_> {
        Product { x: self.x.view(), w: self.w }
    }
}

impl GemmTask for Task<'_> {
    fn rows(&self) -> usize {
        self.product().rows()
    }
    fn tokens(&self) -> usize {
        self.product().tokens()
    }
    fn granularity(&self) -> usize {
        self.product().granularity()
    }
    fn granule_bytes(&self) -> usize {
        self.product().granule_bytes()
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        self.product().run(rows, write, tile);
    }
}

/// A product whose tokens are packed for its weights.
struct Product<'a> {
    x: TokenView<'a>,
    w: &'a Panels,
}

impl GemmTask for Product<'_> {
    fn rows(&self) -> usize {
        self.w.rows()
    }
    fn tokens(&self) -> usize {
        self.x.x.tokens()
    }
    fn granularity(&self) -> usize {
        PANELS * LANES
    }
    fn granule_bytes(&self) -> usize {
        PANELS * self.w.panel_bytes()
    }
    fn run(&self, rows: Range<usize>, write: Write, tile: &mut Tile<'_>) {
        let (x, w) = (&self.x, self.w);
        let cells = tile.cells(self.tokens(), &rows);
        assert!(rows.start.is_multiple_of(LANES) && rows.end <= w.rows(), "rows {rows:?} of {}", w.rows());
        let panels = rows.start / LANES..rows.end.div_ceil(LANES);
        #[cfg(target_arch = "x86_64")]
        {
            if x.isa.has_avx512_vnni() {
                // SAFETY: `isa` proves the instructions; the tile has the cells of these panels up to `cells.end` for
                // itself.
                unsafe { crate::arch::vnni::product(x, w, panels, write, cells) };
                return;
            }
            if x.isa.has_avx2() {
                // SAFETY: as above.
                unsafe { crate::arch::avx2_integer::product(x, w, panels, write, cells) };
                return;
            }
        }
        // SAFETY: the tile has the cells of these panels up to `cells.end` for itself.
        unsafe { scalar::product(x, w, panels, write, cells) };
    }
}

#[cfg(test)]
mod tests;
