//! Steps of all parameters together: clipping of the global norm, refusal of the whole step, partly active tensors.

mod common;

use common::values;
use tersor_blockwise::Check;
use tersor_blockwise::optimizer::{BlockwiseOptimizer, OptimizerConfig, StepOptions};
use tersor_core::gradients::{Optimizer, Param, Params};
use tersor_core::{Exec, MemTensors, Result};

/// Parameters with gradients, in order.
#[derive(Clone)]
struct Model(Vec<(&'static str, Vec<f32>, Vec<f32>)>);

impl Params for Model {
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()> {
        self.0.iter_mut().try_for_each(|(name, value, grad)| f(Param::new(name, value, grad)))
    }
}

impl Model {
    fn new() -> Self {
        let tensor = |name, seed, n| (name, values(seed, n), values(seed + 10, n));
        Self(vec![tensor("a", 1, 5000), tensor("b", 2, 70_000), tensor("c", 3, 10)])
    }
}

#[test]
fn a_step_of_all_parameters_equals_steps_of_each() {
    for config in [OptimizerConfig::adamw(), OptimizerConfig::lamb(), OptimizerConfig::momentum().percentile(5)] {
        let mut together = BlockwiseOptimizer::new(config.clone()).unwrap();
        let mut alone = BlockwiseOptimizer::new(config).unwrap();
        let (mut a, mut b) = (Model::new(), Model::new());
        for step in 1..4 {
            together.step(step, &mut a, &Exec::new()).unwrap();
            for (name, value, grad) in &mut b.0 {
                alone.step_tensor(name, value, grad).unwrap();
            }
        }
        for ((name, x, _), (_, y, _)) in a.0.iter().zip(&b.0) {
            assert_eq!(x, y);
            assert_eq!(together.state(name), alone.state(name));
        }
    }
}

#[test]
fn the_norm_of_all_gradients_is_clipped() {
    let config = OptimizerConfig::momentum().bits(32).betas(0.0, 0.9).lr(1.0);
    let norm = |model: &Model| {
        let all = model.0.iter().flat_map(|(_, _, grad)| grad);
        all.map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
    };
    let before = Model::new();
    let whole = norm(&before);
    for (max, factor) in [(whole / 4.0, 0.25), (whole * 2.0, 1.0)] {
        let mut sgd = BlockwiseOptimizer::new(config.clone()).unwrap().max_norm(max).unwrap();
        let mut model = before.clone();
        sgd.step(1, &mut model, &Exec::new()).unwrap();
        for ((_, new, _), (_, old, grad)) in model.0.iter().zip(&before.0) {
            for ((new, old), g) in new.iter().zip(old).zip(grad) {
                assert!((f64::from(*new) - f64::from(*old) + factor * f64::from(*g)).abs() < 1e-6);
            }
        }
    }
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(BlockwiseOptimizer::new(config.clone()).unwrap().max_norm(bad).is_err());
    }
}

#[test]
fn nothing_changes_where_one_gradient_is_refused() {
    let mut adam = BlockwiseOptimizer::new(OptimizerConfig::adam()).unwrap();
    let mut model = Model::new();
    adam.step(1, &mut model, &Exec::new()).unwrap();
    let (before, state) = (model.clone(), adam.state("a").cloned());
    for (bad, at) in [(f32::NAN, 69_999), (f32::INFINITY, 0), (2e15, 5)] {
        let mut broken = before.clone();
        broken.0[1].2[at] = bad;
        let e = adam.step(2, &mut broken, &Exec::new()).unwrap_err().to_string();
        assert!(e.contains("`b`"), "{e}");
        assert!(broken.0.iter().zip(&before.0).all(|(x, y)| x.1 == y.1) && adam.state("a").cloned() == state);
    }
    let mut short = before.clone();
    short.0[2].2.pop();
    assert!(adam.step(2, &mut short, &Exec::new()).is_err());
    short.0[2] = ("c", vec![1.0; 11], vec![1.0; 11]);
    assert!(adam.step(2, &mut short, &Exec::new()).is_err(), "another length than in the first step");
}

#[test]
fn inactive_elements_keep_value_and_state() {
    struct Active(Vec<f32>, Vec<f32>, std::ops::Range<usize>, bool);
    impl Params for Active {
        fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()> {
            f(Param { active: self.2.clone(), decay: self.3, rate: 0.5, ..Param::new("w", &mut self.0, &self.1) })
        }
    }
    let n = 70_000;
    for config in
        [OptimizerConfig::adamw().bits(32), OptimizerConfig::adamw(), OptimizerConfig::lars().weight_decay(0.1)]
    {
        for active in [0..n, 0..1, 300..301, 256..512, 100..66_000, 65_536..n, 5..5] {
            let mut optimizer = BlockwiseOptimizer::new(config.clone()).unwrap();
            let mut model = Active(values(1, n), values(2, n), 0..n, true);
            optimizer.step(1, &mut model, &Exec::new()).unwrap();
            let (old, moment) = (model.0.clone(), optimizer.state("w").unwrap().moment("mean").unwrap());
            (model.2, model.1) = (active.clone(), values(3, n));
            // Gradients of inactive elements are not even looked at.
            let outside = |i: &usize| !active.contains(i);
            (0..n).filter(outside).for_each(|i| model.1[i] = f32::NAN);
            optimizer.step(2, &mut model, &Exec::new()).unwrap();
            let now = optimizer.state("w").unwrap().moment("mean").unwrap();
            for i in 0..n {
                if outside(&i) {
                    assert_eq!(model.0[i], old[i], "{active:?} {i}");
                    // A block that is partly active may have another scale; others keep every bit.
                    let block = i / 256 * 256..n.min((i / 256 + 1) * 256);
                    let partly = active.start < block.end && block.start < active.end;
                    let max = now[block].iter().fold(0f32, |m, v| m.max(v.abs()));
                    let limit = if partly { 0.02 * max } else { 0.0 };
                    assert!((now[i] - moment[i]).abs() <= limit, "{active:?} {i}: {} {}", now[i], moment[i]);
                }
            }
            let changed = active.clone().filter(|i| model.0[*i] != old[*i]).count();
            assert!(changed * 100 >= active.len() * 99, "{active:?}: {changed}");
        }
    }
    // Without decay a parameter without gradients stays; half the rate is half the step.
    let sgd = || BlockwiseOptimizer::new(OptimizerConfig::momentum().bits(32).lr(1.0).weight_decay(0.5)).unwrap();
    let mut model = Active(vec![1.0; 4], vec![0.0; 4], 0..4, false);
    sgd().step(1, &mut model, &Exec::new()).unwrap();
    assert_eq!(model.0, [1.0; 4]);
    model.3 = true;
    sgd().step(1, &mut model, &Exec::new()).unwrap();
    assert_eq!(model.0, [0.75; 4]);
    model.2 = 2..5;
    assert!(sgd().step(1, &mut model, &Exec::new()).is_err());
}

#[test]
fn elements_without_gradient_step_in_a_block_that_is_partly_active() {
    struct Part(Vec<f32>, Vec<f32>, std::ops::Range<usize>);
    impl Params for Part {
        fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> Result<()>) -> Result<()> {
            f(Param { active: self.2.clone(), ..Param::new("w", &mut self.0, &self.1) })
        }
    }
    for config in [OptimizerConfig::momentum().bits(32), OptimizerConfig::adam().bits(32)] {
        let run = |active: std::ops::Range<usize>| {
            let mut optimizer = BlockwiseOptimizer::new(config.clone()).unwrap();
            let mut model = Part(values(1, 300), values(2, 300), 0..300);
            optimizer.step(1, &mut model, &Exec::new()).unwrap();
            (model.1, model.2) = (vec![0.0; 300], active);
            optimizer.step(2, &mut model, &Exec::new()).unwrap();
            (model.0, optimizer.state("w").unwrap().moment("mean").unwrap())
        };
        let ((whole, means), (part, part_means)) = (run(0..300), run(10..290));
        assert_eq!((&part[10..290], &part_means[10..290]), (&whole[10..290], &means[10..290]));
        assert!(part[0] != whole[0] && part[299] != whole[299]);
    }
}

