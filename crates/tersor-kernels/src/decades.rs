//! Codes of the 8-bit dynamic map (arXiv 2110.02861), computed rather than searched: inside a decade its values are equally spaced, so a
//! code follows from the decade and one multiply-add.

/// Sorted values that consist of 0, seven decades of equally spaced values, and 1; signed maps are symmetric about 0.
///
/// The magnitudes are cut into pieces at [`edges`](Self::edges). The code of a magnitude `a`, counted from the code of 0, is `floor(slope *
/// a + offset)`, at most `top`, with the constants of its piece. Where `slope * a + offset` is within [`NEAR`] of an integer, rounding
/// could decide, and the midpoints of the values are compared instead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decades {
    pub signed: bool,
    /// The upper ends of the eight pieces that the magnitudes of an 8-bit dynamic map (arXiv 2110.02861) are cut into, ascending, as the
    /// bits of floats (`f32::to_bits`). Pieces 0 to 6 are the seven decades of the map, inside of which its values are equally spaced; the
    /// lowest includes the value 0. Piece 7 is the value 1. `edges[i]` is the largest magnitude for which the nearest value of the map lies
    /// in piece `i` or below. The last piece has no upper end: `edges[7]` is `i32::MAX`.
    pub edges: [i32; 8],
    /// Constants `[c, f]` that estimate in which of eight pieces a magnitude of at most 2 lies: pieces 0 to 6 are the seven decades of an
    /// 8-bit dynamic map (arXiv 2110.02861), piece 7 is the value 1. The estimate is `floor(max(u - c, 0) * f / 65536)`, 0 to 7, where `u`
    /// is the upper 16 bits of the magnitude as a float. It is the index of the piece that contains the magnitude, or one less; a
    /// comparison with the upper ends of the pieces, `edges`, decides between the two.
    pub log: [u16; 2],
    pub slopes: [f32; 8],
    pub offsets: [f32; 8],
    pub tops: [f32; 8],
}

/// The distance from an integer below which midpoints decide: many times the rounding error of `slope * a + offset` for codes up to 255.
pub(crate) const NEAR: f32 = 1.0 / 8192.0;

impl Decades {
    /// Returns the constants by which codes of an 8-bit dynamic map (arXiv 2110.02861) are computed instead of searched for, if `values`
    /// are those of such a map; None otherwise. `values` are the values of a codebook in ascending order, 256 for such a map; `middles[i]`
    /// is the midpoint of values `i` and `i + 1`, and may be followed by an infinity.
    pub fn of(values: &[f32], middles: &[f32]) -> Option<Self> {
        let signed = *values.first()? < 0.0;
        let (zero, scale) = if signed { (127, 1) } else { (0, 2) };
        let (low, up) = middles.split_at_checked(zero)?;
        let positive = values.get(zero..)?;
        // `first(d)` is the first code of a decade, counted from 0's; `up[k]` is where code `k + 1` begins.
        let first = |decade: usize| (scale << decade) - (scale - 1);
        if values.len() != 256 || positive[0] != 0.0 || !low.iter().rev().zip(up).all(|(a, b)| -a == *b) {
            return None;
        }
        let mut found = Self {
            signed,
            edges: [i32::MAX; 8],
            log: [0; 2],
            slopes: [0.0; 8],
            offsets: [0.0; 8],
            tops: [positive.len() as f32; 8],
        };
        for piece in 0..8 {
            let (start, next) = (first(piece), first(piece + 1));
            // The lowest piece has 0 as well, the last one is 1 alone.
            let (slope, offset) = match piece {
                0 => {
                    let slope = 1.0 / (f64::from(up[1]) - f64::from(up[0]));
                    (slope, 1.0 - slope * f64::from(up[0]))
                }
                7 => (0.0, start as f64 + 0.5),
                _ => {
                    let slope = (next - 1 - start) as f64 / f64::from(positive[next - 1] - positive[start]);
                    (slope, (start + 1) as f64 - slope * f64::from(up[start]))
                }
            };
            (found.slopes[piece], found.offsets[piece]) = (slope as f32, offset as f32);
            if piece < 7 {
                found.tops[piece] = next as f32 - 0.5;
                found.edges[piece] = up[next - 1].to_bits() as i32;
                let line = |a: f32| found.slopes[piece].mul_add(a, found.offsets[piece]);
                let from = if piece == 0 { 0 } else { start };
                let straight = (from..next - 1).all(|k| (line(up[k]) - (k + 1) as f32).abs() < NEAR / 4.0);
                // What lies above the edge belongs to this piece's first code at least.
                let below = if piece == 0 { 0.0 } else { up[start - 1] };
                if !straight || line(below) < from as f32 + 2.0 * NEAR {
                    return None;
                }
            }
        }
        // Decades less and less apart, beginning with half a decade above the first edge.
        let first = (found.edges[0] >> 16) as u16;
        let logs =
            (140..200).flat_map(|factor| (0..500).step_by(20).map(move |less| [first.saturating_sub(less), factor]));
        found.log = logs.into_iter().find(|log| found.is_rough(*log))?;
        Some(found)
    }

