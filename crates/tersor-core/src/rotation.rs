//! [`Rotation`]: orthogonal transforms of features that are cheap to apply and small to store.

use crate::context::fingerprint;
use crate::tensors::{join, read_expected, read_floats, write_floats};
use crate::{DType, Error, OpSpec, Result, TensorInfo, TensorSink, TensorSource};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::sync::Arc;
use tersor_kernels::hadamard::fwht;
use tersor_kernels::{Isa, vector};

/// An orthogonal transform of `dim = p * 2^m` features, `x ↦ (F ⊗ H) diag(signs) x`. Each feature is multiplied by its sign. Then each of
/// the `p` spans of `2^m` neighbouring features goes through an orthonormal Walsh-Hadamard transform `H`, and an orthogonal matrix `F`
/// `[p, p]` mixes the features at the same place of all spans. With `p = 1` it is a randomized Hadamard rotation, with `2^m = 1` a rotation
/// by any orthogonal matrix.
///
/// ```
/// use tersor_core::{Isa, Rotation};
/// # fn main() -> tersor_core::Result<()> {
/// // A Hadamard rotation of four features.
/// let rotation = Rotation::new(&[1.0], 4, &[1.0, -1.0, 1.0, 1.0])?;
/// let mut x = [1.0f32, 2.0, 3.0, 4.0];
/// rotation.forward(Isa::detect(), &mut x);
/// assert_eq!(x, [3.0, 1.0, -4.0, 2.0]);
/// rotation.inverse(Isa::detect(), &mut x);
/// assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rotation {
    signs: Vec<f32>,
    factor: Arc<[f32]>,
    /// The transpose of `factor`.
    transposed: Arc<[f32]>,
    p: usize,
    power: usize,
    key: u128,
}

impl Rotation {
    /// Returns the rotation `x ↦ (F ⊗ H) diag(signs) x` of `p * power` features. `factor`, `[p, p]` row-major, is the orthogonal matrix
    /// `F`; `power` is the order of the Walsh-Hadamard transform `H`; `signs`, `[p * power]`, has a sign of 1 or -1 for each feature.
    ///
    /// Errors if `factor` is empty or not square, if `power` is not a power of two (1 counts as one), or if `signs` has another length or
    /// other values. Errors if an element of `factor` is not finite, or if `factor` is not orthogonal: for each of 24 pseudorandom vectors
    /// `v` of 1 and -1, all components of `F Fᵀ v` must equal those of `v` to 1e-4.
    pub fn new(factor: &[f32], power: usize, signs: &[f32]) -> Result<Self> {
        let p = factor.len().isqrt();
        if p * p != factor.len() || p == 0 || !power.is_power_of_two() {
            return Err(Error::shape(
                "elements of a factor, and order of a Walsh-Hadamard transform",
                "a square and a power of two",
                (factor.len(), power),
            ));
        }
        if p.checked_mul(power) != Some(signs.len()) || signs.iter().any(|s| s.abs() != 1.0) {
            return Err(Error::shape("signs of a rotation", format!("{p} * {power} values of 1 or -1"), signs.len()));
        }
        crate::rows::check_finite(factor, p, 0)?;
        check_orthogonal(factor, p)?;
        let mut content: Vec<u8> = (power as u64).to_le_bytes().to_vec();
        content.extend(signs.iter().chain(factor).flat_map(|v| v.to_le_bytes()));
        let transposed = (0..p * p).map(|i| factor[i % p * p + i / p]).collect();
        Ok(Self { signs: signs.to_vec(), factor: factor.into(), transposed, p, power, key: fingerprint(&content) })
    }

    /// Returns the rotation by any orthogonal matrix `M`, `matrix` `[dim, dim]` row-major: new feature `i` is the dot product of row `i`
    /// with the old features. Errors if the matrix is empty, not square or not finite, or if it is not orthogonal: for each of 24
    /// pseudorandom vectors `v` of 1 and -1, all components of `M Mᵀ v` must equal those of `v` to 1e-4.
    pub fn dense(matrix: &[f32]) -> Result<Self> {
        Self::new(matrix, 1, &vec![1.0; matrix.len().isqrt()])
    }

    /// Returns the number of features that the rotation takes and returns.
    pub fn dim(&self) -> usize {
        self.signs.len()
    }

    /// Returns the orthogonal matrix of the rotation, `[dim, dim]` row-major: new feature `i` is the dot product of row `i` with the old
    /// features. It is what [`Rotation::dense`] takes.
    pub fn matrix(&self) -> Vec<f32> {
        let n = self.dim();
        let mut columns = vec![0f32; n * n];
        (0..n).for_each(|i| columns[i * n + i] = 1.0);
        self.forward(Isa::detect(), &mut columns);
        // Row `i` is the rotated unit vector `i`, that is column `i` of the matrix.
        (0..n * n).map(|i| columns[i % n * n + i / n]).collect()
    }

