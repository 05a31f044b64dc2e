use super::*;
use crate::tensors::join;
use crate::{Error, MatView, MemTensors, TensorSource};

const NEEDS: StatNeeds = StatNeeds::none().with_squares().with_channel().with_gram().with_sample(5);

fn batch(t: usize, k: usize, salt: usize) -> Vec<f32> {
    (0..t * k).map(|i| ((i * 13 + salt) % 29) as f32 - 14.0).collect()
}

#[test]
fn shards_add_to_the_whole_and_files_come_back() {
    let k = 7;
    let all = batch(40, k, 3);
    let mut whole = StatSet::new(k, NEEDS, 9, 0).unwrap();
    let mut parts = StatSet::new(k, NEEDS, 9, 0).unwrap();
    for (i, rows) in all.chunks(10 * k).enumerate() {
        let m = MatView::new(rows, [rows.len() / k, k]).unwrap();
        whole.observe(&m).unwrap();
        let mut part = StatSet::new(k, NEEDS, 9, i as u64 * 10).unwrap();
        part.observe(&m).unwrap();
        let mut file = MemTensors::new();
        part.save("site", &mut file).unwrap();
        for (name, info) in StatSet::layout(k, NEEDS, part.tokens()) {
            assert_eq!(crate::TensorSource::info(&file, &join("site", &name)).unwrap(), info);
        }
        let loaded = StatSet::load("site", &file).unwrap();
        assert_eq!(loaded, part);
        parts.merge(&loaded).unwrap();
    }
    assert_eq!(whole, parts, "small integers add exactly, so the order of sums does not show");
    assert_eq!(whole.tokens(), 40);
    let gram = whole.gram().unwrap();
    let want: f64 = all.chunks(k).map(|r| f64::from(r[1]) * f64::from(r[4])).sum();
    assert_eq!((gram[k + 4], gram[4 * k + 1]), (want, want));
    let c = whole.channel().unwrap();
    assert_eq!(whole.squares().unwrap(), c.sum_sq);
    let diagonal = |needs| {
        let mut s = StatSet::new(k, needs, 9, 0).unwrap();
        s.observe(&MatView::new(&all, [40, k]).unwrap()).unwrap();
        s.squares()
    };
    assert_eq!(diagonal(StatNeeds { gram: true, ..StatNeeds::default() }).as_ref(), Some(&c.sum_sq));
    assert_eq!(diagonal(StatNeeds { channel: true, ..StatNeeds::default() }).as_ref(), Some(&c.sum_sq));
    assert_eq!(diagonal(StatNeeds { sample: 1, ..StatNeeds::default() }), None);
    assert!(StatSet::from_squares(vec![1.0, -1.0], 3).is_err());
    assert_eq!(c.sum_sq[2], all.chunks(k).map(|r| f64::from(r[2]).powi(2)).sum::<f64>());
    assert_eq!(whole.sample().unwrap().len(), 5 * k);
}

#[test]
fn some_columns_are_statistics_of_some_features() {
    let (k, x) = (7, batch(20, 7, 5));
    let mut all = StatSet::new(k, NEEDS, 1, 0).unwrap();
    all.observe(&MatView::new(&x, [20, k]).unwrap()).unwrap();
    let some: Vec<f32> = x.chunks(k).flat_map(|row| row[2..5].to_vec()).collect();
    let mut want = StatSet::new(3, NEEDS, 1, 0).unwrap();
    want.observe(&MatView::new(&some, [20, 3]).unwrap()).unwrap();
    assert_eq!(all.columns(2..5).unwrap(), want);
    assert!(all.columns(5..8).is_err());
    assert!(want.clone().with_gram(vec![0.0; 8]).is_err() && want.clone().with_gram(vec![f64::NAN; 9]).is_err());
    assert_eq!(want.with_gram(vec![2.0; 9]).unwrap().gram(), Some(&[2.0; 9][..]));
}