    fn is_rough(&self, log: [u16; 2]) -> bool {
        let at = |bits: i32| rough(log, bits) as usize;
        let edges = self.edges[..7].iter().enumerate();
        // It grows with the float, so that the edges decide. Floats are at most 2.
        edges.into_iter().all(|(j, e)| at(*e) <= j && at(e + 1) >= j) && at(2f32.to_bits() as i32) < 8
    }
}

fn rough([less, factor]: [u16; 2], bits: i32) -> u32 {
    (u32::from(((bits >> 16) as u16).saturating_sub(less)) * u32::from(factor)) >> 16
}

#[cfg(test)]
mod tests {
    use crate::Isa;
    use crate::codebook::Codebook;

    /// A map in the spirit of the dynamic one: 0, 1, and seven decades of `scale << decade` steps, mirrored or not.
    fn values(signed: bool) -> Vec<f32> {
        let mut values = vec![0.0, 1.0];
        for decade in 0..7 {
            let cells = (if signed { 1 } else { 2 }) << decade;
            for i in 0..cells {
                let value = (10f64.powi(decade - 6) * (0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(cells))) as f32;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        values
    }

    #[test]
    #[cfg_attr(miri, ignore = "the tables of codebooks take too long")]
    fn computed_codes_are_those_of_the_search() {
        for signed in [false, true] {
            let values = values(signed);
            let book = Codebook::new(&values).unwrap();
            assert!(book.is_computed());
            // Around every value and every middle, in both directions, and over all exponents.
            let mut x: Vec<f32> = vec![0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e30, -1e30, f32::MIN_POSITIVE, 1e-45, -1e-45];
            let middles = values.windows(2).map(|w| (w[0] + w[1]) / 2.0);
            for v in values.iter().copied().chain(middles) {
                let (mut low, mut up) = (v, v);
                for _ in 0..40 {
                    x.extend([low, up, -low, -up]);
                    (low, up) = (low.next_down(), up.next_up());
                }
            }
            x.extend((0..1u32 << 18).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).filter(|v| v.is_finite()));
            // And where the codes lie: exponents of 2^-26 to 1.
            let dense = (0..1u32 << 18).map(|i| f32::from_bits((101 << 23) + i.wrapping_mul(0x0035_79b9) % (27 << 23)));
            x.extend(dense.flat_map(|v| [v, -v]));
            for scale in [1.0f32, 0.37] {
                let (mut want, mut got) = (vec![0u8; x.len()], vec![1u8; x.len()]);
                book.nearest(Isa::SCALAR, &x, scale, &mut want);
                for isa in Isa::available() {
                    book.nearest(isa, &x, scale, &mut got);
                    let mut blocks = vec![1u8; x.len()];
                    book.nearest_blocks(isa, &x, &vec![scale; x.len()], 320, &mut blocks);
                    assert!(blocks == got);
                    let wrong = (0..x.len()).find(|i| want[*i] != got[*i]);
                    assert_eq!(wrong.map(|i| (x[i], want[i], got[i])), None);
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "the tables of codebooks take too long")]
    fn other_maps_are_searched() {
        let linear: Vec<f32> = (0..256).map(|i| i as f32 / 255.0).collect();
        let mut moved = values(true);
        moved[200] *= 1.001;
        let mut shifted = values(false);
        shifted.iter_mut().for_each(|v| *v += 0.5);
        for values in [linear, moved, shifted, vec![0.0, 1.0]] {
            assert!(!Codebook::new(&values).unwrap().is_computed());
        }
    }
}
