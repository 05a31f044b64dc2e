//! Integer forms of an [`Input`], computed once and shared by all operators that read it.

use std::sync::Arc;

use tersor_core::{Error, Input, Isa, Result};
use tersor_kernels::integer::{Activations, Padding, TokenLayout, Tokens};

use super::quantizer::Encoded;
use super::{ActQuant, Codes};

/// The key under which a quantized input has its codes attached.
const CODES: u128 = 0x6163_7469_7661_7469_6f6e_2063_6f64_6573;

/// Returns the input quantized by `act`, without its [`offsets`], computed once for each quantizer. If a token has one scale, the codes are
/// attached to it, for the integer kernels. Errors if a value is not finite, or the quantizer is for another number of features.
pub(crate) fn quantized(x: &Input<'_>, act: &ActQuant, isa: Isa) -> Result<Arc<Input<'static>>> {
    let shape = x.shape();
    act.check(shape[1])?;
    x.cached(act.key(), |x| match act.apply(isa, x.data(), shape[1])? {
        Encoded::Values(values) => Input::owned(values, shape),
        Encoded::Codes(codes) => {
            let codes = Arc::new(codes);
            let held = Arc::clone(&codes);
            let decode = move || ActQuant::decode(&held.codes, &held.scales, &[], shape[1]);
            Ok(Input::lazy(shape, decode)?.attach(CODES, codes))
        }
    })
}

/// Returns the codes of an input with [`Codes::offsets`], which an asymmetric quantizer has not added to the input's values; `None` if there are
/// none.
pub(crate) fn offsets(x: &Input<'_>) -> Option<Arc<Codes>> {
    x.attached::<Codes>(CODES).filter(|c| !c.offsets.is_empty())
}

/// Returns the activations `x`, `[tokens, features]`, as 8-bit codes with one scale for each token, which integer matrix products read. If
/// a [`QuantizedInputs`](crate::QuantizedInputs) has quantized `x` with one scale for each token, the result has the codes of that
/// quantization. Otherwise each value becomes a 24-bit integer, stored as three 8-bit codes. These codes represent the value within 2^-22
/// of the largest magnitude of its token; a token whose largest magnitude is below about 1e-31 becomes zeros. The features (columns) are
/// cut into groups of `padding.group`, of which the last may be shorter. Each group is padded with zeros to a multiple of `padding.block`
/// columns. `x` keeps the result for later calls with the same `padding`. `isa` is the instruction set to compute with. Errors if
/// `padding.cols` is not the number of features, `padding.group` or `padding.block` is 0, or a value is not finite.
pub fn integers(x: &Input<'_>, isa: Isa, padding: Padding) -> Result<Arc<Activations>> {
    let key = (padding.cols as u128) << 64 | (padding.group as u128) << 16 | padding.block as u128;
    let make = |x: &Input<'_>| {
        let made = match x.attached::<Codes>(CODES) {
            Some(c) => Activations::from_codes(&c.codes, &c.scales, padding),
            None => Activations::exact(isa, x.data(), x.shape()[0], padding),
        };
        made.map_err(|e| Error::from(e).in_columns(x.shape()[1]))
    };
    let found = x.cached(key, make)?;
    // If two layouts share a key, the second one is converted each time.
    if *found.padding() == padding { Ok(found) } else { Ok(Arc::new(make(x)?)) }
}

/// Returns the input packed in the order of the kernel for integer weights, computed once for each layout. Errors as [`integers`].
pub(crate) fn tokens(x: &Input<'_>, layout: TokenLayout) -> Result<Arc<Tokens>> {
    let packed = |x: &Input<'_>| Ok(Tokens::pack(integers(x, layout.isa(), layout.padding())?, layout)?);
    let found = x.cached(layout.key(), packed)?;
    // If two layouts share a key, the second one is packed each time.
    if found.layout() == layout { Ok(found) } else { Ok(Arc::new(packed(x)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_have_no_codes() {
        let act = [
            ActQuant::per_token(8),
            ActQuant::per_tensor(8),
            ActQuant::fixed(8, 0.1),
            ActQuant::channels(8, vec![0.1; 4]),
        ];
        let more = [ActQuant::mxint(8, 2), ActQuant::asymmetric(4, 1), ActQuant::asymmetric(4, 2)];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = [1.0, 2.0, 3.0, 4.0, 5.0, bad, 7.0, 8.0];
            let input = Input::new(&x, [2, 4]).unwrap();
            for act in act.iter().chain(&more).map(|a| a.clone().unwrap()) {
                let e = quantized(&input, &act, Isa::detect()).err().unwrap();
                assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
            }
            let padding = Padding { cols: 4, group: 4, block: 4 };
            let e = integers(&input, Isa::detect(), padding).err().unwrap();
            assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
        }
    }
}
