//! Statistics of observed layers: they are those of `StatSet`, whatever the batches, and serve methods.

mod common;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Linear;
use common::{difference, fails, operators, random, refuses, tensor};
use tersor::core::{MatView, StatNeeds, StatSet};
use tersor::groupwise::{Gptq, Rtn};
use tersor_candle::{CompressedLinear, Matrix, Observer};

fn needs() -> StatNeeds {
    StatNeeds::none().with_gram().with_channel().with_squares().with_sample(16).with_windows()
}

#[test]
fn statistics_are_those_of_the_inputs_for_any_batches() {
    let linear = Linear::new(tensor(1, (8, 24)), Some(tensor(2, 8)));
    let x = tensor(3, (6, 10, 24));
    let mut expected = StatSet::new(24, needs(), 5, 0).unwrap();
    for window in random(3, 6 * 10 * 24).chunks_exact(240) {
        expected.observe_window(&MatView::new(window, [10, 24]).unwrap(), None).unwrap();
    }
    for batch in [1, 2, 3, 6] {
        let observer = Observer::with_seed(needs(), 5);
        let observed = observer.linear("layer", linear.clone()).unwrap();
        for first in (0..6).step_by(batch) {
            let part = x.narrow(0, first, batch).unwrap();
            let y = observed.forward(&part).unwrap();
            assert!(difference(&y, &linear.forward(&part).unwrap()) == 0.0);
        }
        assert!(observer.stats("layer").unwrap() == expected, "batches of {batch}");
    }
    // Two axes are one window; four axes are windows of the last two.
    let observer = Observer::with_seed(needs(), 5);
    let observed = observer.linear("layer", linear.clone()).unwrap();
    for window in 0..3 {
        observed.clone().forward(&x.get(window).unwrap()).unwrap();
    }
    observed.forward(&x.narrow(0, 3, 3).unwrap().reshape((3, 1, 10, 24)).unwrap()).unwrap();
    assert!(observer.stats("layer").unwrap() == expected);
    assert_eq!(observer.names(), ["layer"]);
    assert_eq!(observed.inner().weight().dims(), [8, 24]);
}

#[test]
fn halves_views_and_other_layers() {
    let (_, op) = operators().remove(0);
    let observer = Observer::new(StatNeeds::none().with_gram());
    let layer = observer.module("compressed", 96, CompressedLinear::new(op, None).unwrap()).unwrap();
    let x = tensor(3, (96, 5)).to_dtype(DType::BF16).unwrap();
    layer.forward(&x.t().unwrap()).unwrap();
    let wide = x.to_dtype(DType::F32).unwrap().t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut expected = StatSet::new(96, StatNeeds::none().with_gram(), 0, 0).unwrap();
    expected.observe(&MatView::new(&wide, [5, 96]).unwrap()).unwrap();
    assert!(observer.stats("compressed").unwrap() == expected);
    // Nothing is added for no tokens.
    layer.forward(&Tensor::zeros((0, 96), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(observer.stats("compressed").unwrap().tokens(), 5);
    assert_eq!(layer.into_inner().shape(), [40, 96]);
}

#[test]
fn padding_has_no_weight() {
    let linear = Linear::new(tensor(1, (8, 4)), None);
    let mask = Tensor::new(&[[1u8, 1, 0], [1, 0, 0]], &Device::Cpu).unwrap();
    let observer = Observer::new(StatNeeds::none().with_channel());
    let observed = observer.linear("layer", linear).unwrap();
    observer.set_weights(Some(&mask)).unwrap();
    let values = random(3, 24);
    observed.forward(&tensor(3, (2, 3, 4))).unwrap();
    let stats = observer.stats("layer").unwrap();
    assert_eq!((stats.tokens(), stats.weight()), (6, 3.0));
    let sum = |f: usize| [0, 1, 3].iter().map(|t| f64::from(values[t * 4 + f])).sum::<f64>();
    assert!((stats.require_channel().unwrap().sum[2] - sum(2)).abs() < 1e-6);
    fails(observed.forward(&tensor(3, (1, 3, 4))), &["layer", "weights of tokens", "[1, 3]", "[2, 3]"]);
    observer.set_weights(None).unwrap();
    observed.forward(&tensor(3, (1, 3, 4))).unwrap();
    assert_eq!(observer.stats("layer").unwrap().tokens(), 9);
}

#[test]
fn a_method_with_observed_statistics_beats_rounding() {
    let weight = tensor(1, (32, 64));
    // Features that eight hidden ones determine but for noise.
    let x = (tensor(2, (4, 64, 8)).broadcast_matmul(&tensor(3, (8, 64))).unwrap()
        + (tensor(4, (4, 64, 64)) * 0.05).unwrap())
    .unwrap();
    let observer = Observer::new(StatNeeds::none().with_gram());
    let observed = observer.linear("layer", Linear::new(weight.clone(), None)).unwrap();
    let exact = observed.forward(&x).unwrap();
    let w = Matrix::new(&weight).unwrap();
    let (gptq, _) = Gptq::new().bits(3).group(32).quantize(&w, &observer.stats("layer").unwrap()).unwrap();
    let (rtn, _) = Rtn::new().bits(3).group(32).quantize(&w).unwrap();
    let error = |layer: CompressedLinear| {
        let off = (layer.forward(&x).unwrap() - &exact).unwrap().sqr().unwrap().sum_all().unwrap();
        off.to_scalar::<f32>().unwrap()
    };
    let gptq = error(CompressedLinear::new(gptq.into(), None).unwrap());
    let rtn = error(CompressedLinear::new(std::sync::Arc::new(rtn), None).unwrap());
    assert!(gptq < 0.7 * rtn, "{gptq} {rtn}");
}

#[test]
fn faults_are_errors() {
    let observer = Observer::new(StatNeeds::none().with_gram());
    let observed = observer.linear("layer", Linear::new(tensor(1, (8, 4)), None)).unwrap();
    refuses(observer.linear("layer", Linear::new(tensor(1, (8, 4)), None)), &["once", "layer"]);
    refuses(observer.stats("lair"), &["lair", "observed layers"]);
    fails(observed.forward(&tensor(1, (2, 5))), &["layer", "features", "4", "5"]);
    fails(observed.forward(&tensor(1, (2, 4)).to_dtype(DType::F64).unwrap()), &["F64"]);
    let mut values = random(1, 2 * 3 * 4);
    values[17] = f32::INFINITY;
    fails(observed.forward(&Tensor::from_vec(values, (2, 3, 4), &Device::Cpu).unwrap()), &["layer", "inf", "row 4"]);
    assert_eq!(observer.stats("layer").unwrap().tokens(), 0, "a refused batch adds nothing");
}
