//! Properties of block-wise quantization, for random tensors, maps and blocks.

use half::{bf16, f16};
use proptest::prelude::*;
use tersor_blockwise::{Blockwise, Map, MapKind, Quantized, Scales};
use tersor_core::{Check, DType, Error, Exec, Isa};

/// Returns every named map, one of quantiles, and two custom ones: with few values, and with unsorted and repeated values.
fn maps() -> Vec<Map> {
    let data: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.7).sin() * (i as f32 * 0.013).cos()).collect();
    vec![
        Map::dynamic(true),
        Map::dynamic(false),
        Map::linear(true),
        Map::linear(false),
        Map::nf4(),
        Map::fp4(),
        Map::quantile(&data, 256, 256).unwrap(),
        Map::custom(&[-1.0, 0.0, 1.0]).unwrap(),
        Map::custom(&[0.5, -1.0, 0.0, 1.0, 0.5, -0.0, -0.25]).unwrap(),
    ]
}

fn is_unsigned(map: &Map) -> bool {
    matches!(map.kind(), MapKind::DynamicUnsigned | MapKind::LinearUnsigned)
}

prop_compose! {
    /// Of many decades, with zeros.
    fn value()(sign in any::<bool>(), kind in 0..8, mantissa in 1.0f32..2.0, exponent in -30i32..20) -> f32 {
        let size = if kind == 0 { 0.0 } else if kind < 4 { mantissa * 2f32.powi(exponent) } else { mantissa - 0.9 };
        if sign { -size } else { size }
    }
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    (0usize..=1000).prop_flat_map(|n| prop::collection::vec(value(), n))
}

fn block() -> impl Strategy<Value = usize> {
    prop_oneof![Just(64usize), Just(256), Just(4096), 1usize..130]
}

fn of(map: &Map, x: &[f32]) -> Vec<f32> {
    if is_unsigned(map) { x.iter().map(|v| v.abs()).collect() } else { x.to_vec() }
}

/// Returns the largest distance between a value and that of its code, relative to the block's largest magnitude.
fn farthest(map: &Map) -> f32 {
    let low = map.values().iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.values().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let ends = if is_unsigned(map) { 1.0 - high } else { (1.0 - high).max(low + 1.0) };
    (map.widest_gap() / 2.0).max(ends)
}

