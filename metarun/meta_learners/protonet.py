"""Prototypical networks: classify by the nearest class mean in a learned embedding.

    c_n = mean of body(x) over the support examples of class n;   logit_n(x) = -||body(x) - c_n||^2

The base learner's ``body`` is the embedding; its ``head`` is not used and not trained. Any number of ways: training
may use more (``task.train_num_ways``) than the test.

Snell, Swersky and Zemel, NeurIPS 2017, https://arxiv.org/abs/1703.05175. Cost: one forward and backward pass, no inner loop.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, take_parameters
from metarun.models.layers import with_support
from metarun.models.parts import body_of


@dataclass(frozen=True)
class ProtoNet(FewShotLearner):
    num_ways: int

    def __post_init__(self) -> None:
        body_of(self.base_learner)

    def init(self) -> Params:
        return take_parameters(body_of(self.base_learner))

    def adapt(self, theta: Params, support: Batch) -> Params:
        z = functional_call(body_of(self.base_learner), theta, (support.x,))  # [S, D]
        onehot = F.one_hot(support.y, self.num_ways).to(z.dtype)  # [S, N]
        prototypes = (onehot.T @ z) / onehot.sum(0)[:, None]  # [N, D]
        return {"embedding": with_support(body_of(self.base_learner), theta, support.x), "prototypes": prototypes}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["embedding"], (x,))  # [Q, D]
        c = phi["prototypes"]
        return 2 * z @ c.T - (z * z).sum(1, keepdim=True) - (c * c).sum(1)  # -||z - c||^2  [Q, N]
