//! Rounding of rows to 8-bit integers.

/// The largest code.
const MAX_CODE: f32 = 127.0;

/// Returns the codes of the finite `values`, rows of `cols`, and the largest magnitude of each of the `rows` rows. Rows whose scale is not finite
/// become zeros, with the magnitude 0.
pub(super) fn round_rows(values: &[f32], [rows, cols]: [usize; 2]) -> (Vec<i8>, Vec<f32>) {
    let (cols, mut codes, mut absmax) = (cols.max(1), vec![0i8; values.len()], vec![0f32; rows]);
    for ((row, out), absmax) in values.chunks(cols).zip(codes.chunks_mut(cols)).zip(&mut absmax) {
        let max = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = MAX_CODE / max;
        if scale.is_finite() {
            *absmax = max;
            out.iter_mut().zip(row).for_each(|(c, v)| *c = (v * scale).round_ties_even() as i8);
        }
    }
    (codes, absmax)
}
