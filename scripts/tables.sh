#!/usr/bin/env bash
# Makes the tables of docs/evaluation.md for the included model and for SmolLM2 (the first 40 windows of 512 tokens).
# Takes about ten minutes on two cores. With a directory as argument, models and reports are kept there.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
scripts/fetch-models.sh
cargo run --release -- demo --out "$out/demo"
cargo run --release -- compare models/smollm2-135m.gguf --recipes w8-rtn,w4-g128-rtn,w4-g32-rtn \
    --calib examples/data/wiki-calib.txt --text examples/data/wiki-eval.txt --windows 40 --ctx 512 --out "$out/smollm2"
echo "models and reports are in $out"
