"""Pictures of a run: a grid of one episode's images, and the score after each adaptation step."""

from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

from metarun.core import Episode
from metarun.evaluation import Estimate


def episode_grid(episode: Episode, num_ways: int) -> Tensor:
    """One task as an image [3, H, W]: a row a class; its support images first, then its query images."""
    x = torch.cat([episode.support.x, episode.query.x]).float().cpu()
    y = torch.cat([episode.support.y, episode.query.y]).cpu()
    by_class = torch.argsort(y, stable=True)
    return make_grid(x[by_class], nrow=len(y) // num_ways, pad_value=0.5, normalize=True)


def adaptation_curve(scores: dict[str, Estimate], name: str, trained_steps: int) -> Any:
    """A matplotlib figure: ``name`` after 0, 1, ... adaptation steps with 95% confidence intervals."""
    from matplotlib.figure import Figure

    curve = [scores[f"{name}_step_{k}"] for k in range(len(scores)) if f"{name}_step_{k}" in scores]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(range(len(curve)), [e.mean for e in curve], yerr=[e.ci95 for e in curve], marker="o", capsize=3)
    axes.axvline(trained_steps, color="0.7", linestyle=":", label=f"trained for {trained_steps}")
    axes.set(xlabel="adaptation steps", ylabel=f"{name} (mean and 95% CI, {curve[0].n} tasks)")
    axes.legend(frameon=False)
    return figure
