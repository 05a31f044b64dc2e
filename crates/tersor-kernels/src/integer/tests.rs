use proptest::prelude::*;

use super::*;
use crate::bits;

/// Divides the largest sizes, for Miri.
const PART: usize = if cfg!(miri) { 8 } else { 1 };

/// Codes, scales and zeros of a matrix, packed; and the matrix in f64.
struct Case {
    panels: Panels,
    weights: Vec<f64>,
    codes: Vec<u8>,
}

fn case(bits: u32, [rows, cols]: [usize; 2], group: usize, code: impl Fn(usize) -> u8) -> Case {
    let max = ((1u32 << bits) - 1) as u8;
    let codes: Vec<u8> = (0..rows * cols).map(|i| code(i) & max).collect();
    let packed: Vec<u8> = codes
        .chunks(cols.max(1))
        .flat_map(|row| {
            let mut out = vec![0u8; bits::packed_len(cols, bits)];
            bits::pack(Isa::detect(), row, bits, &mut out);
            out
        })
        .collect();
    let grid = |r: usize, g: usize| (0.01 + 0.003 * ((r * 7 + g * 3) % 11) as f32, ((r * 5 + g) as u8) & max);
    let panels = Panels::new(Isa::detect(), &packed, bits, [rows, cols], group, grid).unwrap();
    let weights = (0..rows * cols).map(|i| {
        let (scale, zero) = grid(i / cols, i % cols / group);
        f64::from(scale) * (f64::from(codes[i]) - f64::from(zero))
    });
    Case { weights: weights.collect(), panels, codes }
}

/// The same with integer scales of groups, such that no integer weight is beyond 127.
fn dual_case(bits: u32, [rows, cols]: [usize; 2], group: usize, same: bool, code: impl Fn(usize) -> u8) -> Case {
    let Case { codes, .. } = case(bits, [rows, cols], group, code);
    let width = bits::packed_len(cols, bits);
    let mut packed = vec![0u8; rows * width];
    codes
        .chunks(cols.max(1))
        .zip(packed.chunks_mut(width.max(1)))
        .for_each(|(c, p)| bits::pack(Isa::detect(), c, bits, p));
    let max = ((1u32 << bits) - 1) as u8;
    let grid = |r: usize, g: usize| {
        let zero = if same { max / 2 + 1 } else { (r * 5 + g) as u8 & max };
        let largest = zero.max(max - zero).max(1);
        (if largest > 127 { 0 } else { 1 + (r + g) as u8 % (127 / largest) }, zero)
    };
    let scales: Vec<f32> = (0..rows).map(|r| 0.01 + 0.002 * (r % 13) as f32).collect();
    let panels = Panels::dual(Isa::detect(), &packed, bits, [rows, cols], group, grid, &scales).unwrap();
    let weights = (0..rows * cols).map(|i| {
        let (scale, zero) = grid(i / cols, i % cols / group);
        f64::from(scales[i / cols]) * f64::from(scale) * (f64::from(codes[i]) - f64::from(zero))
    });
    Case { weights: weights.collect(), panels, codes }
}

fn run(isa: Isa, x: &Activations, w: &Panels, parallel: bool) -> Vec<f32> {
    let (stride, mut y) = (w.rows() + 3, vec![0.5f32; x.tokens() * (w.rows() + 3)]);
    product(isa, x, w, Write::Add, Out { data: &mut y, stride }, parallel).unwrap();
    let mut set = vec![f32::NAN; x.tokens() * stride];
    product(isa, x, w, Write::Set, Out { data: &mut set, stride }, parallel).unwrap();
    for (y, set) in y.chunks(stride).zip(set.chunks(stride)) {
        assert!(y[w.rows()..].iter().all(|v| *v == 0.5) && set[w.rows()..].iter().all(|v| v.is_nan()));
        assert!(y.iter().zip(set).take(w.rows()).all(|(a, b)| *a == 0.5 + *b));
    }
    set.chunks(stride).flat_map(|row| row[..w.rows()].to_vec()).collect()
}

