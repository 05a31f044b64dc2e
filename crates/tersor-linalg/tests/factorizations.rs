//! Each factorization against its definition, its rules of sign and order, and its bytes on one thread and on more.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor_core::Error;
use tersor_linalg::*;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn definite(n: usize, seed: u64) -> Vec<f64> {
    let x = gaussian((n + 5) * n, &mut rng(seed));
    let mut a = syrk(&x, [n + 5, n]).unwrap();
    (0..n).for_each(|i| a[i * n + i] += 0.1);
    a
}

fn product(a: &[f64], [m, k]: [usize; 2], b: &[f64], n: usize) -> Vec<f64> {
    let cell = |i: usize| (0..k).map(|c| a[i / n * k + c] * b[c * n + i % n]).sum();
    (0..m * n).map(cell).collect()
}

fn transpose(a: &[f64], [m, n]: [usize; 2]) -> Vec<f64> {
    (0..m * n).map(|i| a[i % m * n + i / m]).collect()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "differs by {worst:e}");
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect()
}

#[test]
fn products_match_the_definition() {
    for [m, k, n] in [[1, 1, 1], [3, 0, 2], [0, 3, 2], [7, 33, 5], [130, 65, 70]] {
        let (a, b) = (gaussian(m * k, &mut rng(1)), gaussian(k * n, &mut rng(2)));
        close(&matmul(&a, [m, k], &b, n).unwrap(), &product(&a, [m, k], &b, n), 1e-11);
        let gram = syrk(&a, [m, k]).unwrap();
        close(&gram, &product(&transpose(&a, [m, k]), [k, m], &a, k), 1e-11);
        assert!((0..k * k).all(|i| gram[i].to_bits() == gram[i % k * k + i / k].to_bits()));
    }
    assert!(matmul(&[1.0; 3], [2, 2], &[1.0; 4], 2).is_err());
    assert!(syrk(&[f64::NAN], [1, 1]).is_err());
}

#[test]
fn cholesky_gives_back_the_matrix_and_names_the_pivot() {
    for n in [0, 1, 2, 3, 17, 64, 150] {
        let a = definite(n, n as u64);
        let l = cholesky(&a, n).unwrap();
        close(&product(&l, [n, n], &transpose(&l, [n, n]), n), &a, 1e-9);
        assert!((0..n).all(|i| l[i * n + i] > 0.0 && l[i * n + i + 1..(i + 1) * n].iter().all(|v| *v == 0.0)));
    }
    let n = 9;
    for bad in [0, 4, 8] {
        let mut a = identity(n);
        a[bad * n + bad] = if bad == 4 { 0.0 } else { -1.0 };
        let e = cholesky(&a, n).unwrap_err();
        assert!(matches!(e, Error::NotPositiveDefinite { pivot, .. } if pivot == bad), "{e}");
        let e = inverse_factor(&a, n).unwrap_err();
        assert!(matches!(e, Error::NotPositiveDefinite { pivot, .. } if pivot == bad), "{e}");
    }
    assert!(matches!(cholesky(&[f64::INFINITY], 1), Err(Error::NonFinite { .. })));
    assert!(cholesky(&[1.0; 3], 2).is_err());
}

#[test]
fn the_inverse_factor_is_the_upper_cholesky_factor_of_the_inverse() {
    for n in [0, 1, 2, 5, 33, 120] {
        let h = definite(n, 3 + n as u64);
        let u = inverse_factor(&h, n).unwrap();
        assert!(inverse_factor_f32(h.clone(), n).unwrap().iter().zip(&u).all(|(a, b)| *a == *b as f32));
        assert!((0..n).all(|i| u[i * n + i] > 0.0 && u[i * n..i * n + i].iter().all(|v| *v == 0.0)));
        let inverse = product(&transpose(&u, [n, n]), [n, n], &u, n);
        close(&product(&h, [n, n], &inverse, n), &identity(n), 1e-8);
        // Positive diagonal and triangular: the factor is unique, so this is Cholesky of the inverse.
        let l = cholesky(&inverse, n).unwrap();
        close(&transpose(&l, [n, n]), &u, 1e-8);
    }
}

