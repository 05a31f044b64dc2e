#!/usr/bin/env python3
"""Loads the output of `tersor convert --to gptq` in gptqmodel.

Compresses a model with several recipes, converts each to both versions of GPTQ's format, loads it (pip install gptqmodel), and compares every
dequantized matrix with Tersor's values, which must be equal. Then computes logits with the loaded model.

    python3 scripts/check_gptq_files.py [MODEL]
"""
import json, pathlib, subprocess, sys, tempfile

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
TERSOR = ROOT / "target/release/tersor"
CALIB = ROOT / "examples/data/wiki-calib.txt"
RECIPES = ["w4-g64-gptq", "w4-g32-gptq-sym-ao", "w8-gptq", "w3-g32-rtn-sym", "w2-g32-rtn"]


def tersor(*args):
    return json.loads(subprocess.run([TERSOR, *map(str, args), "--json"], check=True, capture_output=True).stdout)


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else ROOT / "models/smollm2-135m.gguf"
    failed = False
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        for recipe in RECIPES:
            out, plain = tmp / recipe, tmp / f"{recipe}-plain"
            tersor("compress", model, "--recipe", recipe, "--out", out, "--calib", CALIB, "--calib-windows", 8)
            tersor("convert", out, "--to", "f32", "--out", plain)
            ours = load_file(plain / "model.safetensors")
            for version in ["gptq-v2", "gptq"]:
                there = tmp / f"{recipe}-{version}"
                try:
                    tersor("convert", out, "--to", version, "--out", there)
                except subprocess.CalledProcessError as e:
                    print(f"{recipe:20} {version:8} refused: {e.stderr.decode().strip()}")
                    continue
                if version == "gptq" and not json.loads((there / "quantize_config.json").read_text())["sym"]:
                    # gptqmodel loads asymmetric files of version 1 only if it wrote them itself.
                    print(f"{recipe:20} {version:8} not loaded by gptqmodel: asymmetric")
                    continue
                loaded = GPTQModel.load(str(there), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
                differ, count = 0.0, 0
                for name, module in loaded.model.named_modules():
                    if not hasattr(module, "qweight"):
                        continue
                    theirs = module.dequantize_weight().T.float()
                    # gptqmodel multiplies scales and codes in f16.
                    mine = ours[name + ".weight"]
                    differ = max(differ, ((theirs - mine.half().float()).abs() / mine.abs().amax()).max().item())
                    count += 1
                logits = loaded.model(torch.arange(16)[None]).logits
                good = differ <= 0.0 and count > 0 and bool(torch.isfinite(logits).all())
                failed |= not good
                print(f"{recipe:20} {version:8} {count} matrices, largest difference {differ:.2e}{'' if good else '  WRONG'}", flush=True)
    sys.exit(failed)


main()
