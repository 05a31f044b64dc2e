use proptest::prelude::*;

use super::*;
use crate::bits;

/// Codes, scales and zeros of a matrix, packed; and the matrix in f64.
struct Case {
    panels: Panels,
    weights: Vec<f64>,
    codes: Vec<u8>,
}

fn case(bits: u32, [rows, cols]: [usize; 2], group: usize, code: impl Fn(usize) -> u8) -> Case {
    let most = ((1u32 << bits) - 1) as u8;
    let codes: Vec<u8> = (0..rows * cols).map(|i| code(i) & most).collect();
    let packed: Vec<u8> = codes
        .chunks(cols.max(1))
        .flat_map(|row| {
            let mut out = vec![0u8; bits::packed_len(cols, bits)];
            bits::pack(row, bits, &mut out);
            out
        })
        .collect();
    let fit = |r: usize, g: usize| (0.01 + 0.003 * ((r * 7 + g * 3) % 11) as f32, ((r * 5 + g) as u8) & most);
    let panels = Panels::new(&packed, bits, [rows, cols], group, fit).unwrap();
    let weights = (0..rows * cols).map(|i| {
        let (scale, zero) = fit(i / cols, i % cols / group);
        f64::from(scale) * (f64::from(codes[i]) - f64::from(zero))
    });
    Case { weights: weights.collect(), panels, codes }
}

/// The same of dual grain: scales of groups are such that no weight is beyond 127.
fn dual_case(bits: u32, [rows, cols]: [usize; 2], group: usize, same: bool, code: impl Fn(usize) -> u8) -> Case {
    let Case { codes, .. } = case(bits, [rows, cols], group, code);
    let width = bits::packed_len(cols, bits);
    let mut packed = vec![0u8; rows * width];
    codes.chunks(cols.max(1)).zip(packed.chunks_mut(width.max(1))).for_each(|(c, p)| bits::pack(c, bits, p));
    let most = ((1u32 << bits) - 1) as u8;
    let fit = |r: usize, g: usize| {
        let zero = if same { most / 2 + 1 } else { (r * 5 + g) as u8 & most };
        let largest = zero.max(most - zero).max(1);
        (if largest > 127 { 0 } else { 1 + (r + g) as u8 % (127 / largest) }, zero)
    };
    let scales: Vec<f32> = (0..rows).map(|r| 0.01 + 0.002 * (r % 13) as f32).collect();
    let panels = Panels::dual(&packed, bits, [rows, cols], group, fit, &scales).unwrap();
    let weights = (0..rows * cols).map(|i| {
        let (scale, zero) = fit(i / cols, i % cols / group);
        f64::from(scales[i / cols]) * f64::from(scale) * (f64::from(codes[i]) - f64::from(zero))
    });
    Case { weights: weights.collect(), panels, codes }
}

fn run(isa: Isa, x: &Activations, w: &Panels, parallel: bool) -> Vec<f32> {
    let (stride, mut y) = (w.rows() + 3, vec![0.5f32; x.tokens() * (w.rows() + 3)]);
    assert!(product(isa, x, w, Write::Add, Out { data: &mut y, stride }, parallel));
    let mut set = vec![f32::NAN; x.tokens() * stride];
    assert!(product(isa, x, w, Write::Set, Out { data: &mut set, stride }, parallel));
    for (y, set) in y.chunks(stride).zip(set.chunks(stride)) {
        assert!(y[w.rows()..].iter().all(|v| *v == 0.5) && set[w.rows()..].iter().all(|v| v.is_nan()));
        assert!(y.iter().zip(set).take(w.rows()).all(|(a, b)| *a == 0.5 + *b));
    }
    set.chunks(stride).flat_map(|row| row[..w.rows()].to_vec()).collect()
}

