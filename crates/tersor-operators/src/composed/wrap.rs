//! Operators that change their inputs and pass them to another operator.
//!
//! Each holds an operator `W'` for changed inputs and is the matrix `W` for the original inputs: `decompress_rows` returns rows of `W`.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use tersor_core::context::fingerprint;
use tersor_core::method::ROW_UNIT;
use tersor_core::operator::check_apply;
use tersor_core::tensors::{join, read_expected, read_floats, write_floats};
use tersor_core::{
    DType, Error, Exec, FeatureMap, GemmTask, Input, Isa, LinearOp, Loading, MatView, MatViewMut, OpSpec, Result,
    Rotation, RowSlot, TensorInfo, TensorSink, Write, check_finite,
};

use crate::activations::{ActQuant, offsets, quantized};

/// An operator that rotates its inputs and passes them to an operator `W'` for rotated inputs: `y = (x Rᵀ) W'ᵀ` with a rotation `R`,
/// `[in_features, in_features]`. For the original inputs it is the matrix `W = W' R`, `[out_features, in_features]`. Its decompressed rows
/// are those of `W`.
///
/// ```
/// use tersor_operators::{DType, Dense, Exec, LinearOp, Rotated, Rotation};
/// # fn main() -> tersor_operators::Result<()> {
/// let swap = Rotation::dense(&[0.0, 1.0, 1.0, 0.0])?;
/// let op = Rotated::new(swap, Box::new(Dense::new(vec![1.0, 2.0], [1, 2], DType::F32)?))?;
/// let mut row = [0f32; 2];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [2.0, 1.0]);
/// # Ok(())
/// # }
/// ```
pub struct Rotated {
    rotation: Rotation,
    op: Box<dyn LinearOp>,
}

/// An operator that reorders the features of its inputs and passes them to an operator `W'` for reordered inputs: `y = x[order] W'ᵀ`, where
/// feature `i` of `x[order]` is feature `order[i]` of `x`. For the original inputs it is a matrix `W`: column `order[i]` of `W` is column
/// `i` of `W'`. Its decompressed rows are those of `W`.
///
/// ```
/// use tersor_operators::{DType, Dense, Exec, LinearOp, Permuted};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = Permuted::new(vec![2, 0, 1], Box::new(Dense::new(vec![1.0, 2.0, 3.0], [1, 3], DType::F32)?))?;
/// let mut row = [0f32; 3];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [2.0, 3.0, 1.0]);
/// # Ok(())
/// # }
/// ```
pub struct Permuted {
    order: Vec<u32>,
    key: u128,
    op: Box<dyn LinearOp>,
}

/// An operator that multiplies each feature of its inputs by a factor and passes them to an operator `W'` for scaled inputs:
/// `y = (x diag(s)) W'ᵀ` with the factors `s`, `[in_features]`. It is the matrix `W = W' diag(s)` for the original inputs.
///
/// ```
/// use tersor_operators::{DType, Dense, Exec, LinearOp, ScaledInputs};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = ScaledInputs::new(vec![0.5, 2.0], Box::new(Dense::new(vec![4.0, 4.0], [1, 2], DType::F32)?))?;
/// let mut row = [0f32; 2];
/// op.decompress_rows(0..1, &mut row, &Exec::new())?;
/// assert_eq!(row, [2.0, 8.0]);
/// # Ok(())
/// # }
/// ```
pub struct ScaledInputs {
    scales: Vec<f32>,
    key: u128,
    op: Box<dyn LinearOp>,
}

