#!/usr/bin/env python3
"""Compiles every library by itself, as programs that depend on it do: with its default features, without any, and with each feature alone. (A build of the
workspace unites the features that its crates ask for, and hides what one of them lacks.) Lints are errors. `lapack` is left out where OpenBLAS is absent."""

import json
import shutil
import subprocess
import sys
import time

openblas = bool(shutil.which("pkg-config")) and subprocess.run(["pkg-config", "--exists", "openblas"], check=False).returncode == 0
metadata = json.loads(subprocess.run(["cargo", "metadata", "--locked", "--format-version=1", "--no-deps"], check=True, capture_output=True).stdout)
failed = []
for package in sorted(metadata["packages"], key=lambda p: p["name"]):
    if package["publish"] == [] or not any("lib" in t["kind"] for t in package["targets"]):
        continue
    features = sorted(set(package["features"]) - {"default"})
    runs = [[]] + [["--no-default-features"]] * bool(features)
    for feature in features:
        if feature == "lapack" and not openblas:
            print(f"{package['name']}: `lapack` is left out, there is no OpenBLAS")
            continue
        runs.append(["--no-default-features", "--features", feature])
    for options in runs:
        start = time.monotonic()
        command = ["cargo", "clippy", "--locked", "--quiet", "-p", package["name"], "--lib", *options, "--", "-D", "warnings"]
        ok = subprocess.run(command, check=False).returncode == 0
        print(f"{package['name']} {' '.join(options)}: {'ok' if ok else 'FAILED'}, {time.monotonic() - start:.1f} s", flush=True)
        failed += [] if ok else [command]
for command in failed:
    print("failed:", " ".join(command))
sys.exit(bool(failed))
