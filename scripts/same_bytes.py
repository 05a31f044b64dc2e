#!/usr/bin/env python3
"""Shows whether two builds of `tersor` write the same bytes and report the same figures.

`record` runs one binary on a fixed list of cases and writes the results to a JSON file. `compare` lists every difference between two such files.
A case is a model, an instruction set, and one of:

    compress/RECIPE   compresses, evaluates, generates; with some recipes also converts and evaluates with other caches
    kv/SPEC           evaluates the original model with the key-value cache SPEC
    convert/TARGET    converts the original model
    calibrate/RECIPE  gathers statistics in a file
    way/NAME          uses other options: a budget, tasks and merge, shards of statistics, less memory, a seed

The results are the SHA-256 of every tensor and file, the specification and report of every matrix, the plan, and all figures of `eval` in full
precision. Times, speeds, peak memory, fingerprints and versions are left out. A command that fails is recorded with its exit code and message.

    python3 scripts/same_bytes.py record --binary OLD/target/release/tersor --out before.json --resume
    python3 scripts/same_bytes.py record --binary target/release/tersor --out after.json --resume
    python3 scripts/same_bytes.py compare before.json after.json --renamed grouped=groupwise

Each case is saved as soon as it is done, and `--resume` continues with the missing cases. Results do not depend on `--threads`, except for the
memory that plans state. Both files must be recorded with the same `--windows` and on processors with the same instruction sets.
"""
import argparse, collections, concurrent.futures, dataclasses, hashlib, json, os, pathlib, re, shutil, signal, struct, subprocess, sys, tempfile
import threading, time, tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "examples/data"

# ---------------------------------------------------------------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------------------------------------------------------------

# Recipes named in the README and docs/, by their cost on SmolLM2: rounding, corrections and rotations, one pass of calibration, searches.
DOCUMENTED = [
    """bf16 w8-rtn w4-g128-rtn w4-g32-rtn w4-g64-rtn w3-g64-rtn w3-g128-rtn w2-g32-rtn w8-int8 w8-dynamic w4-nf4 w4-nf4-dq w4-fp4 mixed.toml
    w8a8-rtn w4a8-g128-rtn w4a8-g128-rtn-sym w4a8-g64-rtn w4a8-g64-rtn-sym w4a8-rtn w4a8-rtn-sym w4a4kv4-rtn w4-g32-rtn-sym w4a8-g32-rtn-sym
    w8a8-g32-rtn-sym mxint.toml""",
    "w3-g128-rtn-lqer w4a8-lqer w4a4kv4-hadamard",
    """w4a8-l2qer w3-g128-rtn-l2qer w8a8-smooth w4a8-g128-smooth w4a8-g64-smooth w4a8-smooth w4a4kv4-smooth importance.toml
    w8-gptq w4-g128-gptq w4-g64-gptq w4-g32-gptq w3-g128-gptq w3-g64-gptq w3-g32-gptq w2-g64-gptq w2-g32-gptq w5-g128-gptq w5-g32-gptq w6-g32-gptq
    w7-g128-gptq w8-g128-gptq w3-g128-gptq-mse w3-g32-gptq-mse w4-g128-gptq-mse w3-g128-gptq-lqer w3-g128-gptq-mse-l2qer w4a4kv4-resq-rtn
    w4a4kv4-hadamard-gptq-sym-mse w4a4kv4-resq resq-without-pca.toml resq-without-rotation.toml""",
    """w3-g128-awq w4a8-awq w4a8-g128-awq w4a8-g64-awq w8a8-awq w3-g128-awq-gptq w4-g128-awq-gptq-mse w4a8-g128-dgq w4a8-g64-dgq w4a8-qqq
    w4a8-g128-qqq w4a8-g64-qqq""",
]

# Recipes used in tests and sources, and a few that complete the grammar of names.
TESTED = [
    """keep.toml f16 f32 w2-g32-rtn-sym w3-g16-rtn w3-g32-rtn w3-g32-rtn-mse w3-g32-rtn-sym w3-g64-rtn-sym w3-g64-rtn-sym-mse w3-rtn-sym-mse w4-rtn
    w4-g16-rtn w4-g16-rtn-sym w4-g40-rtn w5-g32-rtn w5-g64-rtn w5-rtn-sym w6-rtn w7-g32-rtn w8-g32-rtn w8-g32-rtn-sym w8-rtn-sym w8a8kv4-rtn
    w8-g256-dynamic-dq w4-g128-fp4-dq w4a8-nf4 w8a8-int8 tensor-scale.toml blocks.toml int8.toml asym4.toml sym-full.toml sym-narrow.toml
    bf16-scales.toml two-widths.toml ends-and-keep.toml""",
    """w4-lqer w3-g32-rtn-lqer-r16 svd.toml svd-rank.toml rotated-exact.toml orthogonal-exact.toml orthogonal-parts.toml""",
    """w4-l2qer w4a8-l2qer-r8 w3-g16-gptq w6-g64-gptq w4-g32-gptq-sym-ao w4-g64-gptq-ao w3-g128-gptq-lqer-r64 w3-g64-gptq-l2qer-r8 w4a8-g64-smooth-gptq
    w4a4kv3-g32-smooth w4a4kv4-hadamard-gptq w4a4kv4-g64-hadamard-gptq original.toml weighted.toml everything-gptq.toml gptq-options.toml
    gptq-static.toml gram.toml act-static.toml act-static-mse.toml act-static-percentile.toml act-static-channel.toml act-static-smooth.toml
    act-tensor.toml act-mxint.toml mxint-l2qer.toml smoothquant-alpha.toml exact-smoothquant.toml exact-percentile.toml rotated-l2qer.toml
    rotated-static.toml resq-exact.toml pca-exact.toml resq-parts.toml resq-parts-lqer.toml parts-unrotated.toml""",
    """w4a8-dgq w4a8-g16-dgq w3-g64-awq w3-g64-awq-gptq dgq-plain.toml dgq-l2qer.toml qqq-g64.toml awq-gptq-clip.toml awq-nf4.toml
    exact-awq.toml exact-adaptive.toml""",
]