#[test]
fn eigenvectors_diagonalize_in_order_and_by_the_rule_of_sign() {
    for n in [0, 1, 2, 6, 50] {
        let a: Vec<f64> = {
            let g = gaussian(n * n, &mut rng(9));
            (0..n * n).map(|i| g[i] + g[i % n * n + i / n]).collect()
        };
        let e = eigen(&a, n).unwrap();
        assert!(e.values.windows(2).all(|w| w[0] >= w[1]));
        close(&product(&e.vectors, [n, n], &transpose(&e.vectors, [n, n]), n), &identity(n), 1e-10);
        let scaled: Vec<f64> = (0..n * n).map(|i| e.vectors[i] * e.values[i / n]).collect();
        close(&product(&transpose(&e.vectors, [n, n]), [n, n], &scaled, n), &a, 1e-10);
        for v in e.vectors.chunks_exact(n.max(1)) {
            assert!(v.iter().copied().fold(0f64, |m, x| if x.abs() > m.abs() { x } else { m }) > 0.0);
        }
    }
    let e = eigen(&[2.0, 1.0, 1.0, 2.0], 2).unwrap();
    close(&e.values, &[3.0, 1.0], 1e-14);
    assert!(eigen(&[1.0, 2.0, 0.0, 1.0], 2).unwrap_err().to_string().contains("not symmetric"));
    let again = eigen(&identity(8), 8).unwrap();
    assert_eq!(again, eigen(&identity(8), 8).unwrap(), "a repeated eigenvalue gives the same basis every time");
}

#[test]
fn singular_values_and_their_best_approximation() {
    for [m, n] in [[0, 3], [1, 1], [5, 5], [40, 7], [6, 33]] {
        let a = gaussian(m * n, &mut rng(5));
        let (d, k) = (svd(&a, [m, n]).unwrap(), m.min(n));
        assert!(d.s.windows(2).all(|w| w[0] >= w[1]) && d.s.iter().all(|s| *s >= 0.0));
        let scaled: Vec<f64> = (0..k * n).map(|i| d.vt[i] * d.s[i / n]).collect();
        close(&product(&d.u, [m, k], &scaled, n), &a, 1e-11);
        close(&product(&transpose(&d.u, [m, k]), [k, m], &d.u, k), &identity(k), 1e-11);
        for c in 0..k {
            let lead = (0..m).map(|r| d.u[r * k + c]).fold(0f64, |m, x| if x.abs() > m.abs() { x } else { m });
            assert!(lead > 0.0);
        }
    }
    // Of a matrix whose singular values fall off, the first few are found to many digits without the rest.
    let (m, n, rank) = (90, 140, 6);
    let (u, v) = (orthogonal(m, &mut rng(1)).unwrap(), orthogonal(n, &mut rng(2)).unwrap());
    let scaled: Vec<f64> = (0..m * n).map(|i| v[i / n * n + i % n] * 0.6f64.powi((i / n) as i32)).collect();
    let a = product(&u, [m, m], &scaled, n);
    let (exact, few) = (svd(&a, [m, n]).unwrap(), svd_truncated(&a, [m, n], rank, 8, 2, &mut rng(3)).unwrap());
    close(&few.s, &exact.s[..rank], 1e-9);
    close(&few.vt, &exact.vt[..rank * n], 1e-5);
    assert_eq!((few.u.len(), few.vt.len()), (m * rank, rank * n));
    let all = svd_truncated(&a, [m, n], m, 8, 2, &mut rng(3)).unwrap();
    assert_eq!(all, exact, "full rank is exact");
    for rank in [0, 91, usize::MAX] {
        assert!(svd_truncated(&a, [m, n], rank, 8, 2, &mut rng(3)).unwrap_err().is_usage());
    }
}

