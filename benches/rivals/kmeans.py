"""Compares Lloyd iterations of k-means in Tersor and faiss on this machine, in alternating runs from the same points and the same start.

    python3 benches/rivals/kmeans.py [--points 1000000] [--dims 8] [--clusters 256] [--iterations 20] [--threads 2] [--rounds 5]
        [--data normal|mixture] [--seed 1] [--bench PATH]

Points are a standard normal distribution, or a mixture of as many normal distributions as there are clusters (means standard normal, deviation
0.3), from the seed; the start is a random choice of as many points. faiss runs without subsampling. Both move the centroids the given number of times;
Tersor then assigns all points once more, which faiss omits. Objectives are those of the final centroids, computed here in f64. faiss is installed with
pip (in `target/rivals/faiss`) unless this interpreter has it; `--bench` names an already built bench of Tersor.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "target" / "rivals" / "faiss"
# The versions that the figures of docs/performance.md were measured with.
PACKAGES = ["faiss-cpu==1.15.1", "numpy==2.4.6"]


def beside_faiss():
    """Restarts in an interpreter that has faiss, if this one does not."""
    if all(importlib.util.find_spec(m) for m in ("faiss", "numpy")):
        return
    found = HOME / "bin" / "python"
    if not found.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([str(found), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execv(str(found), [str(found), *sys.argv])


def built():
    """Path of Tersor's bench."""
    made = subprocess.run(
        ["cargo", "bench", "-p", "tersor-benches", "--bench", "kmeans", "--no-run", "--message-format=json"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )
    lines = map(json.loads, made.stdout.splitlines())
    return next(l["executable"] for l in lines if l.get("target", {}).get("name") == "kmeans" and l.get("executable"))


def objective(np, points, centroids):
    """Sum of the squared distances to the nearest centroids, in f64."""
    centroids = centroids.astype(np.float64)
    norms, total = (centroids**2).sum(1), 0.0
    for first in range(0, len(points), 1 << 15):
        x = points[first : first + (1 << 15)].astype(np.float64)
        nearest = (norms - 2 * x @ centroids.T).argmin(1)
        total += ((x - centroids[nearest]) ** 2).sum()
    return total


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--points", type=int, default=1_000_000)
    arguments.add_argument("--dims", type=int, default=8)
    arguments.add_argument("--clusters", type=int, default=256)
    arguments.add_argument("--iterations", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--data", choices=["normal", "mixture"], default="normal")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--bench")
    a = arguments.parse_args()
    beside_faiss()
    import faiss
    import numpy as np

    rng = np.random.default_rng(a.seed)
    points = rng.standard_normal((a.points, a.dims), dtype=np.float32)
    if a.data == "mixture":
        means = rng.standard_normal((a.clusters, a.dims), dtype=np.float32)
        points = means[rng.integers(a.clusters, size=a.points)] + np.float32(0.3) * points
    start = points[rng.choice(a.points, a.clusters, replace=False)].copy()
    faiss.omp_set_num_threads(a.threads)

    def theirs():
        kmeans = faiss.Kmeans(
            a.dims, a.clusters, niter=a.iterations, seed=1, min_points_per_centroid=1, max_points_per_centroid=10**9
        )
        begin = time.perf_counter()
        kmeans.train(points, init_centroids=start)
        return time.perf_counter() - begin, kmeans.centroids

    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, n) for n in ("points", "start", "out")]
        points.tofile(names[0])
        start.tofile(names[1])
        command = [a.bench or built(), *names[:2], str(a.dims), str(a.iterations), names[2]]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        side = subprocess.Popen(command, env=dict(os.environ, RAYON_NUM_THREADS=str(a.threads)), **pipes)

        def ours():
            print(file=side.stdin, flush=True)
            return float(side.stdout.readline().split()[0]), np.fromfile(names[2], np.float32).reshape(start.shape)

        ours(), theirs()
        rounds = [(ours(), theirs()) for _ in range(a.rounds)]
        side.stdin.close()
        side.wait()
    print("| data | points | centroids | iterations | threads | side | s | objective | faiss over ours |\n|--|--:|--:|--:|--:|--|--:|--:|--:|")
    middle = [statistics.median(r[i][0] for r in rounds) for i in (0, 1)]
    for i, name in enumerate(["tersor", f"faiss {faiss.__version__}"]):
        ratio = f"{middle[1] / middle[0]:.2f}" if i == 0 else ""
        found = objective(np, points, rounds[-1][i][1])
        what = f"{a.data} | {a.points} x {a.dims} | {a.clusters} | {a.iterations} | {a.threads} | {name}"
        print(f"| {what} | {middle[i]:.3f} | {found:.8e} | {ratio} |")


main()
