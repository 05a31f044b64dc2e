#!/usr/bin/env python3
"""Loads files of Tersor in bitsandbytes, and files of bitsandbytes in Tersor. The weights must be bit-identical.

    python3 -m pip install bitsandbytes==0.50.2 torch numpy safetensors
    cargo build --release -p tersor-examples --bin bitsandbytes
    python3 scripts/check_bitsandbytes.py
"""

import pathlib, subprocess, sys, tempfile

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOL = ROOT / "target/release/bitsandbytes"
SHAPES = {"a": (96, 128), "b": (33, 190), "model.layers.0.mlp.up_proj": (512, 320)}


def run(*args):
    subprocess.run([str(TOOL), *map(str, args)], check=True)


def linear(kind, nested, shape):
    out, inn = shape
    if kind == "int8":
        return bnb.nn.Linear8bitLt(inn, out, bias=False, has_fp16_weights=False)
    return bnb.nn.Linear4bit(inn, out, bias=False, quant_type=kind, compress_statistics=nested, compute_dtype=torch.float32)


def weight(module, kind, saved):
    """The weights as bitsandbytes has them."""
    if kind == "int8":
        # As in the CPU path of bitsandbytes: codes times the row's scale over 127.
        return bnb.functional.int8_vectorwise_dequant(saved["weight"], saved["SCB"])
    w = module.weight
    return bnb.functional.dequantize_4bit(w.data, w.quant_state).float()


def part(tensors, name):
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}


def main():
    torch.manual_seed(5)
    original = {n: torch.randn(s) * torch.rand(s[0], 1).exp() for n, s in SHAPES.items()}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file({f"{n}.weight": w for n, w in original.items()}, folder / "plain.safetensors")
        for kind, nested in [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]:
            # Written by Tersor, loaded by bitsandbytes.
            run("quantize", folder / "plain.safetensors", folder / "ours.safetensors", kind, *(["--nested"] if nested else []))
            run("dequantize", folder / "ours.safetensors", folder / "ours-plain.safetensors")
            ours, want = load_file(folder / "ours.safetensors"), load_file(folder / "ours-plain.safetensors")
            # Written by bitsandbytes, loaded by Tersor.
            theirs = {}
            for name, w in original.items():
                module = linear(kind, nested, w.shape)
                if kind == "int8":
                    codes, scales, _ = bnb.functional.int8_vectorwise_quant(w.half())
                    state = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
                else:
                    module.weight = bnb.nn.Params4bit(w, requires_grad=False, quant_type=kind, compress_statistics=nested).to("cpu")
                    state = module.state_dict()
                theirs |= {f"{name}.{k}": v.contiguous() for k, v in state.items()}
            save_file(theirs, folder / "theirs.safetensors")
            run("dequantize", folder / "theirs.safetensors", folder / "theirs-plain.safetensors")
            read = load_file(folder / "theirs-plain.safetensors")
            for name, w in original.items():
                module, saved = linear(kind, nested, w.shape), part(ours, name)
                if kind == "int8":
                    # The module accepts int8 weights only after it has quantized some.
                    module = module.to("cpu")
                    module.load_state_dict(saved)
                    saved = {"weight": module.weight.data, "SCB": module.weight.SCB}
                else:
                    module.weight = bnb.nn.Params4bit.from_prequantized(
                        data=saved["weight"], quantized_stats={k[7:]: v for k, v in saved.items() if k != "weight"}, device="cpu"
                    )
                loaded = torch.equal(weight(module, kind, saved), want[f"{name}.weight"])
                module = linear(kind, nested, w.shape)
                saved = part(theirs, name)
                if kind != "int8":
                    module.weight = bnb.nn.Params4bit.from_prequantized(
                        data=saved["weight"], quantized_stats={k[7:]: v for k, v in saved.items() if k != "weight"}, device="cpu"
                    )
                taken = torch.equal(weight(module, kind, saved), read[f"{name}.weight"])
                wrong += (not loaded) + (not taken)
                print(f"{kind:5} {'nested' if nested else 'plain':7} {name:28} {list(w.shape)!s:12} "
                      f"ours in bitsandbytes: {'equal' if loaded else 'DIFFERS'}, bitsandbytes' in ours: {'equal' if taken else 'DIFFERS'}")
    print("all equal" if not wrong else f"{wrong} differ")
    sys.exit(bool(wrong))


main()