# Recipes of MiniLM, which is an encoder.
ENCODER = """w8-rtn w4-g64-rtn w4-g64-gptq w4-nf4 w8-int8 w4a8-lqer w4a8-l2qer w8a8-smooth w4a8-g128-smooth w3-g128-gptq w3-g128-gptq-lqer
    w4a8-g128-awq w4a8-g128-dgq w4a8-g128-qqq w4a8-qqq w3-g128-awq-gptq"""

# One or two SmolLM2 recipes per method, for the instruction sets below the best.
REPRESENTATIVE = """bf16 w8-rtn w4-g128-rtn w3-g128-rtn w2-g32-rtn w8-int8 w8-dynamic w4-nf4 w4-nf4-dq w4-fp4 mixed.toml w4a8-g128-rtn w4a8-rtn-sym
    w4a4kv4-rtn mxint.toml w4a8-lqer w4a4kv4-hadamard w4a8-l2qer w8a8-smooth w4a8-g128-smooth importance.toml w4-g128-gptq w3-g128-gptq-mse
    w3-g128-gptq-lqer w4a4kv4-resq resq-without-pca.toml w3-g128-awq-gptq w4a8-g128-dgq w4a8-qqq"""

# Of the tiny model's recipes that search, those that run on scalar loops, and the other ways through the command that do.
SCALAR_SEARCHES = "w3-g64-awq-gptq w4a8-g64-dgq w4a8-qqq".split()
SCALAR_WAYS = "inspect drawn stream generic seed-hadamard less-memory shards importance-matrix".split()

ENDS = '[[rules]]\nmatch = ["model.embed_tokens.weight", "lm_head.weight", "*_embeddings.weight"]\nmethod = "rtn"\nbits = 8\n'
PARTS = """parts = [{ share = 0.125, bits = 2, activations = 2 }, { share = 0.75, bits = 4, activations = 4 },
    { share = 0.125, bits = 6, activations = 6 }]
activation_scale = "asym"
"""


def body(rule, head="", match="*"):
    """Returns a recipe whose embedding and head are rounded to 8 bits and whose other matrices follow `rule`."""
    return f'{head}\n{ENDS}[[rules]]\nmatch = "{match}"\n{rule}\n'


def layers(rule, head=""):
    """Returns a recipe for the matrices of layers only; embedding and head are not compressed."""
    return f'{head}\n[[rules]]\nmatch = "model.layers.*"\n{rule}\n'