#[test]
fn a_bad_batch_leaves_everything_as_it_was() {
    let k = 4;
    let mut s = StatSet::new(k, NEEDS, 0, 0).unwrap();
    s.observe(&MatView::new(&batch(3, k, 1), [3, k]).unwrap()).unwrap();
    let before = s.clone();
    let mut bad = batch(3, k, 2);
    bad[k * 2 + 1] = f32::NAN;
    let e = s.observe(&MatView::new(&bad, [3, k]).unwrap()).unwrap_err();
    assert!(matches!(e, Error::NonFinite { row: 2, col: 1, .. }), "{e}");
    assert!(s.observe(&MatView::new(&batch(3, k + 1, 2), [3, k + 1]).unwrap()).is_err());
    assert!(s.merge(&StatSet::new(k, StatNeeds::default(), 0, 0).unwrap()).is_err());
    assert_eq!(s, before);
}

fn seen(k: usize, needs: StatNeeds, x: &[f32], first: u64) -> StatSet {
    let mut s = StatSet::new(k, needs, 9, first).unwrap();
    s.observe(&MatView::new(x, [x.len() / k, k]).unwrap()).unwrap();
    s
}

#[test]
fn only_keeps_squares_that_channel_or_gram_imply() {
    let (k, x) = (4, batch(6, 4, 1));
    let squares = StatNeeds { squares: true, ..StatNeeds::default() };
    for rich in [
        StatNeeds { channel: true, ..StatNeeds::default() },
        StatNeeds { gram: true, ..StatNeeds::default() },
        StatNeeds { channel: true, gram: true, ..StatNeeds::default() },
    ] {
        let set = seen(k, rich, &x, 0);
        let want = set.squares();
        assert_eq!(set.clone().only(squares).squares(), want, "{rich:?}");
        assert_eq!(set.clone().only(squares), seen(k, squares, &x, 0), "{rich:?}");
        let both = StatNeeds { squares: true, ..rich };
        assert_eq!(set.only(both), seen(k, both, &x, 0), "as if squares had been asked for, so that the two merge");
    }
}

#[test]
fn sets_merge_where_squares_are_stored_on_one_side_and_implied_on_the_other() {
    let (k, x) = (4, batch(6, 4, 1));
    let squares = StatNeeds { squares: true, ..StatNeeds::default() };
    let want = seen(k, squares, &x, 0).squares().unwrap();
    let (a, b) = x.split_at(2 * k);
    let channel = StatNeeds { channel: true, ..StatNeeds::default() };
    let gram = StatNeeds { gram: true, ..StatNeeds::default() };
    for (plain, rich) in [
        (squares, channel),
        (squares, gram),
        (squares, channel.union(gram)),
        (squares.union(gram), gram),
        (squares.union(channel), channel.union(gram)),
    ] {
        for [first, second] in [[plain, rich], [rich, plain]] {
            let mut set = seen(k, first, a, 0);
            set.merge(&seen(k, second, b, 2)).unwrap();
            assert_eq!(set.squares().as_ref(), Some(&want), "{first:?} {second:?}");
            let mut one = seen(k, plain, a, 0);
            one.observe(&MatView::new(b, [4, k]).unwrap()).unwrap();
            assert_eq!(set, one, "what the one that stores squares was made for");
        }
    }
    for [first, second] in [
        [squares, squares.union(gram)],
        [squares.union(gram), channel],
        [channel, gram],
        [squares, StatNeeds::default()],
    ] {
        let mut set = seen(k, first, a, 0);
        let before = set.clone();
        assert!(set.merge(&seen(k, second, b, 2)).is_err(), "{first:?} {second:?}");
        assert_eq!(set, before);
    }
}

