"""Binned densities: a number's distribution as probabilities of bins, for networks that predict any shape of it.

Within a bin the density is even. The first and the last bin have no outer end: there it is a half-normal from the inner
border on, half of whose mass lies within the bin's width. Bar distribution of Mueller et al., ICLR 2022,
https://arxiv.org/abs/2112.10510; tails as in its released successor's FullSupportBarDistribution.

Q rows, G bins, ``borders`` [G + 1]; logits and probabilities are [..., G]
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

HALF = 0.6744897501960817  # half of a half-normal of deviation 1 lies below it


def borders_of(quantiles: Sequence[float], bins: int, like: Tensor) -> Tensor:
    """Borders of ``bins`` bins that cut the parts between ``quantiles`` evenly, as ``like`` in dtype and device."""
    at = torch.linspace(0, len(quantiles) - 1, bins + 1, dtype=torch.float64)
    low = at.floor().long().clamp(max=len(quantiles) - 2)
    values = torch.tensor(list(quantiles), dtype=torch.float64)
    return (values[low] + (at - low) * (values[low + 1] - values[low])).to(like)


def log_density(logits: Tensor, borders: Tensor, y: Tensor) -> Tensor:
    """Logarithms of the densities of y [...] under logits [..., G]: [...]."""
    width = borders.diff()
    place = (y[..., None] >= borders[1:-1]).sum(-1, keepdim=True)  # [..., 1], below G
    inside = logits.log_softmax(-1).take_along_dim(place, -1)[..., 0]
    own = (width[place])[..., 0]
    deviation = own / HALF
    inner = torch.where(place[..., 0] == 0, borders[1], borders[-2])
    tail = math.log(2 / math.pi) / 2 - deviation.log() - ((y - inner) / deviation).square() / 2
    outside = (place[..., 0] == 0) | (place[..., 0] == len(width) - 1)
    return inside + torch.where(outside, tail, -own.log())


def cumulative(logits: Tensor, borders: Tensor, y: Tensor) -> Tensor:
    """Probabilities [...] of less than y [...] under logits [..., G]."""
    place = (y[..., None] >= borders[1:-1]).sum(-1, keepdim=True)  # [..., 1], below G
    p, start, width = logits.softmax(-1), borders[place[..., 0]], borders.diff()[place[..., 0]]
    share = (y - start) / width
    first, last = (2 * torch.special.ndtr(HALF * away) for away in (share - 1, share))  # a half-normal's
    share = torch.where(place[..., 0] == 0, first, torch.where(place[..., 0] == p.shape[-1] - 1, last - 1, share))
    lower = (p.cumsum(-1) - p).take_along_dim(place, -1)[..., 0]
    return lower + p.take_along_dim(place, -1)[..., 0] * share


def moments(logits: Tensor, borders: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations [...] of the densities with logits [..., G]."""
    width, middle = borders.diff(), (borders[1:] + borders[:-1]) / 2
    first, second = middle.clone(), middle.square() + width.square() / 12
    tail = torch.stack([-width[0], width[-1]]) / HALF  # deviations, with the sign of their side
    inner = torch.stack([borders[1], borders[-2]])
    away = tail * math.sqrt(2 / math.pi)
    ends = inner + away, inner.square() + 2 * inner * away + tail.square()
    first, second = (torch.cat([end[:1], all_[1:-1], end[1:]]) for end, all_ in zip(ends, (first, second), strict=True))
    p = logits.softmax(-1)
    mean = p @ first
    return mean, (p @ second - mean.square()).clamp(min=0).sqrt()
