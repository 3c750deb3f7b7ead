"""The binned density against numerical integrals. float64; the tolerance is that of the integral."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from metarun.models.binned import borders_of, cumulative, log_density, moments

QUANTILES = [-4.0, -1.5, -0.4, 0.1, 0.9, 2.0, 5.0]
FINE = 1e-6


@pytest.fixture(params=[3, 12, 50])
def density(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(request.param)
    logits = torch.randn(4, request.param, dtype=torch.float64)
    return logits, borders_of(QUANTILES, request.param, logits)


def integral(logits: torch.Tensor, borders: torch.Tensor, power: int) -> torch.Tensor:
    """Of y^power times the density, piece by piece: the middle rule between borders, and far into the curved tails."""
    ends = torch.cat(
        [borders[1:2] - 60 * (borders[1] - borders[0]), borders[1:-1], borders[-2:-1] + 60 * borders.diff()[-1]]
    )
    total = torch.zeros(len(logits), dtype=torch.float64)
    for number, (low, high) in enumerate(pairwise(ends.tolist())):
        points = 40001 if number in (0, len(ends) - 2) else 2001  # between borders the density is flat
        edges = torch.linspace(low, high, points, dtype=torch.float64)
        y = (edges[1:] + edges[:-1]) / 2
        p = log_density(logits[:, None].expand(-1, len(y), -1), borders, y.expand(len(logits), -1)).exp()
        total += (p * y**power).sum(1) * (edges[1] - edges[0])
    return total


def test_the_density_integrates_to_one_and_has_the_mean_and_deviation_it_says(density):
    mean, deviation = moments(*density)
    mass, first, second = (integral(*density, power) for power in range(3))
    torch.testing.assert_close(mass, torch.ones(4).double(), rtol=0, atol=FINE)
    torch.testing.assert_close(mean, first, rtol=0, atol=FINE)
    torch.testing.assert_close(deviation, (second - first**2).sqrt(), rtol=0, atol=10 * FINE)


def test_the_mass_of_a_bin_is_its_probability_and_half_of_a_tails_lies_in_its_width(density):
    logits, borders = density
    probability = logits.softmax(1)
    for k, share in ((0, 0.5), (1, 1.0), (len(borders) - 2, 0.5)):
        edges = torch.linspace(float(borders[k]), float(borders[k + 1]), 20001, dtype=torch.float64)
        y = (edges[1:] + edges[:-1]) / 2
        p = log_density(logits[:, None].expand(-1, len(y), -1), borders, y.expand(len(logits), -1)).exp()
        torch.testing.assert_close(p.sum(1) * edges.diff()[0], share * probability[:, k], rtol=0, atol=FINE)


def test_the_probability_below_a_number_has_the_density_as_its_slope(density):
    logits, borders = (values[:1] if values.dim() == 2 else values for values in density)
    y = torch.linspace(-30, 30, 4001, dtype=torch.float64).requires_grad_()
    found = cumulative(logits.expand(len(y), -1), borders, y)
    (slope,) = torch.autograd.grad(found.sum(), y)
    torch.testing.assert_close(slope, log_density(logits.expand(len(y), -1), borders, y).exp(), rtol=1e-9, atol=1e-12)
    assert found[0] < 1e-5 and found[-1] > 1 - 1e-5 and (found.diff() > -1e-12).all()


def test_bins_cut_the_parts_between_two_quantiles_evenly():
    borders = borders_of([0, 1, 5], 4, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(borders, [0, 0.5, 1, 3, 5], rtol=0, atol=0)
