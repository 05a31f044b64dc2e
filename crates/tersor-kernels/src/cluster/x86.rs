//! Assignment with AVX-512 and AVX2: a tile of points in the lanes, a panel of centroids in the accumulators.

use std::arch::x86_64::*;

use super::{Centroids, PANEL, TILE, transpose};

/// [`nearest`](super::nearest) for `D` dimensions, or for any number if `D` is 0: 8 centroids by 32 points in 16 registers.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
pub(super) fn nearest_avx512<const D: usize>(centroids: &Centroids, points: &[f32], out: &mut [u32]) {
    let dims = if D > 0 { D } else { centroids.dims };
    let mut columns = vec![0f32; dims * TILE];
    for (points, out) in points.chunks(dims * TILE).zip(out.chunks_mut(TILE)) {
        transpose(points, dims, &mut columns);
        let columns = &columns.as_chunks::<TILE>().0[..dims];
        let mut best = [_mm512_set1_ps(f32::INFINITY); 2];
        let mut index = [_mm512_setzero_si512(); 2];
        let (norms, indices) = (centroids.norms.as_chunks::<PANEL>().0, centroids.indices.as_chunks::<PANEL>().0);
        for ((panel, norms), indices) in centroids.panels.chunks_exact(dims * PANEL).zip(norms).zip(indices) {
            let panel = &panel.as_chunks::<PANEL>().0[..dims];
            let mut scores = [[_mm512_setzero_ps(); 2]; PANEL];
            for j in 0..PANEL {
                scores[j] = [_mm512_set1_ps(norms[j]); 2];
            }
            for d in 0..dims {
                // SAFETY: a column has 32 elements.
                let x = unsafe { [_mm512_loadu_ps(columns[d].as_ptr()), _mm512_loadu_ps(columns[d].as_ptr().add(16))] };
                for j in 0..PANEL {
                    let c = _mm512_set1_ps(panel[d][j]);
                    scores[j][0] = _mm512_fmadd_ps(x[0], c, scores[j][0]);
                    scores[j][1] = _mm512_fmadd_ps(x[1], c, scores[j][1]);
                }
            }
            for j in 0..PANEL {
                let this = _mm512_set1_epi32(indices[j] as i32);
                for h in 0..2 {
                    let nearer = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(scores[j][h], best[h]);
                    best[h] = _mm512_mask_mov_ps(best[h], nearer, scores[j][h]);
                    index[h] = _mm512_mask_mov_epi32(index[h], nearer, this);
                }
            }
        }
        let mut found = [0u32; TILE];
        // SAFETY: `found` has 32 elements.
        unsafe {
            _mm512_storeu_si512(found.as_mut_ptr().cast(), index[0]);
            _mm512_storeu_si512(found.as_mut_ptr().add(16).cast(), index[1]);
        }
        write(&found, points.len() / dims, out);
    }
}

/// [`nearest`](super::nearest) for `D` dimensions, or for any number if `D` is 0: 4 centroids by 16 points in 8 registers.
#[target_feature(enable = "avx2,fma")]
pub(super) fn nearest_avx2<const D: usize>(centroids: &Centroids, points: &[f32], out: &mut [u32]) {
    const HALF: usize = PANEL / 2;
    let dims = if D > 0 { D } else { centroids.dims };
    let mut columns = vec![0f32; dims * TILE];
    for (points, out) in points.chunks(dims * TILE).zip(out.chunks_mut(TILE)) {
        transpose(points, dims, &mut columns);
        let columns = &columns.as_chunks::<TILE>().0[..dims];
        let mut found = [0u32; TILE];
        for first in [0, TILE / 2] {
            let mut best = [_mm256_set1_ps(f32::INFINITY); 2];
            let mut index = [_mm256_setzero_ps(); 2];
            let (norms, indices) = (centroids.norms.as_chunks::<PANEL>().0, centroids.indices.as_chunks::<PANEL>().0);
            for ((panel, norms), indices) in centroids.panels.chunks_exact(dims * PANEL).zip(norms).zip(indices) {
                let panel = &panel.as_chunks::<PANEL>().0[..dims];
                for half in [0, HALF] {
                    let mut scores = [[_mm256_setzero_ps(); 2]; HALF];
                    for j in 0..HALF {
                        scores[j] = [_mm256_set1_ps(norms[half + j]); 2];
                    }
                    for d in 0..dims {
                        let column = &columns[d][first..first + TILE / 2];
                        // SAFETY: this half of a column has 16 elements.
                        let x = unsafe { [_mm256_loadu_ps(column.as_ptr()), _mm256_loadu_ps(column.as_ptr().add(8))] };
                        for j in 0..HALF {
                            let c = _mm256_set1_ps(panel[d][half + j]);
                            scores[j][0] = _mm256_fmadd_ps(x[0], c, scores[j][0]);
                            scores[j][1] = _mm256_fmadd_ps(x[1], c, scores[j][1]);
                        }
                    }
                    for j in 0..HALF {
                        let this = _mm256_castsi256_ps(_mm256_set1_epi32(indices[half + j] as i32));
                        for h in 0..2 {
                            let nearer = _mm256_cmp_ps::<_CMP_LT_OQ>(scores[j][h], best[h]);
                            best[h] = _mm256_blendv_ps(best[h], scores[j][h], nearer);
                            index[h] = _mm256_blendv_ps(index[h], this, nearer);
                        }
                    }
                }
            }
            let found = &mut found[first..first + TILE / 2];
            // SAFETY: this half of `found` has 16 elements.
            unsafe {
                _mm256_storeu_si256(found.as_mut_ptr().cast(), _mm256_castps_si256(index[0]));
                _mm256_storeu_si256(found.as_mut_ptr().add(8).cast(), _mm256_castps_si256(index[1]));
            }
        }
        write(&found, points.len() / dims, out);
    }
}

/// Copies the indices of a tile to `out`, for as many points as there are.
#[inline(always)]
fn write(found: &[u32; TILE], points: usize, out: &mut [u32]) {
    let n = points.min(out.len()).min(TILE);
    out[..n].copy_from_slice(&found[..n]);
}
