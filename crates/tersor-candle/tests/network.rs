//! A candle model as a network: through taps it computes what it computes without them, it is compressed by recipes, and faults are errors.

mod common;

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Linear;
use common::{difference, fails, random, refuses, tensor};
use tersor::core::network::{Batch, check_network};
use tersor::core::{Context, Error, Exec, Input, MatViewMut, Network, Result, Tap};
use tersor::operators::{DType as Stored, Dense, LinearOp, Write};
use tersor::pipeline::network::{compress_network, original_scores};
use tersor::pipeline::{Recipe, network::CompressedNetwork};
use tersor_candle::{CompressedLinear, TapLinear, Taps};

/// A tap over dense matrices, in the order of sites and consumers.
struct Plain(Vec<Vec<Dense>>);

impl Tap for Plain {
    fn apply(&self, site: usize, first: usize, x: &Input<'_>, y: &mut [MatViewMut<'_>], exec: &Exec) -> Result<()> {
        let ops = self.0.get(site).ok_or_else(|| Error::range("site", 0..self.0.len(), site))?;
        for (op, y) in ops.iter().skip(first).zip(y) {
            op.apply(x, y.reborrow(), Write::Set, exec)?;
        }
        Ok(())
    }
}

/// A tap that asks to stop.
struct Stop;

impl Tap for Stop {
    fn apply(&self, _: usize, _: usize, _: &Input<'_>, _: &mut [MatViewMut<'_>], _: &Exec) -> Result<()> {
        Err(Error::Stopped)
    }
}

fn dense(seed: u32, shape: [usize; 2]) -> Dense {
    Dense::new(random(seed, shape[0] * shape[1]), shape, Stored::F32).unwrap()
}

/// Three layers: two that read the input, and one that reads the product of their outputs.
fn model() -> (Taps, Vec<Linear>, Vec<TapLinear>) {
    let layer = |seed, shape: (usize, usize), bias| Linear::new(tensor(seed, shape), bias);
    let (gate, up) = (layer(1, (48, 32), None), layer(2, (48, 32), Some(tensor(9, 48))));
    let down = layer(3, (10, 48), Some(tensor(8, 10)));
    let taps = Taps::new();
    let both = [("gate".to_string(), gate.clone()), ("up".to_string(), up.clone())];
    let mut tapped = taps.shared("gate and up", both).unwrap();
    tapped.push(taps.linear("down", down.clone()).unwrap());
    (taps, vec![gate, up, down], tapped)
}

fn forward<M: Module>(layers: &[M], x: &Tensor) -> candle_core::Result<Tensor> {
    let hidden = (layers[0].forward(x)?.tanh()? * layers[1].forward(x)?)?;
    layers[2].forward(&hidden)
}

fn plain() -> Arc<dyn Tap> {
    Arc::new(Plain(vec![vec![dense(1, [48, 32]), dense(2, [48, 32])], vec![dense(3, [10, 48])]]))
}

#[test]
fn a_tap_with_the_same_weights_changes_nothing() {
    let (taps, layers, tapped) = model();
    for x in [tensor(4, (5, 32)), tensor(4, (2, 3, 32)), tensor(4, (32, 7)).t().unwrap()] {
        let expected = forward(&layers, &x).unwrap();
        assert!(difference(&forward(&tapped, &x).unwrap(), &expected) == 0.0, "without a tap");
        let y = taps.run(&plain(), &Exec::new(), || forward(&tapped, &x)).unwrap();
        assert!(difference(&y, &expected) < 1e-5);
        let half = x.to_dtype(DType::BF16).unwrap();
        let y = taps.run(&plain(), &Exec::new(), || tapped[0].forward(&half)).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
    }
    assert_eq!(tapped[2].inner().weight().dims(), [10, 48]);
}

