//! What operating takes from outside, and the activations that flow into operators.

use crate::act::Encoded;
use crate::context::fingerprint;
use crate::{ActQuant, Error, IntoMat, Result};
use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use tersor_kernels::Isa;
use tersor_kernels::integer::{Activations, Padding};

/// How operators run: the instruction set, and whether they may use the current thread pool.
#[derive(Clone, Debug)]
pub struct Exec {
    isa: Isa,
    parallel: bool,
}

impl Default for Exec {
    fn default() -> Self {
        Self { isa: Isa::detect(), parallel: cfg!(feature = "rayon") }
    }
}

impl Exec {
    /// The processor's instruction set, in the current rayon pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// On the calling thread only.
    pub fn serial() -> Self {
        Self { parallel: false, ..Self::default() }
    }

    /// With another instruction set (scalar, for comparison).
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether operators may fork.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// `n` serial children, for work that is parallel above the operators.
    pub fn split(&self, n: usize) -> Vec<Exec> {
        vec![Exec { parallel: false, ..self.clone() }; n]
    }
}

/// Activations of one block of tokens, `[tokens, features]` row-major in f32, prepared once for all its
/// consumers: rotated and quantized forms are made on first use and kept.
pub struct Input<'a> {
    data: OnceCell<Cow<'a, [f32]>>,
    shape: [usize; 2],
    forms: RefCell<Vec<(u128, Rc<Input<'static>>)>>,
    /// What an activation quantizer made of it: 8-bit codes `[tokens, features]` and a scale a token. The values are made of them when they
    /// are asked for.
    codes: Option<(Vec<i8>, Vec<f32>)>,
    /// What the quantizer left out of these values, the same for all features of a token.
    offsets: Vec<f32>,
    planes: RefCell<Vec<(Padding, Rc<Activations>)>>,
}

impl<'a> Input<'a> {
    /// Borrows a contiguous block. Error when the length is not `tokens * features`.
    pub fn new(data: &'a [f32], shape: [usize; 2]) -> Result<Self> {
        Self::from_cow(Cow::Borrowed(data), shape)
    }

