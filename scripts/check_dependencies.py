#!/usr/bin/env python3
"""Checks what the libraries depend on. The table below says for each library which of our crates it may have, and which others it must not have, directly or
through another crate, with all of its features unless the row says which. What is known to differ is in `EXCEPTIONS`, with the reason."""

import subprocess
import sys

# Our crates that hold no method.
KERNELS = {"tersor-kernels"}
CORE = KERNELS | {"tersor-core"}
OPERATORS = CORE | {"tersor-operators"}
LINALG = OPERATORS | {"tersor-linalg"}
FILES = LINALG | {"tersor-formats"}
MODELS = FILES | {"tersor-models"}

# What belongs to the command, what reads text and tokens, and other frameworks: nothing below the files of models needs them.
COMMAND = {"clap", "indicatif", "ctrlc"}
TEXT = {"serde", "serde_json", "toml", "safetensors", "tokenizers"}
FRAMEWORKS = {"candle-core", "burn", "tch"}
METHOD = COMMAND | FRAMEWORKS | TEXT - {"serde"}

# Library, options that choose its features, our crates that it may have, others that it must not have.
TABLE = [
    ("tersor-kernels", ["--all-features"], set(), COMMAND | FRAMEWORKS | TEXT | {"faer", "ndarray"}),
    ("tersor-core", ["--all-features"], KERNELS, COMMAND | FRAMEWORKS | TEXT | {"faer"}),
    ("tersor-operators", ["--all-features"], CORE, COMMAND | FRAMEWORKS | TEXT | {"faer"}),
    ("tersor-linalg", ["--all-features"], CORE, METHOD),
    ("tersor-blockwise", ["--all-features"], LINALG, METHOD | {"faer"}),
    ("tersor-groupwise", ["--all-features"], LINALG, METHOD),
    ("tersor-lowrank", ["--all-features"], LINALG, METHOD),
    ("tersor-kv", ["--all-features"], LINALG, METHOD),
    ("tersor-kv", ["--no-default-features", "--features", "rayon"], OPERATORS, METHOD | {"faer"}),
    ("tersor-formats", ["--all-features"], CORE, COMMAND | FRAMEWORKS | {"faer", "toml", "tokenizers"}),
    ("tersor-models", ["--all-features"], FILES, COMMAND | FRAMEWORKS | {"faer", "toml"}),
    ("tersor-pipeline", ["--all-features"], MODELS, COMMAND | FRAMEWORKS),
    ("tersor-candle", ["--all-features"], MODELS | {"tersor-blockwise"}, COMMAND | FRAMEWORKS - {"candle-core"} | {"faer", "toml"}),
    ("tersor-candle", ["--no-default-features"], CORE, COMMAND | FRAMEWORKS - {"candle-core"} | {"faer", "toml"}),
    ("tersor", ["--no-default-features"], OPERATORS, COMMAND | FRAMEWORKS | TEXT | {"faer", "rayon", "ndarray"}),
]

EXCEPTIONS = {
    ("tersor-blockwise", "serde_json"): "bitsandbytes' files and the optimizers' states hold JSON",
}


def tree(crate, options):
    """Returns the crates that `crate` is built with, for any platform, without dependencies of its tests and build scripts."""
    command = ["cargo", "tree", "--locked", "-p", crate, "-e", "normal", "--prefix", "none", "--format", "{p}", "--target", "all"]
    lines = subprocess.run(command + options, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0] for line in lines if line} - {crate}


faults, unused = [], set(EXCEPTIONS)
for crate, options, ours, never in TABLE:
    found = tree(crate, options)
    wrong = {c for c in found if c.startswith("tersor") and c not in ours} | found & never
    unused -= {(crate, c) for c in wrong}
    faults += [f"{crate} ({' '.join(options)}) must not depend on {c}" for c in sorted(wrong) if (crate, c) not in EXCEPTIONS]
faults += [f"the exception of {crate} for {c} is not needed any more" for crate, c in sorted(unused)]
print("\n".join(faults) or f"{len(TABLE)} rows hold, with {len(EXCEPTIONS)} exceptions")
sys.exit(bool(faults))