#[test]
fn runs_on_several_threads_take_turns() {
    let (taps, layers, tapped) = model();
    let x = tensor(4, (5, 32));
    let expected = forward(&layers, &x).unwrap();
    std::thread::scope(|s| {
        for i in 0..4 {
            let (taps, tapped, x, expected) = (&taps, &tapped, &x, &expected);
            s.spawn(move || {
                for _ in 0..20 {
                    if i % 2 == 0 {
                        let y = taps.run(&plain(), &Exec::serial(), || forward(tapped, x)).unwrap();
                        assert!(difference(&y, expected) < 1e-5);
                    } else {
                        let stop: Arc<dyn Tap> = Arc::new(Stop);
                        let found = taps.run(&stop, &Exec::serial(), || forward(tapped, x));
                        assert!(matches!(found, Err(Error::Stopped)));
                    }
                }
            });
        }
    });
}

#[test]
fn recipes_compress_a_candle_model() {
    let (taps, layers, tapped) = model();
    let network = taps.network(move |x| forward(&tapped, x));
    let weights = taps.weights().unwrap();
    check_network(&network, &weights).unwrap();
    assert_eq!((network.stages(), network.sites()[0].consumers.len()), (1, 2));
    // Features that six hidden ones determine but for noise.
    let mixed = |seed| {
        let noise = (tensor(seed + 1, (200, 32)) * 0.05).unwrap();
        (tensor(seed, (200, 6)).matmul(&tensor(7, (6, 32))).unwrap() + noise).unwrap()
    };
    let batch = |seed| {
        let values = mixed(seed).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        Batch::of_values(values, vec![200, 32], Vec::new()).unwrap()
    };
    let (cx, kinds) = (Context::new(), tersor::kinds());
    let compress = |name: &str, data: &[Batch]| {
        let recipe = Recipe::find(name, &kinds.stages).unwrap();
        compress_network(&network, &weights, data, &recipe, kinds, &cx).unwrap()
    };
    let test = [batch(30)];
    let kl = |made: &CompressedNetwork| made.scores(&network, &weights, &test, &cx).unwrap().kl().unwrap();
    let (rtn, gptq) = (compress("w3-g16-rtn", &[]), compress("w3-g16-gptq", &[batch(10), batch(20)]));
    assert!(kl(&gptq) < kl(&rtn) && kl(&gptq) > 0.0, "{} {}", kl(&gptq), kl(&rtn));
    assert!(original_scores(&network, &weights, &test, &cx).is_ok());
    // The compressed layers in place of the original ones.
    let of = |(name, layer): (&str, &Linear)| {
        CompressedLinear::new(gptq.operators[name].clone(), layer.bias().cloned()).unwrap()
    };
    let compressed: Vec<CompressedLinear> = ["gate", "up", "down"].into_iter().zip(&layers).map(of).collect();
    let x = mixed(30);
    let off = difference(&forward(&compressed, &x).unwrap(), &forward(&layers, &x).unwrap());
    assert!(off > 0.0 && off < 0.3, "{off}");
    let through = gptq.run(&network, &weights, &test[0], &cx).unwrap();
    let through = Tensor::from_vec(through.part("x").unwrap().values.clone(), (200, 10), &Device::Cpu).unwrap();
    assert!(difference(&forward(&compressed, &x).unwrap(), &through) < 1e-5);
}

#[cfg(feature = "models")]
#[test]
fn a_saved_network_loads_as_layers() {
    let (linear, bias) = (Linear::new(tensor(1, (48, 32)), None), tensor(9, 48));
    let taps = Taps::new();
    let tapped = taps.linear("up.weight", linear).unwrap();
    let network = taps.network(move |x| tapped.forward(x));
    let (kinds, dir) = (tersor::kinds(), tempfile::tempdir().unwrap());
    let recipe = Recipe::find("w4-g16-rtn", &kinds.stages).unwrap();
    let mut weights = taps.weights().unwrap();
    let made = compress_network(&network, &weights, &[], &recipe, kinds, &Context::new()).unwrap();
    weights.insert("up.bias", [1, 48], bias.to_vec1().unwrap()).unwrap();
    made.save(&dir.path().join("out"), &weights, &["up.bias"]).unwrap();
    let model = tersor_candle::Compressed::open(dir.path().join("out")).unwrap();
    assert!(model.names().eq(["up.bias", "up.weight"]));
    let expected = CompressedLinear::new(made.operators["up.weight"].clone(), Some(bias)).unwrap();
    let x = tensor(4, (5, 32));
    let y = model.linear("up").unwrap().forward(&x).unwrap();
    assert!(difference(&y, &expected.forward(&x).unwrap()) == 0.0);
}

