#!/usr/bin/env bash
# Runs the tests of the kernels under valgrind (which supports AVX2 but not AVX-512) and under the address sanitizer (all instruction sets of this
# processor). On a stable compiler the sanitizer needs RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v valgrind >/dev/null; then
    tests=$(cargo test --release -p tersor-kernels --lib --no-run --message-format=json |
        python3 -c 'import json, sys; print([p["executable"] for p in map(json.loads, sys.stdin) if p.get("executable")][-1])')
    # Skipped because valgrind makes them too slow: threads that spin while they wait, and the exponential at 175 000 points.
    PROPTEST_CASES=5 valgrind --error-exitcode=9 -q "$tests" --test-threads=1 --skip exponential --skip par::
else
    echo "valgrind is not installed; skipped"
fi
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" PROPTEST_CASES=50 \
    cargo test --release -p tersor-kernels --lib --target x86_64-unknown-linux-gnu --target-dir target/sanitizer
