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
        let params = if w.is_empty() { Vec::new() } else { vec![spec.quant_params_weighted(isa, w, importance)?] };
        return GroupedLinear::round(*spec, shape, w, &params, isa);
    }
    GroupedLinear::encode(*spec, shape, w, isa, |r, row, params| {
        check_finite(row, cols, r)?;
        for ((g, span), out) in spans(spec, cols).enumerate().zip(params) {
            let weights = importance.get(span.clone()).unwrap_or_default();
            *out = spec.quant_params_at(isa, &row[span], weights, [r, g])?;
        }
        Ok(())
    })
}
