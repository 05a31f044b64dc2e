//! Sums and updates of f32 vectors.

use crate::Isa;

/// `Σ a[i] * b[i]` over the shorter of the two, in 32 interleaved fused accumulators that are added
/// pairwise at the end: the same order, hence the same bits, on every instruction set.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2 and FMA; the slices are equally long.
        return unsafe { crate::arch::avx2::dot(a, b) };
    }
    let _ = isa;
    dot_scalar(a, b)
}

pub(crate) fn dot_scalar(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let (body, tail) = (a.len() / 32 * 32, a.len() % 32);
    for (a, b) in a.chunks_exact(32).zip(b.chunks_exact(32)) {
        for i in 0..32 {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    reduce(&lanes, &a[body..body + tail], &b[body..body + tail])
}

/// Adds the 32 lanes (halving: 32, 16, 8, 4, 2) and then the tail, one fused product at a time.
pub(crate) fn reduce(lanes: &[f32; 32], a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = *lanes;
    let mut width = 16;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    a.iter().zip(b).fold(lanes[0], |sum, (&a, &b)| a.mul_add(b, sum))
}

/// `y[i] += c * x[i]` (fused) over the shorter of the two.
pub fn axpy(isa: Isa, c: f32, x: &[f32], y: &mut [f32]) {
    let n = x.len().min(y.len());
    let (x, y) = (&x[..n], &mut y[..n]);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: `isa` proves that the processor has AVX2 and FMA; the slices are equally long.
        unsafe { crate::arch::avx2::axpy(c, x, y) };
        return;
    }
    let _ = isa;
    for (y, &x) in y.iter_mut().zip(x) {
        *y = c.mul_add(x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vector_equals_scalar(x in prop::collection::vec(-10f32..10.0, 0..300), c in -2f32..2.0) {
            let y: Vec<f32> = x.iter().rev().map(|v| v * 0.37 + 1.0).collect();
            let isa = Isa::detect();
            prop_assert_eq!(dot(isa, &x, &y).to_bits(), dot(Isa::SCALAR, &x, &y).to_bits());
            let exact: f64 = x.iter().zip(&y).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            prop_assert!((f64::from(dot(isa, &x, &y)) - exact).abs() <= 1e-2);
            let (mut u, mut v) = (y.clone(), y.clone());
            axpy(isa, c, &x, &mut u);
            axpy(Isa::SCALAR, c, &x, &mut v);
            prop_assert_eq!(u, v);
        }
    }
}
