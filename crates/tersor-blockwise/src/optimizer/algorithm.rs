//! One step of one tensor, block by block: moments are decoded, updated and encoded.

use std::ops::Range;

use tersor_core::{Element, Error, Exec, Isa, Result};
use tersor_kernels::optimizer::{self as loops, Adam, SlowMean};
use tersor_kernels::{blockwise, par};

use super::state::{Moment, NORMS};
use super::{CheckedConfig, Decay, Rule, State, StepOptions};
use crate::{Map, MapKind};

/// Approximate number of elements of a unit of parallel work.
const UNIT: usize = 1 << 16;

/// Number of elements of the next block that are prefetched.
const STEP: usize = 512;

/// Largest magnitude of a gradient: its square, and sums of squares, stay finite in f32.
const MAX_GRADIENT: f32 = 1e15;

/// The part of a moment that belongs to a unit.
enum Part<'a> {
    Full(&'a mut [f32]),
    Blocks { map: &'a Map, codes: &'a mut [u8], absmax: &'a mut [f32] },
}

/// A unit of parallel work: consecutive blocks of a tensor.
struct Unit<'a, P, G> {
    /// Values of the parameters.
    p: &'a mut [P],
    /// Gradient.
    g: &'a [G],
    /// Moments, in the order of [`Rule::moments`].
    parts: Vec<Part<'a>>,
    /// Elements of the unit that are trained.
    active: Range<usize>,
}

/// The parameters of a step, the same for all blocks.
struct Plan<'a> {
    how: &'a CheckedConfig,
    isa: Isa,
    /// Number of the step, from 1.
    t: u64,
    /// Factor of the gradient.
    scale: f32,
    /// Factor of the direction: the learning rate, reduced if the update is limited.
    factor: f32,
    weight_decay: f32,
    active: Range<usize>,
    parallel: bool,
    adam: Adam,
    slow: SlowMean,
}

/// Buffers of one block, in f32.
#[derive(Default)]
struct Buffers {
    /// Moments after the step.
    moments: [Vec<f32>; 3],
    /// Moments before the step, where some elements must keep them.
    old: [Vec<f32>; 3],
    /// Parameters that are stored in another type.
    p: Vec<f32>,
    /// Parameters before the step, where some elements must keep them.
    old_p: Vec<f32>,
    /// Gradients that are stored in another type.
    raw: Vec<f32>,
    /// Gradient with scale and weight decay applied.
    g: Vec<f32>,
    /// Direction of the update.
    u: Vec<f32>,
}

impl CheckedConfig {
    /// Makes one step of the configured optimizer on one tensor: updates its values `param` and the optimizer's `state` by the gradient
    /// `grad`. `param` and `grad` have one number for each element of the tensor, in f32, f16 or bf16. The result does not depend on the
    /// number of threads.
    ///
    /// Errors in the following cases, and leaves `param` and `state` unchanged then:
    ///
    /// - The lengths of `param`, `grad` and `state` differ.
    /// - `state` was made for another update rule than the configured one, or its moments have other bits than [`CheckedConfig::bits_of`]
    ///   returns for this length.
    /// - `state` has 8-bit moments with another block size or codebook than configured.
    /// - Percentile clipping is on, but `state` was made without it.
    /// - A gradient is not finite, or above 1e15 in magnitude.
    /// - With a weight decay above 0 that is added to the gradient ([`Decay::Gradient`]): a value of `param` is not finite, or above
    ///   `1e15 / max(1, weight_decay)` in magnitude.
    pub fn step<P: Element, G: Element>(&self, state: &mut State, param: &mut [P], grad: &[G]) -> Result<()> {
        self.step_with(&self.options(param.len()), state, param, grad, &Exec::new())
    }

    /// Returns the options with which [`CheckedConfig::step`] steps a tensor of `len` elements: the configured learning rate, a gradient
    /// factor of 1, weight decay on, and all elements `0..len` trained. They can be changed and passed to [`CheckedConfig::step_with`].
    pub fn options(&self, len: usize) -> StepOptions {
        StepOptions { lr: self.0.lr, grad_scale: 1.0, decay: true, active: 0..len }
    }

