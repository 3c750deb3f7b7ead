"""Prior-fitted network: a transformer reads a labelled table, and says the targets of other rows, in one forward pass.

    context  h_i = rows(z(x_i)) + W_y y_i;   L layers: h_i <- attention of h_i to all context rows, then a perceptron
    query    h   = rows(z(x)) + q;           the same layers, reading the context rows only: no query sees another
    classes: logits of the N classes, those that the context lacks out of the way
    regression: probabilities of bins, whose density is even inside and half-normal outside (``models.binned``)

z is the base learner's body (``linear``: the identity), and ``rows`` the row encoder of ``models.columns``. Trained by
the likelihood of the query's targets, the network approximates their posterior predictive distribution under the prior
that the tasks are drawn from. Adaptation computes the context's keys and values of every layer once, so queries cost
their own rows alone. Rows that ``mask`` leaves out change nothing, and the order of the rows does not matter. The base
learner's head is not used and not trained.

Unlike the papers: rows are made of statistics of their columns and of leave-one-out ridge regressions, where TabPFN has a
linear map of x alone (``penalties=[]`` leaves out the regressions); norms come before attention and perceptrons; bins
have ``quantiles`` that are given as borders, not taken from a sample at the start.

Mueller et al., ICLR 2022, https://arxiv.org/abs/2112.10510; Hollmann et al., ICLR 2023, https://arxiv.org/abs/2207.01848.
Cost: one forward and backward pass, no inner loop; attention has S (S + Q) products a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Metrics, Params, parameters_of
from metarun.meta_learners.likelihood import mean_of, of_mean
from metarun.models.attention import norm, norm_weights, read, remember, transformer
from metarun.models.binned import borders_of, cumulative, log_density, moments
from metarun.models.columns import encoded_rows, fitted_columns, ridge_outputs, row_encoder
from metarun.models.dense import dense
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.models.precision import check_bfloat16, in_bfloat16
from metarun.objectives import among, examples_of, one_hot

# S context rows, Q query rows, D features, C width, N classes, P targets, G bins


@dataclass(frozen=True)
class PFN(FewShotLearner):
    """A prior-fitted network: ``num_ways`` None is for regression on ``num_outputs`` targets.

    ``width`` is C, a multiple of ``heads``; ``layers`` is L, ``feedforward`` the hidden units of its perceptrons and
    ``cells`` those of the row encoder. ``penalties`` are those of the ridge regressions, a row's share of the regulariser.
    ``bins`` lie evenly between each two of ``quantiles``, which are those of the targets at even levels. With ``bfloat16``
    the layers compute in it (models/precision.py).
    """

    reads_masks: ClassVar[bool] = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression
    width: int
    layers: int
    heads: int
    feedforward: int
    cells: int
    penalties: Sequence[float]
    bins: int
    quantiles: Sequence[float]
    bfloat16: bool = False

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        check_bfloat16(self.bfloat16, next(self.base_learner.parameters()))
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "feedforward", "cells")}
        if min(sizes.values()) < 1 or self.width % self.heads:
            raise ValueError(f"meta_learner has {sizes}; all must be 1 or more, and width a multiple of heads.")
        if min(self.penalties, default=1) <= 0:
            raise ValueError(f"meta_learner.penalties is {list(self.penalties)}; give numbers above 0, or none: [].")
        rising = all(a < b for a, b in zip(self.quantiles, self.quantiles[1:], strict=False))
        if self.bins < 3 or len(self.quantiles) < 2 or not rising:
            raise ValueError(
                f"meta_learner.bins is {self.bins} and quantiles {list(self.quantiles)}; use 3 bins or more, and 2 "
                "numbers or more, each above the one before."
            )

    @property
    def num_targets(self) -> int:
        """T: how many numbers say a row's target."""
        return 2 * self.num_outputs if self.num_ways is None else self.num_outputs

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        outputs = self.num_outputs * (self.bins if self.num_ways is None else 1)
        return {
            "body": parameters_of(body_of(self.base_learner)),
            "rows": row_encoder(features, self.num_targets, self.width, self.cells, self.penalties, like),
            "label": dense([self.num_targets, self.width], like)[0],
            "query": like.new_zeros(self.width).detach(),
            "layers": transformer(self.width, self.layers, self.heads, self.feedforward, like),
            "norm": norm_weights(self.width, like),
            "head": dense([self.width, outputs], like)[0],
        }

    def adapt(self, theta: Params, support: Batch) -> Params:
        body = body_of(self.base_learner)
        z = functional_call(body, theta["body"], (support.x,))  # [S, D]
        seen = examples_of(support)
        weight = z.new_ones(len(z)) if seen is None else seen.to(z.dtype)
        z = z * weight[:, None]  # padding may hold anything that is finite
        t = self.targets(support.y, z) * weight[:, None]
        fit, ridge = fitted_columns(theta["rows"], z, t, weight, self.penalties)
        rows = encoded_rows(theta["rows"], fit, z, ridge) + F.linear(t, **theta["label"])
        with in_bfloat16(self.bfloat16, rows):
            memory = remember(theta["layers"], rows, seen, self.heads)
        return {
            "body": with_support(body, theta["body"], support.x),
            "fit": fit,
            "memory": memory,
            "seen": () if seen is None else seen,
            "classes": (t.abs().sum(0) > 0) if self.num_ways is not None else (),
            **{name: theta[name] for name in ("rows", "query", "layers", "norm", "head")},
        }

    def targets(self, y: Tensor, like: Tensor) -> Tensor:
        """Targets as numbers [S, T]: one-hot classes, or each y and its square less 1."""
        if self.num_ways is not None:
            return one_hot(y, self.num_outputs, like.dtype)
        y = y.flatten(1)
        return torch.cat([y, y.square() - 1], 1)

    def outputs(self, phi: Params, x: Tensor) -> Tensor:
        """Logits of classes [Q, N], or in regression of bins [Q, P, G], for x [Q, ...]."""
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        rows = encoded_rows(phi["rows"], phi["fit"], z, ridge_outputs(phi["fit"], z)) + phi["query"]
        seen = phi["seen"] if isinstance(phi["seen"], Tensor) else None
        with in_bfloat16(self.bfloat16, rows):
            rows = read(phi["layers"], phi["memory"], rows, seen, itself=False)
        logits = F.linear(norm(phi["norm"], rows.to(z.dtype)), **phi["head"])
        if self.num_ways is None:
            return logits.unflatten(1, (self.num_outputs, self.bins))
        return among(phi["classes"], logits)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.outputs(phi, x) if self.num_ways is not None else self.posterior(phi, x)[0]

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.outputs(phi, x)
        return moments(logits, self.borders(logits))

    def below(self, phi: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = self.outputs(phi, x)
        return cumulative(logits, self.borders(logits), y.flatten(1))

    def borders(self, like: Tensor) -> Tensor:
        """Borders of the bins [G + 1]."""
        return borders_of(self.quantiles, self.bins, like)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        if self.num_ways is not None:
            return super().query_loss(phi, query)
        logits, query = self.outputs(phi, query.x), query._replace(y=query.y.flatten(1))
        borders = self.borders(logits)
        loss = mean_of(-log_density(logits, borders, query.y), query)
        mean = moments(logits, borders)[0].detach()
        return loss, {**of_mean(self.objective, mean, query), "negative_log_likelihood": loss.detach()}
