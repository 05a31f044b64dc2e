//! The optimizer of variables: it equals the core optimizer in every bit, trains as candle's own does, and refuses faults.
#![cfg(feature = "optimizer")]

mod common;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW, VarMap};
use common::{fails, random, refuses, tensor};
use tersor::blockwise::optimizer::BlockwiseOptimizer;
use tersor::core::gradients::{Optimizer, Param, Params};
use tersor::core::{Exec, MemTensors, TensorSource};
use tersor_candle::{OptimizerConfig, VarOptimizer};

fn losses<O: candle_nn::Optimizer>(dtype: DType, make: impl Fn(Vec<Var>) -> Result<O>) -> Result<(Vec<f32>, O)> {
    let device = Device::Cpu;
    let noise = |i: i32| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.5;
    let values = |n: i32, from: i32| -> Vec<f32> { (from..from + n).map(noise).collect() };
    let w = Tensor::from_vec(values(96 * 64, 0), (96, 64), &device)?.to_dtype(dtype)?;
    let w = Var::from_tensor(&w)?;
    let x = Tensor::from_vec(values(32 * 64, 9), (32, 64), &device)?.to_dtype(dtype)?;
    let target = Tensor::from_vec(values(32 * 96, 77), (32, 96), &device)?.to_dtype(dtype)?;
    let mut optimizer = make(vec![w.clone()])?;
    let mut losses = Vec::new();
    for step in 0..40 {
        let loss = (x.matmul(&w.t()?)? - &target)?.sqr()?.mean_all()?;
        optimizer.set_learning_rate(0.01 * (1.0 - f64::from(step) / 80.0));
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
    }
    Ok((losses, optimizer))
}

#[test]
fn trains_as_candles_own_does() {
    let params = ParamsAdamW { lr: 0.01, weight_decay: 0.01, ..Default::default() };
    let (theirs, _) = losses(DType::F32, |v| AdamW::new(v, params.clone())).unwrap();
    let ours = |bits| losses(DType::F32, move |v| VarOptimizer::new(v, OptimizerConfig::adamw().lr(0.01).bits(bits)));
    let ((full, _), (eight, state)) = (ours(32).unwrap(), ours(8).unwrap());
    // Candle applies weight decay before the step, Tersor after it: a difference of the second order.
    assert!(theirs.iter().zip(&full).all(|(a, b)| (a - b).abs() < 1e-3 * a), "{theirs:?} {full:?}");
    assert!(full.iter().zip(&eight).all(|(a, b)| (a - b).abs() < 0.02 * a), "{full:?} {eight:?}");
    assert!(eight[39] < 0.5 * eight[0]);
    assert_eq!(state.state_bytes(), 2 * (96 * 64 + 4 * 24));
}

#[test]
fn halves_and_overrides() {
    let (half, _) = losses(DType::BF16, |v| VarOptimizer::new(v, OptimizerConfig::adamw().lr(0.01))).unwrap();
    assert!(half[39] < 0.6 * half[0], "{half:?}");
    let kept = losses(DType::F32, |v| {
        let mut o = VarOptimizer::new(v.clone(), OptimizerConfig::adamw().lr(0.01))?;
        o.keep_f32(&v[0])?;
        refuses(o.keep_f32(&Var::zeros(3, DType::F32, &Device::Cpu)?), &["the variable"]);
        Ok(o)
    });
    assert_eq!(kept.unwrap().1.state_bytes(), 8 * 96 * 64);
}

/// Plain tensors with their gradients.
struct Plain(Vec<(String, Vec<f32>, Vec<f32>)>);

