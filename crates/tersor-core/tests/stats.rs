//! What holds of statistics however the stream is cut.

use proptest::prelude::*;

use tersor_core::{MatView, MemTensors, StatNeeds, StatSet, TensorSource, tensors::join};

/// Windows of a stream, each with its values, and a weight for each token that is 1 in half of the cases.
#[derive(Debug)]
struct Stream {
    k: usize,
    windows: Vec<(Vec<f32>, Option<Vec<f32>>)>,
}

fn stream() -> impl Strategy<Value = Stream> {
    (1usize..6, prop::collection::vec((1usize..9, any::<u64>(), any::<bool>()), 1..6)).prop_map(|(k, windows)| {
        let make = |(t, salt, weighted): (usize, u64, bool)| {
            let mut state = salt | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 24) as f32
            };
            let x = (0..t * k).map(|_| 8.0 * next() - 4.0).collect();
            let mut weights: Vec<f32> = (0..t).map(|_| (3.0 * next() - 0.5).max(0.0)).collect();
            weights[0] = 0.75;
            (x, weighted.then_some(weights))
        };
        Stream { k, windows: windows.into_iter().map(make).collect() }
    })
}

/// Every combination: squares, channel, Gram, sample, windows.
fn needs(bits: u32) -> StatNeeds {
    let pick = |bit: u32, with: fn(StatNeeds) -> StatNeeds, n: StatNeeds| if bits >> bit & 1 > 0 { with(n) } else { n };
    let n = pick(0, StatNeeds::with_squares, StatNeeds::none());
    let n = pick(1, StatNeeds::with_channel, n);
    let n = pick(2, StatNeeds::with_gram, n);
    let n = pick(3, |n| n.with_sample(7), n);
    pick(4, StatNeeds::with_windows, n)
}

fn add(set: &mut StatSet, (x, weights): &(Vec<f32>, Option<Vec<f32>>)) {
    let k = set.features();
    set.observe_window(&MatView::new(x, [x.len() / k, k]).unwrap(), weights.as_deref()).unwrap();
}

fn tokens(windows: &[(Vec<f32>, Option<Vec<f32>>)], k: usize) -> u64 {
    windows.iter().map(|w| (w.0.len() / k) as u64).sum()
}

fn near(a: &[f64], b: &[f64], bound: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= bound)
}

