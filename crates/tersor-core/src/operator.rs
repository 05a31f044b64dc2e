//! [`LinearOp`]: a weight matrix in any stored form, and its products.

use std::ops::Range;

use tersor_kernels::dense::{self, Options};
use tersor_kernels::{GemmTask, Write, run_tasks};

use crate::method::ROW_UNIT;
use crate::{Error, Exec, Input, IntoMat, MatView, MatViewMut, OpSpec, Result, RowSlot, TensorSink};

/// A weight matrix `W` `[out_features, in_features]` in some stored form, such as dense or quantized in groups. It multiplies (`y = x Wᵀ`),
/// decompresses its rows, is saved, and is loaded again through a [`Registry`](crate::Registry).
///
/// A new stored form implements five methods: [`shape`](Self::shape), [`storage_bits`](Self::storage_bits),
/// [`decompress_rows`](Self::decompress_rows), [`spec_block`](Self::spec_block) and [`save_block`](Self::save_block). The products then
/// work through `decompress_rows`, a block of rows at a time; a form with kernels of its own overrides them. The [front page](crate) shows
/// a complete form.
///
/// ```
/// # use std::ops::Range;
/// # use tersor_core::{OpSpec, RowSlot, TensorSink, rows, tensors};
/// use tersor_core::{Exec, Input, LinearOp, MatViewMut, Result, Write};
///
/// /// A matrix whose weights are all the same: value and shape.
/// struct Constant(f32, [usize; 2]);
/// # impl LinearOp for Constant {
/// #     fn shape(&self) -> [usize; 2] {
/// #         self.1
/// #     }
/// #     fn storage_bits(&self) -> u64 {
/// #         32
/// #     }
/// #     fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
/// #         rows::check_range(self.1, &rows, out.len())?;
/// #         out.fill(self.0);
/// #         Ok(())
/// #     }
/// #     fn spec_block(&self, at: RowSlot) -> OpSpec {
/// #         OpSpec::new("constant", [at.total, self.1[1]])
/// #     }
/// #     fn save_block(&self, prefix: &str, _: RowSlot, sink: &mut dyn TensorSink) -> Result<()> {
/// #         tensors::write_floats(sink, &tensors::join(prefix, "value"), &[1], &[self.0])
/// #     }
/// # }
///
/// # fn main() -> Result<()> {
/// let (op, exec) = (Constant(0.5, [3, 2]), Exec::new());
/// let x = Input::new(&[2.0, 4.0], [1, 2])?;
/// let mut y = [1f32; 3];
/// op.apply(&x, MatViewMut::new(&mut y, [1, 3])?, Write::Add, &exec)?;
/// assert_eq!(y, [4.0, 4.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub trait LinearOp: Send + Sync {
    /// Returns the shape of the matrix, `[out_features, in_features]`.
    fn shape(&self) -> [usize; 2];

    /// Returns the exact number of bits of the tensors that [`save`](Self::save) writes, which are those of the [`Layout`](crate::Layout)
    /// that the method announced. Parts that are shared with other operators are not included; see [`shared_parts`](Self::shared_parts).
    fn storage_bits(&self) -> u64;

    /// Returns the name and the number of bits of each stored part that other operators may use too, such as a codebook of the network;
    /// none by default. See [`storage_bits_of`].
    fn shared_parts(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Writes the rows `rows` of the matrix in f32 into `out`, `[rows.len(), in_features]` row-major. Errors if the range leaves the matrix
    /// or `out` has another length.
    fn decompress_rows(&self, rows: Range<usize>, out: &mut [f32], exec: &Exec) -> Result<()>;

    /// Computes `y = x Wᵀ` ([`Write::Set`]) or `y += x Wᵀ` ([`Write::Add`]) for `x` `[tokens, in_features]` and `y` `[tokens,
    /// out_features]`. Errors if the shapes do not match or a value of `x` is not finite; `y` is unspecified then.
    fn apply(&self, x: &Input<'_>, y: MatViewMut<'_>, write: Write, exec: &Exec) -> Result<()> {
        apply_by_rows(self, x, y, write, exec)
    }

    /// Computes `dx += dy W`, the gradient of [`apply`](Self::apply) with respect to its input, for `dy` `[tokens, out_features]` and `dx`
    /// `[tokens, in_features]`. Errors if the shapes do not match.
    fn apply_transposed(&self, dy: MatView<'_, f32>, dx: MatViewMut<'_>, exec: &Exec) -> Result<()> {
        apply_transposed_by_rows(self, dy, dx, exec)
    }

    /// Returns the product with `x` `[tokens, in_features]` as a task: a product that can be computed for any span of the matrix's rows, so
    /// that [`apply_all`] runs it together with others. None, the default, if the operator has no such form. Errors if the shapes do not
    /// match or a value of `x` is not finite.
    fn task<'a>(&'a self, x: &Input<'_>, exec: &Exec) -> Result<Option<Box<dyn GemmTask + 'a>>> {
        let _ = (x, exec);
        Ok(None)
    }

    /// Returns the specification (kind, shape, parameters, parts) of the whole matrix, of which this operator is the block of rows `at`:
    /// the shape is `[at.total, in_features]`. Together with the tensors of [`save_block`](Self::save_block) it is all that loading needs.
    fn spec_block(&self, at: RowSlot) -> OpSpec;

    /// Writes the tensors of this operator, which is the block of rows `at` of a matrix, to `sink`, under names that begin with `prefix`.
    /// Tensors that can be cut by rows have the rows of the whole matrix as their first axis, and only the block's rows are written; other
    /// tensors are shared, and must be equal in every block. Errors if the sink errors.
    fn save_block(&self, prefix: &str, at: RowSlot, sink: &mut dyn TensorSink) -> Result<()>;

    /// Returns the specification of the operator as a matrix of its own; see [`spec_block`](Self::spec_block).
    fn spec(&self) -> OpSpec {
        self.spec_block(RowSlot::whole(self.shape()[0]))
    }

    /// Writes all tensors of the operator to `sink`, under names that begin with `prefix`. Errors if the sink errors, or if operators are
    /// nested deeper than [`Registry::MAX_DEPTH`](crate::Registry::MAX_DEPTH), because they could not be loaded.
    fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        crate::Registry::check_depth(&self.spec())?;
        self.save_block(prefix, RowSlot::whole(self.shape()[0]), sink)
    }
}