    /// Makes one step of the configured optimizer on one tensor: updates its values `param` and the optimizer's `state` by the gradient
    /// `grad`. `param` and `grad` have one number for each element of the tensor. `options` holds the learning rate, the factor of the
    /// gradient, whether weight decay applies, and the range of trained elements. The step runs in the thread pool of `exec`. Elements
    /// outside the range of trained elements keep their values; their gradients and values have no effect and are not checked, so that they
    /// may be NaN.
    ///
    /// Errors if the lengths of `param`, `grad` and `state` differ, or if `state` does not fit the configuration (update rule, bits, block
    /// size, codebook, percentile clipping), as [`CheckedConfig::step`] says. Errors if the gradient of a trained element is not finite, or
    /// above `1e15 / max(1, grad_scale)` in magnitude. If weight decay applies and is added to the gradient ([`Decay::Gradient`]), errors
    /// also if the value of a trained element is not finite, or above `1e15 / max(1, weight_decay)` in magnitude. Errors also if
    /// `options.lr` or `options.grad_scale` is negative or not finite, or if `options.active` is not inside `0..param.len()`. `param` and
    /// `state` are unchanged after an error.
    pub fn step_with<P: Element, G: Element>(
        &self,
        options: &StepOptions,
        state: &mut State,
        param: &mut [P],
        grad: &[G],
        exec: &Exec,
    ) -> Result<()> {
        exec.run(|| {
            let square = self.check_step(options, Some(state), param, grad, self.clips(), exec)?;
            self.update(options, state, param, grad, square, exec);
            Ok(())
        })
    }

    /// Returns whether percentile clipping is on.
    fn clips(&self) -> bool {
        self.0.percentile < 100
    }

    /// Checks a step; `state` is `None` before the first one. Returns the sum of the squares of the active gradients, or 0 without `wants_square`.
    /// Errors as [`CheckedConfig::step_with`].
    pub(super) fn check_step<P: Element, G: Element>(
        &self,
        options: &StepOptions,
        state: Option<&State>,
        param: &[P],
        grad: &[G],
        wants_square: bool,
        exec: &Exec,
    ) -> Result<f64> {
        let len = state.map_or(param.len(), |s| s.len);
        if (param.len(), grad.len()) != (len, len) {
            return Err(Error::shape("lengths of parameters and gradients", [len; 2], [param.len(), grad.len()]));
        }
        for (name, value) in [("lr", options.lr), ("grad_scale", options.grad_scale)] {
            if !(0.0..f32::INFINITY).contains(&value) {
                return Err(tersor_core::ParamError::new(name, value, "must be finite and at least 0").into());
            }
        }
        let active = options.active.clone();
        if active.start > active.end || active.end > len {
            return Err(Error::range("active elements", 0..len, active));
        }
        state.map_or(Ok(()), |s| self.check_state(s))?;
        if state.is_some_and(|s| s.step == u64::MAX) {
            return Err(Error::Overflow { what: "the number of steps of a state".into() });
        }
        let square = scan(exec, grad, active.clone(), ("gradient", options.grad_scale), wants_square)?;
        if options.decay && self.0.decay == Decay::Gradient && self.0.weight_decay > 0.0 {
            scan(exec, param, active, ("parameter", self.0.weight_decay), false)?;
        }
        Ok(square)
    }

    /// Makes a step that was checked. `square` is the sum of the squares of the gradient; only percentile clipping uses it.
    pub(super) fn update<P: Element, G: Element>(
        &self,
        options: &StepOptions,
        state: &mut State,
        param: &mut [P],
        grad: &[G],
        square: f64,
        exec: &Exec,
    ) {
        let (how, isa, lr) = (&self.0, exec.isa(), options.lr);
        let norm = if how.max_update > 0.0 { scan_norm(exec, &param[options.active.clone()]) } else { 0.0 };
        let t = state.step + 1;
        let scale = if self.clips() { clip(&mut state.norms, t, square, how.percentile) } else { 1.0 };
        let (adam, slow) = (how.adam_at(t), how.slow_mean_at(t));
        let weight_decay = if options.decay { how.weight_decay } else { 0.0 };
        let (active, parallel, scale) = (options.active.clone(), exec.parallel(), scale * options.grad_scale);
        let mut plan = Plan { how: self, isa, t, scale, factor: lr, weight_decay, active, parallel, adam, slow };
        if norm > 0.0 {
            let squares = plan.run(state, param, grad, |plan, unit, buffers| plan.measure(unit, buffers));
            let update = squares.into_iter().sum::<f64>().sqrt();
            let max = f64::from(how.max_update) * norm;
            if update > max {
                plan.factor = (f64::from(lr) * max / update) as f32;
            }
        }
        let decay = 1.0 - lr * weight_decay;
        let (before, after) = match how.decay {
            Decay::Gradient => (1.0, 1.0),
            Decay::BeforeStep => (decay, 1.0),
            Decay::AfterStep => (1.0, decay),
        };
        plan.run(state, param, grad, |plan, unit, buffers| plan.update(unit, buffers, [before, after]));
        state.step = t;
    }
}

