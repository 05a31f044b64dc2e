//! Mixed precision: of several choices for each matrix, those that together lose the least under a budget.

use tersor_core::{Error, ParamError, Result};

/// One way to store a matrix.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// What it takes, in whatever unit the budget is in: bytes, say.
    pub cost: u64,
    /// What it loses; losses of matrices add.
    pub loss: f64,
}

/// Steps that the budget is cut into at most.
const STEPS: u64 = 1 << 16;

/// One choice for each matrix, by number, so that costs stay within the budget and losses are small: a dynamic program over the budget above the
/// cheapest choices. The best there is where that difference is at most 65 536 times the greatest common divisor of all costs' differences; else
/// costs are rounded up to a 65 536th of it, and what the rounding leaves over is spent on what gains most for it.
///
/// Error when a matrix has no choice, a loss or a sum of losses is not finite, or the cheapest choices are above the budget.
pub fn allocate(matrices: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>> {
    let (mut min, mut largest) = (0u64, 0f64);
    for (i, choices) in matrices.iter().enumerate() {
        let bad = |what: &'static str| Error::shape(what, "at least one, with finite losses", format!("matrix {i}"));
        largest += choices.iter().map(|c| c.loss.abs()).fold(0.0, f64::max);
        // Sums of losses must stay finite, too.
        if choices.iter().any(|c| !c.loss.is_finite()) || !largest.is_finite() {
            return Err(bad("losses of choices"));
        }
        let cheapest = choices.iter().map(|c| c.cost).min().ok_or_else(|| bad("choices"))?;
        min = min.checked_add(cheapest).ok_or_else(|| Error::Overflow { what: "costs".into() })?;
    }
    let Some(spare) = budget.checked_sub(min) else {
        return Err(ParamError::new("budget", budget, format!("must be at least {min}")).into());
    };
    // What each choice takes above its matrix' cheapest.
    let extra = |choices: &[Choice]| -> Vec<u64> {
        let cheapest = choices.iter().map(|c| c.cost).min().unwrap_or(0);
        choices.iter().map(|c| c.cost - cheapest).collect()
    };
    let extras: Vec<Vec<u64>> = matrices.iter().map(|c| extra(c)).collect();
    let divisor = extras.iter().flatten().fold(0, |a, b| gcd(a, *b)).max(1);
    let unit = divisor * (spare / divisor).div_ceil(STEPS).max(1);
    let steps = (spare / unit) as usize;

    // Least loss of the matrices so far within so many steps, and what the last of them chose.
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
    let (mut left, mut picks) = (steps, vec![0usize; matrices.len()]);
    for (i, chosen) in chosen.iter().enumerate().rev() {
        picks[i] = chosen[left] as usize;
        left -= extras[i][picks[i]].div_ceil(unit) as usize;
    }
    spend(matrices, &extras, spare, &mut picks);
    Ok(picks)
}

/// Spends what is left, the best gain for its cost first.
fn spend(matrices: &[Vec<Choice>], extras: &[Vec<u64>], spare: u64, picks: &mut [usize]) {
    let mut left = spare - picks.iter().zip(extras).map(|(p, e)| e[*p]).sum::<u64>();
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, choices) in matrices.iter().enumerate() {
            let (now, taken) = (choices[picks[i]], extras[i][picks[i]]);
            for (number, choice) in choices.iter().enumerate() {
                let more = extras[i][number].saturating_sub(taken);
                let rate = (now.loss - choice.loss) / (more.max(1)) as f64;
                if choice.loss < now.loss && more <= left && best.is_none_or(|b| rate > b.0) {
                    best = Some((rate, i, number));
                }
            }
        }
        let Some((_, i, number)) = best else { return };
        left = left + extras[i][picks[i]] - extras[i][number];
        picks[i] = number;
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(matrices: &[Vec<Choice>], picks: &[usize]) -> (u64, f64) {
        let of = matrices.iter().zip(picks).map(|(c, p)| c[*p]);
        of.fold((0, 0.0), |(cost, loss), c| (cost + c.cost, loss + c.loss))
    }

    /// The least loss within the budget, by trying everything.
    fn brute(matrices: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = matrices.split_first() else { return Some(0.0) };
        let fits = first.iter().filter(|c| c.cost <= budget);
        let tried = fits.filter_map(|c| Some(c.loss + brute(rest, budget - c.cost)?));
        tried.min_by(f64::total_cmp)
    }

    fn cases(max: u64) -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let choice = (0..max, 0u32..1000).prop_map(|(cost, loss)| Choice { cost, loss: f64::from(loss) / 8.0 });
        prop::collection::vec(prop::collection::vec(choice, 1..5), 1..6)
    }

    proptest! {
        #[test]
        fn small_cases_are_exact(matrices in cases(200), budget in 0u64..800) {
            match (allocate(&matrices, budget), brute(&matrices, budget)) {
                (Ok(picks), Some(best)) => {
                    let (cost, loss) = total(&matrices, &picks);
                    prop_assert!(cost <= budget);
                    prop_assert!((loss - best).abs() < 1e-9, "{} for {}", loss, best);
                }
                (Err(e), None) => prop_assert!(e.is_usage()),
                (found, want) => prop_assert!(false, "{found:?} for {want:?}"),
            }
        }

        #[test]
        fn large_costs_stay_within_the_budget_and_near_the_best(matrices in cases(1 << 40), budget in 0u64..1 << 42) {
            if let (Ok(picks), Some(best)) = (allocate(&matrices, budget), brute(&matrices, budget)) {
                let (cost, loss) = total(&matrices, &picks);
                prop_assert!(cost <= budget && loss >= best - 1e-9);
                // Rounding up costs no more than a 65 536th of the budget for each matrix.
                let less = budget - (budget >> 16) * matrices.len() as u64;
                if let Some(bound) = brute(&matrices, less) {
                    prop_assert!(loss <= bound + 1e-9, "{loss} above {bound}");
                }
            }
        }
    }

    #[test]
    fn more_never_hurts_and_bad_input_is_refused() {
        let matrices: Vec<Vec<Choice>> = (1..40u64)
            .map(|i| {
                (2..9u64).map(|b| Choice { cost: b * i * 1000 + 7, loss: i as f64 / 4f64.powi(b as i32) }).collect()
            })
            .collect();
        let mut before = f64::INFINITY;
        for budget in (1_600_000..6_400_000).step_by(100_000) {
            let loss = total(&matrices, &allocate(&matrices, budget).unwrap()).1;
            assert!(loss <= before * (1.0 + 1e-3), "{budget}");
            before = loss;
        }
        assert!(allocate(&matrices, 10).unwrap_err().to_string().contains("at least"));
        assert!(allocate(&[vec![]], 10).is_err());
        assert!(allocate(&[vec![Choice { cost: 1, loss: f64::NAN }]], 10).is_err());
        let large = [9, 0].map(|cost| Choice { cost, loss: f64::MAX }).to_vec();
        assert!(allocate(&[large.clone(), large], 10).is_err());
        assert!(allocate(&[], 0).unwrap().is_empty());
        let huge = vec![Choice { cost: u64::MAX, loss: 0.0 }];
        assert!(allocate(&[huge.clone(), huge], 10).is_err());
    }
}
