#!/usr/bin/env python3
"""Loads the output of `tersor convert --to gguf:TYPE` in llama.cpp.

Converts a model to every GGUF type that Tersor writes, loads each file in llama.cpp (pip install llama-cpp-python), and compares the
perplexity in llama.cpp with that in Tersor on the same tokens. They may differ by 1 % for types that llama.cpp multiplies with activations
rounded to 8 bits, and by 0.5 % for the others. For a compressed directory, `exact` is compared with the directory.

    python3 scripts/check_gguf.py [--windows 8] [--types Q4_0,Q4_K_M,...] [MODEL]
"""
import argparse, json, math, pathlib, subprocess, sys, tempfile

import llama_cpp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
TERSOR = ROOT / "target/release/tersor"
FLOATS = ["F32", "F16", "BF16"]


def tersor(*args):
    return json.loads(subprocess.run([TERSOR, *map(str, args), "--json"], check=True, capture_output=True).stdout)


def perplexity(path, text, ctx, windows):
    model = llama_cpp.Llama(str(path), n_ctx=ctx, n_batch=ctx, logits_all=True, verbose=False)
    tokens = model.tokenize(text.read_bytes(), add_bos=False, special=False)
    loss, count = 0.0, 0
    for w in range(min(windows, len(tokens) // ctx)):
        part = tokens[w * ctx:(w + 1) * ctx]
        model.reset()
        model.eval(part)
        logits = np.asarray(model.scores[: ctx - 1], dtype=np.float64)
        top = logits.max(axis=1, keepdims=True)
        logsum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss += float((logsum - logits[np.arange(ctx - 1), part[1:]]).sum())
        count += ctx - 1
    return math.exp(loss / count), count


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model", nargs="?", default=ROOT / "models/smollm2-135m.gguf", type=pathlib.Path)
    p.add_argument("--text", default=ROOT / "examples/data/wiki-eval.txt", type=pathlib.Path)
    p.add_argument("--types", default="F32,F16,BF16,Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q4_K_M,Q5_K_M")
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--windows", type=int, default=8)
    a = p.parse_args()
    failed = False
    print(f"{'type':8} {'MB':>8} {'tersor':>10} {'llama.cpp':>10} {'differ':>8}")
    with tempfile.TemporaryDirectory() as tmp:
        for kind in a.types.split(","):
            path = pathlib.Path(tmp) / f"{kind}.gguf"
            tersor("convert", a.model, "--to", f"gguf:{kind}", "--out", path)
            ours = a.model if kind == "exact" else path
            own = tersor("eval", ours, "--text", a.text, "--ctx", a.ctx, "--windows", a.windows, "--no-speed")
            theirs, count = perplexity(path, a.text, a.ctx, a.windows)
            assert count == own["tokens"], (count, own["tokens"])
            differ = theirs / own["perplexity"] - 1
            bad = abs(differ) > (0.005 if kind in FLOATS else 0.01)
            failed |= bad
            print(f"{kind:8} {path.stat().st_size / 1e6:8.2f} {own['perplexity']:10.4f} {theirs:10.4f} {differ:+8.2%}{'  TOO FAR' if bad else ''}", flush=True)
            path.unlink()
    sys.exit(failed)


main()