/// Returns the sum of the squares of the active elements, or 0 without `squares`. Errors if one is not finite or above [`MAX_GRADIENT`] in magnitude;
/// `what` names the values.
fn scan<T: Element>(
    exec: &Exec,
    x: &[T],
    active: Range<usize>,
    (what, scale): (&str, f32),
    squares: bool,
) -> Result<f64> {
    let max = MAX_GRADIENT / scale.max(1.0);
    let too_large = |v: f32| v.is_nan() || v.abs() > max;
    let (isa, start) = (exec.isa(), active.start);
    let x = &x[active];
    let found = par::map(x.len().div_ceil(UNIT), exec.parallel(), Vec::new, |i, wide: &mut Vec<f32>| {
        let x = &x[i * UNIT..x.len().min((i + 1) * UNIT)];
        let x = widened(isa, x, wide);
        (blockwise::abs_max(isa, x), if squares { loops::sum_squares(x) } else { 0.0 })
    });
    if let Some(i) = found.iter().position(|(largest, _)| too_large(*largest)) {
        let at = i * UNIT + x[i * UNIT..].iter().position(|v| too_large(v.to_f32())).unwrap_or(0);
        let (value, at) = (x[at].to_f32(), at + start);
        return Err(match value.is_finite() {
            false => Error::NonFinite { row: 0, col: at, value },
            true => Error::Numerical(format!(
                "the {what} {value:e} at {at} is above {max:e}, the limit with the factor {scale}; scale the loss or the gradient down"
            )),
        });
    }
    Ok(found.iter().map(|(_, s)| s).sum())
}

/// Returns the norm of `x`; not finite if a value is not.
fn scan_norm<T: Element>(exec: &Exec, x: &[T]) -> f64 {
    let squares = par::map(x.len().div_ceil(UNIT), exec.parallel(), Vec::new, |i, wide: &mut Vec<f32>| {
        loops::sum_squares(widened(exec.isa(), &x[i * UNIT..x.len().min((i + 1) * UNIT)], wide))
    });
    squares.into_iter().sum::<f64>().sqrt()
}

/// Returns `x` as f32: itself, or widened into `wide`.
fn widened<'a, T: Element>(isa: Isa, x: &'a [T], wide: &'a mut Vec<f32>) -> &'a [f32] {
    T::as_f32(x).unwrap_or_else(|| {
        wide.resize(x.len(), 0.0);
        T::widen(isa, x, wide);
        wide
    })
}

/// Percentile clipping at step `t`: records `square`, the square of the gradient's norm, in `norms`, and returns the factor of the gradient.
fn clip(norms: &mut [f32], t: u64, square: f64, percentile: usize) -> f32 {
    let square = square.min(f64::from(f32::MAX)) as f32;
    match t {
        1 => norms.fill(square),
        _ => norms[(t % NORMS as u64) as usize] = square,
    }
    let mut sorted = norms.to_vec();
    sorted.sort_by(f32::total_cmp);
    let max = sorted[percentile.min(NORMS - 1)];
    if square > max { (f64::from(max) / f64::from(square)).sqrt() as f32 } else { 1.0 }
}

