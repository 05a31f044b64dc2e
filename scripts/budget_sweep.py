#!/usr/bin/env python3
"""Compares budgets with uniform recipes and with the files of llama.cpp.

For each budget, `tersor plan --budget` chooses a recipe. These recipes and the uniform ones from w3 to w8 in groups of 128 and 32, all with GPTQ on the
same 32 calibration windows, are compressed and evaluated on the whole evaluation text. llama.cpp (pip install llama-cpp-python) quantizes the same
network; its files are evaluated by Tersor with activations in f32, which gives a lower perplexity than llama.cpp itself. Rows that the CSV file already
has are not measured again.

    python3 scripts/budget_sweep.py [--csv docs/plots/budget.csv] [--plot docs/plots/budget.svg]
"""
import argparse, csv, json, pathlib, subprocess, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TERSOR = ROOT / "target/release/tersor"
MODEL = ROOT / "models/smollm2-135m.gguf"
CALIB = ["--calib", ROOT / "examples/data/wiki-calib.txt", "--calib-windows", 32]
BUDGETS = [75, 80, 85, 90, 95, 102, 110, 120, 130, 141, 144.8]
# The numbers of llama.cpp's file types.
THEIRS = {"q2_K": 10, "q3_K_M": 12, "q4_0": 2, "q4_K_M": 15, "q8_0": 7}


def tersor(*args):
    return json.loads(subprocess.run([TERSOR, *map(str, args), "--json"], check=True, capture_output=True).stdout)


def evaluate(path):
    found = tersor("eval", path, "--text", ROOT / "examples/data/wiki-eval.txt", "--no-speed")
    return [found["weight_bytes"] / 1e6, found["bits_per_weight"], found["body_bits_per_weight"], found["perplexity"]]


def compressed(recipe, tmp):
    out = pathlib.Path(tmp) / "out"
    tersor("compress", MODEL, "--recipe", recipe, *CALIB, "--out", out)
    row = evaluate(out)
    subprocess.run(["rm", "-r", out], check=True)
    return row


def budget(size, tmp):
    toml = pathlib.Path(tmp) / f"budget-{size}.toml"
    tersor("plan", MODEL, "--budget", f"{size}MB", *CALIB, "--measured", pathlib.Path(tmp) / "measured.json", "--out", toml)
    return compressed(toml, tmp)


def theirs(name, tmp):
    import llama_cpp
    plain, out = pathlib.Path(tmp) / "f32.gguf", pathlib.Path(tmp) / f"{name}.gguf"
    if not plain.exists():
        tersor("convert", MODEL, "--to", "gguf:F32", "--out", plain)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = THEIRS[name]
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(out).encode(), params) != 0:
        raise SystemExit(f"llama.cpp does not quantize to {name}")
    row = evaluate(out)
    out.unlink()
    return row


def plot(rows, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "budget"
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(7.5, 4.8))
    of = lambda test: sorted((r[1], r[4], r[0]) for r in rows if test(r[0]))
    even = {g: of(lambda n: n.startswith("w") and n.endswith(f"-g{g}")) for g in (128, 32)}
    groups = [
        (of(lambda n: n.startswith("budget")), "tersor plan --budget", "o-", "#0b6e4f"),
        (even[128], "one width, groups of 128 (GPTQ)", "s--", "#6c757d"),
        (even[32], "one width, groups of 32 (GPTQ)", "^--", "#adb5bd"),
        (of(lambda n: n in THEIRS), "llama.cpp's own files", "D", "#c1121f"),
    ]
    for points, label, style, color in groups:
        ax.plot([p[0] for p in points], [p[1] for p in points], style, color=color, label=label, ms=5)
    for size, perplexity, name in groups[3][0]:
        ax.annotate(name, (size, perplexity), textcoords="offset points", xytext=(5, 5), fontsize=8, color="#c1121f")
    original = next(r for r in rows if r[0] == "original")
    ax.axhline(original[4], color="black", lw=0.8, ls=":")
    ax.annotate("original", (144, original[4]), fontsize=8, va="bottom", ha="right")
    ax.set_yscale("log")
    ax.set_yticks([22, 24, 26, 30, 40, 50, 70], ["22", "24", "26", "30", "40", "50", "70"])
    ax.minorticks_off()
    ax.set_xlabel("weight files, MB")
    ax.set_ylabel("perplexity")
    ax.legend(frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--csv", default=ROOT / "docs/plots/budget.csv", type=pathlib.Path)
    p.add_argument("--plot", default=ROOT / "docs/plots/budget.svg", type=pathlib.Path)
    a = p.parse_args()
    rows = []
    if a.csv.exists():
        rows = [[r[0], *map(float, r[1:])] for r in list(csv.reader(a.csv.open()))[1:]]
    with tempfile.TemporaryDirectory() as tmp:
        work = {"original": lambda: evaluate(MODEL)}
        work |= {f"budget-{b}": lambda b=b: budget(b, tmp) for b in BUDGETS}
        work |= {f"w{w}-g{g}": lambda w=w, g=g: compressed(f"w{w}-g{g}-gptq", tmp) for w in range(3, 9) for g in (128, 32)}
        work |= {n: lambda n=n: theirs(n, tmp) for n in THEIRS}
        for name, measure in work.items():
            if name in [r[0] for r in rows]:
                continue
            rows.append([name, *measure()])
            print(*rows[-1], flush=True)
            with a.csv.open("w") as f:
                csv.writer(f, lineterminator="\n").writerows([["name", "MB", "bits", "body_bits", "perplexity"], *rows])
    plot(rows, a.plot)


main()
