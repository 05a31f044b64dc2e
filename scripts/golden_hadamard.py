#!/usr/bin/env python3
"""Writes crates/tersor-lowrank/tests/golden/hadamard.json: the results of the Hadamard transforms of QuaRot (also used by ResQ and SpinQuant) on fixed
inputs, and the error of a layer's outputs when inputs and weights are rounded to 4 bits after the transform. Needs torch and torchao (`pip install torch
torchao`), whose prototype has the transforms; run from the root of the repository."""

import json
import pathlib

import numpy as np
import torch
from torchao.prototype.spinquant.hadamard_utils import get_hadK, matmul_hadU

O, N, SEEDS = 64, 256, 32


def noise(seed, n):
    """Sums of three uniform values, from the same generator as in the test."""
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 & mask) | 1
    out = np.empty(3 * n, dtype=np.float32)
    for i in range(3 * n):
        state = (state * 6364136223846793005 + 1442695040888963407) & mask
        out[i] = np.float32(state >> 40) / np.float32(1 << 23) - np.float32(1)
    out = out.reshape(n, 3)
    return out[:, 0] + out[:, 1] + out[:, 2]


def transform(x):
    had, order = get_hadK(x.shape[-1])
    had = None if had is None else had.to(torch.float64)
    return matmul_hadU(torch.from_numpy(np.ascontiguousarray(x)).to(torch.float64), had, order).numpy()


def rounded(x):
    scale = np.abs(x).max(axis=1, keepdims=True) / 7
    return np.clip(np.round(x / scale), -8, 7) * scale


def errors(k):
    w, x = noise(1, O * k).reshape(O, k).astype(np.float64), noise(2, N * k).reshape(N, k).astype(np.float64)
    # A few inputs are much larger than the others.
    x[:, ::97] *= 30
    want = x @ w.T
    relative = lambda x, w: float((((rounded(x) @ rounded(w).T) - want) ** 2).sum() / (want**2).sum())
    found = []
    for seed in range(SEEDS):
        signs = np.where(noise(100 + seed, k) < 0, -1.0, 1.0)
        found.append(relative(transform(x * signs), transform(w * signs)))
    return {"features": k, "order": get_hadK(k)[1], "plain": relative(x, w), "rotated": float(np.mean(found))}


def exact(k):
    had, order = get_hadK(k)
    factor = [1.0] if had is None else had.flatten().tolist()
    x = noise(3, 2 * k).reshape(2, k)
    return {"features": k, "order": order, "factor": factor, "rotated": [float(f"{v:.8g}") for v in transform(x).flatten()]}


def main():
    golden = {"exact": [exact(k) for k in [64, 96, 576]], "errors": [errors(k) for k in [512, 576, 768]]}
    path = pathlib.Path("crates/tersor-lowrank/tests/golden/hadamard.json")
    path.write_text(json.dumps(golden, indent=0) + "\n")
    print([(e["features"], e["plain"], e["rotated"]) for e in golden["errors"]])


main()