fn unpacked(q: &Quantized) -> Vec<u8> {
    match q.map().bits() {
        4 => q.codes().iter().flat_map(|c| [c >> 4, c & 15]).take(q.len()).collect(),
        _ => q.codes().to_vec(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn errors_stay_below_half_the_widest_gap(x in values(), block in block()) {
        for map in maps() {
            let x = of(&map, &x);
            let q = Blockwise::new(map.clone()).block(block).quantize_values(&x).unwrap();
            let back: Vec<f32> = q.dequantize().unwrap();
            prop_assert_eq!(back.len(), x.len());
            for (i, (a, b)) in x.iter().zip(&back).enumerate() {
                let max = x[i / block * block..].iter().take(block).fold(0f32, |m, v| m.max(v.abs()));
                prop_assert_eq!(q.absmax()[i / block], max);
                let bound = (farthest(&map) + 2e-7) * max;
                prop_assert!((a - b).abs() <= bound, "{:?}: {} came back as {}, scale {}", map, a, b, max);
            }
        }
    }

    #[test]
    fn codes_are_the_nearest_values_by_brute_force(x in values(), block in block()) {
        for map in maps() {
            let x = of(&map, &x);
            let q = Blockwise::new(map.clone()).block(block).quantize_values(&x).unwrap();
            for (i, (x, code)) in x.iter().zip(unpacked(&q)).enumerate() {
                let part = x * (1.0 / q.absmax()[i / block].max(1e-38));
                let gap = |v: f32| (f64::from(part) - f64::from(v)).abs();
                let min = map.values().iter().map(|v| gap(*v)).fold(f64::INFINITY, f64::min);
                // Middles are rounded to f32.
                let found = gap(map.values()[usize::from(code)]);
                prop_assert!(found <= min + 6e-8, "{:?}: {} has code {}", map, part, code);
            }
        }
    }

    #[test]
    fn values_of_codes_are_encoded_as_these_codes(x in values(), block in block(), nested in any::<bool>()) {
        for map in maps() {
            let x = of(&map, &x);
            let q = Blockwise::new(map).block(block).nested(nested).quantize_values(&x).unwrap();
            // Scales that are quantized themselves may come out as 0 or below, and such a block means nothing.
            if q.absmax().iter().zip(x.chunks(block)).any(|(s, x)| *s <= 1e-30 && x.iter().any(|v| *v != 0.0)) {
                continue;
            }
            let back: Vec<f32> = q.dequantize().unwrap();
            let again = q.requantize(&back, Isa::detect()).unwrap();
            let values: Vec<f32> = again.dequantize().unwrap();
            prop_assert_eq!(&values, &back);
            // Codes too, where each stands for another value.
            let known = q.map().values();
            let single = |c: &u8| known.iter().filter(|v| **v == known[usize::from(*c)]).count() == 1;
            let scaled = |i: usize| q.absmax()[i / block] > 0.0;
            for (i, (a, b)) in unpacked(&q).iter().zip(&unpacked(&again)).enumerate() {
                prop_assert!(a == b || !single(a) || !scaled(i), "{} became {}", a, b);
            }
        }
    }

    #[test]
    fn blocks_are_independent(x in values(), block in block(), at in 0usize..1000, to in value()) {
        prop_assume!(!x.is_empty());
        let at = at % x.len();
        for map in maps() {
            let (x, to) = (of(&map, &x), if is_unsigned(&map) { to.abs() } else { to });
            let how = Blockwise::new(map).block(block);
            let mut y = x.clone();
            y[at] = to * 1000.0;
            let (a, b) = (how.clone().quantize_values(&x).unwrap(), how.quantize_values(&y).unwrap());
            for (i, (a, b)) in unpacked(&a).iter().zip(&unpacked(&b)).enumerate() {
                prop_assert!(a == b || i / block == at / block);
            }
            for (i, (a, b)) in a.absmax().iter().zip(b.absmax()).enumerate() {
                prop_assert!(a == b || i == at / block);
            }
        }
    }

    #[test]
    fn permuted_blocks_are_permuted_results(blocks in prop::collection::vec(prop::collection::vec(value(), 32), 1..20), by in 1usize..20) {
        let n = blocks.len();
        let rotated: Vec<f32> = (0..n).flat_map(|i| blocks[(i + by) % n].clone()).collect();
        let flat: Vec<f32> = blocks.concat();
        for map in maps() {
            let how = Blockwise::new(map.clone()).block(32);
            let (a, b) = (how.clone().quantize_values(&of(&map, &flat)).unwrap(), how.quantize_values(&of(&map, &rotated)).unwrap());
            let width = a.codes().len() / n;
            for i in 0..n {
                let j = (i + by) % n;
                prop_assert_eq!(&b.codes()[i * width..(i + 1) * width], &a.codes()[j * width..(j + 1) * width]);
                prop_assert_eq!(b.absmax()[i], a.absmax()[j]);
            }
        }
    }

    #[test]
    fn a_stream_of_pieces_equals_the_whole(x in values(), block in block(), cuts in prop::collection::vec(0usize..1000, 0..6), seed in any::<Option<u64>>()) {
        for map in maps() {
            let x = of(&map, &x);
            let mut how = Blockwise::new(map).block(block).nested(true);
            if let Some(seed) = seed {
                how = how.stochastic(seed);
            }
            let how = how.check().unwrap();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (x.len() + 1)).collect();
            cuts.extend([0, x.len()]);
            cuts.sort();
            let mut stream = how.stream();
            for pair in cuts.windows(2) {
                stream.push(&x[pair[0]..pair[1]]).unwrap();
            }
            let whole = how.quantize_values(&x).unwrap();
            prop_assert_eq!(stream.finish().unwrap(), whole.clone());
            // Any run of values is that of the whole.
            let back: Vec<f32> = whole.dequantize().unwrap();
            for pair in cuts.windows(2) {
                let mut part = vec![0f32; pair[1] - pair[0]];
                whole.read(pair[0]..pair[1], &mut part, Isa::detect()).unwrap();
                prop_assert_eq!(&part[..], &back[pair[0]..pair[1]]);
            }
        }
    }

    #[test]
    fn f16_and_bf16_equal_their_f32_values(x in values(), block in block()) {
        let f: Vec<f16> = x.iter().map(|v| f16::from_f32(v.clamp(-6e4, 6e4))).collect();
        let b: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
        for map in [Map::dynamic(true), Map::nf4(), Map::linear(true)] {
            let how = Blockwise::new(map).block(block).check().unwrap();
            let (qf, qb) = (how.quantize_values(&f).unwrap(), how.quantize_values(&b).unwrap());
            let wide = |q: Quantized, x: Vec<f32>| {
                let same = how.quantize_values(&x).unwrap();
                (q.codes() == same.codes(), q.absmax() == same.absmax(), same.dequantize::<f32>().unwrap())
            };
            prop_assert_eq!((qf.dtype(), qb.dtype()), (DType::F16, DType::BF16));
            let (backf, backb) = (qf.dequantize::<f16>().unwrap(), qb.dequantize::<bf16>().unwrap());
            let (codes, scales, back) = wide(qf, f.iter().map(|v| v.to_f32()).collect());
            prop_assert!(codes && scales && backf.iter().zip(&back).all(|(a, b)| *a == f16::from_f32(*b)));
            let (codes, scales, back) = wide(qb, b.iter().map(|v| v.to_f32()).collect());
            prop_assert!(codes && scales && backb.iter().zip(&back).all(|(a, b)| *a == bf16::from_f32(*b)));
        }
    }

    #[test]
    fn quantized_scales_are_near(x in prop::collection::vec(value(), 1..1000), block in 1usize..40) {
        for map in maps() {
            let x = of(&map, &x);
            let how = Blockwise::new(map).block(block);
            let (plain, nested) = (how.clone().quantize_values(&x).unwrap(), how.nested(true).quantize_values(&x).unwrap());
            prop_assert_eq!(plain.codes(), nested.codes());
            let Scales::Nested { offset, absmax, .. } = nested.scales() else { panic!("plain scales") };
            for (i, (a, b)) in plain.absmax().iter().zip(nested.absmax()).enumerate() {
                let bound = absmax[i / 256] * 0.00704 + offset.abs() * 1e-6;
                prop_assert!((a - b).abs() <= bound, "{} became {}", a, b);
            }
        }
    }

    #[test]
    fn drawn_codes_are_neighbours_of_the_value(x in values(), block in block(), seed in any::<u64>()) {
        for map in maps() {
            let x = of(&map, &x);
            let q = Blockwise::new(map.clone()).block(block).stochastic(seed).quantize_values(&x).unwrap();
            let back: Vec<f32> = q.dequantize().unwrap();
            for (i, (a, b)) in x.iter().zip(&back).enumerate() {
                let max = q.absmax()[i / block];
                let bound = (farthest(&map).max(map.widest_gap()) + 2e-7) * max;
                prop_assert!((a - b).abs() <= bound);
            }
        }
    }
}

/// Returns standard normal values.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 9u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

fn mean_square(x: &[f32], how: Blockwise) -> f64 {
    let back: Vec<f32> = how.quantize_values(x).unwrap().dequantize().unwrap();
    x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / x.len() as f64
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let x = normal(300_001);
    for map in maps() {
        let x = of(&map, &x);
        for how in [Blockwise::new(map.clone()), Blockwise::new(map.clone()).block(100).nested(true).stochastic(3)] {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let q = how.clone().quantize_values(&x).unwrap();
                    let back: Vec<u32> = q.dequantize::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
                    (q, back)
                })
            };
            let one = run(1);
            assert!([2, 3, 7].into_iter().all(|n| run(n) == one), "{how:?}");
        }
    }
}

