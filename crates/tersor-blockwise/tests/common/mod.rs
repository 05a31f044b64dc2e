//! Values that the tests share.

/// Returns approximately normal values, from a seed.
pub fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (0..4).map(|i| (state >> (16 * i)) as u16 as f32 / 65_536.0 - 0.5).sum::<f32>()
    };
    (0..n).map(|_| next()).collect()
}
