//! What is refused rather than passed on: joint products with too few outputs, files that lie, orders that are no permutation.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use tersor_core::operator::apply_all;
use tersor_core::{
    Ahead, Changes, Exec, Fold, Input, InputChange, LinearOp, MatView, MatViewMut, MemTensors, OpSpec, Result,
    Rotation, RowSlot, Side, StatNeeds, StatSet, TensorInfo, TensorSink, TensorSource, Transform, metrics,
};

/// A matrix of ones.
struct Ones;

impl LinearOp for Ones {
    fn shape(&self) -> [usize; 2] {
        [2, 3]
    }
    fn storage_bits(&self) -> u64 {
        0
    }
    fn decompress_rows(&self, _: std::ops::Range<usize>, out: &mut [f32], _: &Exec) -> Result<()> {
        out.fill(1.0);
        Ok(())
    }
    fn spec_block(&self, at: RowSlot) -> OpSpec {
        OpSpec::new("ones", [at.total, 3])
    }
    fn save_block(&self, _: &str, _: RowSlot, _: &mut dyn TensorSink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn joint_products_have_as_many_outputs_as_operators() {
    let x = Input::new(&[1.0, 2.0, 3.0], [1, 3]).unwrap();
    for (ops, outputs, fits) in [(1, 1, true), (2, 1, false), (1, 2, false)] {
        let mut out = vec![[0f32; 2]; outputs];
        let ys = out.iter_mut().map(|y| MatViewMut::new(y, [1, 2]).unwrap()).collect();
        assert_eq!(apply_all(&vec![&Ones as &dyn LinearOp; ops], &x, ys, &Exec::new()).is_ok(), fits);
    }
}

#[test]
fn serial_work_stays_on_its_thread() {
    let own = std::thread::current().id();
    let threads =
        |exec: &Exec| exec.run(|| tersor_kernels::par::map(64, true, || (), |_, ()| std::thread::current().id()));
    assert!(threads(&Exec::serial()).iter().all(|t| *t == own));
}

#[test]
fn a_factor_made_for_probes_that_are_known_is_no_rotation() {
    const P: usize = 64;
    // A direction that is orthogonal to 24 vectors of signs that depend on the width alone.
    let mut rng = ChaCha8Rng::seed_from_u64(P as u64);
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let orthogonal = |basis: &[Vec<f64>], mut v: Vec<f64>| {
        for b in basis.iter().chain(basis) {
            let dot: f64 = b.iter().zip(&v).map(|(a, b)| a * b).sum();
            v.iter_mut().zip(b).for_each(|(v, b)| *v -= dot * b);
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.into_iter().map(|v| v / norm).collect::<Vec<f64>>()
    };
    for _ in 0..24 {
        let probe = (0..P).map(|_| if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        basis.push(orthogonal(&basis, probe));
    }
    let u = orthogonal(&basis, (0..P).map(|i| (i as f64).sin()).collect());
    let factor = |c: f64| -> Vec<f32> {
        (0..P * P).map(|i| (f64::from(i % (P + 1) == 0) + c * u[i / P] * u[i % P]) as f32).collect()
    };
    assert!(Rotation::dense(&factor(-2.0)).is_ok(), "a reflection");
    assert!(Rotation::dense(&factor(100.0)).is_err());
}

#[test]
fn statistics_that_no_inputs_have_are_refused() {
    let needs = StatNeeds { squares: true, channel: true, gram: true, sample: 2, windows: false };
    let mut stats = StatSet::new(2, needs, 1, 0).unwrap();
    stats.observe(&MatView::new(&[1.0f32, 2.0, 3.0, -4.0, 5.0, 6.0], [3, 2]).unwrap()).unwrap();
    let mut file = MemTensors::new();
    stats.save("s", &mut file).unwrap();
    assert!(StatSet::load("s", &file).is_ok());
    let f64s = |v: &[f64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let numbers = |v: &[u64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    for (name, bytes) in [
        ("s.squares", f64s(&[-1.0, 1.0])),
        ("s.sum_sq", f64s(&[-1.0, 1.0])),
        ("s.max_mean_abs", f64s(&[1.0, -1.0])),
        ("s.gram", f64s(&[1.0, 2.0, 3.0, 9.0])),
        ("s.gram", f64s(&[-1.0, 0.0, 0.0, 1.0])),
        ("s.min", [9.0f32, -4.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("s.sample_tokens", numbers(&[1, 1])),
    ] {
        let mut lie = MemTensors::new();
        for tensor in file.names() {
            let info: TensorInfo = file.info(&tensor).unwrap();
            let content = if tensor == name { &bytes[..] } else { file.get(&tensor).unwrap() };
            lie.write_shared(&tensor, &info, content).unwrap();
        }
        assert!(StatSet::load("s", &lie).is_err(), "{name}");
    }
    let gram = |g: [f64; 4]| StatSet::new(2, StatNeeds::default(), 0, 0).unwrap().with_gram(g.to_vec());
    assert!(gram([1.0, 0.5, 0.5, 1.0]).is_ok() && gram([1.0, 0.5, -0.5, 1.0]).is_err());
}

#[test]
fn tokens_that_a_merged_shard_had_are_not_counted_twice() {
    let needs = StatNeeds { sample: 8, ..StatNeeds::default() };
    let shard = |first| {
        let mut set = StatSet::new(1, needs, 1, first).unwrap();
        set.observe(&MatView::new(&[1.0f32, 2.0], [2, 1]).unwrap()).unwrap();
        set
    };
    let mut gap = shard(0);
    gap.merge(&shard(3)).unwrap();
    let before = gap.clone();
    assert!(gap.observe(&MatView::new(&[3.0f32], [1, 1]).unwrap()).is_err());
    assert_eq!(gap, before);
}

#[test]
fn an_order_with_a_feature_twice_is_no_change_of_inputs() {
    let apply = |order: Vec<u32>| InputChange::Permute(order).apply(&mut [1.0, 2.0, 3.0], 3, &Exec::new());
    assert!(apply(vec![2, 0, 1]).is_ok() && apply(vec![0, 0, 0]).is_err());
}

#[test]
fn a_window_after_a_gap_has_no_number() {
    let needs = StatNeeds { windows: true, ..StatNeeds::default() };
    let window = MatView::new(&[1.0f32, 2.0], [2, 1]).unwrap();
    let shard = |first, windows| {
        let mut set = StatSet::new(1, needs, 1, 0).unwrap().with_first_window(first).unwrap();
        (0..windows).for_each(|_| set.observe_window(&window, None).unwrap());
        set
    };
    let mut next = shard(0, 2);
    next.merge(&shard(2, 2)).unwrap();
    next.observe_window(&window, None).unwrap();
    assert_eq!(next.require_windows().unwrap().len(), 5);
    let mut gap = shard(0, 1);
    gap.merge(&shard(5, 2)).unwrap();
    assert!(gap.observe_window(&window, None).is_err());
}

#[test]
fn sizes_beyond_the_address_space_are_errors() {
    let huge = usize::MAX / 2;
    assert!(tersor_core::rows::check_range([huge, 4], &(0..huge), 0).is_err());
    assert!(Ahead::new(&[], 0..2, &[], [huge + 1, 4]).is_err());
}

#[test]
fn logits_beyond_the_shorter_list_do_not_count() {
    let (p, q) = ([1.0f32, 2.0, 1000.0], [2.0f32, 1.0]);
    let (found, want) = (metrics::kl_from_logits(&p, &q), metrics::kl_from_logits(&p[..2], &q));
    assert!(found == want && found > 0.0);
}

#[test]
fn changes_of_columns_come_before_changes_of_the_running_inputs() {
    let fold = |side| Fold { weight: "w".into(), side, transform: Transform::Scale(vec![2.0, 2.0]) };
    let online = || Changes { online: vec![fold(Side::Input)], ..Changes::default() };
    let columns = || Changes { folds: vec![fold(Side::Input)], ..Changes::default() };
    let mut all = columns();
    all.extend(online()).unwrap();
    all.extend(Changes { folds: vec![fold(Side::Output)], ..Changes::default() }).unwrap();
    assert_eq!((all.folds.len(), all.online.len()), (2, 1));
    for late in [columns(), online()] {
        let e = all.extend(late).unwrap_err().to_string();
        assert!(e.contains("`w`") || e.contains("w:") || e.contains(" w"), "{e}");
    }
    assert_eq!((all.folds.len(), all.online.len()), (2, 1));
}
