//! Values that come a piece at a time.

use tersor_core::{Element, Exec, Result};
use tersor_operators::Quantized;

use super::CheckedBlockwise;

/// Quantizes values as they come; the result is that of all of them at once. Keeps less than two blocks of values.
pub struct Stream<T> {
    params: CheckedBlockwise,
    /// Values that do not fill an even number of blocks yet.
    rest: Vec<T>,
    len: usize,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl<T: Element> Stream<T> {
    pub(super) fn new(params: CheckedBlockwise) -> Self {
        Self { params, rest: Vec::new(), len: 0, codes: Vec::new(), absmax: Vec::new() }
    }

    /// Takes the next values. Error on one that is not finite, with its index in the whole; nothing of this piece is taken then.
    pub fn push(&mut self, x: &[T]) -> Result<()> {
        // Two blocks have an even number of values, so that pieces begin at whole bytes.
        let unit = 2 * self.params.block();
        let kept = self.rest.len();
        let whole = (kept + x.len()) / unit * unit;
        if whole == 0 {
            crate::check_finite(x, self.len + kept)?;
            self.rest.extend_from_slice(x);
            return Ok(());
        }
        // What completes the values that are here, then whole units of the piece itself, then what is left.
        let (head, tail) = x.split_at((unit - kept) % unit);
        let (body, tail) = tail.split_at(tail.len() / unit * unit);
        crate::check_finite(tail, self.len + whole)?;
        let (codes, absmax) = (self.codes.len(), self.absmax.len());
        let mut done = Ok(());
        if kept > 0 {
            self.rest.extend_from_slice(head);
            let first = std::mem::take(&mut self.rest);
            done = self.append(&first, self.len);
            self.rest = first;
        }
        let at = self.len + if kept > 0 { unit } else { 0 };
        if let Err(e) = done.and_then(|()| self.append(body, at)) {
            self.rest.truncate(kept);
            self.codes.truncate(codes);
            self.absmax.truncate(absmax);
            return Err(e);
        }
        self.rest.clear();
        self.rest.extend_from_slice(tail);
        self.len += whole;
        Ok(())
    }

    fn append(&mut self, x: &[T], first: usize) -> Result<()> {
        let (codes, absmax) = (self.codes.len(), self.absmax.len());
        self.codes.resize(codes + self.params.code_bytes(x.len()), 0);
        self.absmax.resize(absmax + x.len().div_ceil(self.params.block()), 0.0);
        self.params.encode(x, first, &mut self.codes[codes..], &mut self.absmax[absmax..], &Exec::new())
    }

    /// The result. Error only where the parameters' own would be.
    pub fn finish(mut self) -> Result<Quantized> {
        let rest = std::mem::take(&mut self.rest);
        self.append(&rest, self.len)?;
        self.params.finish(self.len + rest.len(), T::DTYPE, self.codes, self.absmax)
    }
}
