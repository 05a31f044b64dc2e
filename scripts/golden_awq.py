#!/usr/bin/env python3
"""Writes golden files for the tests of tersor-groupwise and tersor-lowrank: AWQ's searches by autoawq and LQER's factors by numpy, on generated
values.

    pip install --no-deps autoawq==0.2.9
    python3 scripts/golden_awq.py
"""
import json, pathlib

import numpy as np
import torch
from awq.quantize.quantizer import AwqQuantizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
O, K, N = 64, 256, 512


def noise(seed, n):
    """Sums of three uniform values, as the tests make them."""
    mask, out = (1 << 64) - 1, np.empty(n, dtype=np.float32)
    state = (seed * 0x9E3779B97F4A7C15 & mask) | 1

    def uniform():
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & mask
        return np.float32(state >> 40) / np.float32(1 << 23) - np.float32(1)

    for i in range(n):
        out[i] = uniform() + uniform() + uniform()
    return out


def data():
    w = noise(1, O * K).reshape(O, K)
    x = noise(2, N * K).reshape(N, K)
    # Channel magnitudes from 1/16 to 16, independent of the weights.
    scale = np.exp2((np.arange(K) * 37 % 17 - 8) / np.float32(2)).astype(np.float32)
    return w, x * scale


def output_error(w, q, x):
    return float((((w - q).astype(np.float64) @ x.astype(np.float64).T) ** 2).sum())


def group_error(w, q, x, group):
    """The loss that the search of ranges minimizes, for each group separately."""
    return sum(output_error(w[:, g:g + group], q[:, g:g + group], x[:, g:g + group]) for g in range(0, K, group))


def awq(w, x, bits, group):
    q = AwqQuantizer.__new__(AwqQuantizer)
    q.w_bit, q.group_size, q.zero_point, q.duo_scaling, q.max_chunk_memory = bits, group, True, False, 1 << 30
    q.n_parallel_calib_samples = None
    linear = torch.nn.Linear(K, O, bias=False)
    tw, tx = torch.tensor(w), torch.tensor(x)
    linear.weight.data = tw.clone()
    with torch.no_grad():
        scales = q._compute_best_scale(tx, torch.ones(K), tx.abs().mean(0), linear, [linear], linear(tx))
        scaled = tw * scales
        limits = q._compute_best_clip(scaled, tx / scales, n_sample_token=N)
        cut = torch.minimum(torch.maximum(scaled.view(O, -1, group), -limits), limits).view(O, K)
        without = (q.pseudo_quantize_tensor(scaled)[0] / scales).numpy()
        final = (q.pseudo_quantize_tensor(cut)[0] / scales).numpy()
        plain = q.pseudo_quantize_tensor(tw.clone())[0].numpy()
    return {
        "bits": bits, "group": group, "factors": scales.tolist(), "rounded": output_error(w, plain, x),
        "scaled": output_error(w, without, x), "clipped": output_error(w, final, x),
        "groups": group_error(w, final, x, group),
    }


def lqer(w, x, rank):
    """Rounds each row to 3 bits (codes -4 to 3, scale in f16) and corrects it with unquantized factors."""
    s = (2 * np.abs(w).max(1, keepdims=True) / 7).astype(np.float16).astype(np.float32)
    q = s * np.clip(np.round(w / s), -4, 3)
    e = (w - q).T.astype(np.float64)
    # Means over one batch; the reference takes the maximum over batches.
    a = np.maximum(np.abs(x).mean(0), 1e-4).astype(np.float64)
    a /= np.sqrt(a.min() * a.max())
    out = {"rank": rank, "rounded": output_error(w, q, x)}
    for name, s in [("lqer", np.ones(K)), ("l2qer", a)]:
        u, d, v = np.linalg.svd(s[:, None] * e, full_matrices=False)
        low = (u[:, :rank] / s[:, None]) @ (d[:rank, None] * v[:rank])
        out[name] = output_error(w.astype(np.float64), q + low.T, x)
    return out


def main():
    w, x = data()
    torch.manual_seed(0)
    golden = [awq(w, x, b, g) for b, g in [(4, 128), (3, 64), (2, 32)]]
    path = ROOT / "crates/tersor-groupwise/tests/golden/awq.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden))
    path = ROOT / "crates/tersor-lowrank/tests/golden/lqer.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([lqer(w, x, k) for k in (4, 16, 48)]))


main()