/// Orderings of errors from arXiv 2110.02861 (section 1.2) and 2305.14314 (section 3).
#[test]
fn errors_are_ordered_as_the_papers_say() {
    let x = normal(1 << 16);
    let four = |map: Map| mean_square(&x, Blockwise::new(map).block(64));
    let integers: Vec<f32> = (-7..8).map(|k| k as f32 / 7.0).collect();
    let (nf4, int4, fp4) = (four(Map::nf4()), four(Map::custom(&integers).unwrap()), four(Map::fp4()));
    assert!(nf4 < int4 && int4 < fp4, "{nf4} {int4} {fp4}");
    assert!((nf4 - 0.0084).abs() < 4e-4 && (int4 - 0.0115).abs() < 6e-4 && (fp4 - 0.0148).abs() < 8e-4);

    // Heavy tails: smaller blocks are better, and a dynamic map far better than equal steps.
    let scale = normal(2 << 16);
    let heavy: Vec<f32> = x.iter().zip(&scale[1 << 16..]).map(|(a, b)| a * (1.5 * b).exp()).collect();
    let median = |map: Map, block: usize| {
        let back: Vec<f32> = Blockwise::new(map).block(block).quantize_values(&heavy).unwrap().dequantize().unwrap();
        let mut relative: Vec<f32> = heavy.iter().zip(&back).map(|(a, b)| ((a - b) / a).abs()).collect();
        relative.sort_by(f32::total_cmp);
        relative[relative.len() / 2]
    };
    let dynamic = [256, 2048, 4096].map(|b| median(Map::dynamic(true), b));
    assert!(dynamic[0] < dynamic[1] && dynamic[1] < dynamic[2], "{dynamic:?}");
    for (block, at_most) in [(256, 0.25), (4096, 0.25)] {
        let (dynamic, linear) = (median(Map::dynamic(true), block), median(Map::linear(true), block));
        assert!(dynamic < at_most * linear, "block {block}: {dynamic} against {linear}");
    }
}

