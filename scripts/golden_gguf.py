#!/usr/bin/env python3
"""Writes crates/tersor-formats/tests/golden/gguf-<version>.json: random blocks of every supported type, and their values as
decoded by llama.cpp's Python package `gguf`.

    python3 -m pip install gguf==0.19.0 numpy
    python3 scripts/golden_gguf.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

rng = np.random.default_rng(7)
halves = {  # where a block keeps its half-precision scales
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
out = {}
for kind, places in halves.items():
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (512 // elements if elements < 256 else 2, size), dtype=np.uint8)
    for at in places:
        scales = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    values = dequantize(blocks, kind).astype("<f4").reshape(-1)
    out[kind.name] = {"blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}

folder = Path(__file__).resolve().parent.parent / "crates/tersor-formats/tests/golden"
path = folder / f"gguf-{version('gguf')}.json"
path.write_text(json.dumps(out, indent=0) + "\n")
print(path)
