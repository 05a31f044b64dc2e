#!/usr/bin/env python3
"""Draws docs/plots/optimizers.svg from the output of `optimizer-curves`: training loss, averaged over every 20 steps. Needs matplotlib.

    python3 scripts/plot_optimizers.py curves.json
"""

import json, pathlib, sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "tersor"
out = pathlib.Path(__file__).resolve().parent.parent / "docs/plots/optimizers.svg"
figure, axes = plt.subplots(figsize=(8, 4.2))
for curve, style in zip(json.load(open(sys.argv[1])), ["-", "--", "-"]):
    losses = curve["losses"]
    means = [sum(losses[i : i + 20]) / len(losses[i : i + 20]) for i in range(0, len(losses), 20)]
    axes.plot([20 * i + 10 for i in range(len(means))], means, style, label=curve["name"], linewidth=1.6)
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats a token")
axes.set_yscale("log")
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
figure.savefig(out, metadata={"Date": None})
print(out)