    /// Returns a 128-bit hash of the rotation's parameters (orthogonal factor, order of the Walsh-Hadamard transform, signs). Rotations
    /// with equal parameters have equal keys.
    pub fn key(&self) -> u128 {
        self.key
    }

    /// Rotates each row of `rows`, `[n, dim]` row-major, in place, with the instruction set `isa`. Values after the last whole row are left
    /// unchanged.
    pub fn forward(&self, isa: Isa, rows: &mut [f32]) {
        let mut scratch = vec![0f32; self.p];
        for row in rows.chunks_exact_mut(self.dim()) {
            row.iter_mut().zip(&self.signs).for_each(|(v, s)| *v *= s);
            self.mix(isa, row, &mut scratch, false);
        }
    }

    /// Undoes [`Rotation::forward`]: applies the inverse rotation (the transpose) to each row of `rows`, `[n, dim]` row-major, in place,
    /// with the instruction set `isa`. Values after the last whole row are left unchanged.
    pub fn inverse(&self, isa: Isa, rows: &mut [f32]) {
        let mut scratch = vec![0f32; self.p];
        for row in rows.chunks_exact_mut(self.dim()) {
            self.mix(isa, row, &mut scratch, true);
            row.iter_mut().zip(&self.signs).for_each(|(v, s)| *v *= s);
        }
    }

    fn mix(&self, isa: Isa, row: &mut [f32], scratch: &mut [f32], transpose: bool) {
        let (p, power) = (self.p, self.power);
        if power > 1 {
            // The length of a chunk is a power of two, so the transform cannot fail.
            let _ = row.chunks_exact_mut(power).try_for_each(|c| fwht(isa, c));
        }
        if p == 1 {
            row.iter_mut().for_each(|v| *v *= self.factor[0]);
            return;
        }
        let factor = if transpose { &self.transposed } else { &self.factor };
        for j in 0..power {
            scratch.iter_mut().enumerate().for_each(|(c, v)| *v = row[c * power + j]);
            for (i, weights) in factor.chunks_exact(p).enumerate() {
                row[i * power + j] = vector::dot(isa, weights, scratch);
            }
        }
    }

    /// Returns the size in bits of the tensors that [`Rotation::save`] writes for the rotation `x ↦ (F ⊗ H) diag(signs) x`, where `H` is a
    /// Walsh-Hadamard transform: 8 for the sign of each feature, and 32 for each element of the orthogonal matrix `F` `[p, p]`.
    pub fn storage_bits(&self) -> u64 {
        (self.signs.len() + 4 * self.factor.len()) as u64 * 8
    }

    /// Returns name suffix, element type and shape of the two tensors that [`Rotation::save`] writes. For the rotation of `dim` features,
    /// `x ↦ (F ⊗ H) diag(signs) x`, where `H` is a Walsh-Hadamard transform, they are `signs`, i8 `[dim]`, and `factor`, f32 `[p, p]`, the
    /// orthogonal matrix `F` of order `p`.
    pub fn layout(&self) -> [(String, TensorInfo); 2] {
        [
            ("signs".into(), TensorInfo { dtype: DType::I8, shape: vec![self.signs.len()] }),
            ("factor".into(), TensorInfo { dtype: DType::F32, shape: vec![self.p, self.p] }),
        ]
    }

    /// Writes the two tensors of the rotation `x ↦ (F ⊗ H) diag(signs) x` of `dim` features, where `H` is a Walsh-Hadamard transform:
    /// `prefix.signs`, i8 `[dim]`, and `prefix.factor`, f32 `[p, p]`, the orthogonal matrix `F` of order `p`. They are shared tensors:
    /// every block of rows of a matrix writes the same ones. Errors if the sink errors, for example because it holds other values under
    /// these names.
    pub fn save(&self, prefix: &str, sink: &mut dyn TensorSink) -> Result<()> {
        let signs: Vec<i8> = self.signs.iter().map(|&s| s as i8).collect();
        let info = TensorInfo { dtype: DType::I8, shape: vec![signs.len()] };
        sink.write_shared(&join(prefix, "signs"), &info, bytemuck::cast_slice(&signs))?;
        write_floats(sink, &join(prefix, "factor"), &[self.p, self.p], &self.factor)
    }

