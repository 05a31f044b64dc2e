//! From GPTQ's codes to lookup tables.

use tersor_core::{Exec, LinearOp, Result, metrics};
use tersor_operators::{GroupedLinear, TableLinear};

/// Converts `grouped`, which GPTQ made of the weights `w` `[rows, cols]`, to lookup tables. Returns them with the squared error of their weights.
/// Errors if a scale does not fit f16 or f32.
pub(super) fn to_tables(grouped: &GroupedLinear, w: &[f32], exec: &Exec) -> Result<(TableLinear, f64)> {
    let op = TableLinear::of_grouped(grouped, exec)?;
    let mut back = vec![0f32; w.len()];
    op.decompress_rows(0..op.shape()[0], &mut back, exec)?;
    let error = metrics::squared_error(w, &back);
    Ok((op, error))
}
