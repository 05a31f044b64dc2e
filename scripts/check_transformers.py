#!/usr/bin/env python3
"""Compares the decoder with transformers and torch in float32, which read the same GGUF file.

    python3 -m pip install torch transformers accelerate gguf safetensors numpy
    python3 scripts/check_transformers.py models/smollm2-135m.gguf [windows] [ctx]

Prints a table with tokens, perplexity, the largest difference of a logit, greedy continuations, and the perplexity in
transformers of the output of `tersor convert --to f16`. Exits with an error if a bound is exceeded.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "examples/data/wiki-eval.txt"
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a small boat",
    "Water boils at a temperature of",
    "In 1969, the first astronauts",
    "def fibonacci(n):",
]


def tersor(*args):
    command = ["cargo", "run", "--release", "--quiet", "--", *map(str, args), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def nll(logits, window):
    log_p = torch.log_softmax(logits[:-1].double(), dim=-1)
    return -log_p[torch.arange(len(window) - 1), window[1:]].sum().item()


@torch.no_grad()
def perplexity(model, windows, visit=lambda i, logits: None):
    total = 0.0
    for i, window in enumerate(windows):
        logits = model(window[None]).logits[0].float()
        visit(i, logits)
        total += nll(logits, window)
    return math.exp(total / sum(len(w) - 1 for w in windows))


def main():
    path = Path(sys.argv[1]).resolve()
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    ctx = int(sys.argv[3]) if len(sys.argv) > 3 else 512
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer(TEXT.read_text(), add_special_tokens=False).input_ids
    windows = [torch.tensor(ids[i * ctx : (i + 1) * ctx]) for i in range(count)]
    rows, broken = [], []

    def row(what, theirs, ours, bound, ok):
        rows.append(f"| {what} | {theirs} | {ours} | {bound} |")
        if not ok:
            broken.append(what)

    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "logits"
        command = ["cargo", "run", "--release", "--quiet", "-p", "tersor-examples", "--bin", "logits", "--"]
        subprocess.run([*command, path, TEXT, str(ctx), str(count), out], cwd=ROOT, check=True)
        worst, equal = 0.0, True

        def compare(i, logits):
            nonlocal worst, equal
            mine = load_file(out / f"{i}.safetensors")
            equal &= mine["tokens"].tolist() == windows[i].tolist()
            worst = max(worst, (mine["logits"] - logits).abs().max().item())

        theirs = perplexity(model, windows, compare)
        ours = tersor("eval", path, "--text", TEXT, "--windows", count, "--ctx", ctx, "--no-speed")["perplexity"]
        row("tokens of the text", len(ids), "the same" if equal else "others", "equal", equal)
        row("perplexity", f"{theirs:.5f}", f"{ours:.5f}", "0.1 %", abs(ours / theirs - 1) < 1e-3)
        row("largest difference of a logit", "", f"{worst:.2e}", "1e-2", worst < 1e-2)

        same = 0
        for prompt in PROMPTS:
            start = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            mask = torch.ones_like(start)
            with torch.no_grad():
                theirs_ids = model.generate(
                    start, attention_mask=mask, max_new_tokens=64, do_sample=False, repetition_penalty=1.0
                )[0, start.shape[1] :].tolist()
            eos = model.config.eos_token_id
            if theirs_ids and theirs_ids[-1] == eos:
                theirs_ids.pop()
            mine = tersor("generate", path, "--prompt", prompt, "--tokens", 64)["tokens"]
            same += mine == theirs_ids
            print(f"{prompt!r} -> {tokenizer.decode(mine)!r}", file=sys.stderr)
        row("greedy continuations of 64 tokens", len(PROMPTS), f"{same} the same", "equal", same == len(PROMPTS))

        half = Path(tmp) / "f16"
        tersor("convert", path, "--to", "f16", "--out", half)
        model = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32).eval()
        converted = perplexity(model, windows)
        row("`convert --to f16`, loaded by transformers", f"{converted:.5f}", f"{ours:.5f}", "0.1 %", abs(converted / ours - 1) < 1e-3)
        mine = tersor("eval", half, "--text", TEXT, "--windows", count, "--ctx", ctx, "--no-speed")["perplexity"]
        row("the same, loaded by `tersor eval`", f"{converted:.5f}", f"{mine:.5f}", "0.1 %", abs(converted / mine - 1) < 1e-3)

    print("| | transformers | Tersor | bound |\n| --- | --- | --- | --- |")
    print("\n".join(rows))
    sys.exit(f"broken: {', '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main()