proptest! {
    #[test]
    fn any_cut_into_batches_gives_the_same(stream in stream(), cuts in prop::collection::vec(1usize..5, 1..8)) {
        let k = stream.k;
        let x: Vec<f32> = stream.windows.iter().flat_map(|w| w.0.clone()).collect();
        let needs = needs(0b1111);
        let mut whole = StatSet::new(k, needs, 4, 3).unwrap();
        whole.observe(&MatView::new(&x, [x.len() / k, k]).unwrap()).unwrap();
        let (mut cut, mut rest, mut sizes) = (StatSet::new(k, needs, 4, 3).unwrap(), &x[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (batch, more) = rest.split_at((sizes.next().unwrap() * k).min(rest.len()));
            cut.observe(&MatView::new(batch, [batch.len() / k, k]).unwrap()).unwrap();
            rest = more;
        }
        prop_assert_eq!(cut.tokens(), whole.tokens());
        prop_assert_eq!(cut.squares(), whole.squares());
        prop_assert_eq!(cut.sample(), whole.sample());
        let [a, b] = [&cut, &whole].map(|s| s.require_channel().unwrap());
        prop_assert_eq!((&a.min, &a.max, &a.sum, &a.sum_sq), (&b.min, &b.max, &b.sum, &b.sum_sq));
        // At most 45 tokens of magnitudes up to 4: magnitudes are summed in f64 for each batch, products in f32.
        prop_assert!(near(&a.sum_abs, &b.sum_abs, 180.0 * 45.0 * f64::EPSILON));
        prop_assert!(near(cut.gram().unwrap(), whole.gram().unwrap(), 720.0 * 45.0 * 2f64.powi(-24)));
        // Windows are the stream's, with channels of the same values whether they are cut out before or after.
        for column in 0..k {
            let mut all = StatSet::new(k, needs.with_windows(), 4, 3).unwrap();
            stream.windows.iter().for_each(|w| add(&mut all, w));
            let mut one = StatSet::new(1, needs.with_windows(), 4, 3).unwrap();
            for (x, weights) in &stream.windows {
                add(&mut one, &(x.chunks(k).map(|row| row[column]).collect(), weights.clone()));
            }
            let all = all.columns(column..column + 1).unwrap();
            prop_assert_eq!(all.windows(), one.windows());
        }
    }

    #[test]
    fn shards_add_to_one_pass(stream in stream(), at in prop::collection::vec(any::<bool>(), 5), bits in 0u32..32) {
        let (k, needs) = (stream.k, needs(bits));
        let empty = |first: usize| {
            let set = StatSet::new(k, needs, 4, tokens(&stream.windows[..first], k)).unwrap();
            set.with_first_window(first as u64).unwrap()
        };
        let (mut whole, mut sum, mut shard) = (empty(0), empty(0), empty(0));
        for (i, window) in stream.windows.iter().enumerate() {
            add(&mut whole, window);
            add(&mut shard, window);
            if at[i] {
                sum.merge(&shard).unwrap();
                shard = empty(i + 1);
            }
        }
        sum.merge(&shard).unwrap();
        prop_assert_eq!((sum.tokens(), sum.sample(), sum.first_window()), (whole.tokens(), whole.sample(), whole.first_window()));
        prop_assert_eq!((sum.windows(), sum.window_numbers()), (whole.windows(), whole.window_numbers()));
        // Sums of at most 45 tokens, weights up to 2.5 and magnitudes up to 4, in another order.
        let rounding = 45.0 * 2.5 * 16.0 * 45.0 * f64::EPSILON;
        prop_assert!((sum.weight() - whole.weight()).abs() <= rounding);
        if needs.squares || needs.channel {
            prop_assert!(near(&sum.squares().unwrap(), &whole.squares().unwrap(), rounding));
        }
        if let (Some(a), Some(b)) = (sum.channel(), whole.channel()) {
            prop_assert_eq!((&a.min, &a.max, &a.max_mean_abs), (&b.min, &b.max, &b.max_mean_abs));
            prop_assert!(near(&a.sum, &b.sum, rounding) && near(&a.sum_abs, &b.sum_abs, rounding));
        }
        if let (Some(a), Some(b)) = (sum.gram(), whole.gram()) {
            prop_assert!(near(a, b, rounding), "a window's f32 products are the same in both");
        }
    }

    #[test]
    fn files_come_back_for_every_combination_of_needs(stream in stream(), first in any::<u32>()) {
        for bits in 0..32 {
            let (k, needs) = (stream.k, needs(bits));
            let set = StatSet::new(k, needs, 4, u64::from(first)).unwrap();
            let mut set = set.with_first_window(u64::from(first)).unwrap();
            for step in 0..=stream.windows.len() {
                let mut file = MemTensors::new();
                set.save("site", &mut file).unwrap();
                let layout = StatSet::layout_of(k, needs, set.extent());
                prop_assert_eq!(file.names().len(), layout.len());
                for (name, info) in layout {
                    prop_assert_eq!(file.info(&join("site", &name)).unwrap(), info);
                }
                prop_assert!(StatSet::check_saved("site", &file, k, needs).is_ok());
                let loaded = StatSet::load("site", &file).unwrap();
                prop_assert_eq!(&loaded, &set);
                prop_assert_eq!(loaded.needs(), needs);
                if let Some(window) = stream.windows.get(step) {
                    add(&mut set, window);
                }
            }
        }
    }

    #[test]
    fn weights_of_1_are_no_weights(stream in stream(), bits in 0u32..32) {
        let k = stream.k;
        let mut plain = StatSet::new(k, needs(bits), 4, 0).unwrap();
        let mut ones = plain.clone();
        for (x, _) in &stream.windows {
            add(&mut plain, &(x.clone(), None));
            add(&mut ones, &(x.clone(), Some(vec![1.0; x.len() / k])));
        }
        let file = |s: &StatSet| {
            let mut file = MemTensors::new();
            s.save("s", &mut file).map(|()| file).unwrap()
        };
        prop_assert_eq!(file(&plain), file(&ones));
    }
}
