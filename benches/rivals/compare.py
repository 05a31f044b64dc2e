"""Compares the speed of Tersor with llama.cpp, candle, bitsandbytes and torch on this machine in one run: products of a matrix with 1, 32 and 512
tokens, the whole of SmolLM2-135M, and block-wise quantization with optimizer steps of 64 M parameters.

    python3 benches/rivals/compare.py [products|model|blockwise] [--rounds 3] [--threads 2,1] [--tokens 1,32,512]

Installs the alternatives from their registries: llama.cpp as the package llama-cpp-python, built for this processor in target/rivals, and candle as a
dependency of the benches. The model is models/smollm2-135m.gguf (scripts/fetch-models.sh). The programs run alternately and report the median of many
repetitions; the tables show the median of the rounds. Prints tables in Markdown; the last column is the fastest alternative's time over Tersor's.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benches" / "rivals"
HOME = ROOT / "target" / "rivals"
OURS = {4: ["4row", "4dual", "4g128", "4g32"], 8: ["8row", "8g32"]}
THEIRS = {
    4: ["ggml q4_0", "ggml q4_0+", "ggml q4_K", "ggml q4_K+", "candle q4_0", "candle q4_K"],
    8: ["ggml q8_0", "candle q8_0"],
}
FLOATS = ["ours f32", "ggml f32", "candle f32"]


def run(*command, **more):
    subprocess.run([str(c) for c in command], check=True, cwd=ROOT, **more)


def torch_python():
    """The interpreter beside which torch and bitsandbytes are installed: this one, if it has them."""
    if all(importlib.util.find_spec(m) for m in ("torch", "bitsandbytes")):
        return sys.executable
    found = HOME / "torch" / "bin" / "python"
    if not found.exists():
        venv.create(HOME / "torch", with_pip=True)
        run(found, "-m", "pip", "install", "--quiet", "bitsandbytes==0.50.2", "torch", "numpy")
    return found


def python():
    """The interpreter beside which llama.cpp is installed."""
    found = HOME / "bin" / "python"
    if not found.exists():
        venv.create(HOME, with_pip=True)
        flags = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON")
        run(found, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", "llama-cpp-python", "numpy", env=flags)
    return found


def bench(name):
    """Path of one of Tersor's benches."""
    made = subprocess.run(
        ["cargo", "bench", "-p", "tersor-benches", "--bench", name, "--no-run", "--message-format=json"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )
    lines = map(json.loads, made.stdout.splitlines())
    return next(l["executable"] for l in lines if l.get("target", {}).get("name") == name and l.get("executable"))


class Side:
    """A process that answers each line of its input with a line."""

    def __init__(self, *command, **env):
        self.process = subprocess.Popen(
            [str(c) for c in command], env=dict(os.environ, **env), cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def products(rounds, threads, numbers):
    print("| threads | shape | tokens | product | ms | Gop/s | best rival over ours |\n|--:|--|--:|--|--:|--:|--:|")
    turns = bench("turns")
    for count in threads:
        sides = {"ours": Side(turns, RAYON_NUM_THREADS=str(count)), "ggml": Side(python(), HERE / "ggml.py", THREADS=str(count))}
        sides["candle"] = sides["ours"]
        limits = []
        for rows, cols in [(4096, 4096), (14336, 4096)]:
            for tokens in numbers:
                names = [f"ours {f}" for f in OURS[4] + OURS[8]] + THEIRS[4] + THEIRS[8] + FLOATS
                times = {n: [] for n in names}
                for number in range(rounds):
                    limits.append([float(v) for v in sides["ours"].ask("limits").split()])
                    for name in names:
                        side, form = name.split()
                        # A call takes seconds, far more than the others: one repetition is enough.
                        if side == "candle" and tokens > 1 and number > 0:
                            continue
                        line = f"{form} {rows} {cols} {tokens}"
                        times[name].append(float(sides[side].ask(line if side == "ggml" else f"{side} {line}")))
                middle = {n: statistics.median(t) for n, t in times.items()}
                for name in names:
                    if math.isnan(middle[name]):
                        continue
                    rivals = next((THEIRS[b] for b in OURS if name.split()[1] in OURS[b] and name.startswith("ours")), [])
                    best = min((middle[r] for r in rivals if not math.isnan(middle[r])), default=None)
                    ratio = f"{best / middle[name]:.2f}" if best else ""
                    rate = 2e-9 * rows * cols * tokens / middle[name]
                    print(f"| {count} | {rows} x {cols} | {tokens} | {name} | {middle[name] * 1e3:.3f} | {rate:.0f} | {ratio} |", flush=True)
        for side in (sides["ours"], sides["ggml"]):
            side.end()
        read, f32, wide, narrow = (statistics.median(l) / 1e9 for l in zip(*limits))
        print(f"\n{count} threads, limits: {read:.1f} GB/s read, {f32:.0f} Gop/s f32, bytes {wide:.0f} Gop/s in 32 bits, {narrow:.0f} in 16 (AVX2)\n")


def model(rounds, threads):
    source = ROOT / "models" / "smollm2-135m.gguf"
    print("| threads | model | prefill 512, tokens/s | decode 128, tokens/s | ours over llama.cpp |\n|--:|--|--:|--:|--|")
    run("cargo", "build", "--release", "-p", "tersor-cli", stderr=subprocess.DEVNULL)
    speed = bench("model")
    for recipe, kind in [("w4a8-g32-rtn-sym", "q4_0"), ("w8a8-g32-rtn-sym", "q8_0")]:
        out = HOME / recipe
        if not (out / "tersor.json").exists():
            run(ROOT / "target/release/tersor", "compress", source, "--recipe", recipe, "--out", out, stdout=subprocess.DEVNULL)
        for count in threads:
            ours = Side(speed, out, count)
            theirs = Side(python(), HERE / "llama_model.py", source, kind, HOME / f"{kind}.gguf", THREADS=str(count))
            found = {"ours": [], "theirs": []}
            for _ in range(rounds):
                for name, side in (("ours", ours), ("theirs", theirs)):
                    found[name].append(json.loads(side.ask("go")))
            ours.end()
            theirs.end()
            middle = {n: [statistics.median(f[k] for f in v) for k in ("prefill", "decode")] for n, v in found.items()}
            ratio = [a / b for a, b in zip(middle["ours"], middle["theirs"])]
            for name, of in (("ours", recipe), ("theirs", f"llama.cpp {kind}")):
                last = f"prefill {ratio[0]:.2f}, decode {ratio[1]:.2f}" if name == "ours" else ""
                print(f"| {count} | {of} | {middle[name][0]:.0f} | {middle[name][1]:.0f} | {last} |", flush=True)


def blockwise(rounds, threads):
    lines = [f"{w} {m}" for m in ("dynamic 4096", "dynamic 256", "nf4 64", "fp4 64") for w in ("quantize", "dequantize")]
    lines += ["step adamw 8", "step adamw 32"]
    values = 64 << 20

    def moved(line):
        """Bytes read and written for each value."""
        what, name, number = line.split()
        if what == "step":
            return (10 + 8 / 256, 6 + 8 / 256) if number == "8" else (16, 12)
        small = (0.5 if name in ("nf4", "fp4") else 1) + 4 / int(number)
        return (4, small) if what == "quantize" else (small, 4)

    print("| threads | work | ours, ns a value | of memory time | bitsandbytes or torch, ns | theirs over ours |\n|--:|--|--:|--:|--:|--:|")
    mine = bench("blockwise")
    for count in threads:
        sides = [Side(mine, "turns", RAYON_NUM_THREADS=str(count)), Side(torch_python(), HERE / "torch_side.py", THREADS=str(count))]
        for line in lines:
            found = [[], [], []]
            for _ in range(rounds):
                ours, read, copy = (float(v) for v in sides[0].ask(line).split())
                into, out = moved(line)
                limit = max(into * read / 4, (into + out) * copy / 8)
                for times, value in zip(found, (ours, float(sides[1].ask(line)), limit / ours)):
                    times.append(value)
            ours, theirs, part = (statistics.median(f) for f in found)
            ours_ns, theirs_ns = (1e9 * t / values for t in (ours, theirs))
            print(f"| {count} | {line} | {ours_ns:.3f} | {100 * part:.0f} % | {theirs_ns:.2f} | {theirs / ours:.1f} |", flush=True)
        for side in sides:
            side.end()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=["products", "model", "blockwise"])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", default="2,1")
    arguments.add_argument("--tokens", default="1,32,512")
    a = arguments.parse_args()
    threads, numbers = ([int(t) for t in v.split(",")] for v in (a.threads, a.tokens))
    if a.what in (None, "products"):
        products(a.rounds, threads, numbers)
    if a.what in (None, "model"):
        model(a.rounds, threads)
    if a.what in (None, "blockwise"):
        blockwise(a.rounds, threads)


main()