STATIC = 'method = "rtn"\nbits = 8\nactivations = 8\nactivation_scale = "static"'
# Recipes in TOML, without their names. Those in examples/recipes are read from there.
TOML = {
    "keep": body('method = "keep"'),
    "mxint": body('method = "rtn"\nbits = 4\ngrid = "mxint"\nactivations = 8'),
    "importance": body('method = "rtn"\nbits = 4\ngroup = 32\nmse = true\nimportance = true'),
    "weighted": body('method = "rtn"\nbits = 3\ngroup = 16\nmse = true\nimportance = true'),
    "tensor-scale": body('method = "rtn"\nbits = 4\ngroup = "tensor"\nscales = "f32"\ngrid = "sym"'),
    "blocks": body('method = "nf4"\ngroup = 128\nnested = true'),
    "int8": body('method = "int8"\nbits = 8\nactivations = 8'),
    "asym4": body('method = "rtn"\nbits = 4\nactivations = 4\nactivation_scale = "asym"'),
    "sym-full": body('method = "rtn"\nbits = 5\ngroup = 48\ngrid = "sym_full"'),
    "sym-narrow": body('method = "rtn"\nbits = 4\ngrid = "sym_narrow"\nactivations = 8'),
    "bf16-scales": body('method = "rtn"\nbits = 3\ngroup = 96\nscales = "bf16"'),
    "two-widths": '[[rules]]\nmatch = "*.1.mlp.up_proj*"\nmethod = "rtn"\nbits = 8\ngroup = 32\n' + layers('method = "rtn"\nbits = 4\ngroup = 32'),
    "ends-and-keep": '[[rules]]\nmatch = "*embed*"\nmethod = "f16"\n[[rules]]\nmatch = "*.q_proj.*"\nmethod = "bf16"\n'
                     '[[rules]]\nmatch = "*.k_proj.*"\nmethod = "f32"\n',
    "svd": body('method = "svd"\nrank_bits = 6.0\nfactors = "bf16"'),
    "svd-rank": body('method = "svd"\nrank = 16'),
    "rotated-exact": '\nrotate = "hadamard"\n[[rules]]\nmatch = "*"\nmethod = "f32"\n',
    "orthogonal-exact": '\nrotate = "orthogonal"\n[[rules]]\nmatch = "*"\nmethod = "f32"\n',
    "resq-exact": '\nrotate = "resq"\n[[rules]]\nmatch = "*"\nmethod = "f32"\n',
    "pca-exact": '\nrotate = "pca"\n[[rules]]\nmatch = "*"\nmethod = "f32"\n',
    "orthogonal-parts": body('method = "rtn"\n' + PARTS, 'rotate = "orthogonal"'),
    "original": body('method = "gptq"\nbits = 3\ngroup = 32', 'statistics = "original"'),
    "everything-gptq": '\n[[rules]]\nmatch = ["*embed_tokens*", "lm_head*"]\nmethod = "keep"\n[[rules]]\nmatch = "*"\nmethod = "gptq"\nbits = 4\n',
    "gptq-options": body('method = "gptq"\nbits = 4\ngroup = 32\ndamping = 0.1\nblock = 64\ndead = "keep"\non_failure = "error"\nscales = "f32"'),
    "gptq-static": body('method = "gptq"\nbits = 3\ngroup = 64\nstatic_groups = true\ngrid = "sym"'),
    "gram": body('method = "rtn"\nbits = 3\ngroup = 64\nlow_rank = "gram"\nrank = 8\nfactors = "f16"'),
    "act-static": layers(STATIC),
    "act-static-mse": layers(STATIC + '\nactivation_range = "mse"'),
    "act-static-percentile": layers(STATIC + "\nactivation_range = 99.99"),
    "act-static-channel": layers(STATIC.replace("static", "static_channel")),
    "act-static-smooth": layers(STATIC + '\nsmooth = "smoothquant"'),
    "act-tensor": layers(STATIC.replace("static", "tensor")),
    "act-mxint": layers(STATIC.replace("static", "mxint")),
    "mxint-l2qer": body('method = "rtn"\nbits = 4\ngrid = "mxint"\nactivations = 8\nlow_rank = "l2qer"'),
    "smoothquant-alpha": body('method = "rtn"\nbits = 8\nactivations = 8\nsmooth = "smoothquant"\nalpha = 0.75'),
    "exact-smoothquant": layers('method = "f32"\nsmooth = "smoothquant"'),
    "exact-percentile": layers('method = "f32"\nsmooth = "percentile"'),
    "exact-awq": layers('method = "f32"\nsmooth = "awq"'),
    "exact-adaptive": layers('method = "f32"\nsmooth = "adaptive"'),
    "rotated-l2qer": body('method = "rtn"\nbits = 3\nlow_rank = "l2qer"\nrank = 16', 'rotate = "hadamard"'),
    "rotated-static": body('method = "rtn"\nbits = 3\nactivations = 8\nactivation_scale = "static"', 'rotate = "hadamard"'),
    "resq-parts": body('method = "gptq"\n' + PARTS, 'rotate = "resq"'),
    "resq-parts-lqer": body('method = "gptq"\n' + PARTS + 'low_rank = "lqer"\nrank = 8', 'rotate = "resq"'),
    "parts-unrotated": body('method = "gptq"\n' + PARTS),
    "dgq-plain": body('method = "dgq"\nsmooth = "percentile"\nactivations = 8'),
    "dgq-l2qer": body('method = "dgq"\nsmooth = "percentile"\nactivations = 8\nlow_rank = "l2qer"\nrank = 8'),
    "qqq-g64": body('method = "qqq"\nbits = 4\ngroup = 64\nsmooth = "adaptive"'),
    "awq-gptq-clip": body('method = "gptq"\nbits = 3\nsmooth = "awq"\noutput_clip = true'),
    "awq-nf4": body('method = "nf4"\nsmooth = "awq"'),
}

def as_stages(text):
    """Converts a recipe file of the first edition, whose rules have one method each, to lists of stages."""
    old = tomllib.loads(text)

    def pick(rule, names):
        return {new: rule[name] for name, new in (n.split("=") if "=" in n else (n, n) for n in names.split()) if name in rule}

    def quantizer(rule, bits):
        kind, given = rule["method"], pick(rule, "group grid mse importance nested act_order static_groups damping block dead on_failure")
        if "scales" in rule:
            given["scales"] = rule["scales"].lower()
        if bits is not None and kind not in ("bf16", "f16", "f32", "keep"):
            given = {"bits": bits} | given
        if given.get("grid") == "mxint":
            given = {"bits": bits, "group": 16} | given | {"grid": "sym_narrow", "scales": "e8m0"}
        if kind in ("nf4", "fp4", "dynamic"):
            given = {{"group": "block"}.get(k, k): v for k, v in given.items()}
        if kind == "qqq":
            given.setdefault("group", 128)
        if kind == "svd":
            given |= pick(rule, "rank rank_bits factors")
        return {"kind": kind} | given

    def act(rule, bits):
        return [{"kind": "act", "bits": bits} | pick(rule, "activation_scale=scale activation_range=range")] if bits else []

    def stages(rule):
        out = []
        smooth, clip = rule.get("smooth"), rule.get("output_clip", False)
        if smooth:
            out.append({"kind": smooth} | pick(rule, "alpha") | ({"clip": True} if smooth == "awq" and clip else {}))
        if clip and smooth != "awq":
            out.append({"kind": "clip"})
        if rule.get("parts"):
            own = [{"share": p["share"], "stages": [quantizer(rule, p["bits"])] + act(rule, p.get("activations"))} for p in rule["parts"]]
            out.append({"kind": "split"} | pick(rule, "damping") | {"parts": own})
        else:
            out.append(quantizer(rule, rule.get("bits")))
        if "low_rank" in rule:
            out.append({"kind": rule["low_rank"]} | pick(rule, "rank rank_bits factors"))
        return out + ([] if rule.get("parts") else act(rule, rule.get("activations")))

    new = {"version": 1} | pick(old, "name statistics")
    if "rotate" in old:
        by = {"resq": {"by": "pca", "mix": True}}.get(old["rotate"], {"by": old["rotate"]})
        shares = next(([p["share"] for p in rule["parts"]] for rule in old["rules"] if rule.get("parts")), None)
        new["network"] = [{"kind": "rotate"} | by | ({"parts": shares} if shares else {})]
    if "kv" in old:
        head, *rest = old["kv"].split("-")
        cache = {"match": "*", "kind": "int", "bits": int(head[3:])} if head.startswith("int") else {"match": "*", "kind": head}
        for word in rest:
            cache |= {"hadamard": {"keys": "hadamard"}, "pca": {"keys": "stored"}, "eighth": {"high": "eighth"}}.get(word) or {"high": int(word[4:])}
        new["cache"] = [cache]
    new["rules"] = [{"match": rule["match"], "stages": stages(rule)} | pick(rule, "non_finite") for rule in old.get("rules", [])]

    def toml(v):
        if isinstance(v, dict):
            return "{ " + ", ".join(f"{k} = {toml(x)}" for k, x in v.items()) + " }"
        if isinstance(v, list):
            return "[" + ", ".join(map(toml, v)) + "]"
        return json.dumps(v)

    return "".join(f"{k} = {toml(v)}\n" for k, v in new.items())