/// An operator that quantizes its inputs and passes them to another operator `W`, `[out_features, in_features]`: `y = Q(x) Wᵀ` with a
/// quantizer `Q` of activations ([`ActQuant`]). Its decompressed rows are those of `W`, and gradients pass the quantizer unchanged.
///
/// ```
/// use tersor_operators::{ActQuant, DType, Dense, LinearOpExt, MatView, QuantizedInputs};
/// # fn main() -> tersor_operators::Result<()> {
/// let op = Dense::new(vec![1.0, 1.0], [1, 2], DType::F32)?;
/// let op = QuantizedInputs::new(ActQuant::fixed(8, 0.5)?, Box::new(op))?;
/// // 0.7 and 1.2 are rounded to 0.5 and 1.0.
/// assert_eq!(op.matmul_vec(&MatView::new(&[0.7f32, 1.2], [1, 2])?)?, [1.5]);
/// # Ok(())
/// # }
/// ```
pub struct QuantizedInputs {
    act: ActQuant,
    op: Box<dyn LinearOp>,
    /// Sum of each row of `op`, `[out_features]`: the factor of a token's offset. Computed when first needed.
    sums: OnceLock<Vec<f32>>,
}

/// Returns the key under which an input caches the result of the change `change` with these values.
fn key(change: &[u8], values: impl Iterator<Item = u8>) -> u128 {
    fingerprint(&change.iter().copied().chain(values).collect::<Vec<u8>>())
}

/// Errors unless `op` has `n` input features.
fn check_width(op: &dyn LinearOp, n: usize) -> Result<()> {
    if op.shape()[1] == n { Ok(()) } else { Err(Error::shape("features of a wrapped operator", n, op.shape()[1])) }
}

impl Rotated {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "rotated";

    /// Returns the operator `y = (x Rᵀ) W'ᵀ`, which rotates its inputs `x`, `[tokens, in_features]`, by `rotation` (the matrix `R`) and
    /// passes them to `op` (the matrix `W'`). It has the shape of `op`. Errors if `rotation` and `op` have different numbers of features.
    pub fn new(rotation: Rotation, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, rotation.dim())?;
        Ok(Self { rotation, op })
    }
}

impl Permuted {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "permuted";

    /// Returns the operator that reorders the features of its inputs and passes them to `op`: feature `i` of the input of `op` is feature
    /// `order[i]` of the original one, both counted from 0. Errors unless `order` holds each input feature of `op` exactly once.
    pub fn new(order: Vec<u32>, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, order.len())?;
        FeatureMap::permutation(order.clone())?;
        let key = key(b"permuted", order.iter().flat_map(|v| v.to_le_bytes()));
        Ok(Self { order, key, op })
    }
}

impl ScaledInputs {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "scaled_inputs";

    /// Returns the operator that multiplies feature `j` of its inputs by `scales[j]` and passes them to `op`. Errors unless `scales` has
    /// one finite factor for each input feature of `op`.
    pub fn new(scales: Vec<f32>, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, scales.len())?;
        check_finite(&scales, scales.len(), 0)?;
        let key = key(b"scaled", scales.iter().flat_map(|v| v.to_le_bytes()));
        Ok(Self { scales, key, op })
    }
}

impl QuantizedInputs {
    /// The `kind` of this operator in an [`OpSpec`], the description of an operator without its tensors. A `Registry` finds the operator's
    /// loader by it.
    pub const KIND: &'static str = "quantized_inputs";

    /// Returns the operator that quantizes its inputs by `act` and passes them to `op`. Errors if `act` was made by [`ActQuant::channels`]
    /// and does not have one scale for each input feature of `op`. Errors if `act` was made by [`ActQuant::asymmetric`] and its number of
    /// spans (equal runs of features) does not divide the number of input features. Errors if `act` is asymmetric with 1 span and `op` is a
    /// [`QuantizedInputs`] or contains one. The reason is that such an `act` leaves the offset of a token out of the input of `op` and adds
    /// the offset's product with `op` to the result, which is right only if `op` is linear.
    pub fn new(act: ActQuant, op: Box<dyn LinearOp>) -> Result<Self> {
        act.check(op.shape()[1])?;
        if act.spans() == Some(1) && rounds_inputs(&op.spec()) {
            let value = "asymmetric in front of an operator that quantizes activations; use a symmetric one, or only one of the two";
            return Err(Error::Unsupported { what: "quantizer of activations", value: value.into() });
        }
        Ok(Self { act, op, sums: OnceLock::new() })
    }

