#!/usr/bin/env bash
# The tests of tersor-kernels, where all `unsafe` code is, under tools that check memory and threads: valgrind (which has AVX2, and no AVX-512) and
# the address sanitizer (all levels of this processor), or those that are named, among them the thread sanitizer and Miri (plain Rust):
# `sanitize.sh thread miri`.
# To be run after a change to `unsafe` code or to how threads share work; CI does not run it.
#
# Valgrind and the address sanitizer need the stable toolchain. The thread sanitizer and Miri need the nightly one and the sources of its standard
# library: `rustup toolchain install nightly --profile minimal -c miri -c rust-src`.
set -euo pipefail
cd "$(dirname "$0")/.."
host=x86_64-unknown-linux-gnu
tools=("$@")
if [ ${#tools[@]} = 0 ]; then tools=(valgrind address); fi

run_valgrind() {
    local tests
    tests=$(cargo test --release -p tersor-kernels --lib --no-run --message-format=json |
        python3 -c 'import json, sys; print([p["executable"] for p in map(json.loads, sys.stdin) if p.get("executable")][-1])')
    # Skipped because valgrind makes them too slow: threads that spin while they wait, and the exponential at 175 000 points.
    PROPTEST_CASES=5 valgrind --error-exitcode=9 -q "$tests" --test-threads=1 --skip exponential --skip par::
}

run_address() {
    # The sanitizer is a part of the compiler that must be asked for by name on a stable release. A test asks for more memory than there is and
    # expects to be refused.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=allocator_may_return_null=1 PROPTEST_CASES=50 \
        cargo test --release -p tersor-kernels --lib --target $host --target-dir target/sanitizer
}

run_thread() {
    # The standard library is built with the sanitizer, too: without it, its own locks would be reported.
    RUSTFLAGS="-Zsanitizer=thread" TSAN_OPTIONS=allocator_may_return_null=1 PROPTEST_CASES=10 \
        cargo +nightly test -Zbuild-std --release -p tersor-kernels --lib --target $host --target-dir target/sanitizer-thread
}

run_miri() {
    # All modules without threads. Then those that share work, with threads: the pool lives as long as the process, and crossbeam hides tags in pointers
    # and breaks the rules of Stacked Borrows, but not those of Tree Borrows.
    export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance" PROPTEST_CASES=2
    cargo +nightly miri test -p tersor-kernels --lib --no-default-features --target-dir target/miri
    MIRIFLAGS+=" -Zmiri-ignore-leaks -Zmiri-tree-borrows" \
        cargo +nightly miri test -p tersor-kernels --lib --target-dir target/miri -- par:: gemm_task:: dense:: grouped:: lookup:: integer::
}

for tool in "${tools[@]}"; do
    printf '\n== %s (%s s)\n' "$tool" "$SECONDS"
    case $tool in
    valgrind) if command -v valgrind >/dev/null; then run_valgrind; else echo "valgrind is not there: left out"; fi ;;
    address | thread | miri) "run_$tool" ;;
    *) echo "$tool is none of valgrind, address, thread, miri" >&2 && exit 2 ;;
    esac
done