# Caches that the documentation names for an original model.
KV = "f32 int8 int4 int3 int2 int4-high8 int4-hadamard int4-hadamard-high8 int3-hadamard int4-eighth int4-hadamard-eighth int4-pca".split()
# Other caches for the outputs of some recipes, in addition to the one that the recipe records.
RECIPE_KV = {
    "w4a4kv4-resq": ["f32", "int8-pca", "int4-pca-eighth", "int4-pca-high8"],
    "w4a4kv4-hadamard": ["f32"],
    "w8a8kv4-rtn": ["f32", "int4-high4"],
    "w4a4kv4-rtn": ["f32"],
}
# Conversions of an original model.
TARGETS = """f16 bf16 f32 gguf:F32 gguf:F16 gguf:BF16 gguf:Q4_0 gguf:Q4_1 gguf:Q5_0 gguf:Q5_1 gguf:Q8_0 gguf:Q4_K gguf:Q5_K gguf:Q6_K gguf:Q4_K_M
    gguf:Q5_K_M""".split()
# Conversions of compressed models, including those that are refused.
RECIPE_TARGETS = {
    "w4-g32-rtn-sym": ["gguf:exact", "gguf:Q4_0", "gptq", "gptq-v2", "f16"],
    "w3-g64-rtn-sym": ["gguf:exact", "gptq"],
    "w5-rtn-sym": ["gguf:exact", "gguf:Q5_0"],
    "w8-g32-rtn-sym": ["gguf:exact", "gptq"],
    "w7-g32-rtn": ["gguf:exact"],
    "w4-g32-rtn": ["gguf:exact", "gguf:Q4_1", "gguf:Q4_0", "gptq-v2"],
    "w5-g64-rtn": ["gguf:exact", "gguf:Q5_1"],
    "w4-g16-rtn-sym": ["gguf:Q4_0"],
    "w8-g32-rtn": ["gguf:exact"],
    "w4-g64-rtn": ["gptq-v2"],
    "w3-g32-rtn-sym": ["gptq"],
    "w2-g32-rtn-sym": ["gptq"],
    "w8-rtn-sym": ["gptq-v2"],
    "w5-g32-rtn": ["gptq"],
    "w4-g40-rtn": ["gptq"],
    "two-widths.toml": ["gptq-v2"],
    "w4-g128-gptq": ["gptq-v2", "gguf:exact"],
    "w4-g32-gptq": ["gptq", "gptq-v2", "gguf:exact", "bf16"],
    "w4-g32-gptq-sym-ao": ["gptq", "gguf:exact"],
    "w4-g64-gptq-ao": ["gptq-v2"],
    "w4-nf4": ["gguf:exact", "gptq", "f16", "f32"],
    "w8-int8": ["f32"],
    "w8-dynamic": ["f32"],
    "w4a8-l2qer": ["peft", "f32"],
    "w4a8-l2qer-r8": ["peft", "f32"],
    "w3-g128-gptq-lqer": ["peft"],
    "w3-g64-gptq-l2qer-r8": ["peft"],
    "w4-rtn": ["peft"],
    "svd.toml": ["f32"],
    "w4a8-g64-dgq": ["f32"],
    "w4a8-g64-qqq": ["f32"],
    "w4a8-qqq": ["f32"],
    "w4a4kv4-hadamard": ["f32"],
    "w4a4kv4-resq": ["f32"],
    "resq-exact.toml": ["f32"],
}
# Recipes for which statistics are gathered: products of features, squares, magnitudes, ranges, samples.
STATISTICS = {
    "tiny": ["w4-g32-gptq", "importance.toml", "w4-g32-rtn-l2qer", "act-static.toml", "act-static-mse.toml", "gram.toml", "w4-g64-awq", "w4a4kv4-resq"],
    "smollm2": ["w4-g128-gptq"],
    "minilm": ["w4-g64-gptq"],
}

# ---------------------------------------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------------------------------------

MODELS = {"tiny": "examples/models/tiny-wiki", "smollm2": "models/smollm2-135m.gguf", "minilm": "models/minilm"}
ISAS = ["best", "avx2", "scalar"]


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    isa: str
    kind: str
    what: str
    cost: tuple

    @property
    def id(self):
        return f"{self.model}/{self.isa}/{self.kind}/{self.what}"