#[test]
fn stochastic_rounding_is_unbiased() {
    let x = normal(256);
    for map in [Map::dynamic(true), Map::nf4(), Map::linear(true)] {
        let draws = 2000;
        let (mut sum, mut square) = (vec![0f64; 256], vec![0f64; 256]);
        for seed in 0..draws {
            let q = Blockwise::new(map.clone()).block(256).stochastic(seed).quantize_values(&x).unwrap();
            for (i, v) in q.dequantize::<f32>().unwrap().iter().enumerate() {
                sum[i] += f64::from(*v);
                square[i] += f64::from(*v).powi(2);
            }
        }
        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        // What is drawn a few times alone has no deviation to speak of.
        let rare = 5.0 * f64::from(map.widest_gap() * max) / draws as f64;
        for (i, v) in x.iter().enumerate() {
            // Beyond the outermost value nothing can be drawn.
            if *v < map.values()[0] * max {
                continue;
            }
            let mean = sum[i] / draws as f64;
            let deviation = ((square[i] / draws as f64 - mean * mean).max(0.0) / draws as f64).sqrt();
            assert!((mean - f64::from(*v)).abs() <= 5.0 * deviation + rare, "{map:?}: {v} has mean {mean}");
        }
    }
}

#[test]
fn degenerate_tensors_are_quantized() {
    for map in maps() {
        let how = Blockwise::new(map.clone()).block(64);
        // Nothing at all: no bits.
        let none = how.clone().quantize_values::<f32>(&[]).unwrap();
        assert_eq!((none.len(), none.bits_per_value()), (0, 0.0));
        assert!(none.dequantize::<f32>().unwrap().is_empty());
        // Zeros of both signs come back as 0, exactly.
        let zeros: Vec<f32> = (0..130).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect();
        for nested in [false, true] {
            let q = how.clone().nested(nested).quantize_values(&zeros).unwrap();
            assert!(q.dequantize::<f32>().unwrap().iter().all(|v| v.to_bits() == 0), "{map:?}");
        }
        // The smallest and the largest magnitudes stay finite, and within the bound.
        for size in [f32::from_bits(1), f32::MIN_POSITIVE / 8.0, f32::MIN_POSITIVE, f32::MAX] {
            let x = [size, size / 2.0, 0.0, size];
            let back: Vec<f32> = how.clone().quantize_values(&x).unwrap().dequantize().unwrap();
            let close = |(a, b): (&f32, &f32)| b.is_finite() && (a - b).abs() <= size;
            assert!(x.iter().zip(&back).all(close), "{map:?}: {x:?} came back as {back:?}");
        }
    }
    // One outlier costs its own block alone.
    let mut x = normal(4096);
    let clean = Blockwise::dynamic().block(256).quantize_values(&x).unwrap();
    x[300] *= 1000.0;
    let dirty = Blockwise::dynamic().block(256).quantize_values(&x).unwrap();
    assert_eq!(clean.codes()[512..], dirty.codes()[512..]);
    assert_eq!(clean.codes()[..256], dirty.codes()[..256]);
    assert_ne!(clean.codes()[256..512], dirty.codes()[256..512]);
}

