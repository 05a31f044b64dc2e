#!/usr/bin/env python3
"""Writes crates/tersor-blockwise/tests/golden/bitsandbytes-<version>.json: tensors as bitsandbytes quantizes and dequantizes them on a CPU.

    python3 -m pip install bitsandbytes==0.50.2 torch numpy
    python3 scripts/golden_blockwise.py

8-bit codes are stored twice: those of the CPU library, which rounds a value to one of 65536 steps and looks the code up ("native"), and those of
bitsandbytes' definition for all devices in torch, which compares with the midpoints of the map ("codes"). Dequantized values are stored as a digest:
the sum of each value's bits times its index from 1, modulo 2^64.
"""

import json
from importlib.metadata import version
from pathlib import Path

import bitsandbytes.functional as F
import numpy as np
import torch

N = 4099  # no whole number of blocks, and odd
rng = np.random.default_rng(11)
normal = rng.standard_normal(N)
sparse = np.where(rng.random(N) < 0.95, 0.0, rng.standard_normal(N))
sparse[1024:2048] = 0.0  # whole blocks of zeros
tensors = {
    "normal": normal,
    "heavy": rng.standard_normal(N) * np.exp(1.5 * rng.standard_normal(N)),
    "tiny": rng.standard_normal(N) * 1e-30,
    "sparse": sparse,
}


def hex_of(x):
    return x.detach().numpy().tobytes().hex()


def digest(x):
    bits = x.detach().float().numpy().reshape(-1).view(np.uint32).astype(np.uint64)
    return str(int((bits * np.arange(1, len(bits) + 1, dtype=np.uint64)).sum(dtype=np.uint64)))


def scales_of(state):
    if state.offset is None:
        return {"absmax": hex_of(state.absmax)}
    return {
        "absmax_codes": hex_of(state.absmax),
        "nested_absmax": hex_of(state.state2.absmax),
        "offset": hex_of(state.offset.reshape(1)),
    }


define = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk
dynamic = F.create_dynamic_map()
out = {
    "maps": {
        "dynamic": hex_of(F.create_dynamic_map(signed=True)),
        "dynamic-unsigned": hex_of(F.create_dynamic_map(signed=False)),
    },
    "tensors": {},
}
for name, values in tensors.items():
    x = torch.from_numpy(values.astype(np.float32))
    rows = []
    for block in [256, 4096]:
        for nested in [False, True]:
            codes, state = F.quantize_blockwise(x, blocksize=block, nested=nested)
            exact, _ = define(torch._C.DispatchKey.CompositeExplicitAutograd, x, dynamic, block)
            back = F.dequantize_blockwise(exact, state)
            rows.append(
                {"map": "dynamic", "block": block, "nested": nested, "codes": hex_of(exact), "native": hex_of(codes)}
                | {"digest": digest(back)}
                | scales_of(state)
            )
    for kind in ["nf4", "fp4"]:
        out["maps"][kind] = hex_of(F.get_4bit_type(kind, device="cpu"))
        for nested in [False, True]:
            codes, state = F.quantize_4bit(x, blocksize=64, compress_statistics=nested, quant_type=kind)
            back = F.dequantize_4bit(codes, state)
            rows.append(
                {"map": kind, "block": 64, "nested": nested, "codes": hex_of(codes), "digest": digest(back)}
                | scales_of(state)
            )
    out["tensors"][name] = {"x": hex_of(x), "rows": rows}

folder = Path(__file__).resolve().parent.parent / "crates/tersor-blockwise/tests/golden"
path = folder / f"bitsandbytes-{version('bitsandbytes')}.json"
path.write_text(json.dumps(out, indent=0) + "\n")
print(path)