/// Methods that every [`LinearOp`] (a weight matrix `W` in some stored form) has for plain arrays: `matmul_vec` and `matmul` return the
/// product `x Wᵀ`, `decompress` returns all weights in f32. They run in the rayon pool of the calling thread, with the processor's best
/// instruction set. The [front page](crate) has an example.
pub trait LinearOpExt: LinearOp {
    /// Returns `x Wᵀ`, `[tokens, out_features]` row-major, for `x` `[tokens, in_features]`. Errors if the features do not match or a value
    /// of `x` is not finite.
    fn matmul_vec(&self, x: &impl IntoMat<f32>) -> Result<Vec<f32>> {
        x.with_mat(|m| {
            let ([tokens, features], [out, _]) = (m.shape(), self.shape());
            let data = m.to_f32();
            crate::check_finite(&data, features, 0)?;
            let mut y = vec![0f32; crate::view::elements([tokens, out])?];
            let view = MatViewMut::new(&mut y, [tokens, out])?;
            self.apply(&Input::new(&data, [tokens, features])?, view, Write::Set, &Exec::new())?;
            Ok(y)
        })
    }

    /// Returns `x Wᵀ` as an ndarray matrix `[tokens, out_features]`, for `x` `[tokens, in_features]`. Errors if the features do not match
    /// or a value of `x` is not finite.
    #[cfg(feature = "ndarray")]
    fn matmul(&self, x: &impl IntoMat<f32>) -> Result<ndarray::Array2<f32>> {
        let tokens = x.with_mat(|m| Ok(m.shape()[0]))?;
        let y = self.matmul_vec(x)?;
        let shape = [tokens, self.shape()[0]];
        ndarray::Array2::from_shape_vec(shape, y).map_err(|e| Error::Numerical(e.to_string()))
    }

    /// Returns all weights in f32, `[out_features, in_features]` row-major. Errors if they exceed the address space or cannot be
    /// decompressed.
    fn decompress(&self) -> Result<Vec<f32>> {
        let shape = self.shape();
        let mut out = vec![0f32; crate::view::elements(shape)?];
        self.decompress_rows(0..shape[0], &mut out, &Exec::new())?;
        Ok(out)
    }
}

impl<T: LinearOp + ?Sized> LinearOpExt for T {}

/// Returns the number of stored bits of several operators together. Parts that operators share ([`LinearOp::shared_parts`], such as a
/// codebook) are counted once for each name. A sum that overflows is returned as the largest u64.
pub fn storage_bits_of<'o>(ops: impl IntoIterator<Item = &'o dyn LinearOp>) -> u64 {
    let (mut bits, mut shared) = (0u64, std::collections::BTreeMap::new());
    for op in ops {
        bits = bits.saturating_add(op.storage_bits());
        shared.extend(op.shared_parts());
    }
    shared.into_values().fold(bits, u64::saturating_add)
}