/// All levels of this processor, bit for bit; and the exact product, within rounding: of f32, and by `step` of the
/// activations' largest magnitude at each place.
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
        let max = x.iter().fold(0f64, |m, v| m.max(v.abs()));
        let size: f64 = x.iter().zip(w).map(|(x, w)| 3e-6 * (x * w).abs() + step * max * w.abs()).sum();
        assert!((f64::from(*got) - exact).abs() <= 1e-9 + size, "token {t}, row {r}: {got} for {exact}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 120 }))]

    #[test]
    fn every_level_gives_the_same_bits(
        bits in 1u32..=8, rows in 1..=300 / PART, cols in 1..=300 / PART, group in 1..=300 / PART, tokens in 1..28 / PART, dual in 0u8..3,
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
            let shape = if cfg!(miri) { [5, 40] } else { [17, 1000] };
            for case in [case(bits, shape, shape[1], |_| code), dual_case(bits, shape, shape[1], true, |_| code)] {
                let codes = vec![x; 13 * shape[1]];
                let scales: Vec<f32> = (1..14).map(|t| 1.0 / t as f32).collect();
                let x = Activations::from_codes(&codes, &scales, case.panels.padding()).unwrap();
                let value = |(i, c): (usize, &i8)| f64::from(*c) * f64::from(scales[i / shape[1]]);
                let values: Vec<f64> = codes.iter().enumerate().map(value).collect();
                check(&case, &x, &values, 0.0);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "rows of 2^17 columns take too long")]
fn the_longest_rows_with_integer_scales() {
    // At its largest: 127 * 128 * 2^17 is 2^31 less 2^24.
    let n = 1 << 17;
    let (packed, codes) = (vec![0u8; n], vec![-128i8; n]);
    let Ok(panels) = Panels::dual(Isa::detect(), &packed, 8, [1, n], n, |_, _| (1, 127), &[1.0]) else { panic!() };
    let case = Case { panels, weights: vec![-127.0; n], codes: packed.clone() };
    let x = Activations::from_codes(&codes, &[1.0], case.panels.padding()).unwrap();
    check(&case, &x, &vec![-128.0; n], 0.0);
    let fails = |packed: &[u8], shape: [usize; 2], zero: u8| {
        Panels::dual(Isa::detect(), packed, 8, shape, n, |_, _| (1, zero), &[1.0]).unwrap_err()
    };
    let range = |what: &'static str, limit: usize| Fault::Range { what, limit, found: limit + 1 };
    assert_eq!(fails(&vec![0; n + 1], [1, n + 1], 127), range("columns of weights with integer scales", n));
    assert_eq!(fails(&packed, [1, n], 128), range("magnitude of an integer weight", 127));
    let scales = Fault::Length { what: "scales of rows", expected: 2, found: 1 };
    assert_eq!(fails(&packed, [2, n / 2], 127), scales);
}

#[test]
#[cfg_attr(miri, ignore = "rows of 70 000 columns take too long")]
fn long_rows_are_cut_and_zeros_stay() {
    let case = case(8, [3, 70_000], 70_000, |i| (i % 251) as u8);
    let codes: Vec<i8> = (0..70_000).map(|i| (i % 255) as i8).collect();
    let x = Activations::from_codes(&codes, &[0.25], case.panels.padding()).unwrap();
    let values: Vec<f64> = codes.iter().map(|c| f64::from(*c) * 0.25).collect();
    check(&case, &x, &values, 0.0);
    let zeros = Activations::exact(Isa::detect(), &[0.0; 140_000], 2, case.panels.padding()).unwrap();
    assert!(run(Isa::detect(), &zeros, &case.panels, true).iter().all(|v| *v == 0.0));
    // What does not fit is refused.
    let length = |what: &'static str, expected: usize, found: usize| Fault::Length { what, expected, found };
    let few = Activations::from_codes(&[1, 2, 3], &[1.0], case.panels.padding());
    assert_eq!(few.unwrap_err(), length("activations", 70_000, 3));
    let panels = |bytes: usize, bits: u32, shape: [usize; 2], group: usize| {
        Panels::new(Isa::detect(), &vec![0; bytes], bits, shape, group, |_, _| (1.0, 0)).unwrap_err()
    };
    assert_eq!(panels(3, 4, [2, 4], 4), length("packed codes", 4, 3));
    assert_eq!(panels(4, 9, [2, 1], 1), Fault::Range { what: "bits of a code", limit: 8, found: 9 });
    assert_eq!(panels(4, 4, [2, 1], 0), Fault::Range { what: "columns of a group", limit: 1, found: 0 });
    assert_eq!(panels(4, 8, [usize::MAX, 2], 1), Fault::Overflow { what: "packed codes" });
    let long = Fault::Range { what: "columns of a group", limit: 1 << 15, found: 40_000 };
    assert_eq!(panels(70_000, 8, [1, 70_000], 40_000), long);
    let mut y = [0f32; 5];
    let narrow_stride = product(Isa::detect(), &x, &case.panels, Write::Set, Out { data: &mut y, stride: 2 }, true);
    assert_eq!(narrow_stride, Err(length("stride of the output", 3, 2)));
    let narrow = Panels::new(Isa::detect(), &[0; 4], 8, [2, 2], 2, |_, _| (1.0, 0)).unwrap();
    let columns = product(Isa::detect(), &x, &narrow, Write::Set, Out { data: &mut y, stride: 2 }, true);
    assert_eq!(columns, Err(length("columns of the activations", 2, 70_000)));
}

proptest! {
    #[test]
    fn rows_are_quantized_alike_on_every_level(
        x in prop::collection::vec(-1e3f32..1e3, 0..300), cols in 1usize..300, max_code in prop::sample::select(vec![1i8, 7, 127]), zeros: bool
    ) {
        let x: Vec<f32> = if zeros { vec![0.0; x.len()] } else { x };
        let rows = x.len() / cols;
        let padding = Padding { cols, group: cols, block: 4 };
        let of = |isa: Isa| {
            let (mut codes, mut scales) = (vec![0i8; rows * cols], vec![0f32; rows]);
            quantize_rows(isa, &x, cols, max_code, &mut codes, &mut scales).unwrap();
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
            prop_assert!((f32::from(*code) * scale - x).abs() <= 0.5001 * scale && *code >= -max_code);
        }
    }
}

#[test]
fn values_that_are_not_finite_are_refused_before_their_row_is_written() {
    let cols = 70;
    for isa in Isa::available() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 69, 70, 101, 209] {
                let mut x: Vec<f32> = (0..3 * cols).map(|i| i as f32 - 100.0).collect();
                (x[at], x[209]) = (bad, bad);
                let is_at = |fault: Fault| match fault {
                    Fault::NonFinite { index, value } => index == at && value.to_bits() == bad.to_bits(),
                    _ => false,
                };
                let padding = Padding { cols, group: 32, block: 8 };
                assert!(is_at(Activations::exact(isa, &x, 3, padding).unwrap_err()), "{}", isa.name());
                let (mut codes, mut scales) = (vec![5i8; 3 * cols], vec![5f32; 3]);
                assert!(is_at(quantize_rows(isa, &x, cols, 127, &mut codes, &mut scales).unwrap_err()));
                let rows = at / cols;
                assert!(codes[rows * cols..].iter().all(|c| *c == 5) && scales[rows..].iter().all(|s| *s == 5.0));
                // Rows that are not quantized may have what they like.
                assert_eq!(quantize_rows(isa, &x, cols, 127, &mut codes, &mut scales[..rows]), Ok(()));
            }
        }
    }
}

