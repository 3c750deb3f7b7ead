"""Pictures: a grid of one episode's images, sample episodes of a task, and the score after each adaptation step.

N ways, M images of each class, [C, H, W] an image
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Episode
from metarun.drawing import GAP, GREY, LINE, MAX_ROWS, WHITE, as_written
from metarun.evaluation.estimates import Estimate
from metarun.output.summary import Curves, references_over_shots


def episode_grid(episode: Episode, num_ways: int) -> Tensor:
    """One task as an image [3, height, width]: a row a class, its support images, a white gap, its query images.

    Of many classes the first are shown.
    """
    both = torch.cat([episode.support.x.flatten(), episode.query.x.flatten()]).float()
    low, high = both.min(), both.max()

    def block(batch: Batch) -> Tensor:
        x = (batch.x.float() - low) / (high - low).clamp(min=1e-12)
        rows = x[torch.argsort(batch.y, stable=True)].unflatten(0, (num_ways, -1))[:MAX_ROWS]  # [N, M, C, H, W]
        framed = F.pad(rows, (LINE, LINE, LINE, LINE), value=GREY)
        image = framed.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # [C, N * H, M * W]
        return image.expand(3, -1, -1) if len(image) == 1 else image

    support, query = block(episode.support), block(episode.query)
    gap = support.new_full((3, support.shape[1], GAP), WHITE)
    return torch.cat([support, gap, query], dim=2).cpu()


@as_written()
def adaptation_curve(scores: dict[str, Estimate], name: str, trained_steps: int) -> Any:
    """A matplotlib figure: ``name`` after 0, 1, ... adaptation steps with 95% confidence intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curve = [scores[f"{name}_step_{k}"] for k in range(len(scores)) if f"{name}_step_{k}" in scores]
    steps = range(len(curve))
    low, high = [e.mean - e.ci95 for e in curve], [e.mean + e.ci95 for e in curve]
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="95% confidence")
    axes.plot(steps, [e.mean for e in curve], marker="o", markersize=4 if len(curve) <= 12 else 2, label="mean")
    axes.axvline(trained_steps, color="0.5", linestyle=":", label=f"trained for {trained_steps}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set(xlabel="adaptation steps", ylabel=name, title=f"{curve[0].n} tasks")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


@as_written()
def shots_curve(curves: Curves, scores: dict[str, Estimate]) -> Any:
    """A matplotlib figure of the ``curves_over_shots`` of ``scores``, a panel for each, with 95% confidence intervals.

    Dashed: methods without training, where the task has them scored beside.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves), 3.4), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        means, widths = [e.mean for e in curve.values()], [e.ci95 for e in curve.values()]
        axes.errorbar([*curve], means, widths, marker="o", markersize=4, capsize=3)
        for method, other in references_over_shots(scores, name).items():
            axes.plot([*other], [e.mean for e in other.values()], "--", label=method.replace("_", " "))
            axes.legend(frameon=False)
        if max(means) > 0:
            axes.set_ylim(top=min(axes.get_ylim()[1], 5 * max(means)))  # a method may be far above
        axes.set_xscale("log")
        axes.set_xticks([*curve], [str(k) for k in curve])
        axes.minorticks_off()
        number = next(iter(curve.values())).n
        axes.set(xlabel="shots", ylabel=name.replace("_", " "), title=f"{number} tasks, 95% confidence")
        axes.grid(alpha=0.3)
    return figure