/// Errors with [`Error::Shape`] unless `x` is `[tokens, in_features]` and `y` is `[tokens, out_features]`, for an operator of the shape
/// `[out_features, in_features]`. Implementations of [`LinearOp::apply`] check their arguments with it.
pub fn check_apply([out, inp]: [usize; 2], x: &Input<'_>, y: &MatViewMut<'_>) -> Result<()> {
    let [tokens, features] = x.shape();
    if features != inp {
        return Err(Error::shape("features of the input", inp, features));
    }
    if y.shape() != [tokens, out] {
        return Err(Error::shape("output", [tokens, out], y.shape()));
    }
    Ok(())
}

/// Computes `y_i = x W_iᵀ` for operators that share the input `x` `[tokens, in_features]`, such as q, k and v. `ys` has one output
/// `[tokens, out_features]` for each operator, in the order of `ops`; its old values are overwritten. The operators whose
/// [`task`](LinearOp::task) is not None (their product can be computed for any span of rows) are computed together as one piece of parallel
/// work, so that operators with few rows share the threads with the others. All other operators run one after the other. Errors if there
/// are not as many outputs as operators, if a shape does not match, or if an operator errors, for example because a value of `x` is not
/// finite. After an error, the values in `ys` are unspecified.
pub fn apply_all(ops: &[&dyn LinearOp], x: &Input<'_>, ys: Vec<MatViewMut<'_>>, exec: &Exec) -> Result<()> {
    if ops.len() != ys.len() {
        return Err(Error::shape("outputs of joint products", ops.len(), ys.len()));
    }
    for (op, y) in ops.iter().zip(&ys) {
        check_apply(op.shape(), x, y)?;
    }
    let tasks = ops.iter().map(|op| op.task(x, exec)).collect::<Result<Vec<_>>>()?;
    let mut joint = Vec::new();
    for ((op, task), y) in ops.iter().zip(&tasks).zip(ys) {
        match task {
            Some(task) => joint.push((&**task as &dyn GemmTask, Write::Set, y.into_out())),
            None => op.apply(x, y, Write::Set, exec)?,
        }
    }
    exec.run(|| run_tasks(joint, exec.parallel())).map_err(Error::from)
}

/// Computes `y = x Wᵀ` ([`Write::Set`]) or `y += x Wᵀ` ([`Write::Add`]) for `x` `[tokens, in_features]` and `y` `[tokens, out_features]`.
/// It calls [`LinearOp::decompress_rows`] for one block of rows at a time, so that the whole matrix never exists in f32. It is the default
/// of [`LinearOp::apply`]. Errors if the shapes do not match, a value of `x` is not finite, or rows cannot be decompressed.
pub fn apply_by_rows(
    op: &(impl LinearOp + ?Sized),
    x: &Input<'_>,
    y: MatViewMut<'_>,
    write: Write,
    exec: &Exec,
) -> Result<()> {
    let shape = op.shape();
    check_apply(shape, x, &y)?;
    x.check_finite()?;
    let rows = |r: Range<usize>, out: &mut [f32]| op.decompress_rows(r, out, exec);
    let how = Options { isa: exec.isa(), write, parallel: exec.parallel() };
    exec.run(|| dense::product_by_rows(how, x.data(), x.shape(), shape[0], rows, y.into_out()))
}

/// Computes `dx += dy W` for `dy` `[tokens, out_features]` and `dx` `[tokens, in_features]`. It calls [`LinearOp::decompress_rows`] for one
/// block of rows at a time, from the first to the last. It is the default of [`LinearOp::apply_transposed`]. Errors if the shapes do not
/// match or rows cannot be decompressed. NaN and infinities in `dy` are no error: they pass into `dx`.
pub fn apply_transposed_by_rows(
    op: &(impl LinearOp + ?Sized),
    dy: MatView<'_, f32>,
    mut dx: MatViewMut<'_>,
    exec: &Exec,
) -> Result<()> {
    let [out, inp] = op.shape();
    let [tokens, found] = dy.shape();
    if found != out {
        return Err(Error::shape("features of the gradient of the output", out, found));
    }
    if dx.shape() != [tokens, inp] {
        return Err(Error::shape("gradient of the input", [tokens, inp], dx.shape()));
    }
    let (dy, unit) = (dy.to_f32(), ROW_UNIT.min(out.max(1)));
    let mut block = exec.scratch(unit * inp);
    for first in (0..out).step_by(unit) {
        let rows = first..(first + unit).min(out);
        let block = &mut block[..rows.len() * inp];
        op.decompress_rows(rows.clone(), block, exec)?;
        for (dx, dy) in dx.rows_mut().zip(dy.chunks_exact(out)) {
            for (w, g) in block.chunks_exact(inp.max(1)).zip(&dy[rows.clone()]) {
                tersor_kernels::vector::axpy(exec.isa(), *g, w, dx);
            }
        }
    }
    Ok(())
}
