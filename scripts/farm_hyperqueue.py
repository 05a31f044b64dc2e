#!/usr/bin/env python3
"""Compresses a model with HyperQueue: each task of the plan becomes a task of the queue, with its dependencies; then the results are merged.

    python3 -m pip install hyperqueue
    python3 scripts/farm_hyperqueue.py MODEL OUT [--server DIR] -- --recipe w4-g128-gptq --calib text.txt

The arguments after `--` are passed to `tersor plan` and `tersor compress`. With `--server`, the tasks are submitted to the running server of that
directory, otherwise to a new server with two workers on this machine. All workers must share a file system.
"""

import json
import subprocess
import sys
from pathlib import Path

from hyperqueue import Client, Job, LocalCluster

TERSOR = Path(__file__).resolve().parent.parent / "target/release/tersor"


def main():
    cut = sys.argv.index("--")
    (model, out, *rest), options = sys.argv[1:cut], sys.argv[cut + 1 :]
    plan = subprocess.run([TERSOR, "plan", model, "--json", *options], check=True, stdout=subprocess.PIPE).stdout
    job, done = Job(), {}
    for task in json.loads(plan)["tasks"]:
        command = [TERSOR, "compress", model, "--out", out, "--task", task["task"], *options]
        after = [done[k] for k in task["after"]]
        done[task["task"]] = job.program([str(c) for c in command], deps=after, cwd=str(Path.cwd()))

    def run(client):
        submitted = client.submit(job)
        client.wait_for_jobs([submitted])

    if rest[:1] == ["--server"]:
        run(Client(rest[1]))
    else:
        with LocalCluster() as cluster:
            for _ in range(2):
                cluster.start_worker()
            run(cluster.client())
    subprocess.run([TERSOR, "compress", model, "--out", out, "--merge", *options], check=True)


main()