/// All levels of this processor, bit for bit; and the exact product, within rounding: of f32, and by `step` of the activations' largest
/// magnitude at each place.
fn check(case: &Case, x: &Activations, values: &[f64], step: f64) {
    let (w, cols) = (&case.panels, case.panels.padding().cols);
    let want = run(Isa::SCALAR, x, w, false);
    for isa in Isa::available() {
        for parallel in [false, true] {
            let got = run(isa, x, w, parallel);
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
        }
    }
    for (i, got) in want.iter().enumerate() {
        let (t, r) = (i / w.rows(), i % w.rows());
        let (x, w) = (&values[t * cols..][..cols], &case.weights[r * cols..][..cols]);
        let exact: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
        let most = x.iter().fold(0f64, |m, v| m.max(v.abs()));
        let size: f64 = x.iter().zip(w).map(|(x, w)| 3e-6 * (x * w).abs() + step * most * w.abs()).sum();
        assert!((f64::from(*got) - exact).abs() <= 1e-9 + size, "token {t}, row {r}: {got} for {exact}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn every_level_gives_the_same_bits(
        bits in 1u32..=8, rows in 1usize..=300, cols in 1usize..=300, group in 1usize..=300, tokens in 1usize..28, dual in 0u8..3,
        salt: u64
    ) {
        let mix = |i: usize| (i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        // The scalar twin takes its time.
        let rows = if tokens > 3 { rows.min(40) } else { rows };
        let case = match dual {
            0 => case(bits, [rows, cols], group, |i| mix(i) as u8),
            grain => dual_case(bits, [rows, cols], group, grain == 2, |i| mix(i) as u8),
        };
        let mut row = vec![0u8; cols];
        for r in 0..rows {
            case.panels.row_codes(r, &mut row);
            prop_assert_eq!(&row[..], &case.codes[r * cols..(r + 1) * cols]);
        }
        let codes: Vec<i8> = (0..tokens * cols).map(|i| mix(i + 7) as i8).collect();
        let scales: Vec<f32> = (0..tokens).map(|t| 0.1 + t as f32).collect();
        let x = Activations::from_codes(&codes, &scales, case.panels.padding()).unwrap();
        let values: Vec<f64> = codes.iter().enumerate().map(|(i, c)| f64::from(*c) * f64::from(scales[i / cols])).collect();
        check(&case, &x, &values, 0.0);

        let floats: Vec<f32> = (0..tokens * cols).map(|i| (mix(i + 3) as f32 / 1e7 - 0.8) * if i % 31 == 0 { 60.0 } else { 1.0 }).collect();
        let x = Activations::exact(Isa::detect(), &floats, tokens, case.panels.padding()).unwrap();
        // Within 2^-23 of the token's largest magnitude at each place.
        let values: Vec<f64> = floats.iter().map(|v| f64::from(*v)).collect();
        check(&case, &x, &values, f64::from(f32::EPSILON));
    }
}

#[test]
fn extremes_do_not_overflow() {
    for bits in [1, 2, 3, 4, 8] {
        for (code, x) in [(255u8, -128i8), (255, 127), (0, -128), (0, 127)] {
            let shape = [17, 1000];
            for case in [case(bits, shape, 1000, |_| code), dual_case(bits, shape, 1000, true, |_| code)] {
                let codes = vec![x; 13 * 1000];
                let scales: Vec<f32> = (1..14).map(|t| 1.0 / t as f32).collect();
                let x = Activations::from_codes(&codes, &scales, case.panels.padding()).unwrap();
                let value = |(i, c): (usize, &i8)| f64::from(*c) * f64::from(scales[i / 1000]);
                let values: Vec<f64> = codes.iter().enumerate().map(value).collect();
                check(&case, &x, &values, 0.0);
            }
        }
    }
    // The longest row of dual grain at its largest: 127 * 128 * 2^17 is 2^31 less 2^24.
    let n = 1 << 17;
    let (packed, codes) = (vec![0u8; n], vec![-128i8; n]);
    let Some(panels) = Panels::dual(&packed, 8, [1, n], n, |_, _| (1, 127), &[1.0]) else { panic!() };
    let case = Case { panels, weights: vec![-127.0; n], codes: packed.clone() };
    let x = Activations::from_codes(&codes, &[1.0], case.panels.padding()).unwrap();
    check(&case, &x, &vec![-128.0; n], 0.0);
    assert!(Panels::dual(&vec![0; n + 1], 8, [1, n + 1], n, |_, _| (1, 127), &[1.0]).is_none());
    assert!(Panels::dual(&packed, 8, [1, n], n, |_, _| (1, 128), &[1.0]).is_none());
    assert!(Panels::dual(&packed, 8, [2, n / 2], n, |_, _| (1, 127), &[1.0]).is_none());
}

#[test]
fn long_rows_are_cut_and_zeros_stay() {
    let case = case(8, [3, 70_000], 70_000, |i| (i % 251) as u8);
    let codes: Vec<i8> = (0..70_000).map(|i| (i % 255) as i8).collect();
    let x = Activations::from_codes(&codes, &[0.25], case.panels.padding()).unwrap();
    let values: Vec<f64> = codes.iter().map(|c| f64::from(*c) * 0.25).collect();
    check(&case, &x, &values, 0.0);
    let zeros = Activations::exact(Isa::detect(), &[0.0; 140_000], 2, case.panels.padding()).unwrap();
    assert!(run(Isa::detect(), &zeros, &case.panels, true).iter().all(|v| *v == 0.0));
    // What does not fit is refused.
    assert!(Activations::from_codes(&[1, 2, 3], &[1.0], case.panels.padding()).is_none());
    assert!(Panels::new(&[0; 3], 4, [2, 4], 4, |_, _| (1.0, 0)).is_none());
    assert!(Panels::new(&[0; 4], 9, [2, 1], 1, |_, _| (1.0, 0)).is_none());
    let mut y = [0f32; 5];
    assert!(!product(Isa::detect(), &x, &case.panels, Write::Set, Out { data: &mut y, stride: 2 }, true));
    let narrow = Panels::new(&[0; 4], 8, [2, 2], 2, |_, _| (1.0, 0)).unwrap();
    assert!(!product(Isa::detect(), &x, &narrow, Write::Set, Out { data: &mut y, stride: 2 }, true));
}

proptest! {
    #[test]
    fn rows_are_quantized_alike_on_every_level(
        x in prop::collection::vec(-1e3f32..1e3, 0..300), cols in 1usize..300, most in prop::sample::select(vec![1i8, 7, 127]), zeros: bool
    ) {
        let x: Vec<f32> = if zeros { vec![0.0; x.len()] } else { x };
        let rows = x.len() / cols;
        let padding = Padding { cols, group: cols, block: 4 };
        let of = |isa: Isa| {
            let (mut codes, mut scales) = (vec![0i8; rows * cols], vec![0f32; rows]);
            quantize_rows(isa, &x, cols, most, &mut codes, &mut scales);
            let exact = Activations::exact(isa, &x[..rows * cols], rows, padding).unwrap();
            let planes: Vec<i8> = (0..rows * 3).flat_map(|i| exact.row(i / 3, i % 3).to_vec()).collect();
            (codes, scales, planes)
        };
        let want = of(Isa::SCALAR);
        for isa in Isa::available() {
            prop_assert_eq!(&of(isa), &want);
        }
        for (i, (code, x)) in want.0.iter().zip(&x).enumerate() {
            let scale = want.1[i / cols];
            prop_assert!((f32::from(*code) * scale - x).abs() <= 0.5001 * scale && *code >= -most);
        }
    }
}
