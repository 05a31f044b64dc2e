//! [`Input`]: the activations that operators multiply with.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use crate::{Error, IntoMat, Result};

/// A derived value with its key.
type Derived = (u128, Arc<dyn Any + Send + Sync>);

/// Activations `[tokens, features]`, row-major in f32, that operators multiply with. Values that operators derive from them (a rotated
/// form, integer codes) are computed once, stored under a key, and shared by all operators that read the input.
///
/// ```
/// use tersor_core::Input;
/// # fn main() -> tersor_core::Result<()> {
/// let x = Input::new(&[1.0, -4.0, 2.0, 3.0], [2, 2])?;
/// // Computed once, whatever the number of operators that need it.
/// let max = |x: &Input<'_>| Ok(x.data().iter().fold(0f32, |m, v| m.max(v.abs())));
/// assert_eq!(*x.cached(1, max)?, 4.0);
/// let doubled = x.form(2, |values| values.iter_mut().for_each(|v| *v *= 2.0))?;
/// assert_eq!(doubled.data(), [2.0, -8.0, 4.0, 6.0]);
/// assert!(Input::new(&[1.0], [2, 2]).is_err());
/// # Ok(())
/// # }
/// ```
pub struct Input<'a> {
    data: OnceLock<Cow<'a, [f32]>>,
    /// Computes the values of an input that was made without them.
    decode: Option<Box<dyn Fn() -> Vec<f32> + Send + Sync>>,
    shape: [usize; 2],
    derived: Mutex<Vec<Derived>>,
}

impl<'a> Input<'a> {
    /// Returns an input that borrows the activations `data`, `[tokens, features]` row-major; `shape` is `[tokens, features]`. Errors if
    /// `data` does not have `tokens * features` values.
    pub fn new(data: &'a [f32], shape: [usize; 2]) -> Result<Self> {
        Self::from_cow(Cow::Borrowed(data), shape)
    }