#[test]
fn faults_are_errors() {
    let (taps, _, tapped) = model();
    let x = tensor(4, (5, 32));
    let exec = Exec::new();
    // The tap's own error, also if the model hides it.
    let stop: Arc<dyn Tap> = Arc::new(Stop);
    let found = taps.run(&stop, &exec, || Ok(forward(&tapped, &x).is_err()));
    assert!(matches!(found, Err(Error::Stopped)));
    let short: Arc<dyn Tap> = Arc::new(Plain(vec![vec![dense(1, [48, 32]), dense(2, [48, 32])]]));
    let found = taps.run(&short, &exec, || forward(&tapped, &x));
    assert!(matches!(found, Err(Error::Range { what: "site", .. })));
    // An error of the model, and of a layer's input.
    let found = taps.run(&plain(), &exec, || x.matmul(&x));
    assert!(matches!(found, Err(Error::Numerical(m)) if m.contains("matmul")));
    let found = taps.run(&plain(), &exec, || tapped[0].forward(&x.to_dtype(DType::F64)?));
    assert!(found.is_err_and(|e| e.to_string().contains("F64")));
    let nan = (&x * f64::NAN).unwrap();
    let found = taps.run(&plain(), &exec, || forward(&tapped, &nan));
    assert!(matches!(found, Err(Error::NonFinite { .. })));
    // A run within a run; afterwards, and after a panic, there is no tap.
    let nested = taps.run(&plain(), &exec, || {
        let inner = taps.run(&plain(), &exec, || forward(&tapped, &x));
        assert!(inner.is_err_and(|e| e.to_string().contains("within")));
        Ok(())
    });
    assert!(nested.is_ok());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = taps.run::<()>(&stop, &exec, || panic!("the model"));
    }));
    assert!(panicked.is_err() && forward(&tapped, &x).is_ok());
    assert!(taps.run(&plain(), &exec, || forward(&tapped, &x)).is_ok());
    fails(tapped[0].forward(&tensor(1, (2, 31))), &["matmul"]);
    // Layers.
    let narrow =
        [("a".to_string(), Linear::new(tensor(1, (4, 3)), None)), ("b".into(), Linear::new(tensor(1, (4, 2)), None))];
    refuses(taps.shared("both", narrow), &["`b`", "3", "2"]);
    refuses(taps.shared("none", []), &["at least 1"]);
    refuses(taps.linear("f64", Linear::new(tensor(1, (4, 3)).to_dtype(DType::F64).unwrap(), None)), &["F64"]);
    assert_eq!(taps.sites().len(), 2);
    taps.linear("nan", Linear::new((tensor(1, (4, 3)) * f64::NAN).unwrap(), None)).unwrap();
    assert!(taps.weights().is_err_and(|e| e.to_string().contains("nan")));
    let network = taps.network(|x| Ok(x.clone()));
    assert!(network.stage(1, &tersor::core::network::MemWeights::new()).is_err());
    let none = tersor::core::network::MemWeights::new();
    assert!(network.enter(&Batch::of_tokens(vec![vec![1]]), &none, &exec).is_err());
    let mut nan = Batch::of_values(vec![0.0; 6], vec![2, 3], vec![]).unwrap();
    nan.values[4] = f32::NAN;
    assert!(matches!(network.enter(&nan, &none, &exec), Err(Error::NonFinite { row: 1, col: 1, .. })));
}