#[test]
fn qr_and_random_orthogonal_matrices() {
    for [m, n] in [[1, 1], [7, 7], [30, 4], [4, 30]] {
        let a = gaussian(m * n, &mut rng(5));
        let (d, k) = (qr(&a, [m, n]).unwrap(), m.min(n));
        close(&product(&d.q, [m, k], &d.r, n), &a, 1e-12);
        close(&product(&transpose(&d.q, [m, k]), [k, m], &d.q, k), &identity(k), 1e-12);
        assert!((0..k).all(|i| d.r[i * n + i] >= 0.0 && d.r[i * n..i * n + i].iter().all(|v| *v == 0.0)));
    }
    let q = orthogonal(40, &mut rng(7)).unwrap();
    close(&product(&q, [40, 40], &transpose(&q, [40, 40]), 40), &identity(40), 1e-12);
    assert_eq!(q, orthogonal(40, &mut rng(7)).unwrap());
    assert_ne!(q, orthogonal(40, &mut rng(8)).unwrap());
}

#[test]
fn rotations_of_the_widths_of_real_models() {
    for dim in [1, 2, 64, 576, 1536, 4864, 8960, 11008, 13824, 18944, 6, 90, 1000] {
        let rotation = rotation(dim, &mut rng(4)).unwrap();
        assert_eq!(rotation.dim(), dim);
        let mut x: Vec<f32> = gaussian(dim, &mut rng(6)).into_iter().map(|v| v as f32).collect();
        let (before, norm) = (x.clone(), |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>());
        rotation.forward(tersor_core::Isa::detect(), &mut x);
        assert!((norm(&x) / norm(&before) - 1.0).abs() < 1e-4, "{dim}");
        // A spike spreads over every feature.
        if dim > 64 {
            let mut spike = vec![0f32; dim];
            spike[dim / 3] = 1.0;
            rotation.forward(tersor_core::Isa::detect(), &mut spike);
            assert!(spike.iter().all(|v| v.abs() < 0.75), "{dim}");
        }
        rotation.inverse(tersor_core::Isa::detect(), &mut x);
        assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-4), "{dim}");
    }
    assert!(rotation(0, &mut rng(4)).is_err());
    assert!(rotation(50257, &mut rng(4)).unwrap_err().to_string().contains("50257"));
}

#[cfg(feature = "rayon")]
#[test]
fn the_same_bytes_come_out_of_one_two_and_three_threads() {
    let n = 700;
    let a = definite(n, 11);
    let x = gaussian(300 * n, &mut rng(12));
    let all = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut out = matmul(&x, [300, n], &a, n).unwrap();
            out.extend(syrk(&x, [300, n]).unwrap());
            out.extend(cholesky(&a, n).unwrap());
            out.extend(inverse_factor(&a, n).unwrap());
            let small = &a[..200 * 200];
            let d = svd(small, [200, 200]).unwrap();
            out.extend(d.u.into_iter().chain(d.s).chain(d.vt));
            out.extend(svd_truncated(&x, [300, n], 10, 8, 2, &mut rng(1)).unwrap().u);
            out.extend(eigen(&definite(200, 13), 200).unwrap().vectors);
            out.extend(qr(small, [200, 200]).unwrap().q);
            out.into_iter().map(f64::to_bits).collect::<Vec<_>>()
        })
    };
    let one = all(1);
    assert!(one == all(2) && one == all(3));
}

#[test]
fn results_beyond_the_range_of_f64_are_refused() {
    let huge = [1e300, 0.0, 0.0, 1e300];
    let numerical = |found: Result<(), Error>| matches!(found, Err(Error::Numerical(_)));
    assert!(numerical(matmul(&huge, [2, 2], &huge, 2).map(|_| ())));
    assert!(numerical(syrk(&huge, [2, 2]).map(|_| ())));
    // The inverse of a factor of 1e-150 fits f64, but not the f32 in which the sweep reads it.
    assert!(numerical(Damping::default().factor(&huge, 2).map(|_| ())));
    assert!(Damping::default().factor(&[1e30, 0.0, 0.0, 1e30], 2).is_ok());
    for n in [2usize, 40] {
        let full = vec![1e308; n * n];
        assert!(eigen(&full, n).map_or(true, |e| e.values.iter().all(|v| v.is_finite())));
        assert!(svd(&full, [n, n]).map_or(true, |e| e.s.iter().all(|v| v.is_finite())));
    }
}
