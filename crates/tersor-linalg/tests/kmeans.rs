//! K-means against its definition, its invariants, a worked example, and its bytes on one thread and on more.

use tersor_core::{Check, Context, Error, Exec};
use tersor_linalg::gaussian;
use tersor_linalg::kmeans::{Clustering, KMeans, Seeding, assign};

fn cx(seed: u64) -> Context {
    Context::new().with_seed(seed)
}

fn normal(n: usize, seed: u64) -> Vec<f32> {
    gaussian(n, &mut cx(seed).stream("points")).into_iter().map(|v| v as f32).collect()
}

/// `each` points around each of `centres` centres, which are `spread` apart or more in one dimension of two.
fn blobs(centres: usize, each: usize, spread: f32, seed: u64) -> Vec<f32> {
    let noise = normal(2 * centres * each, seed);
    let at = |i: usize| [(i % centres * 7 % centres) as f32 * spread, (i % centres) as f32 * spread];
    (0..centres * each).flat_map(|i| [at(i)[0] + noise[2 * i], at(i)[1] + noise[2 * i + 1]]).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Whether the assignment and the objective are those of the centroids, in f64 and by brute force.
fn consistent(found: &Clustering, points: &[f32], dims: usize, weights: Option<&[f32]>) {
    let mut objective = 0.0;
    for (i, (x, a)) in points.chunks_exact(dims).zip(found.assignment()).enumerate() {
        let to = |c: &[f32]| distance(x, c);
        let own = to(&found.centroids()[*a as usize * dims..][..dims]);
        let min = found.centroids().chunks_exact(dims).map(to).fold(f64::INFINITY, f64::min);
        let size = x.iter().map(|v| f64::from(v * v)).sum::<f64>() + own;
        assert!(own <= min + 1e-6 * dims as f64 * size, "point {i}: {own} and {min}");
        objective += weights.map_or(1.0, |w| f64::from(w[i])) * own;
    }
    assert!((objective - found.objective()).abs() <= 1e-5 * objective + 1e-30, "{objective} {}", found.objective());
}

#[test]
fn points_go_to_their_nearest_centroid() {
    for (dims, k, n) in
        [(1, 1, 1), (1, 16, 500), (2, 7, 300), (3, 9, 301), (4, 256, 999), (8, 100, 777), (16, 33, 64), (100, 10, 90)]
    {
        let (points, centroids) = (normal(n * dims, 1), normal(k * dims, 2));
        let (assignment, objective) = assign(&centroids, &points, [n, dims], &Exec::new()).unwrap();
        let mut sum = 0.0;
        for (x, a) in points.chunks_exact(dims).zip(&assignment) {
            // The formula of the documentation, one pair after the other.
            let score = |c: &[f32]| {
                let norm = c.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() as f32;
                x.iter().zip(c).fold(norm, |s, (x, c)| x.mul_add(-2.0 * c, s))
            };
            let scores: Vec<f32> = centroids.chunks_exact(dims).map(score).collect();
            let min = scores.iter().copied().fold(f32::INFINITY, f32::min);
            assert_eq!(scores.iter().position(|s| *s == min), Some(*a as usize));
            let near = centroids.chunks_exact(dims).map(|c| distance(x, c)).fold(f64::INFINITY, f64::min);
            let own = distance(x, &centroids[*a as usize * dims..][..dims]);
            assert!(own <= near + 1e-4);
            sum += own;
        }
        assert!((objective - sum).abs() <= 1e-6 * sum);
    }
    // Of equal distances the lowest index.
    assert_eq!(assign(&[1.0, -1.0, 1.0, -1.0], &[0.0, -2.0, 3.0], [3, 1], &Exec::new()).unwrap().0, [0, 1, 0]);
    assert_eq!(assign(&[0.0, 0.0], &[], [0, 2], &Exec::new()).unwrap(), (vec![], 0.0));
}

/// Weighted, with an empty cluster and its repair; the figures were worked out with numpy in f64 as the rules are stated.
#[test]
fn a_worked_example_comes_out_step_by_step() {
    let points = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 5.0, 5.0, 5.0, 6.0, 6.0, 5.0, 10.0, 0.0, 10.5, 0.0];
    let weights = [1.0, 2.0, 1.0, 1.0, 1.0, 4.0, 0.5, 3.0];
    let start = KMeans::new(3).seeding(Seeding::Given(vec![0.0, 0.0, 5.0, 5.0, 20.0, 20.0])).tolerance(0.0);
    let steps: [([u32; 8], f64, [f32; 6]); 4] = [
        ([0, 0, 0, 1, 1, 1, 1, 1], 198.75, [0.0, 0.0, 5.0, 5.0, 20.0, 20.0]),
        ([0, 0, 0, 1, 1, 1, 2, 2], 44.2489612188, [0.25, 0.5, 7.421_052_6, 3.263_157_8, 10.5, 0.0]),
        ([0, 0, 0, 1, 1, 1, 2, 2], 4.02380952381, [0.25, 0.5, 5.666_666_5, 5.166_666_5, 10.428_572, 0.0]),
        ([0, 0, 0, 1, 1, 1, 2, 2], 4.02380952381, [0.25, 0.5, 5.666_666_5, 5.166_666_5, 10.428_572, 0.0]),
    ];
    for (iterations, (assignment, objective, centroids)) in steps.iter().enumerate() {
        let found = start.clone().iterations(iterations).check().unwrap();
        let found = found.fit(&points, [8, 2], Some(&weights), &cx(0)).unwrap();
        assert_eq!(found.assignment(), assignment);
        assert!((found.objective() / objective - 1.0).abs() < 1e-6, "{} {objective}", found.objective());
        assert!(found.centroids().iter().zip(centroids).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", found.centroids());
        assert_eq!((found.iterations(), found.objectives().len()), (iterations, iterations + 1));
    }
    // With a tolerance it stops at the iteration that changes nothing.
    let found = start.tolerance(1e-6).iterations(100).check().unwrap();
    assert_eq!(found.fit(&points, [8, 2], Some(&weights), &cx(0)).unwrap().iterations(), 3);
}

#[test]
fn the_objective_never_rises() {
    for (seed, dims, k) in [(1, 2, 20), (2, 8, 64), (3, 5, 300), (4, 1, 16)] {
        let n = 3000;
        let points = normal(n * dims, seed);
        let weights: Vec<f32> = normal(n, seed + 50).iter().map(|v| v.abs().max(0.3) - 0.3).collect();
        for seeding in [Seeding::PlusPlus, Seeding::Random, Seeding::Given(points[..k * dims].to_vec())] {
            let params = KMeans::new(k).seeding(seeding).tolerance(0.0).iterations(15).check().unwrap();
            let found = params.fit(&points, [n, dims], Some(&weights), &cx(seed)).unwrap();
            let all = found.objectives();
            assert!(all.windows(2).all(|w| w[1] <= w[0] * (1.0 + 1e-7)), "{all:?}");
            assert_eq!(found.iterations(), 15);
            assert_eq!(assign(found.centroids(), &points, [n, dims], &Exec::new()).unwrap().0, found.assignment());
            consistent(&found, &points, dims, Some(&weights));
        }
    }
}

#[test]
fn a_weight_counts_like_so_many_points() {
    let (n, dims, k) = (400, 3, 12);
    // Coarse values, so that sums are exact in any order.
    let points: Vec<f32> = normal(n * dims, 9).iter().map(|v| (v * 64.0).round()).collect();
    let weights: Vec<f32> = (0..n).map(|i| (i * 7 % 4) as f32).collect();
    let repeated: Vec<f32> = points.chunks_exact(dims).zip(&weights).flat_map(|(x, w)| x.repeat(*w as usize)).collect();
    let start = Seeding::Given(points[..k * dims].to_vec());
    let params = KMeans::new(k).seeding(start).tolerance(0.0).iterations(8).check().unwrap();
    let weighted = params.fit(&points, [n, dims], Some(&weights), &cx(0)).unwrap();
    let plain = params.fit(&repeated, [repeated.len() / dims, dims], None, &cx(0)).unwrap();
    assert_eq!(weighted.centroids(), plain.centroids());
    assert!((weighted.objective() / plain.objective() - 1.0).abs() < 1e-12);
}

#[test]
fn empty_clusters_take_the_farthest_points_once_each() {
    // Two seeds that no point is near to; points 2 and 4 are equally far from the first seed.
    let points = [0.0f32, 1.0, 9.0, 2.0, -9.0, 3.0];
    let given = Seeding::Given(vec![0.0, 100.0, -100.0]);
    let one = KMeans::new(3).seeding(given.clone()).iterations(1).check().unwrap();
    let found = one.fit(&points, [6, 1], None, &cx(0)).unwrap();
    assert_eq!(found.centroids(), [1.0, 9.0, -9.0]);
    // A weight makes point 5 the farthest, and a weight of 0 leaves point 2 out.
    let weights = [1.0, 1.0, 0.0, 1.0, 0.1, 10.0];
    let found = one.fit(&points, [6, 1], Some(&weights), &cx(0)).unwrap();
    assert_eq!(found.centroids()[1..], [3.0, -9.0]);
    // Mini-batches repair at the end.
    let batches = KMeans::new(3).seeding(given).iterations(5).mini_batch(4).check().unwrap();
    let found = batches.fit(&points, [6, 1], None, &cx(0)).unwrap();
    assert!((0..3).all(|c| found.assignment().contains(&c)), "{found:?}");
}

#[test]
fn fewer_different_points_than_clusters_are_no_error() {
    let points = [1.0f32, 2.0, 1.0, 2.0, 5.0, 6.0, 1.0, 2.0, 5.0, 6.0];
    for seeding in [Seeding::PlusPlus, Seeding::Random, Seeding::Given(vec![0.0; 8])] {
        for batch in [None, Some(3)] {
            let params = KMeans::new(4).seeding(seeding.clone());
            let params = batch.map_or(params.clone(), |b| params.mini_batch(b)).check().unwrap();
            let found = params.fit(&points, [5, 2], None, &cx(3)).unwrap();
            assert_eq!(found.objective(), 0.0, "{found:?}");
            assert_eq!(found.centroids().len(), 8);
            let a = found.assignment();
            assert!(a[0] == a[1] && a[1] == a[3] && a[2] == a[4] && a[0] != a[2]);
        }
    }
    // All points the same.
    let found = KMeans::new(2).check().unwrap().fit(&[3.0; 5], [5, 1], None, &cx(0)).unwrap();
    assert_eq!((found.centroids(), found.assignment(), found.objective()), (&[3.0; 2][..], &[0; 5][..], 0.0));
}

#[test]
fn plus_plus_beats_random_seeds_on_blobs_that_are_apart() {
    let (centres, each) = (20, 50);
    let points = blobs(centres, each, 40.0, 7);
    let run = |seeding: Seeding, seed: u64, iterations: usize| {
        let params = KMeans::new(centres).seeding(seeding).iterations(iterations).check().unwrap();
        params.fit(&points, [centres * each, 2], None, &cx(seed)).unwrap().objective()
    };
    for iterations in [0, 25] {
        let sum = |s: &Seeding| (0..10).map(|seed| run(s.clone(), seed, iterations)).sum::<f64>();
        let (plus, random) = (sum(&Seeding::PlusPlus), sum(&Seeding::Random));
        assert!(plus < 0.5 * random, "{iterations} iterations: {plus} and {random}");
    }
    // More runs find a better one, never a worse one.
    let runs = |n: usize| {
        let params = KMeans::new(centres).seeding(Seeding::Random).restarts(n).check().unwrap();
        params.fit(&points, [centres * each, 2], None, &cx(1)).unwrap().objective()
    };
    assert!(runs(8) < runs(1));
}

#[test]
fn plus_plus_draws_by_weight_and_distance() {
    // The first seed by weight; the second by weight times squared distance.
    let points = [0.0f32, 1.0, 3.0, 100.0];
    let weights = [1.0f32, 4.0, 1.0, 0.0];
    let params = KMeans::new(2).iterations(0).check().unwrap();
    let mut counts = std::collections::BTreeMap::new();
    let draws = 4000;
    for seed in 0..draws {
        let found = params.fit(&points, [4, 1], Some(&weights), &cx(seed)).unwrap();
        *counts.entry((found.centroids()[0] as u32, found.centroids()[1] as u32)).or_insert(0) += 1;
    }
    let expected = [
        ((0, 1), 1.0 / 6.0 * 4.0 / 13.0),
        ((0, 3), 1.0 / 6.0 * 9.0 / 13.0),
        ((1, 0), 4.0 / 6.0 * 1.0 / 5.0),
        ((1, 3), 4.0 / 6.0 * 4.0 / 5.0),
        ((3, 0), 1.0 / 6.0 * 9.0 / 25.0),
        ((3, 1), 1.0 / 6.0 * 16.0 / 25.0),
    ];
    for (pair, probability) in expected {
        let share = f64::from(*counts.get(&pair).unwrap_or(&0)) / draws as f64;
        assert!((share - probability).abs() < 0.03, "{pair:?}: {share} and {probability}");
    }
    assert_eq!(counts.len(), 6, "a point of weight 0 is never drawn");
}

#[test]
fn large_sets_are_seeded_from_a_sample_by_weight() {
    // Far from the rest lie a few points that carry most of the weight: no sample by weight misses them.
    let n = 200_000;
    let mut points = normal(n * 2, 5);
    let mut weights = vec![1f32; n];
    for i in 0..4 {
        let at = i * 49_999 + 17;
        points[2 * at] += 1000.0 * (i + 1) as f32;
        weights[at] = 1e5;
    }
    weights[7] = 0.0;
    let params = KMeans::new(5).iterations(2).check().unwrap();
    let found = params.fit(&points, [n, 2], Some(&weights), &cx(2)).unwrap();
    let owners: std::collections::BTreeSet<u32> = (0..4).map(|i| found.assignment()[i * 49_999 + 17]).collect();
    assert_eq!(owners.len(), 4);
    consistent(&found, &points, 2, Some(&weights));
}

#[test]
fn mini_batches_end_near_lloyd() {
    let (centres, each) = (16, 500);
    for seed in 0..5 {
        let points = blobs(centres, each, 20.0, seed);
        let weights: Vec<f32> = (0..centres * each).map(|i| 0.5 + (i % 5) as f32).collect();
        for weights in [None, Some(weights.as_slice())] {
            let full = KMeans::new(centres).tolerance(0.0).iterations(50).check().unwrap();
            let some = KMeans::new(centres).mini_batch(512).iterations(100).check().unwrap();
            let full = full.fit(&points, [centres * each, 2], weights, &cx(seed)).unwrap();
            let some = some.fit(&points, [centres * each, 2], weights, &cx(seed)).unwrap();
            assert!(some.objective() <= 1.1 * full.objective(), "{} {}", some.objective(), full.objective());
            assert_eq!((some.iterations(), some.objectives().len()), (0, 1));
            consistent(&some, &points, 2, weights);
        }
    }
}

#[test]
fn the_same_bytes_come_out_of_any_number_of_threads() {
    // Enough points for blocks that are assigned and summed at once, and few enough that they are not.
    for (n, dims, k) in [(300_000, 2, 3), (20_000, 8, 40), (2000, 20, 200)] {
        let points = normal(n * dims, 3);
        let weights: Vec<f32> = normal(n, 4).iter().map(|v| v.abs()).collect();
        for params in [KMeans::new(k), KMeans::new(k).mini_batch(4096), KMeans::new(k).seeding(Seeding::Random)] {
            let params = params.iterations(2).check().unwrap();
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| params.fit(&points, [n, dims], Some(&weights), &cx(11)).unwrap())
            };
            let one = on(1);
            let bits = |c: &Clustering| -> (Vec<u32>, Vec<u64>) {
                let objectives = c.objectives().iter().map(|v| v.to_bits()).collect();
                (c.centroids().iter().map(|v| v.to_bits()).collect(), objectives)
            };
            for threads in [2, 3] {
                let other = on(threads);
                assert!(bits(&other) == bits(&one) && other.assignment() == one.assignment());
            }
            assert_eq!(one.assignment(), assign(one.centroids(), &points, [n, dims], &Exec::new()).unwrap().0);
        }
    }
}

