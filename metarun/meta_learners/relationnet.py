"""Relation networks: learn the comparison of a query with a class, too.

    c_n = sum of body(x) over the support examples of class n;   score_n(x) = relation([c_n, body(x)]) in (0, 1)
    loss = mean over queries and classes of (score_n(x) - [y = n])^2

With maps from the body (``base_learner=relation_conv``) the relation module is the paper's for images: twice a 3x3
convolution, batch norm, ReLU and max-pool 2, then two linear layers with a ReLU between and a sigmoid. With flat features
it is those two linear layers alone, as in the paper's zero-shot model, which are then all that compares: give them a
larger ``hidden_size`` (with 8 a run may end with every ReLU shut, at chance; the released code starts them open).
Padding is 1, as in the code for Omniglot.
The relation module's norms are in the mode of the base learner's (the released code: transductive); in mode ``support``
their statistics are those of the support set compared with its own classes. Any number of ways.

``query_loss`` is the squared error, in training and in every report. The base learner's ``head`` is not used.

Sung et al., CVPR 2018, https://arxiv.org/abs/1711.06025. Cost: one pass through the body, and N through the relation
module for every query. S support, Q query, N ways, D features.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Metrics, Params, parameters_of
from metarun.models.exact.layers import BatchNorm, BatchNormMode, Blocks, Conv2d, MaxPool2d
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of
from metarun.models.relation_conv import as_released
from metarun.objectives import one_hot


class Relation(nn.Module):
    """Pairs of features [P, 2 C, h, w] or [P, 2 D] -> scores in (0, 1) [P]; ``shape`` is that of one example's features."""

    def __init__(self, shape: tuple[int, ...], hidden_size: int, batch_norm: BatchNormMode | None) -> None:
        super().__init__()
        channels, size = shape[0], shape[1:]
        layers: list[nn.Module] = []
        for fan_in in (2 * channels, channels) if size else ():
            layers += [Conv2d(fan_in, channels, 3, stride=1, padding=1)]
            layers += [*([BatchNorm(channels, batch_norm)] if batch_norm else []), nn.ReLU(), MaxPool2d(2)]
        features = channels * (size[0] // 4) * (size[1] // 4) if size else 2 * channels
        layers += [nn.Flatten(), nn.Linear(features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)]
        self.layers = Blocks(*layers)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(pairs)[:, 0].sigmoid()


@dataclass(frozen=True)
class RelationNet(FewShotLearner):
    """A learned comparison of queries with ``num_ways`` class sums in a learned embedding.

    ``input_shape`` is that of one example. ``hidden_size`` (1 or more) is the number of units of the relation module's
    first linear layer. ``start`` names the relation module's first weights: torch's, or those of ``as_released``.
    Raises ValueError for feature maps below 4 x 4, or maps with norms in mode ``running``.
    """

    any_ways = True
    regresses = False

    num_ways: int
    input_shape: tuple[int, ...]
    hidden_size: int
    start: Literal["torch", "released"] = "torch"

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size is {self.hidden_size}; use 1 or more units.")
        shape = self.feature_shape()
        if len(shape) > 1 and min(shape[1:]) < 4:
            raise ValueError(
                f"the relation module halves feature maps twice, but the body gives {list(shape)}; use larger images, "
                f"or a base learner with flat features (base_learner=conv4)."
            )
        if len(shape) > 1 and self.norm_mode() == "running":
            raise ValueError(
                "the relation module has batch norms of its own, which base_learner.batch_norm=running cannot give "
                "statistics; use transductive or support."
            )
        _structure(shape, self.hidden_size, self.norm_mode())  # now: vmap refuses the draws of a module made inside it

    def init(self) -> Params:
        like = next(self.base_learner.parameters())  # the body may have none
        relation = Relation(self.feature_shape(), self.hidden_size, self.norm_mode()).to(like)
        if self.start == "released":
            as_released(relation)
        return {"embedding": parameters_of(body_of(self.base_learner)), "relation": parameters_of(relation)}

    def adapt(self, theta: Params, support: Batch) -> Params:
        z = functional_call(body_of(self.base_learner), theta["embedding"], (support.x,))  # [S, D] or [S, C, h, w]
        onehot = one_hot(support.y, self.num_ways, z.dtype)  # [S, N]
        sums = (onehot.T @ z.flatten(1)).unflatten(1, z.shape[1:])  # [N, D] or [N, C, h, w]
        embedding = with_support(body_of(self.base_learner), theta["embedding"], support.x)
        relation = with_support(self.structure(z), theta["relation"], pairs(sums, z))
        return {"embedding": embedding, "relation": relation, "classes": sums, "present": onehot.sum(0) > 0}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["embedding"], (x,))
        scores = functional_call(self.structure(z), phi["relation"], (pairs(phi["classes"], z),))
        return torch.where(phi["present"], scores.unflatten(0, (len(x), self.num_ways)), 0)  # of no examples: no score

    def probabilities(self, phi: Params, x: Tensor) -> Tensor:
        """Each class's share of the scores, which are trained to be 1 for the right class and 0 for others."""
        scores = self.predict(phi, x)
        return scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        scores = self.predict(phi, query.x)
        loss = F.mse_loss(scores, one_hot(query.y, self.num_ways, scores.dtype))
        return loss, {"query_loss": loss.detach(), self.objective.score_name: self.objective.score(scores, query.y)}

    def structure(self, z: Tensor) -> Relation:
        """The relation module for features like z, without parameters."""
        return _structure(tuple(z.shape[1:]), self.hidden_size, self.norm_mode())

    def norm_mode(self) -> BatchNormMode | None:
        """The mode of the base learner's first batch norm; None where it has none."""
        return next((m.mode for m in self.base_learner.modules() if isinstance(m, BatchNorm)), None)

    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one example's features: [D] or [C, h, w]."""
        like = next(self.base_learner.parameters())
        with torch.no_grad():
            return tuple(body_of(self.base_learner)(like.new_zeros(2, *self.input_shape)).shape[1:])


def pairs(classes: Tensor, z: Tensor) -> Tensor:
    """Every row of z [Q, C, ...] beside every class [N, C, ...], class first: [Q N, 2 C, ...]."""
    shape = (len(z), len(classes), *z.shape[1:])
    return torch.cat([classes[None].expand(shape), z[:, None].expand(shape)], 2).flatten(0, 1)


@cache
def _structure(shape: tuple[int, ...], hidden_size: int, batch_norm: BatchNormMode | None) -> Relation:
    with torch.device("meta"):
        return Relation(shape, hidden_size, batch_norm)
