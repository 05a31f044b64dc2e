"""Compares the speed of two checkouts of Tersor on this machine in alternating runs, for the rows of docs/performance.md.

    python3 benches/paired.py BEFORE AFTER [products|model|cache|quantize|blockwise|gptq ...] [--turns 7] [--threads 2]

BEFORE and AFTER are checkouts; their benches are built first, each in its own target folder. Each turn measures a row with
both, and AFTER runs first in every other turn. A row shows the median time of each, the median ratio over the turns
(AFTER over BEFORE: above 1 is slower), and the minimum and maximum ratio. `products` is also measured with AVX2
instructions alone, on the smaller matrix. Models are compressed from MODEL (--model, a GGUF file) by the command of each checkout. Prints a
table in Markdown.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

FORMS = ["8row", "8g128", "4row", "4dual", "4g128", "4g32", "3g128", "2g128"]
SHAPES = [(4096, 4096), (14336, 4096)]
TOKENS = [1, 32, 512]
RECIPES = ["w4a8-g32-rtn-sym", "w8a8-g32-rtn-sym", "w4a8-rtn", "w4a4kv4-rtn", "w4a4kv4-hadamard", "w4a4kv4-resq-rtn"]
# Benches that print all their rows: patterns of a row's name and of its time.
PRINTED = {
    "cache": re.compile(r"^ +(?P<name>\S+) +[\d.]+ MB +(?P<time>[\d.]+) us"),
    "quantize": re.compile(r"^(?P<name>\d+ +\S.*?) {2,}(?P<time>[\d.]+)"),
    "blockwise": re.compile(r"^(?P<name>\d+ +\S.*?) {2,}(?P<time>[\d.]+)"),
}


class Answering:
    """A process that answers each line of its input with a line."""

    def __init__(self, command, **env):
        self.process = subprocess.Popen(
            [str(c) for c in command], env=dict(os.environ, **env), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Checkout:
    def __init__(self, path):
        self.path = Path(path).resolve()
        self.executables = {}

    def cargo(self, *arguments):
        """Executables that a build made, by target name."""
        command = ["cargo", *arguments, "--message-format=json"]
        made = subprocess.run(command, cwd=self.path, check=True, stdout=subprocess.PIPE, text=True)
        lines = map(json.loads, made.stdout.splitlines())
        self.executables |= {l["target"]["name"]: l["executable"] for l in lines if l.get("executable")}


def show(name, times):
    """A row from pairs of times, `[(before, after)]`."""
    ratios = [after / before for before, after in times]
    before, after = (statistics.median(side) for side in zip(*times))
    middle = statistics.median(ratios)
    print(f"| {name} | {before:.4g} | {after:.4g} | {middle:.3f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)


def pairs(turns, sides, measure):
    """Results of `measure(side)`, `[(before, after)]`."""
    found = []
    for turn in range(turns):
        order = [0, 1] if turn % 2 == 0 else [1, 0]
        got = {i: measure(sides[i]) for i in order}
        found.append((got[0], got[1]))
    return found


def products(sides, a):
    for level in ["best", "avx2"]:
        env = {"RAYON_NUM_THREADS": str(a.threads)} | ({"TERSOR_ISA": level} if level != "best" else {})
        for rows, cols in SHAPES if level == "best" else SHAPES[:1]:
            for tokens in TOKENS:
                for form in FORMS:
                    line = f"ours {form} {rows} {cols} {tokens}"
                    times = pairs(a.turns, sides, lambda s: 1e3 * float(once([s.executables["turns"]], line, **env)))
                    show(f"{level}, {form}, {rows} x {cols}, {tokens} tokens, ms", times)


def once(command, line, **env):
    """The answer of a new process: the placement of its memory changes its speed by several percent."""
    side = Answering(command, **env)
    answer = side.ask(line)
    side.end()
    return answer


def model(sides, a):
    with tempfile.TemporaryDirectory(prefix="paired-") as folder:
        for recipe in RECIPES:
            made = []
            for number, side in enumerate(sides):
                out = Path(folder) / f"{recipe}-{number}"
                text = side.path / "examples/data/wiki-calib.txt"
                command = [side.executables["tersor"], "compress", a.model, "--recipe", recipe, "--out", out, "--json"]
                if "hadamard" in recipe or "resq" in recipe:
                    command += ["--calib", text, "--calib-windows", "8"]
                subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                made.append([side.executables["model"], out, a.threads])
            rates = pairs(a.turns, made, lambda command: json.loads(once(command, "go")))
            for what in ["prefill", "decode"]:
                show(f"{recipe}, {what}, ms a token", [(1e3 / b[what], 1e3 / f[what]) for b, f in rates])


def printed(bench, sides, a):
    def run(side):
        env = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
        text = subprocess.run([side.executables[bench], "--bench"], check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
        rows, part = {}, ""
        for line in text.splitlines():
            if found := PRINTED[bench].match(line):
                rows[f"{part}{found['name']}"] = float(found["time"])
            elif line.endswith(("cached", "kept")):
                part = line.replace("kept", "cached") + ", "
        return rows

    found = pairs(a.turns, sides, run)
    for name in found[0][0]:
        show(f"{bench}: {name}", [(b[name], f[name]) for b, f in found if name in b and name in f])


def gptq(sides, a):
    """One layer at 4 bits in groups of 128, from a Gram matrix of 8192 inputs."""
    import numpy as np

    size, random = 4096, np.random.default_rng(1)
    inputs = random.standard_normal((2 * size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="paired-") as folder:
        files = [Path(folder) / "weight", Path(folder) / "gram"]
        random.standard_normal((size, size), dtype=np.float32).tofile(files[0])
        (inputs.T @ inputs).astype(np.float64).tofile(files[1])

        def run(side):
            command = [str(c) for c in [side.executables["gptq-layer"], *files, size]]
            return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0])

        show(f"gptq, {size} x {size}, s", pairs(a.turns, sides, run))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("before")
    arguments.add_argument("after")
    arguments.add_argument("what", nargs="*", default=["products", "model", "cache", "quantize", "blockwise", "gptq"])
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--model", type=Path, default=Path("models/smollm2-135m.gguf"))
    a = arguments.parse_args()
    sides = [Checkout(a.before), Checkout(a.after)]
    for side in sides:
        side.cargo("bench", "-p", "tersor-benches", "--no-run")
        side.cargo("build", "--release", "-p", "tersor-cli", "-p", "tersor-examples", "--bins")
    print("| row | before | after | after / before | of the turns |\n|--|--:|--:|--:|--:|", flush=True)
    for what in a.what:
        if what in PRINTED:
            printed(what, sides, a)
        else:
            {"products": products, "model": model, "gptq": gptq}[what](sides, a)


main()