def cases(models, isas):
    """Lists the cases of these models and instruction sets, the cheap ones first.

    The tiny model and MiniLM come before SmolLM2; of SmolLM2, the documented recipes before the representative ones with AVX2, and those before the
    recipes of tests. MiniLM runs with the best instruction set alone. Scalar loops, which are slow, run with the
    tiny model alone, and few of its searches."""
    out = []

    def add(model, isa, kind, names, *cost):
        out.extend(Case(model, isa, kind, name, (*cost, i)) for i, name in enumerate(names))

    for isa in isas:
        rank = ISAS.index(isa)
        for recipes, extra in ((DOCUMENTED, 0), (TESTED, 1)):
            for cost, names in enumerate(recipes):
                names = names.split()
                chosen = [name for name in names if name in SCALAR_SEARCHES] if isa == "scalar" and cost == 3 else names
                add("tiny", isa, "compress", chosen, 0, rank, cost, extra)
                if isa == "best":
                    add("smollm2", isa, "compress", names, 4 if extra else 2, rank, cost)
                elif isa == "avx2":
                    add("smollm2", isa, "compress", [name for name in names if name in REPRESENTATIVE.split()], 3, rank, cost)
        add("tiny", isa, "kv", KV, 0, rank, 0, 2)
        add("tiny", isa, "convert", TARGETS, 0, rank, 0, 3)
        add("tiny", isa, "calibrate", STATISTICS["tiny"], 0, rank, 1, 2)
        add("tiny", isa, "way", SCALAR_WAYS if isa == "scalar" else [name for name in WAYS if name != "demo"], 0, rank, 4)
        if isa == "best":
            # All windows of the evaluation text, for each of its recipes.
            add("tiny", isa, "way", ["demo"], 1, rank, 9)
            add("minilm", isa, "compress", ENCODER.split(), 1, rank, 0)
            add("minilm", isa, "convert", ["f16", "bf16", "gguf:F16"], 1, rank, 1)
            add("minilm", isa, "calibrate", STATISTICS["minilm"], 1, rank, 2)
            add("smollm2", isa, "kv", KV, 2, rank, 1, 1)
            add("smollm2", isa, "convert", TARGETS, 2, rank, 0, -1)
            add("smollm2", isa, "calibrate", STATISTICS["smollm2"], 2, rank, 2, 1)
            add("smollm2", isa, "way", ["less-memory"], 2, rank, 2, 2)
        elif isa == "avx2":
            add("smollm2", isa, "kv", ["int8", "int4-hadamard-high8"], 3, rank, 1, 1)
    return sorted((c for c in out if c.model in models), key=lambda c: c.cost)


class Failed(Exception):
    """Exit code and message of a command that failed."""

    def __init__(self, code, said):
        self.result = {"exit": code, "error": said}