#[test]
fn streams_and_seeds_make_a_difference_and_nothing_else_does() {
    let points = normal(4000, 8);
    let fit = |name: &str, seed: u64| {
        let params = KMeans::new(10).stream(name).iterations(2).check().unwrap();
        params.fit(&points, [2000, 2], None, &cx(seed)).unwrap()
    };
    assert_eq!(fit("a", 1), fit("a", 1));
    assert!(fit("a", 1) != fit("b", 1) && fit("a", 1) != fit("a", 2));
}

#[test]
fn wrong_parameters_and_inputs_are_named() {
    let param = |p: KMeans| p.check().unwrap_err().name;
    assert_eq!(param(KMeans::new(0)), "k");
    assert_eq!(param(KMeans::new(usize::MAX)), "k");
    for t in [-1e-9, 1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(param(KMeans::new(2).tolerance(t)), "tolerance");
    }
    assert_eq!(param(KMeans::new(2).mini_batch(0)), "mini_batch");
    assert_eq!(param(KMeans::new(2).restarts(0)), "restarts");
    assert_eq!(param(KMeans::new(2).restarts(2).seeding(Seeding::Given(vec![]))), "restarts");

    let two = KMeans::new(2).check().unwrap();
    let fit = |points: &[f32], shape: [usize; 2], weights: Option<&[f32]>| two.fit(points, shape, weights, &cx(0));
    let shape = |r: tersor_core::Result<Clustering>| assert!(matches!(r, Err(Error::Shape { .. })), "{r:?}");
    shape(fit(&[1.0; 4], [4, 0], None));
    shape(fit(&[], [0, 2], None));
    shape(fit(&[1.0; 4], [3, 1], None));
    shape(fit(&[1.0], [1, 1], None));
    shape(fit(&[1.0; 4], [4, 1], Some(&[1.0; 3])));
    shape(fit(&[1.0; 4], [4, 1], Some(&[0.0; 4])));
    shape(fit(&[1.0; 4], [4, 1], Some(&[0.0, 0.0, 1.0, 0.0])));
    assert!(matches!(fit(&[1.0; 4], [usize::MAX, 2], None), Err(Error::Overflow { .. })));
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let e = fit(&[1.0; 4], [4, 1], Some(&[1.0, 1.0, bad, 1.0])).unwrap_err();
        assert!(matches!(&e, Error::Param(p) if p.name == "weights") && e.to_string().contains("point 2"), "{e}");
    }
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let e = fit(&[1.0, 1.0, 1.0, bad], [2, 2], None).unwrap_err();
        assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
    }
    let e = fit(&[1.0, 1e19, 1.0], [3, 1], None).unwrap_err();
    assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains("scale the points down"), "{e}");
    // The largest that pass.
    let found = fit(&[6.5e18, -6.5e18, 6.4e18], [3, 1], None).unwrap();
    assert!(found.objective().is_finite() && found.assignment()[0] == found.assignment()[2]);

    let given = |rows: Vec<f32>| {
        let params = KMeans::new(2).seeding(Seeding::Given(rows)).check().unwrap();
        params.fit(&[1.0; 4], [4, 1], None, &cx(0)).map(|_| ())
    };
    assert!(matches!(given(vec![1.0; 3]), Err(Error::Shape { .. })));
    assert!(matches!(given(vec![1.0, f32::NAN]), Err(Error::NonFinite { row: 1, col: 0, .. })));

    for (centroids, dims) in [(vec![], 1), (vec![1.0; 3], 2), (vec![1.0], 0)] {
        assert!(matches!(assign(&centroids, &vec![1.0; 4 * dims], [4, dims], &Exec::new()), Err(Error::Shape { .. })));
    }
    assert!(matches!(assign(&[f32::NAN], &[1.0], [1, 1], &Exec::new()), Err(Error::NonFinite { .. })));
    assert!(matches!(assign(&[1.0], &[f32::NAN], [1, 1], &Exec::new()), Err(Error::NonFinite { .. })));
}

#[test]
fn it_stops_when_it_is_asked_to() {
    let cx = cx(0);
    cx.cancel.cancel();
    for params in [KMeans::new(2), KMeans::new(2).seeding(Seeding::Random), KMeans::new(2).mini_batch(3)] {
        let params = params.check().unwrap();
        assert!(matches!(params.fit(&[1.0, 2.0, 3.0], [3, 1], None, &cx), Err(Error::Cancelled)));
    }
}