    /// Copies any matrix.
    pub fn copied(x: &impl IntoMat<f32>) -> Result<Input<'static>> {
        x.with_mat(|m| Input::from_cow(Cow::Owned(m.to_f32().into_owned()), m.shape()))
    }

    fn from_cow(data: Cow<'a, [f32]>, shape: [usize; 2]) -> Result<Self> {
        let n = crate::view::elements(shape)?;
        if n != data.len() {
            return Err(Error::shape("elements of an input", n, data.len()));
        }
        Ok(Self::made(data.into(), shape, None))
    }

    fn made(data: OnceCell<Cow<'a, [f32]>>, shape: [usize; 2], codes: Option<(Vec<i8>, Vec<f32>)>) -> Self {
        Self { data, shape, forms: RefCell::default(), codes, offsets: Vec::new(), planes: RefCell::default() }
    }

    /// `[tokens, features]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The values.
    pub fn data(&self) -> &[f32] {
        self.data.get_or_init(|| {
            let (codes, scales) = self.codes.as_ref().map_or((&[][..], &[][..]), |(c, s)| (c, s));
            Cow::Owned(ActQuant::decode(codes, scales, &[], self.shape[1]))
        })
    }

    /// Another form of this input (rotated, scaled, permuted), of the same shape, made by `make` on a copy
    /// of the values the first time `key` is asked for. `key` stands for what `make` does: a
    /// [`fingerprint`](crate::context::fingerprint) of its parameters.
    pub fn form(&self, key: u128, make: impl FnOnce(&mut [f32])) -> Rc<Input<'static>> {
        if let Some(made) = self.found(key) {
            return made;
        }
        let mut data = self.data().to_vec();
        make(&mut data);
        self.keep(key, Input::made(OnceCell::from(Cow::Owned(data)), self.shape, None))
    }

    fn found(&self, key: u128) -> Option<Rc<Input<'static>>> {
        self.forms.borrow().iter().find(|(k, _)| *k == key).map(|(_, made)| Rc::clone(made))
    }

    fn keep(&self, key: u128, made: Input<'static>) -> Rc<Input<'static>> {
        let made = Rc::new(made);
        self.forms.borrow_mut().push((key, Rc::clone(&made)));
        made
    }

    /// Some of the features, `[tokens, columns.len()]`, made once for each run of them. Error when the run leaves the features.
    pub fn columns(&self, columns: Range<usize>) -> Result<Rc<Input<'static>>> {
        let [tokens, features] = self.shape;
        if columns.start > columns.end || columns.end > features {
            return Err(Error::shape("columns of an input", format!("within 0..{features}"), format!("{columns:?}")));
        }
        let key = fingerprint(format!("columns {columns:?}").as_bytes());
        if let Some(made) = self.found(key) {
            return Ok(made);
        }
        let shape = [tokens, columns.len()];
        let rows = self.data().chunks_exact(features.max(1));
        let data: Vec<f32> = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
        Ok(self.keep(key, Input::made(OnceCell::from(Cow::Owned(data)), shape, None)))
    }

    /// The values that remain of this input after an activation quantizer, but for its [`Input::offsets`], made once for each quantizer.
    /// Integer kernels find the codes beside them, where a token has one scale. Error when a value is not finite, or the quantizer has
    /// scales for another number of features.
    pub fn quantized(&self, act: &ActQuant, isa: Isa) -> Result<Rc<Input<'static>>> {
        act.check(self.shape[1])?;
        let key = act.key();
        if let Some(made) = self.found(key) {
            return Ok(made);
        }
        // A code would stand for something else.
        crate::check_finite(self.data(), self.shape[1], 0)?;
        let made = match act.apply(isa, self.data(), self.shape[1]) {
            Encoded::Codes(codes, scales, offsets) => {
                let made = Input::made(OnceCell::new(), self.shape, Some((codes, scales)));
                Input { offsets, ..made }
            }
            Encoded::Values(values) => Input::made(OnceCell::from(Cow::Owned(values)), self.shape, None),
        };
        Ok(self.keep(key, made))
    }

    /// What an asymmetric quantizer left to be added to all features of a token, `[tokens]`; empty where it left nothing.
    pub fn offsets(&self) -> &[f32] {
        &self.offsets
    }

    /// As planes of 8-bit codes for an integer product: those of the activation quantizer, or else enough of them to be as good as f32.
    /// Made once for each layout. Error when the layout has another number of features.
    pub fn activations(&self, isa: Isa, padding: Padding) -> Result<Rc<Activations>> {
        if let Some((_, made)) = self.planes.borrow().iter().find(|(p, _)| *p == padding) {
            return Ok(Rc::clone(made));
        }
        let made = match &self.codes {
            Some((codes, scales)) => Activations::from_codes(codes, scales, padding),
            None => Activations::exact(isa, self.data(), self.shape[0], padding),
        };
        let made = Rc::new(made.ok_or_else(|| Error::shape("features of the input", padding.cols, self.shape[1]))?);
        self.planes.borrow_mut().push((padding, Rc::clone(&made)));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_made_once() {
        let x = [1.0f32, 2.0];
        let input = Input::new(&x, [1, 2]).unwrap();
        let mut made = 0;
        for _ in 0..3 {
            let f = input.form(7, |v| {
                made += 1;
                v[0] = 5.0;
            });
            assert_eq!(f.data(), [5.0, 2.0]);
        }
        assert_eq!(made, 1);
        assert_eq!(input.form(8, |v| v[1] = 0.0).data(), [1.0, 0.0]);
        assert!(Input::new(&x, [2, 2]).is_err());
    }

    #[test]
    fn what_is_not_finite_has_no_codes() {
        let act = [
            ActQuant::per_token(8),
            ActQuant::per_tensor(8),
            ActQuant::fixed(8, 0.1),
            ActQuant::channels(8, vec![0.1; 4]),
        ];
        let more = [ActQuant::mxint(8, 2), ActQuant::asymmetric(4, 1), ActQuant::asymmetric(4, 2)];
        for act in act.into_iter().chain(more).map(Result::unwrap) {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let x = [1.0, 2.0, 3.0, 4.0, 5.0, bad, 7.0, 8.0];
                let e = Input::new(&x, [2, 4]).unwrap().quantized(&act, Isa::detect()).err().unwrap();
                assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
            }
        }
    }
}