class Run:
    """A running case: its commands, in a separate directory."""

    def __init__(self, case, options, tmp):
        self.case, self.tmp, self.process = case, tmp, None
        self.binary, self.threads, self.windows, self.brief = options.binary, options.threads, options.windows, options.brief
        self.first = options.first_edition and pathlib.Path(options.first_edition)
        self.model = ROOT / MODELS[case.model]
        if options.model_dir and MODELS[case.model].startswith("models/"):
            self.model = pathlib.Path(options.model_dir).resolve() / self.model.name
        self.encoder = case.model == "minilm"
        self.env = {k: v for k, v in os.environ.items() if k != "TERSOR_ISA"}
        if case.isa != "best":
            self.env["TERSOR_ISA"] = case.isa

    def tersor(self, *args):
        """Runs the command and returns the object that it prints, without what differs from run to run. Raises `Failed` if it fails."""
        args = [self.binary, *map(str, args), "--json", "--threads", str(self.threads)]
        with subprocess.Popen(args, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self.process = process
            printed, said = process.communicate()
        if process.returncode != 0:
            said = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
            raise Failed(process.returncode, self.without_paths("\n".join(said[-6:])))
        return without_times(json.loads(self.without_paths(printed)))

    def without_paths(self, text):
        """Replaces directories by names."""
        for path, name in ((self.tmp, "TMP"), (self.model.parent, "MODELS"), (ROOT, "ROOT")):
            text = text.replace(str(path), name)
        return text

    def attempt(self, *args):
        """Like `tersor`, but returns a failure as a result."""
        try:
            return self.tersor(*args)
        except Failed as e:
            return e.result

    def recipe(self, name):
        """Returns the argument of `--recipe`: the name, or a file."""
        if not name.endswith(".toml"):
            return name
        shipped = (self.first or ROOT / "examples/recipes") / name
        if shipped.exists():
            return shipped
        path = self.tmp / name
        text = f'name = "{name[:-5]}"\n{TOML[name[:-5]]}'
        path.write_text(text if self.first else as_stages(text))
        return path

    @property
    def calibration(self):
        text = DATA / ("sentences-calib.txt" if self.encoder else "wiki-calib.txt")
        return ["--calib", text, "--calib-windows", self.windows]

    def evaluate(self, what, *more):
        """Returns the figures of `eval`."""
        if self.encoder:
            return self.attempt("eval", what, "--sentences", DATA / "sentences-eval.txt", "--no-speed", "--against", self.model, *more)
        return self.attempt("eval", what, "--text", DATA / "wiki-eval.txt", "--windows", self.windows, "--no-speed", *more)

    def compressed(self, recipe, *more, name="out"):
        """Compresses with a recipe and returns the directory and the output of the command."""
        out = self.tmp / name
        return out, self.tersor("compress", self.model, "--recipe", recipe, *self.calibration, "--out", out, *more)

    def compress(self, name):
        recipe = self.recipe(name)
        result = {"plan": self.attempt("plan", self.model, "--recipe", recipe, *self.calibration)}
        out, result["said"] = self.compressed(recipe)
        result |= directory(out)
        if self.brief and self.case.model != "tiny":
            return result
        result["verify"] = self.attempt("verify", out)
        result["eval"] = self.evaluate(out, "--against", self.model) if not self.encoder else self.evaluate(out)
        if not self.encoder:
            result["text"] = self.attempt("generate", out, "--prompt", "The river", "--tokens", 24)
        # SmolLM2 takes minutes where the tiny model takes seconds.
        few = self.case.model != "tiny"
        if self.case.model == "minilm" or few and self.case.isa != "best":
            return result
        result["kv"] = {kv: self.evaluate(out, "--kv", kv) for kv in RECIPE_KV.get(name, [])[: 1 if few else None]}
        result["convert"] = {to: self.converted(out, to) for to in RECIPE_TARGETS.get(name, [])}
        return result

    def converted(self, source, to):
        """Converts, and returns the output of the command, the hashes of all files, and for small models the figures of the result."""
        out = self.tmp / ("converted.gguf" if to.startswith("gguf") else "converted")
        said = self.attempt("convert", source, "--to", to, "--out", out)
        if "error" in said:
            return said
        result = {"said": said, "files": files(out)}
        # An adapter contains the path of its base model.
        adapter = out / "adapter_config.json"
        if adapter.exists():
            result["files"][adapter.name] = {"json": json.loads(self.without_paths(adapter.read_text()))}
        if self.case.model == "tiny" and to != "peft" and not to.startswith("gptq"):
            result["eval"] = self.evaluate(out)
        remove(out)
        return result

    def kv(self, spec):
        return {"eval": self.evaluate(self.model, "--kv", spec, "--against", self.model)}

    def convert(self, to):
        result = self.converted(self.model, to)
        if to.startswith("gguf:"):
            result["plan"] = self.attempt("plan", self.model, "--to", to)
        return result

    def statistics(self, recipe, name, *more, windows=None):
        """Gathers statistics and returns their file and the output of the command."""
        out, text = self.tmp / name, self.calibration[1]
        calib, count = ("--text", "--windows") if self.first else ("--calib", "--calib-windows")
        args = ["calibrate", self.model, "--recipe", self.recipe(recipe), calib, text, count, windows or self.windows, "--out", out, *more]
        return out, self.tersor(*args)

    def calibrate(self, recipe):
        out, said = self.statistics(recipe, "statistics")
        return {"said": said, "tensors": tensors(out)}

    def way(self, name):
        return WAYS[name](self)


def way_budget(run):
    """A plan within a budget, the directory compressed by it, and another budget from the same measurement."""
    plan, measured, toml = run.tmp / "plan.json", run.tmp / "measured.json", run.tmp / "other.toml"
    model, calibration = run.model, run.calibration
    result = {"budget": run.attempt("plan", model, "--budget", "1MB", *calibration, "--measured", measured, "--out", plan)}
    result["recipe"] = without_times(json.loads(plan.read_text()))["recipe"]
    result["bits"] = run.attempt("plan", model, "--bits", "4.2", *calibration, "--measured", measured, "--out", toml)
    result["toml"] = toml.read_text()
    result["said"] = run.tersor("compress", model, "--plan", plan, *calibration, "--out", run.tmp / "out")
    return result | directory(run.tmp / "out") | {"eval": run.evaluate(run.tmp / "out", "--against", model)}


def way_tasks(name):
    """A recipe, compressed task by task."""
    def way(run):
        recipe = run.recipe(name)
        tasks = run.tersor("plan", run.model, "--recipe", recipe, *run.calibration)["tasks"]
        for task in range(len(tasks)):
            run.compressed(recipe, "--task", task)
        out, said = run.compressed(recipe, "--merge")
        return {"tasks": len(tasks), "said": said} | directory(out)
    return way


def way_shards(run):
    """Statistics of two shards, of 8192 tokens each, and what a recipe makes of them."""
    shards = [run.statistics("w4-g64-gptq", f"shard{i}", "--shard", f"{i}/2", windows=8 * run.windows)[0] for i in (1, 2)]
    out = run.tmp / "out"
    stats = ",".join(map(str, shards))
    said = run.tersor("compress", run.model, "--recipe", "w3-g64-gptq", "--stats", stats, "--out", out)
    return {"said": said, "shards": {s.name: tensors(s) for s in shards}} | directory(out)


def way_importance(run):
    """Rounding weighted by an importance matrix of llama.cpp in its older binary form."""
    matrix, out = run.tmp / "imatrix.dat", run.tmp / "out"
    config = json.loads((run.model / "config.json").read_text())
    widths = {"attn_q": 0, "attn_k": 0, "attn_v": 0, "ffn_gate": 0, "ffn_up": 0, "attn_output": 1, "ffn_down": 2}
    sizes = [config["hidden_size"], config["num_attention_heads"] * config["head_dim"], config["intermediate_size"]]
    entries = []
    for layer in range(config["num_hidden_layers"]):
        for part, width in widths.items():
            n, label = sizes[width], f"blk.{layer}.{part}.weight".encode()
            values = [1.0 + (i * 37 + layer) % 101 for i in range(n)]
            entries.append(struct.pack("<i", len(label)) + label + struct.pack("<ii", 1, n) + struct.pack(f"<{n}f", *values))
    matrix.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries))
    said = run.tersor("compress", run.model, "--recipe", run.recipe("weighted.toml"), "--stats", matrix, "--out", out)
    return {"said": said} | directory(out)


def way_more(name, *more):
    """A recipe with other options of `compress`."""
    def way(run):
        out, said = run.compressed(run.recipe(name), *more)
        return {"said": said} | directory(out)
    return way


def way_less_memory(run):
    """The same bytes with hidden states on disk."""
    large, out = run.case.model == "smollm2", run.tmp / "out"
    recipe, windows, memory = ("w4-g128-gptq", 4 * run.windows, "210MB") if large else ("w4-g32-gptq", 8 * run.windows, "50MB")
    args = [run.model, "--recipe", recipe, "--calib", run.calibration[1], "--calib-windows", windows, "--max-memory", memory]
    on_disk = run.tersor("plan", *args)["hidden_states_on_disk"]
    return {"on_disk": on_disk, "said": run.tersor("compress", *args, "--out", out)} | directory(out)


