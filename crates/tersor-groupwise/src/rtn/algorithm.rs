//! Rounding of all groups of a matrix.

use tersor_core::{GroupSize, Isa, Result, check_finite};
use tersor_operators::{GroupSpec, GroupedLinear, spans};

/// Rounds `w`, of the shape `[out_features, in_features]`, to the grids of its groups, rows in parallel in the current pool. `importance`,
/// `[in_features]` or empty, weights the errors of the clip search. Errors if a weight is not finite, or a scale does not fit its stored type.
pub(super) fn round(
    spec: &GroupSpec,
    w: &[f32],
    shape: [usize; 2],
    importance: &[f32],
    isa: Isa,
) -> Result<GroupedLinear> {
    let cols = shape[1];
    if spec.group() == GroupSize::Tensor {
        check_finite(w, cols, 0)?;
        let fits = if w.is_empty() { Vec::new() } else { vec![spec.fit_weighted(isa, w, importance)?] };
        return GroupedLinear::round(*spec, shape, w, &fits, isa);
    }
    GroupedLinear::encode(*spec, shape, w, isa, |r, row, fits| {
        check_finite(row, cols, r)?;
        for ((g, span), fit) in spans(spec, cols).enumerate().zip(fits) {
            let weights = importance.get(span.clone()).unwrap_or_default();
            *fit = spec.fit_at(isa, &row[span], weights, [r, g])?;
        }
        Ok(())
    })
}
