//! Mixed precision: [`allocate`] picks one of several stored forms for each matrix, with the smallest total loss under a budget.

use tersor_core::{Error, ParamError, Result};

/// One form in which a matrix can be stored, for [`allocate`]: its cost and the loss that it causes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// The cost of storing the matrix in this form, for example in bytes. The costs of all matrices and the `budget` of [`allocate`] have the same
    /// unit.
    pub cost: u64,
    /// The loss of the network if the matrix is stored in this form, such as a divergence of its predictions. [`allocate`] adds the losses of all
    /// matrices, so they have the same unit. It may be negative and must be finite.
    pub loss: f64,
}

/// The maximum number of steps that the spare budget is divided into.
const STEPS: u64 = 1 << 16;

/// Chooses for each matrix one of several forms to store it in, so that the costs add up to at most `budget` and the sum of the losses is small
/// (mixed precision). `matrices[i]` has the possible forms of matrix `i`; costs and `budget` have the same unit. Returns for each matrix the index of
/// its form in `matrices[i]`, counted from 0; an empty list if there is no matrix.
///
/// The spare budget is `budget` minus the sum of the costs of the cheapest form of each matrix. The extra cost of a form is its cost above that of
/// the cheapest form of the same matrix. A dynamic program spends the spare budget on extra costs. The sum of the losses is the smallest possible if
/// the spare budget is at most 65 536 times the greatest common divisor of all extra costs. With a larger spare budget, the program counts in at most
/// 65 536 equal steps and rounds each extra cost up to whole steps. What the rounding leaves over is then spent on single changes of form, the one
/// with the largest decrease of loss per cost first.
///
/// Errors with [`Error::Missing`], with the index of the matrix, if a matrix has no form. Errors with [`Error::Numerical`], with the index of the
/// matrix, if a loss is not finite or the sum of the largest losses overflows. Errors with [`Error::Param`] of the parameter `budget` if the costs of
/// the cheapest forms add up to more than `budget`, and with [`Error::Overflow`] if their sum exceeds `u64`.
///
/// ```
/// use tersor_pipeline::budget::{Choice, allocate};
/// # fn main() -> tersor_core::Result<()> {
/// // Two matrices at 4 or 8 bits; only one can have 8.
/// let matrix = |loss| vec![Choice { cost: 4, loss }, Choice { cost: 8, loss: 0.0 }];
/// assert_eq!(allocate(&[matrix(1.0), matrix(3.0)], 12)?, [0, 1]);
/// assert!(allocate(&[matrix(1.0), matrix(3.0)], 7).is_err());
/// # Ok(())
/// # }
/// ```
pub fn allocate(matrices: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>> {
    let (mut min, mut largest) = (0u64, 0f64);
    for (i, choices) in matrices.iter().enumerate() {
        largest += choices.iter().map(|c| c.loss.abs()).fold(0.0, f64::max);
        // Sums of losses must be finite, too.
        if choices.iter().any(|c| !c.loss.is_finite()) || !largest.is_finite() {
            return Err(Error::Numerical(format!(
                "the losses of the choices of matrix {i}, or their sum, are not finite"
            )));
        }
        let cheapest = choices
            .iter()
            .map(|c| c.cost)
            .min()
            .ok_or_else(|| Error::missing(format!("a choice of matrix {i}"), "the choices"))?;
        min = min
            .checked_add(cheapest)
            .ok_or_else(|| Error::Overflow { what: "the sum of the smallest costs".into() })?;
    }
    let Some(spare) = budget.checked_sub(min) else {
        return Err(ParamError::new(
            "budget",
            budget,
            format!("must be at least {min}, the sum of the smallest costs"),
        )
        .into());
    };
    // Cost of each choice above the cheapest of its matrix.
    let extra = |choices: &[Choice]| -> Vec<u64> {
        let cheapest = choices.iter().map(|c| c.cost).min().unwrap_or(0);
        choices.iter().map(|c| c.cost - cheapest).collect()
    };
    let extras: Vec<Vec<u64>> = matrices.iter().map(|c| extra(c)).collect();
    let divisor = extras.iter().flatten().fold(0, |a, b| gcd(a, *b)).max(1);
    let unit = divisor * (spare / divisor).div_ceil(STEPS).max(1);
    let steps = (spare / unit) as usize;

    // Smallest loss of the matrices so far for each number of steps, and the choice of the last matrix.
    let mut best = vec![0f64; steps + 1];
    let mut chosen: Vec<Vec<u32>> = Vec::with_capacity(matrices.len());
    for (choices, extra) in matrices.iter().zip(&extras) {
        let (mut next, mut picks) = (vec![f64::INFINITY; steps + 1], vec![0u32; steps + 1]);
        for (number, (choice, extra)) in choices.iter().zip(extra).enumerate() {
            let takes = extra.div_ceil(unit);
            if takes > steps as u64 {
                continue;
            }
            let takes = takes as usize;
            for (at, before) in best[..=steps - takes].iter().enumerate() {
                let loss = before + choice.loss;
                if loss < next[at + takes] {
                    (next[at + takes], picks[at + takes]) = (loss, number as u32);
                }
            }
        }
        best = next;
        chosen.push(picks);
    }
    let (mut remaining, mut picks) = (steps, vec![0usize; matrices.len()]);
    for (i, chosen) in chosen.iter().enumerate().rev() {
        picks[i] = chosen[remaining] as usize;
        remaining -= extras[i][picks[i]].div_ceil(unit) as usize;
    }
    spend(matrices, &extras, spare, &mut picks);
    Ok(picks)
}

/// Improves `picks` while the budget lasts: each time the choice with the largest gain per additional cost.
fn spend(matrices: &[Vec<Choice>], extras: &[Vec<u64>], spare: u64, picks: &mut [usize]) {
    let mut remaining = spare - picks.iter().zip(extras).map(|(p, e)| e[*p]).sum::<u64>();
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, choices) in matrices.iter().enumerate() {
            let (now, taken) = (choices[picks[i]], extras[i][picks[i]]);
            for (number, choice) in choices.iter().enumerate() {
                let more = extras[i][number].saturating_sub(taken);
                let rate = (now.loss - choice.loss) / (more.max(1)) as f64;
                if choice.loss < now.loss && more <= remaining && best.is_none_or(|b| rate > b.0) {
                    best = Some((rate, i, number));
                }
            }
        }
        let Some((_, i, number)) = best else { return };
        remaining = remaining + extras[i][picks[i]] - extras[i][number];
        picks[i] = number;
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