def way_stream(run):
    """Figures with a layer in memory at a time."""
    return {"eval": run.evaluate(run.model, "--stream")}


def way_compare(run):
    """What `compare` says of three recipes."""
    recipes = ["--recipes", "w8-rtn,w4-g32-gptq,w4a8-g64-smooth", *run.calibration]
    evaluation = ["--text", DATA / "wiki-eval.txt", "--windows", run.windows]
    return {"said": run.tersor("compare", run.model, *recipes, *evaluation, "--out", run.tmp / "compared")}


def way_demo(run):
    """What `demo` says."""
    return {"said": run.tersor("demo", "--out", run.tmp / "demo")}


def way_drawn(run):
    """Text that is drawn at a temperature."""
    return {"text": run.tersor("generate", run.model, "--prompt", "The river", "--tokens", 24, "--temperature", "0.8", "--seed", 5)}


def way_inspect(run):
    """What is in the model."""
    return {"said": run.tersor("inspect", run.model)}


WAYS = {
    "inspect": way_inspect,
    "drawn": way_drawn,
    "stream": way_stream,
    "generic": way_more("w4-g32-rtn", "--generic"),
    "seed-hadamard": way_more("w4a4kv4-hadamard", "--seed", 7),
    "seed-resq": way_more("w4a4kv4-resq", "--seed", 7),
    "ctx": way_more("w4-g32-gptq", "--ctx", 64),
    "less-memory": way_less_memory,
    "shards": way_shards,
    "importance-matrix": way_importance,
    "tasks-original": way_tasks("original.toml"),
    "tasks-dgq": way_tasks("w4a8-g64-dgq"),
    "tasks-resq": way_tasks("w4a4kv4-resq"),
    "budget": way_budget,
    "compare": way_compare,
    "demo": way_demo,
}

# ---------------------------------------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------------------------------------

VOLATILE = re.compile(r"(^|_)(seconds|peak_rss_bytes|fingerprint|version|out|finished_before|page|per_second|per_s)$")


def without_times(value):
    """Leaves out times, speeds, peak memory, fingerprints, versions and paths of output, at any depth."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not VOLATILE.search(k)}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def sha256(path):
    """Gives the hash of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensors(path):
    """Gives type, shape and hash of each tensor of a safetensors file; of a tensor `about` that holds JSON, the JSON."""
    found = {}
    with open(path, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            f.seek(8 + length + begin)
            data = f.read(end - begin)
            found[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "sha256": hashlib.sha256(data).hexdigest()}
            if name == "about":
                found[name] = {"json": without_times(json.loads(data))}
    return found


def files(path):
    """Gives size and hash of a file, or of each file in a directory, except the record of a conversion, which has the fingerprint of the recipe."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name != "conversion.json")
    return {p.name if p == path else str(p.relative_to(path)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}


def directory(path):
    """Gives what `compress` wrote: tensors, other files, and what the manifest says of sizes, specifications and errors."""
    manifest = json.loads((path / "tersor.json").read_text())
    stored = files(path)
    for name in ("tersor.json", "timing.json"):
        stored.pop(name, None)
    kept = ("spec", "report", "method", "rule", "bytes")
    return {
        "files": stored,
        "tensors": {n: t for p in sorted(path.glob("*.safetensors")) for n, t in tensors(p).items()},
        "manifest": {
            "matrices": {n: without_times({k: t.get(k) for k in kept}) for n, t in manifest["tensors"].items()},
            "copied": sorted(manifest["copied"]),
            "recipe": manifest["recipe"]["name"],
            "bits_per_weight": manifest["bits_per_weight"],
            "body_bits_per_weight": manifest["body_bits_per_weight"],
            "instruction_set": manifest["inputs"].get("instruction set"),
        },
    }


def remove(path):
    """Removes a file or directory that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------------------------------------
# Recording
# ---------------------------------------------------------------------------------------------------------------------------------------------------


class Record:
    """A JSON file of cases, a line each, rewritten in one step whenever a case is done."""

    def __init__(self, path, about):
        self.path, self.about, self.lines, self.lock = pathlib.Path(path), about, {}, threading.Lock()

    def resume(self):
        """Takes over the cases of an earlier run. Fails where that run was of another binary or other windows."""
        found = json.loads(self.path.read_text())
        for key in ("binary_sha256", "windows"):
            if found["about"][key] != self.about[key]:
                raise SystemExit(f"{self.path} has {key} {found['about'][key]}, not {self.about[key]}: record into another file")
        self.lines = {name: json.dumps(case, sort_keys=True) for name, case in found["cases"].items()}

    def add(self, name, result):
        """Saves a case."""
        with self.lock:
            self.lines[name] = json.dumps(result, sort_keys=True)
            partial = self.path.with_name(self.path.name + ".partial")
            with open(partial, "w") as f:
                f.write(f'{{"about": {json.dumps(self.about, sort_keys=True)},\n"cases": {{\n')
                f.write(",\n".join(f"{json.dumps(n)}: {line}" for n, line in self.lines.items()))
                f.write("\n}}\n")
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, self.path)


# Cases at work.
WORKING = []


def stop(store):
    """Ends the commands at work, removes their directories and exits, without recording their cases."""
    # Never given back: what is killed here must not be saved as a result.
    store.lock.acquire()
    for run in list(WORKING):
        if run.process:
            run.process.kill()
            run.process.wait()
        shutil.rmtree(run.tmp, ignore_errors=True)
    os._exit(130)