impl Plan<'_> {
    /// Calls `f` for every unit in the current pool. Returns the results in the order of the units.
    fn run<P: Element, G: Element, R: Send>(
        &self,
        state: &mut State,
        param: &mut [P],
        grad: &[G],
        f: impl Fn(&Self, &mut Unit<'_, P, G>, &mut Buffers) -> R + Sync + Send,
    ) -> Vec<R> {
        let block = state.block;
        let blocks = (UNIT / block).max(1);
        let size = blocks * block;
        let units = param.chunks_mut(size).zip(grad.chunks(size));
        let of = |i: usize, v: usize| v.clamp(i * size, (i + 1) * size) - i * size;
        let unit = |(i, (p, g))| {
            let active = of(i, self.active.start)..of(i, self.active.end);
            Unit { p, g, parts: Vec::with_capacity(3), active }
        };
        let mut units: Vec<_> = units.enumerate().map(unit).collect();
        for moment in &mut state.moments {
            match moment {
                Moment::Full(v) => {
                    units.iter_mut().zip(v.chunks_mut(size)).for_each(|(u, v)| u.parts.push(Part::Full(v)));
                }
                Moment::Blocks { map, codes, absmax } => {
                    let parts = codes.chunks_mut(size).zip(absmax.chunks_mut(blocks));
                    for (unit, (codes, absmax)) in units.iter_mut().zip(parts) {
                        unit.parts.push(Part::Blocks { map, codes, absmax });
                    }
                }
            }
        }
        let mut none = vec![(); units.len()];
        par::pairs(&mut units, 1, &mut none, 1, self.parallel, |_, units, _| {
            units.iter_mut().map(|unit| f(self, unit, &mut Buffers::default())).next()
        })
        .into_iter()
        .flatten()
        .collect()
    }

    /// Computes the moments after the step and its direction for the block `at` of a unit, into `buffers`.
    fn advance<P: Element, G: Element>(
        &self,
        unit: &Unit<'_, P, G>,
        at: std::ops::Range<usize>,
        block: usize,
        buffers: &mut Buffers,
    ) {
        let (how, isa, n) = (&self.how.0, self.isa, at.len());
        for v in [&mut buffers.g, &mut buffers.u, &mut buffers.p] {
            v.resize(n, 0.0);
        }
        for (part, out) in unit.parts.iter().zip(&mut buffers.moments) {
            out.resize(n, 0.0);
            match part {
                Part::Full(v) => out.copy_from_slice(&v[at.clone()]),
                Part::Blocks { map, codes, absmax } => {
                    map.decode(isa, &codes[at.clone()], absmax[at.start / block], out)
                }
            }
        }
        let partly = at.start < unit.active.start || unit.active.end < at.end;
        if how.skip_zeros || partly {
            for (old, now) in buffers.old.iter_mut().zip(&buffers.moments) {
                old.clone_from(now);
            }
        }
        let Buffers { moments: [a, b, c], p, raw, g, u, .. } = buffers;
        let (p, raw) = (widened(isa, &unit.p[at.clone()], p), widened(isa, &unit.g[at.clone()], raw));
        let decay = if how.decay == Decay::Gradient { self.weight_decay } else { 0.0 };
        loops::effective(isa, raw, self.scale, p, decay, g);
        let [beta1, beta2, _] = how.betas;
        match how.rule {
            Rule::Adam => loops::adam(isa, self.adam, g, a, b, u),
            Rule::AdEmaMix => loops::ademamix(isa, self.adam, self.slow, g, [a, b], c, u),
            Rule::Momentum => loops::momentum(isa, beta1, self.t == 1, how.nesterov, g, a, u),
            Rule::Lion => loops::lion(isa, beta1, beta2, g, a, u),
            Rule::RmsProp => loops::scaled(isa, beta2, 1.0 - beta2, how.eps, g, a, u),
            Rule::Adagrad => loops::scaled(isa, 1.0, 1.0, how.eps, g, a, u),
        }
        if how.skip_zeros {
            for (old, now) in buffers.old.iter().zip(&mut buffers.moments) {
                loops::restore(isa, raw, old, now);
            }
            u.iter_mut().zip(raw).filter(|(_, g)| **g == 0.0).for_each(|(u, _)| *u = 0.0);
        }
        if partly {
            for (old, now) in buffers.old.iter().zip(&mut buffers.moments).filter(|(_, now)| !now.is_empty()) {
                outside(&unit.active, &at).for_each(|i| now[i.clone()].copy_from_slice(&old[i]));
            }
            outside(&unit.active, &at).for_each(|i| u[i].fill(0.0));
        }
    }

    /// Returns the sum of the squares of the unit's direction.
    fn measure<P: Element, G: Element>(&self, unit: &mut Unit<'_, P, G>, buffers: &mut Buffers) -> f64 {
        let (block, n) = (self.how.0.block, unit.p.len());
        let mut sum = 0.0;
        for start in (0..n).step_by(block) {
            let at = start..n.min(start + block);
            if unit.active.end <= at.start || at.end <= unit.active.start {
                continue;
            }
            self.advance(unit, at, block, buffers);
            sum += loops::sum_squares(&buffers.u);
        }
        sum
    }

    /// Updates parameters and moments of a unit. Active parameters are multiplied by `before` before the update, and by `after` after it.
    fn update<P: Element, G: Element>(
        &self,
        unit: &mut Unit<'_, P, G>,
        buffers: &mut Buffers,
        [before, after]: [f32; 2],
    ) {
        let (how, isa, n) = (&self.how.0, self.isa, unit.p.len());
        for start in (0..n).step_by(how.block) {
            let at = start..n.min(start + how.block);
            let without = unit.active.end <= at.start || at.end <= unit.active.start;
            if without || how.skip_zeros && unit.g[at.clone()].iter().all(|g| g.to_f32() == 0.0) {
                continue;
            }
            let partly = at.start < unit.active.start || unit.active.end < at.end;
            self.advance(unit, at.clone(), how.block, buffers);
            // Prefetch of the next block.
            let next = at.end..n.min(at.end + how.block.min(STEP));
            blockwise::fetch(isa, &unit.p[next.clone()]);
            blockwise::fetch(isa, &unit.g[next]);
            let Buffers { moments, p: wide, old_p, raw, u, .. } = &mut *buffers;
            {
                let (p, active) = (&mut unit.p[at.clone()], unit.active.clone());
                let step = |p: &mut [f32], old: &mut Vec<f32>, raw: &[f32]| {
                    if how.skip_zeros || partly {
                        old.clear();
                        old.extend_from_slice(p);
                    }
                    loops::advance(isa, u, self.factor, before, after, p);
                    if how.skip_zeros {
                        loops::restore(isa, raw, old, p);
                    }
                    outside(&active, &at).for_each(|i| p[i.clone()].copy_from_slice(&old[i]));
                };
                let raw = widened(isa, &unit.g[at.clone()], raw);
                match P::as_f32_mut(p) {
                    Some(p) => step(p, old_p, raw),
                    None => {
                        P::widen(isa, p, wide);
                        step(wide, old_p, raw);
                        P::narrow(isa, wide, p);
                    }
                }
            }
            for (part, now) in unit.parts.iter_mut().zip(moments) {
                match part {
                    Part::Full(v) => v[at.clone()].copy_from_slice(now),
                    Part::Blocks { map, codes, absmax } => {
                        let max = blockwise::abs_max(isa, now);
                        absmax[at.start / how.block] = max;
                        let codes = &mut codes[at.clone()];
                        map.encode(isa, now, tersor_operators::inverse_scale(max), codes);
                        if map.kind() == MapKind::Dynamic {
                            loops::keep_signs(isa, now, map.zero(), codes);
                        }
                    }
                }
            }
        }
    }
}

