"""Transformer neural process: a transformer reads the support set, and each query looks at it on its own.

    token of an example  e_s = MLP(z(x_s), y_s);   of a query  e = MLP(z(x), 0),   z(x) = body(x)
    ``depth`` layers of attention, with the norm last: examples see all examples, a query sees all examples and not itself
    (mean, deviation) of y at x = MLP(the query's last token)

Adaptation computes the keys and values of the support set, once for all queries. The loss is the Gaussian negative log
likelihood of each query on its own: the diagonal process of the paper, TNP-D. As of every learner with a deviation,
``metarun.evaluation.autoregressive.Autoregressive`` is the joint likelihood of the queries by the chain rule, each
predicted with those before it in the support. The base learner's head is not used and not trained.

Unlike the released code, the deviation is a softplus, and not an exponential, both without a bound; x goes through the
base learner's body first (``base_learner=linear`` has the identity for a body: the released network).

Nguyen and Grover, ICML 2022, https://arxiv.org/abs/2207.04179; released code: https://github.com/tung-nd/TNP-pytorch.
Cost: one forward and backward pass; attention adds S (S + Q) products a layer.

S support, Q query, D features, P outputs, C width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Metrics, Params, parameters_of
from metarun.meta_learners.likelihood import check_smallest, deviation_of, scored
from metarun.models.attention import read, remember, transformer
from metarun.models.dense import dense, perceptron
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.models.precision import check_bfloat16, in_bfloat16
from metarun.objectives import examples_of


@dataclass(frozen=True)
class TNP(FewShotLearner):
    """A diagonal transformer neural process, for regression on ``num_outputs`` targets.

    ``width`` C is a multiple of ``heads``; ``feedforward`` is the width inside a layer and of the predictor, and
    ``embedder_layers`` (1 or more) the number of linear layers that make a token. No deviation is below
    ``smallest_deviation``; 0 is the unbounded form. With ``bfloat16`` the layers compute in it (models/precision.py).
    """

    reads_masks: ClassVar[bool] = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression, as it must be
    width: int
    depth: int
    heads: int
    feedforward: int
    embedder_layers: int
    smallest_deviation: float
    bfloat16: bool = False

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        check_bfloat16(self.bfloat16, next(self.base_learner.parameters()))
        check_smallest(self.smallest_deviation)
        if self.num_ways is not None:
            raise ValueError("tnp predicts numbers, but the task has classes; choose protonet, snail or cnp.")
        if self.embedder_layers < 1:
            raise ValueError(f"embedder_layers is {self.embedder_layers}; use 1 or more.")

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        return {
            "body": parameters_of(body_of(self.base_learner)),
            "embedder": dense([features + self.num_outputs] + [self.width] * self.embedder_layers, like),
            "layers": transformer(self.width, self.depth, self.heads, self.feedforward, like),
            "predictor": dense([self.width, self.feedforward, 2 * self.num_outputs], like),
        }

    def adapt(self, theta: Params, support: Batch) -> Params:
        body, seen = body_of(self.base_learner), examples_of(support)
        z = functional_call(body, theta["body"], (support.x,))  # [S, D]
        tokens = perceptron(theta["embedder"], torch.cat([z, support.y.flatten(1)], 1))  # [S, C]
        with in_bfloat16(self.bfloat16, tokens):
            memory = remember(theta["layers"], tokens, seen, self.heads, norm_first=False, activation=F.relu)
        phi = {**theta, "body": with_support(body, theta["body"], support.x), "memory": memory}
        return phi if seen is None else {**phi, "seen": seen}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.posterior(phi, x)[0]

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        tokens = perceptron(phi["embedder"], F.pad(z, (0, self.num_outputs)))  # [Q, C]
        seen, memory = phi.get("seen"), phi["memory"]
        with in_bfloat16(self.bfloat16, tokens):
            tokens = read(phi["layers"], memory, tokens, seen, False, norm_first=False, activation=F.relu)
        mean, raw = perceptron(phi["predictor"], tokens.to(z.dtype)).chunk(2, 1)
        return mean, deviation_of(raw, self.smallest_deviation)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return scored(self.objective, *self.posterior(phi, query.x), query)