#[test]
fn invalid_parameters_and_values_are_refused_by_name() {
    let usage = |e: Error| assert!(e.is_usage(), "{e}");
    usage(Blockwise::nf4().block(0).quantize_values(&[1f32]).unwrap_err());
    usage(Blockwise::nf4().block(usize::MAX).quantize_values(&[1f32]).unwrap_err());
    for values in
        [vec![], vec![0.0], vec![0.0; 257], vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::MAX, 0.0]]
    {
        usage(Map::custom(&values).unwrap_err().into());
    }
    let data = normal(100);
    for (data, block, count) in [
        (&data[..], 10, 1),
        (&data[..], 10, 257),
        (&data[..], 0, 16),
        (&data[..16], 10, 16),
        (&[f32::NAN; 40][..], 10, 16),
        (&[][..], 10, 2),
    ] {
        usage(Map::quantile(data, block, count).unwrap_err().into());
    }
    // Values that are not finite, with where they are; the stream keeps what it had.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = normal(10_000);
        x[7777] = bad;
        for how in [Blockwise::nf4(), Blockwise::dynamic(), Blockwise::dynamic().stochastic(1)] {
            let e = how.clone().quantize_values(&x).unwrap_err();
            assert!(matches!(e, Error::NonFinite { col: 7777, .. }), "{e}");
            let how = how.check().unwrap();
            let mut stream = how.stream();
            stream.push(&x[..100]).unwrap();
            assert!(matches!(stream.push(&x[100..]), Err(Error::NonFinite { col: 7777, .. })));
            stream.push(&x[100..7777]).unwrap();
            assert_eq!(stream.finish().unwrap(), how.quantize_values(&x[..7777]).unwrap());
            assert!(how.quantize_values(&x[..7777]).unwrap().requantize(&x[1..7778], Isa::detect()).is_err());
        }
    }
    // Buffers and parts of wrong lengths, scales that are not finite, codes that stand for nothing.
    let how = Blockwise::nf4().check().unwrap();
    let (mut codes, mut scales) = ([0u8; 50], [0f32; 2]);
    assert!(how.quantize_into(&data, &mut codes[..49], &mut scales).is_err());
    assert!(how.quantize_into(&data, &mut codes, &mut scales[..1]).is_err());
    how.quantize_into(&data, &mut codes, &mut scales).unwrap();
    let parts = |map: Map, block, codes: &[u8], scales: Vec<f32>| {
        Quantized::from_parts(map, block, 100, DType::F32, codes.to_vec(), Scales::Plain(scales))
    };
    parts(Map::nf4(), 64, &codes, scales.to_vec()).unwrap();
    assert!(parts(Map::nf4(), 0, &codes, scales.to_vec()).is_err());
    assert!(parts(Map::nf4(), 64, &codes[1..], scales.to_vec()).is_err());
    assert!(parts(Map::nf4(), 64, &codes, vec![1.0]).is_err());
    assert!(parts(Map::nf4(), 64, &codes, vec![1.0, f32::NAN]).is_err());
    assert!(parts(Map::custom(&[-1.0, 0.0, 1.0]).unwrap(), 64, &[0x33; 50], scales.to_vec()).is_err());
    let nested = |codes: usize, absmax: Vec<f32>, offset: f32| {
        let scales = Scales::Nested { codes: vec![0; codes], absmax, offset };
        Quantized::from_parts(Map::nf4(), 64, 100, DType::F32, vec![0; 50], scales)
    };
    nested(2, vec![1.0], 0.0).unwrap();
    assert!(nested(1, vec![1.0], 0.0).is_err());
    assert!(nested(2, vec![], 0.0).is_err());
    assert!(nested(2, vec![f32::INFINITY], 0.0).is_err());
    assert!(nested(2, vec![1.0], f32::NAN).is_err());
    let q = Blockwise::nf4().quantize_values(&data).unwrap();
    assert!(q.requantize(&data[1..], Isa::detect()).is_err());
    assert!(q.dequantize_into(&mut [0f32; 99], &Exec::new()).is_err());
    let mut out = [0f32; 10];
    for range in [0..11, 95..105, 100..110] {
        assert!(q.read(range, &mut out, Isa::detect()).is_err());
    }
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 20..10;
    assert!(q.read(backwards, &mut [], Isa::detect()).is_err());
}

