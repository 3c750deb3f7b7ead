"""MetaOptNet: a linear classifier trained to its optimum on learned features is the adaptation.

    X = body(support.x);   W = X' a;   logits(x) = scale * body(x) W,   scale learned
    svm:     a = argmin tr(a' (X X' + I) a) / 2 - sum(a * Y)   over a <= C Y, rows of a summing to 0
    ridge:   W = argmin |X W - Y|^2 + regulariser |W|^2

The first is the dual of a multi-class support vector machine (Crammer and Singer 2001), solved by ``solver_steps`` of
an interior-point method and differentiated at its solution. The identity beside X X' is the released code's, added there
for its solver; it also makes the solution unique. There is no bias. The base learner's ``head`` is not used. Any number
of ways. The recipe of the paper that is not the learner's (label smoothing, DropBlock, augmentation) is not here.

Lee et al., CVPR 2019, https://arxiv.org/abs/1904.03758. Cost: one forward and backward pass, and for the svm solver_steps
times N + 1 systems of S x S. S support, Q query, N ways, D features, Y one-hot labels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, parameters_of
from metarun.inner.solvers import crammer_singer, ridge
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of
from metarun.objectives import one_hot


@dataclass(frozen=True)
class MetaOptNet(FewShotLearner):
    """A linear classifier on learned features, trained to its optimum in each task.

    ``head`` is the classifier: "svm" has ``svm_bound`` C and ``solver_steps``, "ridge" has ``ridge_regulariser``. All
    three must be above 0, or ValueError is raised.
    """

    any_ways = True
    regresses = False

    num_ways: int
    head: Literal["svm", "ridge"]
    svm_bound: float
    solver_steps: int
    ridge_regulariser: float

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        for name in ("svm_bound", "solver_steps", "ridge_regulariser"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")

    def init(self) -> Params:
        scale = next(self.base_learner.parameters()).new_ones(())  # the body may have none
        return {"embedding": parameters_of(body_of(self.base_learner)), "scale": scale}

    def adapt(self, theta: Params, support: Batch) -> Params:
        z = functional_call(body_of(self.base_learner), theta["embedding"], (support.x,))  # [S, D]
        onehot = one_hot(support.y, self.num_ways, z.dtype)  # [S, N]
        embedding = with_support(body_of(self.base_learner), theta["embedding"], support.x)
        return {"embedding": embedding, "weight": self.fit(z, onehot), "scale": theta["scale"]}

    def fit(self, z: Tensor, onehot: Tensor) -> Tensor:
        """Weights [D, N] of the classifier fitted to features z [S, D]."""
        if self.head == "ridge":
            return ridge(z, onehot, self.ridge_regulariser)
        gram = z @ z.T + torch.eye(len(z), dtype=z.dtype, device=z.device)
        return z.T @ crammer_singer(gram, onehot, self.svm_bound, self.solver_steps)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return phi["scale"] * functional_call(body_of(self.base_learner), phi["embedding"], (x,)) @ phi["weight"]
