"""Compares Tersor's GPTQ with a plain implementation of the published algorithm (Frantar et al., arXiv 2210.17323) in torch, float32.

    python scripts/check_gptq.py matrices [--recipe w4-g128-gptq ...]   error in the norm of the same Hessian, every matrix of SmolLM2
    python scripts/check_gptq.py model    [--recipe w4-g128-gptq ...]   perplexity of SmolLM2, calibrated and compressed by either
    python scripts/check_gptq.py speed                                  one layer of 4096 by 4096, 4 bits, groups of 128

Needs torch, transformers, gguf, safetensors, numpy; `scripts/fetch-models.sh`; and `cargo build --release`.
"""

import argparse, json, math, pathlib, re, subprocess, sys, tempfile, time

import numpy as np
import torch
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/smollm2-135m.gguf"
DATA = ROOT / "examples/data"
TERSOR = ROOT / "target/release/tersor"
SITES = [
    ("self_attn.qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("self_attn.o", ["self_attn.o_proj"]),
    ("mlp.gate_up", ["mlp.gate_proj", "mlp.up_proj"]),
    ("mlp.down", ["mlp.down_proj"]),
]


def fit(w, bits):
    """Scale (rounded to f16) and zero of each row of a group, asymmetric, the range including zero."""
    most = 2**bits - 1
    lo, hi = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = ((hi - lo) / most).to(torch.float16).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, torch.round(-lo / scale).clamp(0, most)


def gptq(weight, hessian, bits, group, damping=0.01, block=128, updated=True):
    """The published algorithm. If `updated`, the scales of a group that begins inside a block are computed from the weights after the updates by
    earlier columns of the block (the reference repository computes them from the weights at the beginning of the block)."""
    w, h = weight.clone().float(), hessian.clone().float()
    rows, cols = w.shape
    most = 2**bits - 1
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * torch.mean(torch.diag(h)))
    h = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    out = torch.zeros_like(w)
    for first in range(0, cols, block):
        last = min(first + block, cols)
        current, errors = w[:, first:last].clone(), torch.zeros(rows, last - first)
        u = h[first:last, first:last]
        for i in range(last - first):
            at = first + i
            if at % group == 0:
                inside = current if updated else w[:, first:last]
                piece = torch.cat([inside[:, i:], w[:, last:]], 1)[:, :group]
                scale, zero = fit(piece, bits)
            column = current[:, i]
            value = scale * (torch.clamp(torch.round(column / scale) + zero, 0, most) - zero)
            out[:, at] = value
            error = (column - value) / u[i, i]
            current[:, i:] -= error.unsqueeze(1) @ u[i, i:].unsqueeze(0)
            errors[:, i] = error
        w[:, last:] -= errors @ h[first:last, last:]
    return out


def options(recipe):
    bits, group = re.fullmatch(r"w(\d)-g(\d+)-gptq", recipe).groups()
    return int(bits), int(group)


