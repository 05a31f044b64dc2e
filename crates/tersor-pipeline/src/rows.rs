//! Matrices in blocks of rows.

use tersor_core::{Exec, LinearOp, Result, TensorInfo, TensorSink, TensorSource, check_finite};

/// Returns how many rows of `cols` columns are converted or checked at once.
pub(crate) fn block_rows(cols: usize) -> usize {
    ((8usize << 20) / 4 / cols.max(1)).max(1)
}

/// Errors if a value of an operator is not finite. Rows are dequantized in blocks.
pub(crate) fn check_values(op: &dyn LinearOp, exec: &Exec) -> Result<()> {
    let [rows, cols] = op.shape();
    let step = block_rows(cols);
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let mut block = vec![0f32; (last - first) * cols];
        op.decompress_rows(first..last, &mut block, exec)?;
        check_finite(&block, cols, first)?;
    }
    Ok(())
}

/// Copies a stored tensor in blocks; `check` receives each block with the index of its first row.
pub(crate) fn copy_rows(
    source: &dyn TensorSource,
    name: &str,
    info: &TensorInfo,
    check: impl Fn(usize, &[u8]) -> Result<()>,
    sink: &mut dyn TensorSink,
) -> Result<()> {
    let total = info.bytes().map_err(|e| e.in_tensor(name))?;
    let rows = info.shape.first().copied().unwrap_or(1).max(1);
    let width = total / rows;
    let step = ((8usize << 20) / width.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let mut bytes = vec![0u8; step.min(rows - first) * width];
        source.read_at(name, (first * width) as u64, &mut bytes)?;
        check(first, &bytes).map_err(|e| e.in_tensor(name))?;
        if info.shape.is_empty() {
            sink.write_shared(name, info, &bytes)?;
        } else {
            sink.write_rows(name, info, first, &bytes)?;
        }
    }
    Ok(())
}
