"""R2-D2: a ridge regression on learned features, solved in closed form, is the adaptation.

    X = [body(support.x), 1];   W = argmin |X W - Y|^2 + regulariser |W|^2;   output(x) = scale * [body(x), 1] W + bias

Y is one-hot, or the targets of a regression task. theta holds body, scale, bias and the logarithm of the regulariser, so
that it stays positive; ``+rates.log_regulariser=0`` keeps it where it starts, as the released configuration does. The
column of ones is the released code's; the paper has none. The code divides features and labels by sqrt(S), which leaves
W as it is and makes its regulariser one of S times the number: ``per_example`` (fewshots/models/r2d2.py, lines 82 and 94).
The system solved is S x S where S is at most D (Woodbury). Any number of ways.

Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136. Cost: one forward and backward pass and a linear system.
S support, Q query, N ways or outputs, D features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, parameters_of
from metarun.inner.solvers import ridge
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of
from metarun.objectives import one_hot


@dataclass(frozen=True)
class R2D2(FewShotLearner):
    """A ridge regression on learned features, solved in closed form; ``num_ways`` None is for regression tasks.

    ``regulariser`` (above 0) and ``scale``, of the outputs, are numbers to start from; both are learned. With
    ``per_example`` the regulariser is multiplied by the number S of support examples.
    """

    any_ways = True

    num_ways: int | None  # None: a regression task
    regulariser: float
    scale: float
    per_example: bool = False

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.regulariser <= 0:
            raise ValueError(f"regulariser is {self.regulariser}; it must be above 0, or the system has no solution.")

    def init(self) -> Params:
        like = next(self.base_learner.parameters())  # the body may have none
        embedding = parameters_of(body_of(self.base_learner))
        numbers = {"log_regulariser": math.log(self.regulariser), "scale": self.scale, "bias": 0.0}
        return {"embedding": embedding, **{name: like.new_tensor(number) for name, number in numbers.items()}}

    def adapt(self, theta: Params, support: Batch) -> Params:
        x = self.features(theta["embedding"], support.x)  # [S, D + 1]
        y = support.y if self.num_ways is None else one_hot(support.y, self.num_ways, x.dtype)  # [S, N]
        regulariser = theta["log_regulariser"].exp()
        weight = ridge(x, y, len(x) * regulariser if self.per_example else regulariser)  # [D + 1, N]
        embedding = with_support(body_of(self.base_learner), theta["embedding"], support.x)
        return {"embedding": embedding, "weight": weight, "scale": theta["scale"], "bias": theta["bias"]}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return phi["scale"] * (self.features(phi["embedding"], x) @ phi["weight"]) + phi["bias"]

    def features(self, embedding: Params, x: Tensor) -> Tensor:
        """Features of x with a column of ones: [S, D + 1]."""
        z = functional_call(body_of(self.base_learner), embedding, (x,))  # [S, D]
        return torch.cat([z, torch.ones_like(z[:, :1])], 1)
