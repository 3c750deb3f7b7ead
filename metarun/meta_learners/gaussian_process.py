"""Hierarchical Gaussian process: one curve of the population, and a Gaussian process of each task's departures from it.

    y = m(x) + b . h(x) + g(u(x)) + noise,   h = [u, m, 1],   b ~ N(0, W W'),   g ~ GP(0, k),   noise ~ N(0, s^2)
    k(u, v) = a^2 exp(-sum_i (u_i - v_i)^2 / (2 l_i^2));   phi = the posterior of b and g, given the support set

m is the base learner, shared by all tasks; b and g are a task's own. b are the random effects of a mixed-effects model: a
task shifts, tilts and stretches the population's curve; W is any matrix, so effects may be correlated. g is the smooth rest.
u is x itself (``kernel_of: inputs``), or the features of the base learner's body (``features``: a deep kernel). ``effects``
are b (``linear``), g (``rbf``), or ``both``. Every output has a kernel of its own, and is independent of the others.

theta = (m, W, a, l, s) maximises the marginal likelihood: the meta-loss is -log p(y of support and query | theta) for each
number in y. ``query_loss`` is that of one query point at a time given the support set, by the names of the CNP's.

With ``features`` and ``rbf`` this is Deep Kernel Transfer (Patacchiola et al., NeurIPS 2020,
https://arxiv.org/abs/1910.05199), whose released code has a constant for m and can have a spectral mixture for k. With
``features`` and ``linear`` it is close to ALPaCA (Harrison et al. 2018, https://arxiv.org/abs/1807.08912), which maximises
the likelihood of the query given the support. A network for m: Fortuin et al. 2019, https://arxiv.org/abs/1901.08098.
Cost: one forward and backward pass; for each output a Cholesky factor of the size of support and query.

S support, Q query, n any number of points; P outputs, U entries of u
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, parameters_of
from metarun.meta_learners.likelihood import scored
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, head_of, num_features
from metarun.trees import detach

SMALLEST_DEVIATION = 0.01  # of the noise, in the units of y: below it a covariance matrix is singular in float32


class Points(NamedTuple):
    """What mean and kernel need to know of n inputs: u [n, U], and for each output m [P, n] and W'h [P, n, U + 2]."""

    u: Tensor
    mean: Tensor
    effects: Tensor