    /// Returns the sum of each row of `op`, `[out_features]`. Errors if a row cannot be decompressed.
    fn sums(&self, exec: &Exec) -> Result<&[f32]> {
        if let Some(sums) = self.sums.get() {
            return Ok(sums);
        }
        let [rows, cols] = self.op.shape();
        let mut sums = Vec::with_capacity(rows);
        let mut block = vec![0f32; ROW_UNIT.min(rows) * cols];
        for first in (0..rows).step_by(ROW_UNIT) {
            let last = (first + ROW_UNIT).min(rows);
            let block = &mut block[..(last - first) * cols];
            self.op.decompress_rows(first..last, block, exec)?;
            sums.extend((0..last - first).map(|r| {
                let row = &block[r * cols..(r + 1) * cols];
                row.iter().map(|v| f64::from(*v)).sum::<f64>() as f32
            }));
        }
        Ok(self.sums.get_or_init(|| sums))
    }
}

/// Returns whether the operator with this specification, or one inside of it, quantizes activations.
fn rounds_inputs(spec: &OpSpec) -> bool {
    spec.kind == QuantizedInputs::KIND || spec.parts.values().any(rounds_inputs)
}

/// The functions in which these operators differ; [`LinearOp`] is implemented once for all of them.
trait Wrap: Send + Sync {
    /// The kind in specifications.
    const KIND: &'static str;
    /// Returns the operator `W'`.
    fn inner(&self) -> &dyn LinearOp;
    /// Returns the changed input.
    fn input(&self, x: &Input<'_>, exec: &Exec) -> Result<Arc<Input<'static>>>;
    /// Adds to `y` the part of the product that the changed input does not contain.
    fn finish(&self, input: &Input<'_>, y: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        let _ = (input, y, exec);
        Ok(())
    }
    /// Replaces rows of `W'`, `[n, in_features]`, by the same rows of `W`.
    fn restore(&self, rows: &mut [f32], isa: Isa);
    /// Adds the gradient of the original input to `dx`, given the gradient `inner` of the changed input, `[tokens, in_features]` both.
    fn backward(&self, inner: &mut [f32], mut dx: MatViewMut<'_>, isa: Isa) {
        // x' = x Mᵀ with W = W' M, so gradients are mapped as rows are.
        self.restore(inner, isa);
        let width = dx.shape()[1].max(1);
        for (dx, d) in dx.rows_mut().zip(inner.chunks_exact(width)) {
            dx.iter_mut().zip(d).for_each(|(a, b)| *a += b);
        }
    }
    /// Returns the stored bits without those of `W'`.
    fn own_bits(&self) -> u64;
    /// Adds parameters to a specification.
    fn describe(&self, spec: OpSpec) -> OpSpec;
    /// Writes the tensors without those of `W'`.
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()>;
}

impl Wrap for Rotated {
    const KIND: &'static str = Self::KIND;
    fn inner(&self) -> &dyn LinearOp {
        &*self.op
    }
    fn input(&self, x: &Input<'_>, exec: &Exec) -> Result<Arc<Input<'static>>> {
        x.form(self.rotation.key(), |v| self.rotation.forward(exec.isa(), v))
    }
    fn restore(&self, rows: &mut [f32], isa: Isa) {
        self.rotation.inverse(isa, rows);
    }
    fn own_bits(&self) -> u64 {
        self.rotation.storage_bits()
    }
    fn describe(&self, spec: OpSpec) -> OpSpec {
        self.rotation.describe(spec)
    }
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        self.rotation.save(prefix, sink)
    }
}

impl Wrap for Permuted {
    const KIND: &'static str = Self::KIND;
    fn inner(&self) -> &dyn LinearOp {
        &*self.op
    }
    fn input(&self, x: &Input<'_>, _: &Exec) -> Result<Arc<Input<'static>>> {
        let width = self.order.len();
        x.form(self.key, |v| {
            let mut old = vec![0f32; width];
            for row in v.chunks_exact_mut(width.max(1)) {
                old.copy_from_slice(row);
                row.iter_mut().zip(&self.order).for_each(|(v, &i)| *v = old[i as usize]);
            }
        })
    }
    fn restore(&self, rows: &mut [f32], _: Isa) {
        let width = self.order.len();
        let mut old = vec![0f32; width];
        for row in rows.chunks_exact_mut(width.max(1)) {
            old.copy_from_slice(row);
            for (v, &i) in old.iter().zip(&self.order) {
                row[i as usize] = *v;
            }
        }
    }
    fn own_bits(&self) -> u64 {
        self.order.len() as u64 * 32
    }
    fn describe(&self, spec: OpSpec) -> OpSpec {
        spec
    }
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let bytes: Vec<u8> = self.order.iter().flat_map(|v| v.to_le_bytes()).collect();
        let info = TensorInfo { dtype: DType::U32, shape: vec![self.order.len()] };
        sink.write_shared(&join(prefix, "order"), &info, &bytes)
    }
}

impl Wrap for ScaledInputs {
    const KIND: &'static str = Self::KIND;
    fn inner(&self) -> &dyn LinearOp {
        &*self.op
    }
    fn input(&self, x: &Input<'_>, exec: &Exec) -> Result<Arc<Input<'static>>> {
        x.form(self.key, |v| self.restore(v, exec.isa()))
    }
    /// Multiplies rows by the factors of the inputs: `W = W' diag(s)`.
    fn restore(&self, rows: &mut [f32], _: Isa) {
        for row in rows.chunks_exact_mut(self.scales.len().max(1)) {
            row.iter_mut().zip(&self.scales).for_each(|(v, s)| *v *= s);
        }
    }
    fn own_bits(&self) -> u64 {
        self.scales.len() as u64 * 32
    }
    fn describe(&self, spec: OpSpec) -> OpSpec {
        spec
    }
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        write_floats(sink, &join(prefix, "input_scales"), &[self.scales.len()], &self.scales)
    }
}

impl Wrap for QuantizedInputs {
    const KIND: &'static str = Self::KIND;
    fn inner(&self) -> &dyn LinearOp {
        &*self.op
    }
    fn input(&self, x: &Input<'_>, exec: &Exec) -> Result<Arc<Input<'static>>> {
        quantized(x, &self.act, exec.isa())
    }
    fn finish(&self, input: &Input<'_>, mut y: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        let Some(codes) = offsets(input) else { return Ok(()) };
        let sums = self.sums(exec)?;
        for (row, offset) in y.rows_mut().zip(&codes.offsets) {
            row.iter_mut().zip(sums).for_each(|(y, sum)| *y += offset * sum);
        }
        Ok(())
    }
    fn restore(&self, _: &mut [f32], _: Isa) {}
    fn own_bits(&self) -> u64 {
        self.act.scales().len() as u64 * 32
    }
    fn describe(&self, spec: OpSpec) -> OpSpec {
        let spec = spec.int("activation_bits", self.act.bits().get());
        // `token` is the default, which is not written.
        let granularity = self.act.granularity();
        let spec = if granularity == "token" { spec } else { spec.text("activations", granularity) };
        let spec = self.act.block().into_iter().fold(spec, |s, n| s.size("activation_block", n));
        self.act.spans().filter(|n| *n > 1).into_iter().fold(spec, |s, n| s.size("activation_runs", n))
    }
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let scales = self.act.scales();
        if scales.is_empty() {
            return Ok(());
        }
        write_floats(sink, &join(prefix, "activation_scales"), &[scales.len()], scales)
    }
}

/// Implements [`LinearOp`] for types that implement [`Wrap`].
macro_rules! wrapped {
    ($($wrapper:ty),*) => {$(
        impl LinearOp for $wrapper {
            fn shape(&self) -> [usize; 2] {
                self.inner().shape()
            }
            fn storage_bits(&self) -> u64 {
                self.inner().storage_bits() + self.own_bits()
            }
            fn shared_parts(&self) -> Vec<(String, u64)> {
                self.inner().shared_parts()
            }
            fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()> {
                self.inner().decompress_rows(rows, out, exec)?;
                self.restore(out, exec.isa());
                Ok(())
            }
            fn apply(&self, x: &Input<'_>, mut y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
                check_apply(self.shape(), x, &y)?;
                let input = self.input(x, exec)?;
                self.inner().apply(&input, y.reborrow(), write, exec)?;
                self.finish(&input, y, exec)
            }
            fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
                if x.shape()[1] != self.shape()[1] {
                    return Err(Error::shape("features of the input", self.shape()[1], x.shape()[1]));
                }
                let input = self.input(x, exec)?;
                // Offsets are added after the product, which a task cannot do.
                if offsets(&input).is_some() { Ok(None) } else { self.inner().task(&input, exec) }
            }
            fn apply_transposed(&self, dy: MatView<'_, f32>, dx: MatViewMut<'_>, exec: &Exec) -> Result<()> {
                let shape = [dy.shape()[0], self.shape()[1]];
                if dx.shape() != shape {
                    return Err(Error::shape("gradient of the input", shape, dx.shape()));
                }
                let mut inner = vec![0f32; tersor_core::view::elements(shape)?];
                self.inner().apply_transposed(dy, MatViewMut::new(&mut inner, shape)?, exec)?;
                self.backward(&mut inner, dx, exec.isa());
                Ok(())
            }
            fn spec_block(&self, at: RowSlot) -> OpSpec {
                let spec = OpSpec::new(<Self as Wrap>::KIND, [at.total, self.shape()[1]]);
                self.describe(spec).part("op", self.inner().spec_block(at))
            }
            fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
                self.save_own(prefix, sink)?;
                self.inner().save_block(&join(prefix, "op"), at, sink)
            }
        }
    )*};
}
wrapped!(Rotated, Permuted, ScaledInputs, QuantizedInputs);