/// Returns the ranges of the block `at` that are not active, relative to its start.
fn outside(active: &Range<usize>, at: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let of = |v: usize| v.clamp(at.start, at.end) - at.start;
    let (start, end) = (of(active.start), of(active.end));
    [0..start, end..at.len()].into_iter().filter(|r| !r.is_empty())
}

impl super::OptimizerConfig {
    /// Returns the coefficients of Adam at step `t`, bias corrections included.
    fn adam_at(&self, t: u64) -> Adam {
        let [beta1, beta2, _] = self.betas;
        let [c1, c2] = [beta1, beta2].map(|b| 1.0 - f64::from(b).powf(t as f64));
        Adam { beta1, beta2, eps: self.eps, correction1: c1 as f32, correction2: c2.sqrt() as f32 }
    }

    /// Returns the decay rate and the weight of the slow mean at step `t`, with warm-up (arXiv 2409.03137, section 3).
    fn slow_mean_at(&self, t: u64) -> SlowMean {
        let [beta1, _, beta3] = self.betas.map(f64::from);
        let part = |steps: u64| if steps == 0 { 1.0 } else { (t as f64 / steps as f64).min(1.0) };
        let [alpha, r] = self.warmup.map(part);
        let grown = match r < 1.0 && beta1 > 0.0 && beta3 > 0.0 {
            true => {
                let (a, b) = (beta1.ln(), beta3.ln());
                (a * b / ((1.0 - r) * b + r * a)).exp().min(beta3)
            }
            false => beta3,
        };
        SlowMean { beta3: grown as f32, alpha: (f64::from(self.alpha) * alpha) as f32 }
    }
}