def perform(case, options):
    """Runs a case and gives its result, with the seconds that it took."""
    begin = time.monotonic()
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="same-bytes-", dir=options.tmp))
    run = Run(case, options, tmp)
    WORKING.append(run)
    try:
        result = getattr(run, case.kind)(case.what)
    except Failed as e:
        result = e.result
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        WORKING.remove(run)
    return result | {"took_seconds": round(time.monotonic() - begin, 1)}


def record(options):
    """Runs every case that is not recorded yet."""
    options.binary = str(pathlib.Path(options.binary).resolve())
    about = {"binary_sha256": sha256(options.binary), "windows": options.windows, "threads": options.threads}
    store = Record(options.out, about)
    if options.resume and store.path.exists():
        store.resume()
    elif store.path.exists():
        raise SystemExit(f"{store.path} exists: give --resume, or another --out")
    wanted = [c for c in cases(options.models.split(","), options.isa.split(",")) if not options.only or options.only in c.id]
    todo = [c for c in wanted if c.id not in store.lines]
    if options.list:
        print("\n".join(("" if c in todo else "done ") + c.id for c in wanted))
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop(store))
    print(f"{len(wanted)} cases, {len(wanted) - len(todo)} of them recorded already", flush=True)
    begin = time.monotonic()

    def one(case):
        result = perform(case, options)
        store.add(case.id, result)
        failed = f", exit code {result['exit']}: {result['error'].splitlines()[0] if result['error'] else ''}" if "exit" in result else ""
        at, all_ = len([c for c in wanted if c.id in store.lines]), len(wanted)
        print(f"{at}/{all_} {case.id}: {result['took_seconds']} s, {time.monotonic() - begin:.0f} s in all{failed}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(one, c) for c in todo]:
            done.result()


# ---------------------------------------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------------------------------------

NOTHING = "absent"


def leaves(value, path=()):
    """Lists the figures of a result by their paths. Items of lists that have a name go by it."""
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from leaves(v, path + (k,))
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        for i, v in enumerate(value):
            name = next((str(v[k]) for k in ("name", "tensor") if isinstance(v, dict) and k in v), None)
            yield from leaves(v, path + (f"{i}" if name is None else f"{i}:{name}",))
    else:
        yield path, value


def compare(options):
    """Prints every difference of two records, and counts them."""
    before, after = (json.loads(pathlib.Path(p).read_text()) for p in (options.before, options.after))
    renamed = dict(pair.split("=", 1) for pair in options.renamed.split(",") if pair)
    if before["about"]["windows"] != after["about"]["windows"]:
        print("note: the records have different numbers of windows")
    old, new = before["cases"], after["cases"]
    names = [n for n in old if not options.only or options.only in n] + [n for n in new if n not in old and (not options.only or options.only in n)]
    if options.common:
        names = [n for n in names if n in old and n in new]
    kinds, count, bad, figures, missing = collections.Counter(), 0, 0, 0, 0
    for name in names:
        if name not in old or name not in new:
            print(f"{name}: only in {options.before if name in old else options.after}")
            missing += 1
            continue
        a, b = (dict(leaves(without_times(record[name]))) for record in (old, new))
        found = []
        for path in [*a, *(p for p in b if p not in a)]:
            x, y = a.get(path, NOTHING), b.get(path, NOTHING)
            figures += 1
            # NaN is no number that equals itself; types count, so that 1 is not 1.0.
            if json.dumps(x) == json.dumps(y):
                continue
            if path[-1] == "kind" and "spec" in path:
                kinds[x, y] += 1
                if renamed.get(x) == y:
                    continue
            found.append(f"{name}: {' > '.join(path)}: {json.dumps(x)} -> {json.dumps(y)}")
        print(*found, sep="\n", end="\n" if found else "")
        count += len(found)
        bad += bool(found)
    listed = [{"old": x, "new": y, "places": n, "expected": renamed.get(x) == y} for (x, y), n in sorted(kinds.items(), key=str)]
    print("renamed kinds:", json.dumps(listed))
    print(f"{len(names)} cases, {figures} figures: {count} differences in {bad} cases, {missing} cases in one record only")
    return 1 if count or missing else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    r = verbs.add_parser("record", help="run a binary over all cases")
    r.add_argument("--binary", required=True, help="the `tersor` to run")
    r.add_argument("--out", required=True, help="the JSON file of results")
    r.add_argument("--models", default="tiny,smollm2,minilm")
    r.add_argument("--model-dir", help="where smollm2-135m.gguf and minilm are, unless in models/")
    r.add_argument("--isa", default="best,avx2,scalar", help="instruction sets: best, avx2, scalar")
    r.add_argument("--windows", type=int, default=8, help="windows of calibration and of evaluation")
    r.add_argument("--threads", type=int, default=1, help="threads of each command")
    r.add_argument("--jobs", type=int, default=1, help="cases at a time")
    r.add_argument("--brief", action="store_true", help="record only the tensors of larger models, not what they evaluate to")
    r.add_argument("--only", help="only cases whose names contain this")
    r.add_argument("--tmp", help="where temporary directories are made")
    r.add_argument("--first-edition", help="directory of the recipe files of a binary that reads the first edition, before stages")
    r.add_argument("--resume", action="store_true", help="go on with a file that is there")
    r.add_argument("--list", action="store_true", help="only list the cases")
    c = verbs.add_parser("compare", help="list all differences of two records")
    c.add_argument("before")
    c.add_argument("after")
    c.add_argument("--renamed", default="", help="kinds of operators that have a new name: old=new,...")
    c.add_argument("--only", help="only cases whose names contain this")
    c.add_argument("--common", action="store_true", help="leave out cases that one record lacks")
    options = parser.parse_args()
    sys.exit(record(options) if options.verb == "record" else compare(options))


if __name__ == "__main__":
    main()
