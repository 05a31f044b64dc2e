//! Quantities as text for messages.

/// Returns a number of bytes as text in decimal units: GB or MB with two decimals, or kB with one below a million bytes, such as `12.30 MB`.
pub fn megabytes(bytes: u64) -> String {
    let b = bytes as f64;
    if b >= 1e9 {
        format!("{:.2} GB", b / 1e9)
    } else if b >= 1e6 {
        format!("{:.2} MB", b / 1e6)
    } else {
        format!("{:.1} kB", b / 1e3)
    }
}
