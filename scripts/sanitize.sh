#!/usr/bin/env bash
# The tests of the kernels under two watchers of memory: valgrind (which has AVX2, and no AVX-512) and the address sanitizer (all levels of this
# processor). The sanitizer is a part of the compiler that must be asked for by name on a stable release.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v valgrind >/dev/null; then
    tests=$(cargo test --release -p tersor-kernels --lib --no-run --message-format=json |
        python3 -c 'import json, sys; print([p["executable"] for p in map(json.loads, sys.stdin) if p.get("executable")][-1])')
    # Threads that wait awake for each other take turns under valgrind; the exponential is tried at 175 000 places.
    PROPTEST_CASES=5 valgrind --error-exitcode=9 -q "$tests" --test-threads=1 --skip exponential --skip par::
else
    echo "valgrind is not there: left out"
fi
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" PROPTEST_CASES=50 \
    cargo test --release -p tersor-kernels --lib --target x86_64-unknown-linux-gnu --target-dir target/sanitizer
