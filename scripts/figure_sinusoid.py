"""Draw what sinusoid runs learned: python scripts/figure_sinusoid.py RUN [RUN ...] OUT.png

Left: one test wave, the K support points, and the first run's prediction after 0, 1 and 10 steps. Right: test MSE of every
run after each step.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from metarun.config.build import build
from metarun.config.compose import read_config
from metarun.output.checkpoint import load

WAVE = 4  # number of the test episode on the left
STEPS = (0, 1, 10)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    *runs, out = map(Path, sys.argv[1:])
    run = runs[0]
    x = build(read_config(run / "config.yaml"))
    theta = load(run / "checkpoints" / "best.pt", x.device)["theta"]
    draw = x.task.draw("test", [WAVE])
    support = x.task.episodes(draw).support
    grid = np.linspace(-5, 5, 200)
    truth = draw["amplitude"][0] * np.sin(grid - draw["phase"][0])

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(grid, truth, color="0.6", linewidth=3, label="the wave")
    inputs = torch.from_numpy(grid).to(support.x)[:, None]
    first = type(support)(support.x[0], support.y[0])
    phis = list(x.test_learner.trajectory(theta, first, max(STEPS)))
    for k in STEPS:
        outputs = x.test_learner.predict(phis[k], inputs).detach()  # type: ignore[attr-defined]
        left.plot(grid, outputs[:, 0], "--" if k == 0 else "-", label=f"after {k} step{'s' * (k != 1)}")
    left.plot(first.x[:, 0], first.y[:, 0], "k^", label=f"{len(first.x)} support points")
    left.legend(frameon=False, fontsize=7)
    left.set(xlabel="x", ylabel="y")

    for place, one in enumerate(runs):
        results = json.loads((one / "results.json").read_text())
        curve = [results[f"test/mse_step_{k}"] for k in range(max(STEPS) + 1)]
        means, widths = [c["mean"] for c in curve], [c["ci95"] for c in curve]
        right.errorbar(
            range(len(curve)), means, yerr=widths, marker="o", capsize=3, label=f"seed {place}" if runs[1:] else None
        )
    right.axhline(0.67, color="0.7", linestyle=":", label="paper, 1 step")
    right.axhline(0.35, color="0.7", linestyle="--", label="paper, 10 steps")
    right.set(xlabel="adaptation steps", ylabel=f"test MSE ({curve[0]['n']} waves, 95% CI)", yscale="log")
    right.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print(out)


if __name__ == "__main__":
    main()
