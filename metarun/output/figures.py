"""Pictures: a grid of one episode's images, sample episodes of a task, and the score after each adaptation step.

N ways, M images of each class, [C, H, W] an image
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Episode
from metarun.evaluation.scoring import Estimate

MAX_ROWS = 10  # TensorBoard fits a picture into a card, where sixty rows would be a speckled line
MAX_COLUMNS = 12
LINE, GAP = 1, 6  # pixels around an image, and between support and query
GREY, WHITE = 0.5, 1.0


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


def class_figure(episodes: Episode, titles: Sequence[str], names: Sequence[Sequence[str]]) -> Any:
    """A matplotlib figure of image episodes: each under its title, a row a class with its label and name.

    x [B, N * M, C, H, W] class-major, in [0, 1] (else scaled to it); ``names`` [B][N]. Of many the first are shown.
    """
    from matplotlib.figure import Figure

    batches = {"support": episodes.support, "query": episodes.query}
    blocks = {part: _mosaics(batch.x, len(names[0])) for part, batch in batches.items()}  # [B, height, width, 3]
    widths = [mosaics.shape[2] for mosaics in blocks.values()]
    scale = min(9 / sum(widths), 0.65 / episodes.support.x.shape[-1])  # inches a pixel
    row_height = blocks["support"].shape[1] * scale + 0.6
    figure = Figure(figsize=(sum(widths) * scale + 2.5, row_height * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), 2, squeeze=False, width_ratios=widths)
    for b, title in enumerate(titles):
        for axes, (part, mosaics) in zip(grid[b], blocks.items(), strict=True):
            axes.imshow(mosaics[b], interpolation="nearest")
            axes.set_title(f"{title}\n{part}" if part == "support" else part, fontsize=9, loc="left")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        shown = min(len(names[b]), MAX_ROWS)
        middles = (np.arange(shown) + 0.5) * blocks["support"].shape[1] / shown
        labels = [f"{n}: {name}" for n, name in enumerate(names[b][:shown])]
        grid[b][0].set_yticks(middles, labels, fontsize=8, parse_math=False)
        grid[b][0].tick_params(length=0)
    return figure


def _mosaics(x: Tensor, num_ways: int) -> np.ndarray:
    """[B, N * M, C, H, W] -> [B, N * (H + 2), M * (W + 2), 3]."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=1)
    rows = (
        ((x - low) / (high - low)).float().unflatten(1, (num_ways, -1))[:, :MAX_ROWS, :MAX_COLUMNS]
    )  # [B, N, M, C, H, W]
    framed = F.pad(rows, (LINE, LINE, LINE, LINE), value=WHITE)
    mosaics = framed.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)  # [B, N * H, M * W, C]
    return mosaics.expand(*mosaics.shape[:3], 3).cpu().numpy()


def numbers_figure(episodes: Episode, titles: Sequence[str]) -> Any:
    """A matplotlib figure of episodes of numbers: y over x where both are single numbers, else a heat map of x beside y."""
    from matplotlib.figure import Figure

    single = episodes.support.x.shape[2:] == episodes.support.y.shape[2:] == (1,)
    figure = Figure(figsize=(10, 2.6 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), 1 if single else 2, squeeze=False)
    for b, title in enumerate(titles):
        for i, (part, batch) in enumerate((("support", episodes.support), ("query", episodes.query))):
            axes = grid[b][0 if single else i]
            x, y = (leaf[b].reshape(len(leaf[b]), -1).cpu().numpy() for leaf in batch)  # [S, D], [S, O]
            if single:
                axes.plot(x, y, "o", markersize=6 - 3 * i, label=part)
                axes.legend(frameon=False)
            else:
                figure.colorbar(axes.imshow(np.concatenate([x, y], 1), aspect="auto"), ax=axes)
                axes.axvline(x.shape[1] - 0.5, color="white")
            axes.set_title(title if single else f"{title}: {part}, inputs | targets", fontsize=9, loc="left")
    return figure


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