    /// Returns an input that owns the activations `data`, `[tokens, features]` row-major; `shape` is `[tokens, features]`. Errors if `data`
    /// does not have `tokens * features` values.
    pub fn owned(data: Vec<f32>, shape: [usize; 2]) -> Result<Input<'static>> {
        Input::from_cow(Cow::Owned(data), shape)
    }

    /// Returns an input with a copy of the activations `x`, `[tokens, features]`, a matrix with any strides. Errors if the shape of `x`
    /// does not match its elements, or exceeds the address space.
    pub fn copied(x: &impl IntoMat<f32>) -> Result<Input<'static>> {
        x.with_mat(|m| Input::from_cow(Cow::Owned(m.to_f32().into_owned()), m.shape()))
    }

    /// Returns an input of the shape `[tokens, features]` without values. `decode` computes them, row-major, when they are first read;
    /// missing values count as 0, values in excess are dropped. It is for operators that read something else in place of the values, such
    /// as integer codes that were stored with [`Input::attach`]. Errors if the shape exceeds the address space.
    pub fn lazy(shape: [usize; 2], decode: impl Fn() -> Vec<f32> + Send + Sync + 'static) -> Result<Input<'static>> {
        crate::view::elements(shape)?;
        Ok(Input { data: OnceLock::new(), decode: Some(Box::new(decode)), shape, derived: Mutex::default() })
    }

    fn from_cow(data: Cow<'a, [f32]>, shape: [usize; 2]) -> Result<Self> {
        let n = crate::view::elements(shape)?;
        if n != data.len() {
            return Err(Error::shape("elements of an input", n, data.len()));
        }
        Ok(Self { data: OnceLock::from(data), decode: None, shape, derived: Mutex::default() })
    }

    /// Returns the shape, `[tokens, features]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Returns the values, `[tokens, features]` row-major. Those of a [lazy](Input::lazy) input are computed first, once.
    pub fn data(&self) -> &[f32] {
        self.data.get_or_init(|| {
            let mut values = self.decode.as_ref().map_or_else(Vec::new, |decode| decode());
            values.resize(self.shape[0] * self.shape[1], 0.0);
            Cow::Owned(values)
        })
    }

    /// Errors with [`Error::NonFinite`](crate::Error::NonFinite) at the first NaN or infinity, whose row is the token and whose column is
    /// the feature, counted from 0. Otherwise remembers that all values are finite, so that later calls return at once.
    pub fn check_finite(&self) -> Result<()> {
        const FINITE: u128 = 0x6669_6e69_7465;
        self.cached(FINITE, |x| crate::check_finite(x.data(), x.shape()[1], 0))?;
        Ok(())
    }

    /// Returns the value of type `T` that is stored under `key`. If there is none, it is computed by `make` and stored. `key` must identify
    /// what `make` computes: for example a [`fingerprint`](crate::context::fingerprint) of its parameters. If several threads compute it at
    /// once, all get the value that was stored first. Errors if `make` errors; nothing is stored then.
    pub fn cached<T: Any + Send + Sync>(&self, key: u128, make: impl FnOnce(&Self) -> Result<T>) -> Result<Arc<T>> {
        if let Some(found) = self.attached(key) {
            return Ok(found);
        }
        // Outside of the lock: `make` may derive other values from this input.
        let made = Arc::new(make(self)?);
        let mut derived = self.derived.lock().unwrap_or_else(|e| e.into_inner());
        let before = derived.iter().find(|(k, v)| *k == key && v.is::<T>());
        if let Some(Ok(first)) = before.map(|(_, v)| Arc::clone(v).downcast()) {
            return Ok(first);
        }
        derived.push((key, made.clone()));
        Ok(made)
    }

    /// Returns the value of type `T` that [`Input::attach`] or [`Input::cached`] stored under `key`; None if there is none of this type.
    pub fn attached<T: Any + Send + Sync>(&self, key: u128) -> Option<Arc<T>> {
        let derived = self.derived.lock().unwrap_or_else(|e| e.into_inner());
        derived.iter().filter(|(k, _)| *k == key).find_map(|(_, v)| Arc::clone(v).downcast().ok())
    }

    /// Returns this input with `value` stored under `key`, where operators find it with [`Input::attached`]. If a value of the same type
    /// was stored under this key before, operators continue to find that one.
    pub fn attach<T: Any + Send + Sync>(self, key: u128, value: Arc<T>) -> Self {
        self.derived.lock().unwrap_or_else(|e| e.into_inner()).push((key, value));
        self
    }

    /// Returns another form of this input (rotated, scaled, permuted), `[tokens, features]`: a copy of the values, which `make` changes in
    /// place. It is computed once for each `key`, which must identify the change, for example a
    /// [`fingerprint`](crate::context::fingerprint) of its parameters. Since `make` cannot fail, the result is always Ok.
    pub fn form(&self, key: u128, make: impl FnOnce(&mut [f32])) -> Result<Arc<Input<'static>>> {
        self.cached(key, |x| {
            let mut data = x.data().to_vec();
            make(&mut data);
            Input::owned(data, x.shape)
        })
    }

    /// Returns the features `columns` (a range, counted from 0) of all tokens as an input `[tokens, columns.len()]`, which is copied once
    /// for each range. Errors if the range is not inside of the features.
    pub fn columns(&self, columns: Range<usize>) -> Result<Arc<Input<'static>>> {
        let [tokens, features] = self.shape;
        if columns.start > columns.end || columns.end > features {
            return Err(Error::range("columns of an input", 0..features, columns));
        }
        /// Distinguishes these keys from fingerprints of parameters.
        const COLUMNS: u128 = 0x0063_6f6c_756d_6e73;
        let key = ((columns.start as u128) << 64 | columns.end as u128) ^ COLUMNS << 72;
        self.cached(key, |x| {
            let rows = x.data().chunks_exact(features.max(1));
            let data = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
            Input::owned(data, [tokens, columns.len()])
        })
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
            assert_eq!(f.unwrap().data(), [5.0, 2.0]);
        }
        assert_eq!(made, 1);
        assert_eq!(input.form(8, |v| v[1] = 0.0).unwrap().data(), [1.0, 0.0]);
        assert_eq!(input.columns(1..2).unwrap().data(), [2.0]);
        assert!(Input::new(&x, [2, 2]).is_err() && input.columns(1..3).is_err());
    }

    #[test]
    fn lazy_values_and_attachments() {
        let lazy = Input::lazy([1, 2], || vec![3.0, 4.0]).unwrap().attach(5, Arc::new(9u8));
        assert_eq!(lazy.data(), [3.0, 4.0]);
        assert_eq!(lazy.attached::<u8>(5).as_deref(), Some(&9));
        assert!(lazy.attached::<u16>(5).is_none() && lazy.attached::<u8>(6).is_none());
        let failed = lazy.cached::<u32>(1, |_| Err(Error::Cancelled));
        assert!(failed.is_err());
        assert_eq!(*lazy.cached(1, |_| Ok(2u32)).unwrap(), 2, "an error is not kept");
    }

    #[test]
    fn several_threads_derive_at_once() {
        let x = vec![1.0f32; 64];
        let input = Input::new(&x, [4, 16]).unwrap();
        let sums: Vec<f32> = std::thread::scope(|s| {
            let derive = || input.cached(3, |x| Ok(x.data().iter().sum::<f32>())).map(|v| *v).unwrap();
            let threads: Vec<_> = (0..4).map(|_| s.spawn(derive)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(sums, [64.0; 4]);
    }
}