    /// Returns the specification `spec` with two integer parameters of the rotation `x ↦ (F ⊗ H) diag(signs) x`, which [`Rotation::load`]
    /// needs: `factor`, the order of the orthogonal matrix `F`, and `power`, the order of the Walsh-Hadamard transform `H`.
    pub fn describe(&self, spec: OpSpec) -> OpSpec {
        spec.int("factor", self.p as i64).int("power", self.power as i64)
    }

    /// Reads the rotation that [`Rotation::save`] wrote under `prefix`. `spec` must have the integer parameters `factor` and `power` that
    /// [`Rotation::describe`] adds. Errors if a parameter or tensor is missing, or if a tensor has another type or shape than the
    /// parameters say. Errors if the parameter `power` is not a power of two, a stored sign is not 1 or -1, or the stored orthogonal matrix
    /// is not finite or not orthogonal to 1e-4.
    pub fn load(spec: &OpSpec, prefix: &str, source: &dyn TensorSource) -> Result<Self> {
        let (p, power) = (spec.get_size("factor")?, spec.get_size("power")?);
        let dim = crate::view::elements([p, power])?;
        let signs = read_expected(source, &join(prefix, "signs"), DType::I8, &[dim])?;
        let signs: Vec<f32> = signs.iter().map(|&s| f32::from(s as i8)).collect();
        let factor = read_floats(source, &join(prefix, "factor"), &[p, p])?;
        Self::new(&factor, power, &signs)
    }
}

/// The number of random sign vectors that a factor is checked with; each of them misses a pair of rows that are not orthonormal with
/// probability ½ at most.
const PROBES: usize = 24;

/// Errors unless `F Fᵀ v = v` for [`PROBES`] vectors `v` of random signs, to 1e-4 of each component (Freivalds 1977): `O(p²)` work where
/// all products of rows take `O(p³)`.
fn check_orthogonal(factor: &[f32], p: usize) -> Result<()> {
    // Seeded by the content, so that a file cannot be crafted for known probes.
    let key = crate::context::fingerprint(bytemuck::cast_slice(factor));
    let mut rng = ChaCha8Rng::seed_from_u64(key as u64 ^ (key >> 64) as u64);
    let (mut probe, mut folded) = (vec![0f64; p], vec![0f64; p]);
    for _ in 0..PROBES {
        probe.iter_mut().for_each(|v| *v = if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 });
        folded.fill(0.0);
        for (row, v) in factor.chunks_exact(p).zip(&probe) {
            folded.iter_mut().zip(row).for_each(|(f, w)| *f += v * f64::from(*w));
        }
        for (i, (row, v)) in factor.chunks_exact(p).zip(&probe).enumerate() {
            let back: f64 = row.iter().zip(&folded).map(|(w, f)| f64::from(*w) * f).sum();
            if (back - v).abs() > 1e-4 {
                let what = format!("row {i} of the factor of a rotation is not orthonormal to the other rows");
                return Err(Error::Numerical(what));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_keeps_lengths_and_inverse_undoes_it() {
        let third = 1.0 / 3.0f32;
        // The Householder reflection of order 3.
        let f =
            [third, -2.0 * third, -2.0 * third, -2.0 * third, third, -2.0 * third, -2.0 * third, -2.0 * third, third];
        let signs: Vec<f32> = (0..12).map(|i| if i % 5 < 2 { -1.0 } else { 1.0 }).collect();
        let r = Rotation::new(&f, 4, &signs).unwrap();
        let x: Vec<f32> = (0..24).map(|i| (i * i % 11) as f32 - 5.0).collect();
        let mut y = x.clone();
        r.forward(Isa::detect(), &mut y);
        let norm = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>();
        assert!((norm(&x[..12]) - norm(&y[..12])).abs() < 1e-3);
        assert!(x.iter().zip(&y).any(|(a, b)| (a - b).abs() > 0.1));
        r.inverse(Isa::detect(), &mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        assert!(Rotation::new(&[1.0, 0.0, 0.0, 2.0], 1, &[1.0, 1.0]).is_err(), "not orthogonal");
        let mut near = vec![0f32; 400];
        (0..20).for_each(|i| near[i * 21] = 1.0);
        assert!(Rotation::dense(&near).is_ok());
        for at in [1, 21, 399, 205] {
            let mut wrong = near.clone();
            wrong[at] += 0.01;
            assert!(Rotation::dense(&wrong).is_err(), "one element of {at}");
        }
        assert!(Rotation::new(&[1.0], 3, &[1.0; 3]).is_err());
        assert!(Rotation::new(&[1.0], 2, &[1.0, 0.5]).is_err());
    }
}