impl Params for Plain {
    fn each(&mut self, f: &mut dyn FnMut(Param<'_>) -> tersor::core::Result<()>) -> tersor::core::Result<()> {
        self.0.iter_mut().try_for_each(|(name, value, grad)| f(Param::new(name, value, grad)))
    }
}

fn saved(optimizer: &dyn Optimizer) -> MemTensors {
    let mut all = MemTensors::new();
    optimizer.save(&mut all).unwrap();
    all
}

#[test]
fn every_bit_is_that_of_the_core_optimizer() {
    let sizes = [("a", 80 * 64), ("b", 7), ("c", 5000)];
    for (config, clip) in [
        (OptimizerConfig::adamw().lr(0.01).weight_decay(0.1), None),
        (OptimizerConfig::adam().lr(0.02), Some(0.5)),
        (OptimizerConfig::momentum().lr(0.1), Some(1e3)),
        (OptimizerConfig::lion().lr(0.001), None),
    ] {
        let core = BlockwiseOptimizer::new(config.clone()).unwrap();
        let mut core = if let Some(max) = clip { core.max_norm(max).unwrap() } else { core };
        let start = |(i, (name, n)): (usize, &(&str, usize))| (name.to_string(), random(i as u32, *n));
        let start: Vec<(String, Vec<f32>)> = sizes.iter().enumerate().map(start).collect();
        let mut plain = Plain(start.iter().map(|(name, v)| (name.clone(), v.clone(), Vec::new())).collect());
        let var = |(name, v): &(String, Vec<f32>)| (name.clone(), Var::from_slice(v, v.len(), &Device::Cpu).unwrap());
        let vars: Vec<(String, Var)> = start.iter().map(var).collect();
        let ours = VarOptimizer::named(vars.clone(), config).unwrap();
        let mut ours = if let Some(max) = clip { ours.max_norm(max).unwrap() } else { ours };
        for step in 1..=5u32 {
            // Gradients come from a backward pass, in which the coefficients are those of `plain`.
            let mut loss = Tensor::new(0f32, &Device::Cpu).unwrap();
            for (i, ((_, var), (_, _, grad))) in vars.iter().zip(&mut plain.0).enumerate() {
                *grad = random(100 * step + i as u32, var.elem_count());
                let c = Tensor::from_slice(grad, grad.len(), &Device::Cpu).unwrap();
                loss = (loss + (var.as_tensor() * c).unwrap().sum_all().unwrap()).unwrap();
            }
            ours.set_learning_rate(ours.learning_rate() * 0.75);
            core.scale_lr((0.75f64.powi(step as i32)) as f32).unwrap();
            ours.backward_step(&loss).unwrap();
            core.step(u64::from(step), &mut plain, &Exec::new()).unwrap();
        }
        for ((_, var), (name, value, _)) in vars.iter().zip(&plain.0) {
            assert_eq!(&var.to_vec1::<f32>().unwrap(), value, "{name}");
        }
        assert_eq!(saved(ours.state()), saved(&core));
        // Saved moments are loaded.
        let mut stored = MemTensors::new();
        ours.save(&mut stored).unwrap();
        assert!(stored.names().iter().any(|n| n.starts_with("a.")));
        ours.load(&stored).unwrap();
        assert_eq!(saved(ours.state()), stored);
    }
}

#[test]
fn variables_of_a_map_have_their_names_and_parameters() {
    let map = VarMap::new();
    let init = candle_nn::Init::Const(1.0);
    for name in ["up.weight", "up.bias", "down.weight"] {
        map.get((2, 3), name, init, DType::F32, &Device::Cpu).unwrap();
    }
    let mut optimizer = VarOptimizer::of_map(&map, OptimizerConfig::adamw().lr(0.5).weight_decay(0.5)).unwrap();
    let bias = map.data().lock().unwrap()["up.bias"].clone();
    optimizer.set(&bias, |c| c.weight_decay(0.0)).unwrap();
    let mut grads = Tensor::new(0f32, &Device::Cpu).unwrap().backward().unwrap();
    for var in map.all_vars() {
        grads.insert(&var, Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap());
    }
    optimizer.step(&grads).unwrap();
    let first = |name: &str| map.data().lock().unwrap()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    // Decay alone moves the weights, and nothing the bias.
    assert_eq!([first("up.weight"), first("down.weight"), first("up.bias")], [0.75, 0.75, 1.0]);
    assert!(optimizer.state().state("up.weight").is_some());
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let w = Var::from_vec(vec![1f32, 2.0], 2, &Device::Cpu).unwrap();
    let v = Var::from_vec(vec![5f32], 1, &Device::Cpu).unwrap();
    let mut optimizer = VarOptimizer::new(vec![v.clone(), w.clone()], OptimizerConfig::adamw()).unwrap();
    let loss = ((w.as_tensor().sum_all().unwrap() * f64::NAN).unwrap() + v.sum_all().unwrap()).unwrap();
    fails(optimizer.backward_step(&loss), &["NaN", "`1`"]);
    assert_eq!((w.to_vec1::<f32>().unwrap(), v.to_vec1::<f32>().unwrap()), (vec![1.0, 2.0], vec![5.0]));
    assert_eq!(optimizer.state_bytes(), 0);
}

#[test]
fn faults_are_errors() {
    let w = Var::from_tensor(&tensor(1, (2, 3))).unwrap();
    let config = OptimizerConfig::adamw;
    refuses(VarOptimizer::named([("w".into(), w.clone()), ("v".into(), w.clone())], config()), &["once", "v"]);
    let other = Var::from_tensor(&tensor(2, 3)).unwrap();
    refuses(VarOptimizer::named([("w".into(), w.clone()), ("w".into(), other)], config()), &["once", "w"]);
    let wide = Var::zeros(3, DType::F64, &Device::Cpu).unwrap();
    fails(VarOptimizer::new(vec![wide], config()), &["F64", "to_dtype"]);
    fails(VarOptimizer::new(vec![w.clone()], config().lr(-1.0)), &["lr"]);
    refuses(VarOptimizer::new(vec![], config()).unwrap().max_norm(f64::NAN), &["max_norm"]);
    // Integers are left out.
    let ids = Var::zeros(3, DType::U32, &Device::Cpu).unwrap();
    let mut optimizer = VarOptimizer::new(vec![ids, w.clone()], config().lr(0.0)).unwrap();
    optimizer.set_learning_rate(0.1);
    let loss = || w.sqr().unwrap().sum_all().unwrap();
    fails(optimizer.backward_step(&loss()), &["lr", "0.1"]);
    optimizer.set_learning_rate(-1.0);
    fails(optimizer.backward_step(&loss()), &["lr"]);
    // A gradient of another shape, and one that is the variable itself.
    let mut optimizer = VarOptimizer::new(vec![w.clone()], config()).unwrap();
    let mut grads: GradStore = loss().backward().unwrap();
    grads.insert(&w, tensor(1, (3, 2)));
    fails(optimizer.step(&grads), &["gradient", "[2, 3]", "[3, 2]"]);
    grads.insert(&w, w.as_tensor().clone());
    fails(optimizer.step(&grads), &["shares storage"]);
}