/// FNV-1a of every tensor's name, type, shape and bytes.
fn fingerprint(file: &MemTensors) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for name in TensorSource::names(file) {
        let info = TensorSource::info(file, &name).unwrap();
        let head = format!("{name} {} {:?}", info.dtype.name(), info.shape);
        for byte in head.bytes().chain(file.get(&name).unwrap().iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// Hashes of files of the first version, which had no windows and weights.
const FIRST_VERSION: [u64; 16] = [
    5122543287687092465,
    17966520951613504684,
    2446557330075871206,
    17472357892250259593,
    716195448402729646,
    4963967922178377439,
    3035367580456501409,
    3811467746000481910,
    3738035156007289613,
    5040588909009829136,
    10183242785978166294,
    9936557124040877273,
    8839844905928242262,
    15826556439948496551,
    4099728082818252953,
    15353696849130332206,
];

#[test]
fn files_of_the_first_version_keep_their_bytes() {
    let k = 5;
    let mut got = Vec::new();
    for bits in 0..16 {
        let needs = StatNeeds {
            squares: bits & 1 > 0,
            channel: bits & 2 > 0,
            gram: bits & 4 > 0,
            sample: if bits & 8 > 0 { 3 } else { 0 },
            ..StatNeeds::default()
        };
        let mut set = seen(k, needs, &batch(4, k, 2), 7);
        set.observe(&MatView::new(&batch(3, k, 8), [3, k]).unwrap()).unwrap();
        let mut file = MemTensors::new();
        set.save("site", &mut file).unwrap();
        got.push(fingerprint(&file));
    }
    assert_eq!(got, FIRST_VERSION);
}

#[test]
fn a_batch_that_the_sums_cannot_hold_is_refused_before_anything_changes() {
    let (k, gram) = (2, StatNeeds { gram: true, ..StatNeeds::default() });
    let mut s = seen(k, gram, &[1.0, 2.0], 0);
    let before = s.clone();
    let e = s.observe(&MatView::new(&[1.0, 1.0, 1.0, 3e19], [2, k]).unwrap()).unwrap_err();
    assert!(e.to_string().contains("feature 1"), "{e}");
    // Each square fits, their sum over 512 tokens does not.
    assert!(s.observe(&MatView::new(&[1e18; 1024], [512, k]).unwrap()).is_err());
    assert_eq!(s, before);
    s.observe(&MatView::new(&[1e18; 4], [2, k]).unwrap()).unwrap();
    assert!(s.gram().unwrap().iter().all(|v| v.is_finite()));
    let mut last = StatSet::new(k, StatNeeds { sample: 1, ..StatNeeds::default() }, 0, u64::MAX - 1).unwrap();
    let before = last.clone();
    assert!(matches!(last.observe(&MatView::new(&[1.0; 4], [2, k]).unwrap()), Err(Error::Overflow { .. })));
    assert_eq!(last, before);
    let mut many = StatSet::from_squares(vec![1.0; 2], u64::MAX).unwrap();
    let before = many.clone();
    assert!(matches!(many.merge(&before), Err(Error::Overflow { .. })));
    assert_eq!(many, before);
}

#[test]
fn a_file_whose_extremes_are_no_numbers_is_refused() {
    let k = 2;
    let set = seen(k, StatNeeds { channel: true, ..StatNeeds::default() }, &[1.0, 2.0], 0);
    for bad in [f32::NAN, f32::INFINITY] {
        for name in ["min", "max"] {
            let mut channel = set.clone();
            let figures = channel.channel.as_mut().unwrap();
            if name == "min" {
                figures.min[1] = bad
            } else {
                figures.max[1] = bad
            }
            let mut file = MemTensors::new();
            channel.save("s", &mut file).unwrap();
            assert!(StatSet::load("s", &file).is_err(), "{bad} in {name}");
        }
    }
    // Extremes of nothing are infinite.
    let mut file = MemTensors::new();
    let none = StatSet::new(k, StatNeeds { channel: true, ..StatNeeds::default() }, 0, 0).unwrap();
    none.save("s", &mut file).unwrap();
    assert_eq!(StatSet::load("s", &file).unwrap(), none);
}

/// All statistics, those of windows included.
const ALL: StatNeeds = NEEDS.with_windows();

fn window(s: &mut StatSet, x: &[f32], weights: Option<&[f32]>) -> Result<(), Error> {
    s.observe_window(&MatView::new(x, [x.len() / s.features(), s.features()]).unwrap(), weights)
}

/// Values whose sums are inexact in f32.
fn uneven(t: usize, k: usize, salt: usize) -> Vec<f32> {
    (0..t * k).map(|i| (((i * 7919 + salt * 104_729) % 1009) as f32 - 504.0) * 0.0137).collect()
}

fn saved(s: &StatSet) -> MemTensors {
    let mut file = MemTensors::new();
    s.save("s", &mut file).unwrap();
    file
}

#[test]
fn needs_read_as_they_are_meant() {
    assert_eq!(StatNeeds::none(), StatNeeds::default());
    let gram = StatNeeds::none().with_gram();
    assert_eq!(gram, StatNeeds { gram: true, ..StatNeeds::default() });
    assert_eq!(gram.union(StatNeeds::none().with_windows()), gram.with_windows());
    assert!(StatNeeds::none().with_windows().any_data());
    let squares = StatNeeds::none().with_squares();
    assert!(gram.implies(squares) && StatNeeds::none().with_channel().implies(squares) && !squares.implies(gram));
    assert!(!StatNeeds::none().with_sample(3).implies(squares) && gram.with_sample(4).implies(gram.with_sample(3)));
    assert!(!gram.with_sample(2).implies(gram.with_sample(3)) && !gram.implies(gram.with_windows()));
    let set = StatSet::new(2, ALL, 0, 0).unwrap();
    assert_eq!(set.needs(), ALL);
}

#[test]
fn what_is_missing_is_named_with_the_way_out() {
    let mut none = StatSet::new(2, StatNeeds::none(), 0, 0).unwrap();
    none.observe(&MatView::new(&[1.0, 2.0], [1, 2]).unwrap()).unwrap();
    let check = |e: Error, name: &str| {
        assert!(matches!(&e, Error::Missing { .. }), "{e:?}");
        let text = e.to_string();
        assert!(text.contains(name) && text.contains("calibrate with a method or a recipe that needs it"), "{text}");
    };
    check(none.require_gram().unwrap_err(), "Gram matrix");
    check(none.require_shared_gram().unwrap_err(), "Gram matrix");
    check(none.require_channel().unwrap_err(), "per-channel figures");
    check(none.require_squares().unwrap_err(), "sums of squares");
    check(none.require_sample().unwrap_err(), "sample of tokens");
    check(none.require_windows().unwrap_err(), "figures of each window");
    assert!(none.require_features(2).is_ok() && matches!(none.require_features(3), Err(Error::Shape { .. })));
}

#[test]
fn statistics_of_no_token_are_an_error() {
    let empty = StatSet::new(2, ALL, 0, 0).unwrap();
    assert!(empty.gram().is_some() && empty.sample().is_some(), "there, and of nothing");
    for e in [
        empty.require_gram().err(),
        empty.require_shared_gram().err(),
        empty.require_channel().err(),
        empty.require_squares().err(),
        empty.require_sample().err(),
        empty.require_windows().err(),
        StatSet::from_squares(vec![1.0; 2], 0).unwrap().require_squares().err(),
    ] {
        let e = e.unwrap();
        assert!(matches!(e, Error::Missing { .. }) && e.to_string().contains("observed no token"), "{e}");
    }
    let mut full = empty;
    window(&mut full, &[1.0, 2.0, 3.0, 4.0], None).unwrap();
    assert_eq!(full.require_gram().unwrap(), [10.0, 14.0, 14.0, 20.0]);
    assert_eq!(full.require_shared_gram().unwrap()[..], [10.0, 14.0, 14.0, 20.0]);
    assert_eq!(full.require_channel().unwrap().sum, [4.0, 6.0]);
    assert_eq!(full.require_squares().unwrap(), [10.0, 20.0]);
    assert_eq!(full.require_sample().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(full.require_windows().unwrap().len(), 1);
}

#[test]
fn a_token_of_weight_4_counts_as_four() {
    let (k, x) = (3, batch(5, 3, 2));
    let weights = [1.0, 4.0, 0.0, 1.0, 4.0];
    let mut weighted = StatSet::new(k, ALL, 1, 0).unwrap();
    window(&mut weighted, &x, Some(&weights)).unwrap();
    let rows = x.chunks(k).zip(weights);
    let repeated: Vec<f32> = rows.flat_map(|(row, w)| row.repeat(w as usize)).collect();
    let mut want = StatSet::new(k, ALL, 1, 0).unwrap();
    window(&mut want, &repeated, None).unwrap();
    assert_eq!(weighted.gram(), want.gram());
    assert_eq!(weighted.squares(), want.squares());
    assert_eq!(weighted.channel(), want.channel(), "extremes, too: a token of weight 0 has no part in them");
    let [a, b] = [&weighted, &want].map(|s| s.require_windows().unwrap()[0].clone());
    assert_eq!((a.mean, a.variance, a.tokens), (b.mean, b.variance, 5));
    assert_eq!((weighted.tokens(), weighted.weight(), want.weight()), (5, 10.0, 10.0));
    let kept: Vec<f32> = x.chunks(k).zip(weights).filter(|(_, w)| *w > 0.0).flat_map(|(row, _)| row.to_vec()).collect();
    assert_eq!(weighted.sample(), Some(kept), "the sample has no token of weight 0");
}

#[test]
fn weights_of_1_give_the_same_bytes() {
    let (t, k) = (700, 9);
    let x = uneven(t, k, 3);
    let mut plain = StatSet::new(k, NEEDS, 1, 0).unwrap();
    let (mut unweighted, mut ones) = (plain.clone(), plain.clone());
    plain.observe(&MatView::new(&x, [t, k]).unwrap()).unwrap();
    window(&mut unweighted, &x, None).unwrap();
    window(&mut ones, &x, Some(&vec![1.0; t])).unwrap();
    assert_eq!((saved(&unweighted), saved(&ones)), (saved(&plain), saved(&plain)));
    // The bits are those of the kernel for the whole batch.
    let mut gram = vec![0f64; k * k];
    tersor_kernels::dense::add_gram(&x, [t, k], &mut gram, true).unwrap();
    assert_eq!(plain.gram().unwrap(), gram);
    // Rows of weight 1 are used unchanged, also beside rows of other weights.
    let mut weights = vec![0.0; t];
    weights[..300].fill(1.0);
    let mut part = StatSet::new(k, NEEDS.with_sample(0), 1, 0).unwrap();
    let mut want = part.clone();
    window(&mut part, &x, Some(&weights)).unwrap();
    window(&mut want, &x[..300 * k], None).unwrap();
    assert_eq!((part.gram(), part.channel()), (want.gram(), want.channel()));
}

#[test]
fn a_weighted_gram_matrix_is_as_near_as_its_documentation_says() {
    let (t, k) = (8, 6);
    let (x, weights) = (uneven(t, k, 5), uneven(t, 1, 8).iter().map(|w| w.abs()).collect::<Vec<f32>>());
    let mut set = StatSet::new(k, StatNeeds::none().with_gram(), 0, 0).unwrap();
    window(&mut set, &x, Some(&weights)).unwrap();
    let gram = set.gram().unwrap();
    for i in 0..k {
        for j in 0..k {
            let product = |(row, w): (&[f32], &f32)| f64::from(*w) * f64::from(row[i]) * f64::from(row[j]);
            let each: Vec<f64> = x.chunks(k).zip(&weights).map(product).collect();
            let (want, magnitude) = (each.iter().sum::<f64>(), each.iter().map(|v| v.abs()).sum::<f64>());
            // Two factors, and no more than t roundings of the kernel's f32 sums.
            let bound = magnitude * (2 + t) as f64 * 2f64.powi(-24);
            assert!((gram[i * k + j] - want).abs() <= bound * 1.001);
            assert_eq!(gram[i * k + j].to_bits(), gram[j * k + i].to_bits());
        }
    }
}

#[test]
fn windows_are_numbered_saved_and_merged_in_order() {
    let (k, needs) = (2, StatNeeds::none().with_windows());
    let empty = |first| StatSet::new(k, needs, 0, 0).unwrap().with_first_window(first).unwrap();
    let x: Vec<Vec<f32>> = (0..4).map(|i| uneven(3 + i, k, i)).collect();
    let mut whole = empty(7);
    x.iter().for_each(|x| window(&mut whole, x, None).unwrap());
    assert_eq!((whole.first_window(), whole.window_numbers()), (Some(7), Some(&[7, 8, 9, 10][..])));
    let (mut late, mut early) = (empty(9), empty(7));
    x[2..].iter().for_each(|x| window(&mut late, x, None).unwrap());
    x[..2].iter().for_each(|x| window(&mut early, x, None).unwrap());
    for [first, second] in [[&early, &late], [&late, &early]] {
        let mut sum = empty(7);
        sum.merge(first).unwrap();
        sum.merge(second).unwrap();
        assert_eq!(sum, whole, "shards in any order");
        assert_eq!(StatSet::load("s", &saved(&sum)).unwrap(), whole);
    }
    // A window is in one shard alone.
    let before = early.clone();
    assert!(early.merge(&whole).is_err());
    assert_eq!(early, before);
    // The windows held do not begin at 7, so that the number of the next one is unknown.
    let mut gap = empty(7);
    gap.merge(&late).unwrap();
    let before = gap.clone();
    assert!(window(&mut gap, &x[0], None).is_err());
    assert_eq!(gap, before);
    // Figures by hand.
    let mut one = empty(0);
    window(&mut one, &[1.0, -2.0, 3.0, -2.0, 8.0, -2.0], None).unwrap();
    let want = WindowStats { mean: vec![4.0, -2.0], variance: vec![26.0 / 3.0, 0.0], tokens: 3 };
    assert_eq!(one.require_windows().unwrap(), [want]);
    assert!(one.with_first_window(3).is_err(), "windows have numbers already");
    assert_eq!(StatSet::new(k, NEEDS, 0, 0).unwrap().with_first_window(3).unwrap().first_window(), None);
}

#[test]
fn bad_windows_and_weights_are_named_and_change_nothing() {
    let (k, x) = (2, [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut s = StatSet::new(k, ALL, 0, 0).unwrap();
    window(&mut s, &x, Some(&[0.5, 2.0, 1.0])).unwrap();
    let before = s.clone();
    let mut refuse = |x: &[f32], weights: Option<&[f32]>, says: &str| {
        let e = window(&mut s, x, weights).unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
        assert_eq!(s, before, "{says}");
    };
    refuse(&x, Some(&[1.0, -0.5, 1.0]), "token 1 ");
    refuse(&x, Some(&[1.0, 1.0, f32::NAN]), "token 2 ");
    refuse(&x, Some(&[f32::INFINITY, 1.0, 1.0]), "token 0 ");
    refuse(&x, Some(&[0.0; 3]), "above 0");
    refuse(&x, Some(&[1.0; 2]), "token weights");
    refuse(&[], None, "at least 1");
    refuse(&[1.0, 2.0, 3.0, f32::NAN], None, "row 1, column 1");
    refuse(&[1.0, 2.0, f32::NEG_INFINITY, 1.0], Some(&[1.0, 0.0]), "row 1, column 0");
    refuse(&[1.0, 1e25, 2.0, 1.0], Some(&[3e38, 1.0]), "feature 1 of token 0");
    refuse(&[1.0, 1e10, 2.0, 1.0], Some(&[1e30, 1.0]), "squares of feature 1");
    let wide = MatView::new(&x, [2, 3]).unwrap();
    assert!(matches!(s.observe_window(&wide, None), Err(Error::Shape { .. })));
    let e = s.observe(&MatView::new(&x, [3, 2]).unwrap()).unwrap_err();
    assert!(e.to_string().contains("observe_window"), "a batch cut anywhere is no window: {e}");
    for other in [
        StatSet::new(k + 1, ALL, 0, 0).unwrap(),
        StatSet::new(k, ALL, 1, 0).unwrap(),
        StatSet::new(k, ALL.with_sample(2), 0, 0).unwrap(),
        StatSet::new(k, NEEDS, 0, 0).unwrap(),
    ] {
        assert!(s.merge(&other).is_err());
    }
    assert_eq!(s, before);
    let mut far = StatSet::new(1, StatNeeds::none().with_windows(), 0, 0).unwrap();
    assert!(window(&mut far, &[3e38, -3e38], None).unwrap_err().to_string().contains("variance of feature 0"));
    let mut last = far.clone().with_first_window(u64::MAX).unwrap();
    window(&mut last, &[1.0], None).unwrap();
    let before = last.clone();
    assert!(matches!(window(&mut last, &[1.0], None), Err(Error::Overflow { .. })));
    assert_eq!((last, far.tokens()), (before, 0));
}

#[test]
fn some_columns_keep_windows_weights_and_squares() {
    let (k, x) = (7, batch(20, 7, 5));
    let weights: Vec<f32> = (0..20).map(|t| [1.0, 4.0, 0.25][t % 3]).collect();
    let some: Vec<f32> = x.chunks(k).flat_map(|row| row[2..5].to_vec()).collect();
    for needs in
        [ALL, StatNeeds::none().with_gram(), StatNeeds::none().with_channel(), StatNeeds::none().with_squares()]
    {
        let mut all = StatSet::new(k, needs, 1, 0).unwrap();
        window(&mut all, &x, Some(&weights)).unwrap();
        let mut want = StatSet::new(3, needs, 1, 0).unwrap();
        window(&mut want, &some, Some(&weights)).unwrap();
        assert_eq!(all.columns(2..5).unwrap(), want);
        assert_eq!(all.columns(2..5).unwrap().squares().unwrap(), all.squares().unwrap()[2..5]);
    }
}

#[test]
fn saved_statistics_are_checked_before_they_are_read() {
    let x = batch(4, 3, 2);
    let squares = StatNeeds::none().with_squares();
    for needs in [squares, StatNeeds::none().with_channel(), StatNeeds::none().with_gram()] {
        let file = saved(&seen(3, needs, &x, 0));
        StatSet::check_saved("s", &file, 3, needs).unwrap();
        StatSet::check_saved("s", &file, 3, squares).unwrap();
        let loaded = StatSet::load("s", &file).unwrap().only(squares);
        assert_eq!(loaded, seen(3, squares, &x, 0), "squares come back from a file that implies them");
        assert!(matches!(StatSet::check_saved("s", &file, 4, needs), Err(Error::Tensor { .. })));
        let e = StatSet::check_saved("s", &file, 3, needs.with_sample(2)).unwrap_err();
        assert!(matches!(&e, Error::Missing { name, .. } if name == "s.sample_tokens"), "{e}");
    }
    let mut all = StatSet::new(3, ALL, 0, 0).unwrap();
    window(&mut all, &x, None).unwrap();
    StatSet::check_saved("s", &saved(&all), 3, ALL).unwrap();
    let e =
        StatSet::check_saved("s", &saved(&seen(3, StatNeeds::none().with_sample(1), &x, 0)), 3, squares).unwrap_err();
    assert!(e.to_string().contains("`s.squares`"), "{e}");
}

#[test]
fn broken_files_of_windows_and_weights_are_refused() {
    let mut set = StatSet::new(2, StatNeeds::none().with_windows(), 0, 0).unwrap();
    window(&mut set, &[1.0, 2.0, 3.0, 5.0], Some(&[1.0, 0.5])).unwrap();
    window(&mut set, &[1.0, 2.0], None).unwrap();
    assert_eq!(StatSet::load("s", &saved(&set)).unwrap(), set);
    let breaks: [fn(&mut StatSet); 7] = [
        |s| s.windows.as_mut().unwrap().numbers = vec![1, 0],
        |s| s.windows.as_mut().unwrap().stats[0].tokens = 0,
        |s| s.windows.as_mut().unwrap().stats[0].tokens = u64::MAX,
        |s| s.windows.as_mut().unwrap().stats[1].mean[1] = f32::NAN,
        |s| s.windows.as_mut().unwrap().stats[1].variance[0] = -1.0,
        |s| s.weight = Some(f64::NAN),
        |s| s.weight = Some(-1.0),
    ];
    for (i, spoil) in breaks.into_iter().enumerate() {
        let mut bad = set.clone();
        spoil(&mut bad);
        assert!(StatSet::load("s", &saved(&bad)).is_err(), "{i}");
    }
}