def tersor(*args):
    done = subprocess.run([TERSOR, *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def squared(delta, hessian):
    return float(torch.sum((delta.double() @ hessian.double()) * delta.double()))


def matrices(recipes, work):
    """Compares both on the statistics that Tersor gathers, in float64."""
    work = pathlib.Path(work)
    stats, plain = work / "stats", work / "plain"
    if not stats.exists():
        tersor("calibrate", MODEL, "--recipe", recipes[0], "--calib", DATA / "wiki-calib.txt", "--out", stats)
    tersor("convert", MODEL, "--to", "f32", "--out", plain)
    original, grams = safe_open(plain / "model.safetensors", "pt"), safe_open(stats, "pt")
    for recipe in recipes:
        bits, group = options(recipe)
        tersor("compress", MODEL, "--recipe", recipe, "--stats", stats, "--out", work / recipe)
        tersor("convert", work / recipe, "--to", "f32", "--out", work / f"{recipe}-f32")
        ours = safe_open(work / f"{recipe}-f32/model.safetensors", "pt")
        ratios, published = [], []
        for layer in range(30):
            for site, parts in SITES:
                gram = grams.get_tensor(f"model.layers.{layer}.{site}.0.gram")
                for part in parts:
                    name = f"model.layers.{layer}.{part}.weight"
                    w = original.get_tensor(name)
                    mine = squared(w - ours.get_tensor(name), gram)
                    ratios.append((mine / squared(w - gptq(w, gram, bits, group), gram), name))
                    if group < 128:
                        published.append(mine / squared(w - gptq(w, gram, bits, group, updated=False), gram))
        ratios.sort()
        print(f"{recipe}: our error in the Hessian norm over the reference's, {len(ratios)} matrices: "
              f"{ratios[0][0]:.4f} ({ratios[0][1]}) to {ratios[-1][0]:.4f} ({ratios[-1][1]}), "
              f"median {ratios[len(ratios) // 2][0]:.4f}")
        if published:
            published.sort()
            print(f"  with groups fitted as the reference repository does: {published[0]:.4f} to {published[-1]:.4f}, "
                  f"median {published[len(published) // 2]:.4f}")


def windows(tokenizer, name, count):
    ids = tokenizer((DATA / name).read_text(), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // 512 * 512]).view(-1, 512)[:count]


@torch.no_grad()
def perplexity(model, ids):
    total, n = 0.0, 0
    for window in ids:
        logits = model(window[None]).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="sum")
        total, n = total + float(loss), n + len(window) - 1
    return math.exp(total / n)


@torch.no_grad()
def reference_model(model, ids, bits, group):
    """Compresses layer by layer and site by site, with the compressed matrices upstream."""
    stream = [model.model.embed_tokens(w[None]) for w in ids]
    positions = torch.arange(512)[None]
    rope = model.model.rotary_emb(stream[0], positions)
    for layer in model.model.layers:
        def run(x):
            y = layer(x, position_embeddings=rope, position_ids=positions, attention_mask=None)
            return y[0] if isinstance(y, tuple) else y
        for _, parts in SITES:
            linears = [layer.get_submodule(p) for p in parts]
            k = linears[0].in_features
            gram, seen = torch.zeros(k, k), 0
            def hook(_, args):
                nonlocal gram, seen
                x = args[0].reshape(-1, k).float()
                gram *= seen / (seen + 1)
                seen += 1
                gram += (2 / seen) * (x.T @ x)
            handle = linears[0].register_forward_pre_hook(hook)
            for x in stream:
                run(x)
            handle.remove()
            for linear in linears:
                linear.weight.copy_(gptq(linear.weight, gram, bits, group))
        stream = [run(x) for x in stream]
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def model(recipes, work):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    for recipe in recipes:
        bits, group = options(recipe)
        tokenizer = AutoTokenizer.from_pretrained(MODEL.parent, gguf_file=MODEL.name)
        net = AutoModelForCausalLM.from_pretrained(MODEL.parent, gguf_file=MODEL.name, dtype=torch.float32).eval()
        evaluation = windows(tokenizer, "wiki-eval.txt", 40)
        start = time.time()
        reference_model(net, windows(tokenizer, "wiki-calib.txt", 128), bits, group)
        seconds, reference = time.time() - start, perplexity(net, evaluation)
        out = pathlib.Path(work) / f"{recipe}-sequential"
        done = tersor("compress", MODEL, "--recipe", recipe, "--calib", DATA / "wiki-calib.txt", "--out", out)
        ours = tersor("eval", out, "--text", DATA / "wiki-eval.txt", "--windows", 40, "--ctx", 512, "--no-speed")["perplexity"]
        print(f"{recipe}: perplexity {ours:.3f}, reference {reference:.3f}, ratio {ours / reference:.4f}; "
              f"{done['compress_seconds']:.0f} s, reference {seconds:.0f} s")


def speed():
    """Times both on the same weights and Hessian, factorization included; alternating runs, medians of five."""
    rng = np.random.default_rng(0)
    n = 4096
    weight = torch.from_numpy(rng.standard_normal((n, n), dtype=np.float32)) * 0.02
    x = torch.from_numpy(rng.standard_normal((8192, n), dtype=np.float32)) * torch.linspace(0.2, 2, n)
    gram = x.T @ x
    with tempfile.TemporaryDirectory() as work:
        paths = [pathlib.Path(work) / f for f in ("weight", "gram")]
        weight.numpy().tofile(paths[0])
        gram.double().numpy().tofile(paths[1])
        subprocess.run(["cargo", "build", "--release", "-p", "tersor-examples", "--bin", "gptq-layer"], cwd=ROOT, check=True)
        theirs, ours = [], []
        for _ in range(5):
            start = time.time()
            value = gptq(weight, gram, 4, 128)
            theirs.append(time.time() - start)
            done = subprocess.run([ROOT / "target/release/gptq-layer", *paths, str(n)], capture_output=True, text=True, check=True)
            seconds, error = map(float, done.stdout.split())
            ours.append(seconds)
        reference = squared(weight - value, gram)
    theirs, ours = sorted(theirs)[2], sorted(ours)[2]
    print(f"4096 x 4096, 4 bits, groups of 128: {ours:.2f} s, torch {theirs:.2f} s, ratio {ours / theirs:.3f}; "
          f"error {error / reference:.4f} of the reference's")


parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["matrices", "model", "speed"])
parser.add_argument("--recipe", nargs="*", default=None)
parser.add_argument("--work", default=None, help="directory in which models and results are kept")
args = parser.parse_args()
with tempfile.TemporaryDirectory() as temporary:
    if args.what == "speed":
        speed()
    else:
        default = ["w4-g128-gptq", "w3-g128-gptq"] + (["w2-g64-gptq"] if args.what == "matrices" else [])
        {"matrices": matrices, "model": model}[args.what](args.recipe or default, args.work or temporary)