/// The same bits from one product at a time and from several together, with packed tokens that are shared where the
/// layouts are equal.
#[test]
fn tasks_together_give_the_bits_of_single_products() {
    let cols = 320;
    let cases = [
        case(4, [100 / PART, cols], 64, |i| ((i * 7) >> 2) as u8).panels,
        dual_case(4, [33 / PART, cols], 64, true, |i| ((i * 5) >> 1) as u8).panels,
        dual_case(4, [300 / PART, cols], 64, true, |i| ((i * 3) >> 1) as u8).panels,
        case(8, [17, cols], 64, |i| (i * 11) as u8).panels,
        case(3, [5, cols], 320, |i| (i * 13) as u8).panels,
    ];
    for isa in Isa::available() {
        // Equal bits, groups and zero points: the tokens of one serve the other.
        assert_eq!(cases[1].token_layout(isa), cases[2].token_layout(isa));
        assert_ne!(cases[0].token_layout(isa), cases[1].token_layout(isa));
        for tokens in [1, 2, 19 / PART] {
            let values: Vec<f32> = (0..tokens * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            let codes: Vec<i8> = (0..tokens * cols).map(|i| (i * 37) as i8).collect();
            for exact in [false, true] {
                let packed = |w: &Panels| {
                    let x = match exact {
                        true => Activations::exact(isa, &values, tokens, w.padding()),
                        false => Activations::from_codes(&codes, &vec![0.5; tokens], w.padding()),
                    };
                    Arc::new(Tokens::pack(Arc::new(x.unwrap()), w.token_layout(isa)).unwrap())
                };
                let shared = packed(&cases[1]);
                let all = [packed(&cases[0]), shared.clone(), shared, packed(&cases[3]), packed(&cases[4])];
                let tasks: Vec<Task<'_>> =
                    all.iter().zip(&cases).map(|(x, w)| Task::new(x.clone(), w).unwrap()).collect();
                for (parallel, write) in [(false, Write::Set), (true, Write::Add)] {
                    let mut outs: Vec<Vec<f32>> = cases.iter().map(|w| vec![0.25; tokens * w.rows()]).collect();
                    let list = tasks
                        .iter()
                        .zip(&mut outs)
                        .map(|(t, y)| (t as &dyn GemmTask, write, Out { data: &mut y[..], stride: t.rows() }));
                    run_tasks(list.collect(), parallel).unwrap();
                    for ((x, w), got) in all.iter().zip(&cases).zip(&outs) {
                        let mut want = vec![0.25f32; tokens * w.rows()];
                        let out = Out { data: &mut want[..], stride: w.rows() };
                        product(Isa::SCALAR, x.activations(), w, write, out, false).unwrap();
                        assert!(want.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn tokens_serve_the_layout_that_they_were_packed_for() {
    let (isa, cols) = (Isa::detect(), 64);
    let weights = |zero: u8, group: usize| Panels::new(isa, &[0; 64], 4, [2, cols], group, |_, _| (1.0, zero)).unwrap();
    let w = weights(8, 64);
    let x = Arc::new(Activations::from_codes(&[1; 64], &[1.0], w.padding()).unwrap());
    let tokens = Arc::new(Tokens::pack(x.clone(), w.token_layout(isa)).unwrap());
    assert!(Task::new(tokens.clone(), &w).is_ok() && tokens.layout() == w.token_layout(isa));
    let zero = Fault::Range { what: "zero point of the layout of tokens", limit: 7, found: 8 };
    assert_eq!(Task::new(tokens.clone(), &weights(7, 64)).unwrap_err(), zero);
    let group = Fault::Length { what: "columns of a group of activations", expected: 32, found: 64 };
    assert_eq!(Task::new(tokens, &weights(8, 32)).unwrap_err(), group);
    assert_eq!(Tokens::pack(x, weights(8, 32).token_layout(isa)).unwrap_err(), group);
}

/// A task that hands its tile to a larger product: safe code, which must not reach past its output.
#[test]
#[should_panic(expected = "the tile belongs to another product")]
fn a_task_refuses_the_tile_of_another() {
    struct Smaller<'a>(Task<'a>);
    impl GemmTask for Smaller<'_> {
        fn rows(&self) -> usize {
            4
        }
        fn tokens(&self) -> usize {
            1
        }
        fn granularity(&self) -> usize {
            4
        }
        fn granule_bytes(&self) -> usize {
            1
        }
        fn run(&self, _: Range<usize>, write: Write, tile: &mut Tile<'_>) {
            self.0.run(0..self.0.rows(), write, tile);
        }
    }
    let isa = Isa::detect();
    let w = Panels::new(isa, &[0; 4096], 8, [64, 64], 64, |_, _| (1.0, 0)).unwrap();
    let x = Activations::from_codes(&[1; 64], &[1.0], w.padding()).unwrap();
    let x = Arc::new(Tokens::pack(Arc::new(x), w.token_layout(isa)).unwrap());
    let task = Smaller(Task::new(x, &w).unwrap());
    let _ = run_tasks(vec![(&task, Write::Set, Out { data: &mut [0.0; 4], stride: 4 })], false);
}

#[test]
fn empty_matrices_of_absurd_sizes_take_no_memory() {
    let huge = usize::MAX / 2;
    for shape in [[0, huge], [huge, 0]] {
        let panels = Panels::new(Isa::detect(), &[], 4, shape, 32, |_, _| (1.0, 0));
        assert!(panels.is_ok_and(|p| [p.rows(), p.padding().cols] == shape), "{shape:?}");
    }
    let padding = Padding { cols: huge, group: 3, block: 4 };
    assert_eq!(Activations::exact(Isa::detect(), &[], 0, padding).map(|a| a.tokens()), Ok(0));
    assert!(Activations::from_codes(&[], &[1.0], padding).is_err());
    for (cols, group, block) in [(0, 3, 4), (1, 3, 4), (7, 3, 4), (8, 4, 4), (9, 100, 32), (65, 32, 16)] {
        let padding = Padding { cols, group, block };
        let blocks: usize = (0..padding.groups()).map(|g| padding.blocks(g)).sum();
        assert_eq!(padding.width(), blocks * block);
    }
}