#[test]
fn gradients_that_are_too_large_once_scaled_are_refused() {
    let config = OptimizerConfig::adam().bits(32).check().unwrap();
    let step = |scale: f32, g: f32| {
        let mut state = config.state(1).unwrap();
        let options = StepOptions { grad_scale: scale, ..config.options(1) };
        config.step_with(&options, &mut state, &mut [1.0f32], &[g], &Exec::new())
    };
    assert!(step(1.0, 1e15).is_ok() && step(1e10, 1e5).is_ok() && step(1e-10, 1e15).is_ok());
    assert!(step(1e10, 1e15).is_err() && step(1.0, 1.1e15).is_err());
}

#[test]
fn moments_in_f32_keep_the_other_parameters_of_a_tensor() {
    let mut optimizer = BlockwiseOptimizer::new(OptimizerConfig::adam()).unwrap();
    optimizer.set("embed", |o| o.lr(0.5)).unwrap();
    optimizer.keep_f32("embed").unwrap();
    let (mut p, g) = (vec![1.0f32; 5000], vec![1.0f32; 5000]);
    optimizer.step_tensor("embed", &mut p, &g).unwrap();
    assert!((p[0] - 0.5).abs() < 1e-3, "a learning rate of 0.5: {}", p[0]);
    assert!(optimizer.state("embed").unwrap().codes("mean").is_none());
}

#[test]
fn an_optimizer_before_its_first_step_is_saved_and_loaded() {
    let mut optimizer = BlockwiseOptimizer::new(OptimizerConfig::adam()).unwrap();
    let mut file = MemTensors::new();
    optimizer.save(&mut file).unwrap();
    optimizer.load(&file).unwrap();
    tersor_core::tensors::write_floats(&mut file, "weights", &[1], &[1.0]).unwrap();
    assert!(optimizer.load(&file).is_err(), "a file of something else");
}
