//! [`choose_for_network`]: a recipe for any network that stays within a number of bits.

use std::collections::BTreeMap;
use std::sync::Arc;

use tersor_core::network::{Batch, Scores, Stream, check_network};
use tersor_core::{Changes, Context, Error, LinearOp, Network, ParamError, Result, StatNeeds, Weights};

use super::pass::{Pass, Streams};
use super::taps::Operators;
use crate::budget::{Choice, Item, Limit, allocate, prepared, recipe, ways};
use crate::kinds::Kinds;
use crate::recipe::Recipe;

/// Returns the recipe with the smallest predicted loss that stores the matrices of all sites of `network` (a site is one input and the matrices that
/// read it) in at most `bits` bits for each of their elements, scales and the like included. [`compress_network`](super::compress_network) takes it.
///
/// `weights` has the original weights by name, `data` the calibration batches, `kinds` the kinds of stages, and `cx` seed, threads, progress and
/// cancellation. The ways to store a matrix are what the kinds of stages offer ([`StageSpec::ways`](tersor_core::stages::StageSpec::ways)), such as
/// GPTQ with 2 to 8 bits. Each kind measures or estimates the errors of its ways on the inputs from all batches, in the original network. Each matrix
/// in turn is then replaced by one with much error, and the effect on the outputs for the first batch is measured by [`Network::score`]: the
/// divergence [`Scores::kl`], or one minus [`Scores::cosine`] if that is 0. The loss of a way is taken to be proportional to its error, and the
/// losses of matrices to add.
///
/// Errors with [`Error::Param`] if `bits` is no positive number or less than the smallest ways need (the message has the least value), or if `data`
/// is empty. Errors if [`check_network`] refuses the network, and with [`Error::Missing`] or [`Error::Order`] if it does not ask its tap for each
/// matrix exactly once in each batch. Errors with [`Error::Missing`] if no kind offers ways, or if the scores compare nothing with the original.
/// Errors with [`Error::Tensor`], with the name, if a value is not finite, and with [`Error::Cancelled`] if `cx` is cancelled.
pub fn choose_for_network(
    network: &dyn Network,
    weights: &dyn Weights,
    data: &[Batch],
    bits: f64,
    kinds: &Kinds,
    cx: &Context,
) -> Result<Recipe> {
    check_network(network, weights)?;
    if !(bits.is_finite() && bits > 0.0) {
        return Err(ParamError::new("bits", bits, "must be a positive number of bits per weight").into());
    }
    let Some(first) = data.first() else {
        return Err(ParamError::new("data", "empty", "a budget needs calibration data").into());
    };
    let (sites, offered) = (network.sites(), ways(kinds, true)?);
    let needs = offered.iter().map(|w| w.needs()).fold(StatNeeds::none(), StatNeeds::union);
    let mut streams = Streams::enter(network, data, weights, cx)?;
    let (mut items, mut probes) = (Vec::new(), Vec::new());
    // What flows into each stage for the first batch.
    let mut entering = Vec::new();
    cx.progress.begin("measure", network.stages() as u64 * 2);
    for stage in 0..network.stages() {
        let loaded = network.stage(stage, weights)?;
        let here: Vec<usize> = network.waves(stage).into_iter().flatten().collect();
        let ops = Operators::originals(network, weights, &here)?;
        entering.push(streams.first().cloned().unwrap_or_default());
        let pass = Pass { network, stage, loaded: &*loaded, changes: &Changes::default(), cx };
        let wanted: Vec<_> = here.iter().map(|site| (*site, needs)).collect();
        let stats = pass.gather(&streams, &ops, &wanted)?;
        for (site, stats) in &stats {
            let ready = offered.iter().map(|w| w.prepare(stats, cx)).collect::<Result<Vec<_>>>();
            let ready = ready.map_err(|e| e.in_tensor(&sites[*site].name))?;
            for (own, consumer) in sites[*site].consumers.iter().enumerate() {
                cx.cancel.check()?;
                let rows = weights.rows(&consumer.weight)?;
                let (item, op) = prepared(&consumer.weight, &*rows, &ready, cx)?;
                items.push(item);
                probes.push((stage, *site, own, op));
            }
        }
        pass.advance(&mut streams, &ops)?;
        cx.progress.advance(1, &format!("stage {stage}"));
    }
    let original = streams.first().cloned().unwrap_or_default();
    let mut from = BTreeMap::<usize, Vec<(usize, usize, usize, Arc<dyn LinearOp>)>>::new();
    for (number, (stage, site, own, op)) in probes.into_iter().enumerate() {
        from.entry(stage).or_default().push((number, site, own, op));
    }
    for (stage, probes) in from {
        for (number, site, own, op) in probes {
            cx.cancel.check()?;
            let changed = Changed { stage, site, own, op };
            let out = outputs(network, weights, entering[stage].clone(), &changed, cx)?;
            let scores = network.score(&out, Some(&original), first, weights)?;
            items[number].effect = effect(&scores)?;
        }
        cx.progress.advance(1, &format!("effects of stage {stage}"));
    }
    cx.progress.end();
    let elements: f64 = sites.iter().flat_map(|s| &s.consumers).map(|c| c.shape[0] as f64 * c.shape[1] as f64).sum();
    let choices: Vec<Vec<Choice>> = items.iter().map(Item::choices).collect();
    let (max, min) =
        ((bits * elements / 8.0) as u64, choices.iter().filter_map(|c| c.iter().map(|c| c.cost).min()).sum());
    if max < min {
        let rule = format!("must be at least {:.3}", min as f64 * 8.0 / elements);
        return Err(ParamError::new("bits", bits, rule).into());
    }
    recipe(Limit::Bits(bits), &items, &allocate(&choices, max)?, &kinds.stages)
}

/// A matrix that is replaced by another operator: the indices of its stage, its site, and itself in the site.
struct Changed {
    stage: usize,
    site: usize,
    own: usize,
    op: Arc<dyn LinearOp>,
}

/// Returns the output of the network with one matrix replaced, from `entering`, the tensors that flow into the stage of the matrix.
fn outputs(
    network: &dyn Network,
    weights: &dyn Weights,
    entering: Stream,
    changed: &Changed,
    cx: &Context,
) -> Result<Stream> {
    let mut streams = Streams::of(entering);
    for stage in changed.stage..network.stages() {
        let here: Vec<usize> = network.waves(stage).into_iter().flatten().collect();
        let mut ops = Operators::originals(network, weights, &here)?;
        if stage == changed.stage {
            let mut made = vec![None; network.sites()[changed.site].consumers.len()];
            made[changed.own] = Some(changed.op.clone());
            ops.replace(changed.site, made);
        }
        let loaded = network.stage(stage, weights)?;
        Pass { network, stage, loaded: &*loaded, changes: &Changes::default(), cx }.advance(&mut streams, &ops)?;
    }
    Ok(streams.into_vec().pop().unwrap_or_default())
}

/// Returns the divergence from the original, or one minus the cosine if the network's outputs are no logits.
fn effect(scores: &Scores) -> Result<f64> {
    let missing = || Error::missing("a comparison with the original", "the scores of the network");
    let cosine = scores.cosine().ok_or_else(missing)?;
    Ok(scores.kl().unwrap_or((1.0 - cosine).max(0.0)))
}
