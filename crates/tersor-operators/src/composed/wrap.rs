//! Operators that change their input before another operator sees it.
//!
//! Each holds an operator `W'` that was made for changed inputs, and equals the matrix `W` for the original inputs: `decompress_rows` gives the
//! rows of `W`.

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

/// `y = (x Rᵀ) W'ᵀ`, that is `W = W' R`.
pub struct Rotated {
    rotation: Rotation,
    op: Box<dyn LinearOp>,
}

/// `y = x[order] W'ᵀ`: column `i` of `W'` is column `order[i]` of `W`.
pub struct Permuted {
    order: Vec<u32>,
    key: u128,
    op: Box<dyn LinearOp>,
}

/// `y = (x · s) W'ᵀ`, elementwise by features.
pub struct ScaledInputs {
    scales: Vec<f32>,
    key: u128,
    op: Box<dyn LinearOp>,
}

/// `y = Q(x) Wᵀ`: the activations pass a quantizer, the weights are those of `op`.
pub struct QuantizedInputs {
    act: ActQuant,
    op: Box<dyn LinearOp>,
    /// Sums of the rows of `op`, by which offsets of whole tokens are multiplied. Computed when they are first needed.
    sums: OnceLock<Vec<f32>>,
}

/// Returns the key of an input that was changed by these values.
fn key(change: &[u8], values: impl Iterator<Item = u8>) -> u128 {
    fingerprint(&change.iter().copied().chain(values).collect::<Vec<u8>>())
}

fn check_width(op: &dyn LinearOp, n: usize) -> Result<()> {
    if op.shape()[1] == n { Ok(()) } else { Err(Error::shape("features of a wrapped operator", n, op.shape()[1])) }
}

impl Rotated {
    /// The kind in specifications.
    pub const KIND: &'static str = "rotated";

    /// Puts a rotation in front of an operator that was made for rotated inputs. Errors if their widths differ.
    pub fn new(rotation: Rotation, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, rotation.dim())?;
        Ok(Self { rotation, op })
    }
}

impl Permuted {
    /// The kind in specifications.
    pub const KIND: &'static str = "permuted";

    /// Puts a permutation in front of an operator that was made for permuted inputs. Errors unless `order` holds every feature once.
    pub fn new(order: Vec<u32>, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, order.len())?;
        FeatureMap::permutation(order.clone())?;
        let key = key(b"permuted", order.iter().flat_map(|v| v.to_le_bytes()));
        Ok(Self { order, key, op })
    }
}

impl ScaledInputs {
    /// The kind in specifications.
    pub const KIND: &'static str = "scaled_inputs";

    /// Multiplies inputs by a factor for each feature in front of an operator that was made for scaled inputs. Errors unless there is a finite
    /// factor for each feature.
    pub fn new(scales: Vec<f32>, op: Box<dyn LinearOp>) -> Result<Self> {
        check_width(&*op, scales.len())?;
        check_finite(&scales, scales.len(), 0)?;
        let key = key(b"scaled", scales.iter().flat_map(|v| v.to_le_bytes()));
        Ok(Self { scales, key, op })
    }
}

impl QuantizedInputs {
    /// The kind in specifications.
    pub const KIND: &'static str = "quantized_inputs";

    /// Puts a quantizer of activations in front of an operator. Errors if the quantizer is for another number of features, or if it adds an offset
    /// to whole tokens (asymmetric, one run) and the operator quantizes activations itself, at any depth: the offset is added after the operator,
    /// which must be linear for that.
    pub fn new(act: ActQuant, op: Box<dyn LinearOp>) -> Result<Self> {
        act.check(op.shape()[1])?;
        if act.runs() == Some(1) && rounds_inputs(&op.spec()) {
            let value =
                "asymmetric in front of an operator that quantizes activations; use a symmetric one, or one of the two";
            return Err(Error::Unsupported { what: "quantizer of activations", value: value.into() });
        }
        Ok(Self { act, op, sums: OnceLock::new() })
    }

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

/// Returns whether an operator, or one inside of it, quantizes activations.
fn rounds_inputs(spec: &OpSpec) -> bool {
    spec.kind == QuantizedInputs::KIND || spec.parts.values().any(rounds_inputs)
}

/// The parts in which the wrappers differ; the rest is written once below.
trait Wrap: Send + Sync {
    const KIND: &'static str;
    fn inner(&self) -> &dyn LinearOp;
    /// Returns the changed input.
    fn input(&self, x: &Input<'_>, exec: &Exec) -> Result<Arc<Input<'static>>>;
    /// Adds the part of the product that the changed input leaves out.
    fn finish(&self, input: &Input<'_>, y: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        let _ = (input, y, exec);
        Ok(())
    }
    /// Changes rows of `W'` into rows of `W`.
    fn restore(&self, rows: &mut [f32], isa: Isa);
    /// Adds the gradient of `x` to `dx`, given the gradient of the changed input.
    fn backward(&self, inner: &mut [f32], mut dx: MatViewMut<'_>, isa: Isa) {
        // The inputs change as the rows do: x' = x Mᵀ where W = W' M.
        self.restore(inner, isa);
        let width = dx.shape()[1].max(1);
        for (dx, d) in dx.rows_mut().zip(inner.chunks_exact(width)) {
            dx.iter_mut().zip(d).for_each(|(a, b)| *a += b);
        }
    }
    fn own_bits(&self) -> u64;
    fn describe(&self, spec: OpSpec) -> OpSpec;
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
    /// `W = W' diag(s)`: the weights take the same factors as the inputs.
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
        // One scale a token is the default.
        let granularity = self.act.granularity();
        let spec = if granularity == "token" { spec } else { spec.text("activations", granularity) };
        let spec = self.act.block().into_iter().fold(spec, |s, n| s.size("activation_block", n));
        self.act.runs().filter(|n| *n > 1).into_iter().fold(spec, |s, n| s.size("activation_runs", n))
    }
    fn save_own(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let scales = self.act.scales();
        if scales.is_empty() {
            return Ok(());
        }
        write_floats(sink, &join(prefix, "activation_scales"), &[scales.len()], scales)
    }
}

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
                // With offsets there is more to do than the product.
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

pub(crate) fn load_rotated(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    Ok(Box::new(Rotated::new(Rotation::load(s, p, loading.source())?, loading.part(s, "op", p)?)?))
}

pub(crate) fn load_permuted(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let bytes = read_expected(loading.source(), &join(p, "order"), DType::U32, &[s.shape[1]])?;
    let order = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    Ok(Box::new(Permuted::new(order, loading.part(s, "op", p)?)?))
}

pub(crate) fn load_scaled(s: &OpSpec, p: &str, loading: &Loading<'_>) -> Result<Box<dyn LinearOp>> {
    let scales = read_floats(loading.source(), &join(p, "input_scales"), &[s.shape[1]])?;
    Ok(Box::new(ScaledInputs::new(scales, loading.part(s, "op", p)?)?))
}

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