/// Loads a rotation and its operator. Errors as [`Rotated::new`], or as their loaders.
pub(crate) fn load_rotated(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Rotated::new(Rotation::load(s, p, loading.source())?, loading.part(s, "op", p)?)?))
}

/// Loads a permutation and its operator. Errors as [`Permuted::new`], or as their loaders.
pub(crate) fn load_permuted(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let bytes = read_expected(loading.source(), &join(p, "order"), DType::U32, &[s.shape[1]])?;
    let order = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    Ok(Box::new(Permuted::new(order, loading.part(s, "op", p)?)?))
}

/// Loads factors of inputs and their operator. Errors as [`ScaledInputs::new`], or as their loaders.
pub(crate) fn load_scaled(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let scales = read_floats(loading.source(), &join(p, "input_scales"), &[s.shape[1]])?;
    Ok(Box::new(ScaledInputs::new(scales, loading.part(s, "op", p)?)?))
}

/// Loads a quantizer of activations and its operator. Errors if it is unknown, or as [`QuantizedInputs::new`], or as their loaders.
pub(crate) fn load_quantized(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let bits = u32::try_from(s.get_int("activation_bits")?).unwrap_or(0);
    let scales = |n: usize| read_floats(loading.source(), &join(p, "activation_scales"), &[n]);
    let act = match s.get_text("activations").unwrap_or("token") {
        "token" => ActQuant::per_token(bits)?,
        "tensor" => ActQuant::per_tensor(bits)?,
        "fixed" => ActQuant::fixed(bits, scales(1)?[0])?,
        "channels" => ActQuant::channels(bits, scales(s.shape[1])?)?,
        "mxint" => ActQuant::mxint(bits, s.get_size("activation_block")?)?,
        "asymmetric" => ActQuant::asymmetric(bits, s.get_size("activation_runs").unwrap_or(1))?,
        other => return Err(Error::Unsupported { what: "activations of an operator", value: format!("`{other}`") }),
    };
    Ok(Box::new(QuantizedInputs::new(act, loading.part(s, "op", p)?)?))
}
