"""Prototypical networks: classify by the nearest class mean in a learned embedding.

    c_n = mean of body(x) over the support examples of class n
    euclidean:   logit_n(x) = -||body(x) - c_n||^2
    cosine:      logit_n(x) = scale * cos(body(x), c_n),   scale learned

The base learner's ``body`` is the embedding; its ``head`` is not used and not trained. Any number of ways: training
may use more (``task.train_num_ways``) than the test. A class without support examples is never predicted. The paper's
cosine has no scale, which keeps its softmax nearly flat: the scale and its start are Gidaris and Komodakis, CVPR 2018,
https://arxiv.org/abs/1804.09458; Meta-Baseline has the same.

Snell, Swersky and Zemel, NeurIPS 2017, https://arxiv.org/abs/1703.05175. Cost: one forward and backward pass, no inner loop.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, parameters_of
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, check_learned
from metarun.objectives import among, one_hot

FIRST_SCALE = 10.0  # Gidaris and Komodakis 2018, 3.2


@dataclass(frozen=True)
class ProtoNet(FewShotLearner):
    """A classifier by the nearest of ``num_ways`` class means in a learned embedding.

    ``distance`` is the squared euclidean one, or the cosine with a learned scale. A body without parameters raises
    ValueError with the euclidean one.
    """

    any_ways = True
    regresses = False

    num_ways: int
    distance: Literal["euclidean", "cosine"]

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.distance == "euclidean":  # the cosine's scale is learned, too
            check_learned(self.base_learner, "ProtoNet")

    def init(self) -> Params:
        scale = next(self.base_learner.parameters()).new_tensor(FIRST_SCALE)  # a frozen body has no parameter
        embedding = parameters_of(body_of(self.base_learner))
        if self.distance == "euclidean":
            return embedding
        return {"embedding": embedding, "scale": scale}

    def adapt(self, theta: Params, support: Batch) -> Params:
        learned = {"embedding": theta} if self.distance == "euclidean" else theta
        z = functional_call(body_of(self.base_learner), learned["embedding"], (support.x,))  # [S, D]
        onehot = one_hot(support.y, self.num_ways, z.dtype)  # [S, N]
        count = onehot.sum(0)
        prototypes = (onehot.T @ z) / count[:, None].clamp(min=1)  # [N, D]
        embedding = with_support(body_of(self.base_learner), learned["embedding"], support.x)
        return {**learned, "embedding": embedding, "prototypes": prototypes, "present": count > 0}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["embedding"], (x,))  # [Q, D]
        c = phi["prototypes"]
        if self.distance == "cosine":
            logits = phi["scale"] * F.normalize(z) @ F.normalize(c).T  # [Q, N]
        else:
            logits = 2 * z @ c.T - (z * z).sum(1, keepdim=True) - (c * c).sum(1)  # -||z - c||^2  [Q, N]
        return among(phi["present"], logits)
