//! Budgets over matrices against exhaustive search.

use proptest::prelude::*;
use tersor_pipeline::budget::{Choice, allocate};

fn total(matrices: &[Vec<Choice>], picks: &[usize]) -> (u64, f64) {
    let of = matrices.iter().zip(picks).map(|(c, p)| c[*p]);
    of.fold((0, 0.0), |(cost, loss), c| (cost + c.cost, loss + c.loss))
}

/// Returns the smallest loss within the budget, by trying all choices.
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
fn larger_budgets_lose_less_and_bad_input_is_refused() {
    let matrices: Vec<Vec<Choice>> = (1..40u64)
        .map(|i| (2..9u64).map(|b| Choice { cost: b * i * 1000 + 7, loss: i as f64 / 4f64.powi(b as i32) }).collect())
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