#[test]
fn blocks_of_any_size_depend_on_their_values_alone() {
    let x: Vec<f32> = (0..20_011).map(|i| (i as f32 * 0.77).sin() * (1.0 + (i % 997) as f32)).collect();
    for map in [Map::dynamic(true), Map::dynamic(false), Map::linear(true), Map::nf4()] {
        for block in [1, 7, 64, 65, 511, 513, 700, 3000, 4096, 5000, 1 << 20] {
            for seed in [None, Some(5)] {
                let how = Blockwise::new(map.clone()).block(block);
                let how = seed.map_or(how.clone(), |s| how.stochastic(s));
                let whole = how.clone().quantize_values(&x).unwrap();
                let one = |i: usize| whole.codes()[i / 2] >> (4 * (1 - i % 2)) & 15;
                let code = |i: usize| if map.bits() == 4 { one(i) } else { whole.codes()[i] };
                for (b, part) in x.chunks(block).enumerate().step_by(if block < 64 { 97 } else { 1 }) {
                    let max = part.iter().fold(0f32, |m, v| m.max(v.abs()));
                    assert_eq!(whole.absmax()[b], max);
                    if seed.is_none() {
                        let alone = Blockwise::new(map.clone()).block(part.len()).quantize_values(part).unwrap();
                        let own = |i: usize| match map.bits() {
                            4 => alone.codes()[i / 2] >> (4 * (1 - i % 2)) & 15,
                            _ => alone.codes()[i],
                        };
                        assert!((0..part.len()).all(|i| own(i) == code(b * block + i)), "{map:?} {block} {b}");
                    }
                }
                if seed.is_some() {
                    let mut pieces = how.check().unwrap().stream();
                    x.chunks(777).for_each(|x| pieces.push(x).unwrap());
                    assert!(pieces.finish().unwrap() == whole, "{map:?} {block}");
                }
            }
        }
    }
}

#[test]
fn a_map_without_zero_refuses_a_mask() {
    use tersor_core::{Context, LinearOpExt, Mask, Masked, MatView, Method, StatSet};
    let w: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    let view = MatView::new(&w, [2, 32]).unwrap();
    let (half, all) = (Mask::from_fn([2, 32], |_, c| c % 2 == 0).unwrap(), Mask::all([2, 32]).unwrap());
    let made = |map: Map, mask| {
        let (method, cx) = (Blockwise::new(map).block(64).check().unwrap(), Context::new());
        let prepared = method.prepare(&StatSet::none(), &cx).unwrap();
        prepared.compress(&Masked::new(&view, mask).unwrap(), 0..2, &cx).map(|d| d.op.decompress().unwrap())
    };
    let without = || Map::custom(&[-1.0, -0.3, 0.3, 1.0]).unwrap();
    assert!(matches!(made(without(), &half), Err(Error::Unsupported { what: "mask", .. })));
    assert!(made(without(), &all).is_ok());
    for map in [Map::nf4(), Map::fp4(), Map::dynamic(true), Map::linear(false)] {
        assert!(made(map, &half).unwrap().iter().skip(1).step_by(2).all(|v| *v == 0.0));
    }
}

#[test]
fn layouts_contain_the_element_type() {
    use tersor_core::{LinearOp, MatView};
    let w: Vec<half::bf16> = (0..64).map(|i| half::bf16::from_f32((i as f32 * 0.7).sin())).collect();
    for how in [Blockwise::nf4(), Blockwise::dynamic().nested(true)] {
        let (op, _) = how.clone().quantize(&MatView::new(&w, [2, 32]).unwrap()).unwrap();
        let layout = how.check().unwrap().layout_of::<half::bf16>([2, 32]).unwrap();
        assert_eq!(op.storage_bits(), layout.bits().unwrap());
    }
}
