//! [`Stream`]: quantization of values that come in pieces.

use tersor_core::{Element, Exec, Result};
use tersor_operators::Quantized;

use super::CheckedBlockwise;

/// A block-wise quantizer of one tensor whose values come in consecutive pieces of any lengths: [`Stream::push`] takes a piece,
/// [`Stream::finish`] returns the quantized tensor. The result is the same as for all values at once. Fewer than two blocks of values are
/// buffered, beside codes and scales. `CheckedBlockwise::stream` makes a stream.
///
/// ```
/// use tersor_blockwise::{Blockwise, Check};
///
/// # fn main() -> tersor_blockwise::Result<()> {
/// let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
/// let nf4 = Blockwise::nf4().check()?;
/// let mut stream = nf4.stream();
/// x.chunks(77).try_for_each(|piece| stream.push(piece))?;
/// assert_eq!(stream.finish()?, nf4.quantize_values(&x)?);
/// # Ok(())
/// # }
/// ```
pub struct Stream<T> {
    params: CheckedBlockwise,
    /// Values not quantized yet: less than two blocks.
    rest: Vec<T>,
    /// Number of quantized values.
    len: usize,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl<T: Element> Stream<T> {
    /// Returns a stream without values.
    pub(super) fn new(params: CheckedBlockwise) -> Self {
        Self { params, rest: Vec::new(), len: 0, codes: Vec::new(), absmax: Vec::new() }
    }

    /// Appends the values `x` to the tensor. Errors with `Error::NonFinite` if a value is not finite; the column of the error is the index
    /// of such a value in the whole tensor. The stream is unchanged then.
    pub fn push(&mut self, x: &[T]) -> Result<()> {
        // Two blocks hold an even number of values, so that quantized parts begin at whole bytes.
        let unit = 2 * self.params.block();
        let buffered = self.rest.len();
        let whole = (buffered + x.len()) / unit * unit;
        if whole == 0 {
            crate::check_finite(x, self.len + buffered)?;
            self.rest.extend_from_slice(x);
            return Ok(());
        }
        // The head completes the buffered values to a unit, the body is whole units, the tail is buffered.
        let (head, tail) = x.split_at((unit - buffered) % unit);
        let (body, tail) = tail.split_at(tail.len() / unit * unit);
        crate::check_finite(tail, self.len + whole)?;
        let (codes, absmax) = (self.codes.len(), self.absmax.len());
        let mut done = Ok(());
        if buffered > 0 {
            self.rest.extend_from_slice(head);
            let first = std::mem::take(&mut self.rest);
            done = self.append(&first, self.len);
            self.rest = first;
        }
        let at = self.len + if buffered > 0 { unit } else { 0 };
        if let Err(e) = done.and_then(|()| self.append(body, at)) {
            self.rest.truncate(buffered);
            self.codes.truncate(codes);
            self.absmax.truncate(absmax);
            return Err(e);
        }
        self.rest.clear();
        self.rest.extend_from_slice(tail);
        self.len += whole;
        Ok(())
    }

    /// Quantizes `x`, whose first value has the index `first` in the whole tensor. Errors if a value is not finite.
    fn append(&mut self, x: &[T], first: usize) -> Result<()> {
        let (codes, absmax) = (self.codes.len(), self.absmax.len());
        self.codes.resize(codes + self.params.code_bytes(x.len()), 0);
        self.absmax.resize(absmax + x.len().div_ceil(self.params.block()), 0.0);
        self.params.encode(x, first, &mut self.codes[codes..], &mut self.absmax[absmax..], &Exec::new())
    }

    /// Returns the quantized values of all pieces, in their order. Errors only with double quantization of the scales, if a dequantized
    /// scale overflows f32.
    pub fn finish(mut self) -> Result<Quantized> {
        let rest = std::mem::take(&mut self.rest);
        self.append(&rest, self.len)?;
        self.params.finish(self.len + rest.len(), T::DTYPE, self.codes, self.absmax)
    }
}