@dataclass(frozen=True)
class GaussianProcess(FewShotLearner):
    """A population's curve and a Gaussian process around it, for regression on ``num_outputs`` outputs.

    Three numbers above 0 to start from, all learned: ``effect_deviation`` is that of b . h, where h has entries of size
    1, and of g; ``length_scale`` that of g, in the root of the number of entries of u; ``noise_deviation`` that of y.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression, as it must be
    kernel_of: Literal["inputs", "features"]
    effects: Literal["linear", "rbf", "both"]
    effect_deviation: float
    length_scale: float
    noise_deviation: float

    def __post_init__(self) -> None:
        if self.num_ways is not None:
            raise ValueError("a Gaussian process predicts numbers, but the task has classes; choose protonet or r2d2.")
        starts = {name: getattr(self, name) for name in ("effect_deviation", "length_scale", "noise_deviation")}
        if wrong := [f"{name} is {value}" for name, value in starts.items() if value <= 0]:
            raise ValueError(f"{', '.join(wrong)}; a Gaussian process starts from numbers above 0.")
        body_of(self.base_learner), head_of(self.base_learner)

    def init(self) -> Params:
        like, of_inputs = next(self.base_learner.parameters()), self.kernel_of == "inputs"
        size = math.prod(self.input_shape) if of_inputs else num_features(self.base_learner, self.input_shape)  # U
        parts = {"body": body_of(self.base_learner), "head": head_of(self.base_learner)}
        theta: Params = {name: parameters_of(part) for name, part in parts.items()}
        theta["log_noise"] = like.new_full((self.num_outputs,), math.log(self.noise_deviation))
        if self.effects != "rbf":
            each = self.effect_deviation / math.sqrt(size + 2)
            theta["effects"] = (each * torch.eye(size + 2).to(like)).repeat(self.num_outputs, 1, 1)  # W
        if self.effects != "linear":
            theta["log_amplitude"] = like.new_full((self.num_outputs,), math.log(self.effect_deviation))
            length = math.log(self.length_scale * math.sqrt(size))
            theta["log_length"] = like.new_full((self.num_outputs, size), length)
        return theta

    def adapt(self, theta: Params, support: Batch) -> Params:
        prior = self.prior(theta, support)
        points = self.points(prior, support.x)
        factor, white = self.whitened(prior, points, support.y)
        return {"prior": prior, "points": points, "factor": factor, "white": white}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.posterior(phi, x)[0]

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [Q, P] of a measurement of y at each x [Q, ...], noise included."""
        prior, support, query = phi["prior"], phi["points"], self.points(phi["prior"], x)
        across = torch.linalg.solve_triangular(
            phi["factor"], self.kernel(prior, support, query), upper=False
        )  # [P, S, Q]
        mean = query.mean + (across * phi["white"][..., None]).sum(1)
        variance = self.variance(prior, query) - across.square().sum(1)
        return mean.T, (variance.clamp(min=0) + noise(prior)[:, None]).sqrt().T

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return scored(self.objective, *self.posterior(phi, query.x), query)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query, _ = episode
        prior = self.prior(theta, support)
        x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
        factor, white = self.whitened(prior, self.points(prior, x), y)
        half_log_determinant = factor.diagonal(dim1=1, dim2=2).log().sum()
        loss = (white.square().sum() / 2 + half_log_determinant) / y.numel() + math.log(2 * math.pi) / 2
        _, metrics = self.query_loss(self.adapt(detach(theta), support), query)
        return loss, metrics

    def prior(self, theta: Params, support: Batch) -> Params:
        """theta, its batch norms in mode ``support`` with the statistics of the support set."""
        return {**theta, "body": with_support(body_of(self.base_learner), theta["body"], support.x)}

    def points(self, prior: Params, x: Tensor) -> Points:
        """The inputs x [n, ...] as mean and kernel see them."""
        z = functional_call(body_of(self.base_learner), prior["body"], (x,))  # [n, D]
        mean = functional_call(head_of(self.base_learner), prior["head"], (z,)).T  # [P, n]
        u = x.flatten(1) if self.kernel_of == "inputs" else z
        if self.effects == "rbf":
            return Points(u, mean, mean[..., None, :0])
        h = torch.cat([u.expand(len(mean), -1, -1), mean[..., None], torch.ones_like(mean)[..., None]], 2)
        return Points(u, mean, h @ prior["effects"])

    def kernel(self, prior: Params, a: Points, b: Points) -> Tensor:
        """Covariances [P, n of a, n of b] of b . h + g between two sets of points."""
        if self.effects == "rbf":
            return self.rbf(prior, a.u, b.u)
        linear = a.effects @ b.effects.mT
        return linear if self.effects == "linear" else linear + self.rbf(prior, a.u, b.u)

    def rbf(self, prior: Params, u: Tensor, v: Tensor) -> Tensor:
        """Covariances [P, n of u, n of v] of g."""
        difference = (u[:, None] - v) / prior["log_length"].exp()[:, None, None]  # [P, n, n, U]
        return (2 * prior["log_amplitude"][:, None, None] - difference.square().sum(-1) / 2).exp()

    def variance(self, prior: Params, points: Points) -> Tensor:
        """Variances [P, n] of b . h + g: the diagonal of ``kernel`` of the points with themselves."""
        linear = points.effects.square().sum(-1)
        return linear if self.effects == "linear" else linear + (2 * prior["log_amplitude"]).exp()[:, None]

    def whitened(self, prior: Params, points: Points, y: Tensor) -> tuple[Tensor, Tensor]:
        """The Cholesky factor L [P, n, n] of the covariance of y [n, P], and L^-1 (y - m) [P, n], which is white noise.

        A covariance matrix that is not positive definite gives NaN, at which a run stops.
        """
        identity = torch.eye(len(y), dtype=y.dtype, device=y.device)
        covariance = self.kernel(prior, points, points) + noise(prior)[:, None, None] * identity
        factor, failed = torch.linalg.cholesky_ex(covariance)
        factor = factor.masked_fill(failed[:, None, None] > 0, torch.nan)
        residual = (y.T - points.mean)[..., None]
        return factor, torch.linalg.solve_triangular(factor, residual, upper=False)[..., 0]


def noise(prior: Params) -> Tensor:
    """The variance of the noise of each output [P]."""
    return (2 * prior["log_noise"]).exp() + SMALLEST_DEVIATION**2
