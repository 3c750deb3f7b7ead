"""Meta-LSTM: the base learner's weights are the cell state of an LSTM, whose start and gates are learned.

    g_k, l_k = grad L(phi_k, support), L(phi_k, support), both constants;   phi_0 = theta.start
    f_k, i_k = gates of theta.optimizer at (log_and_sign(g_k), log_and_sign(l_k), phi_k, the last f and i)
    phi_{k+1} = f_k phi_k - i_k g_k
    meta-gradient = d L(phi_K, query) / d theta

The optimizer is the same for every weight; each weight has a hidden state of its own (``GatedUpdate`` in models/cells.py).
First order, as in the paper: g_k and l_k do not depend on theta, but phi_k in the gates and under f_k does.

The last gates are fed back as they are, as in the paper; the released code feeds them back before the sigmoid. Batch norms
follow ``base_learner.batch_norm``: the code uses the queries' statistics in training and the support's at test. The code
divides the mean gradient by the number S of support examples once more (meta-learner-lstm.lua, lines 59 to 64), before the
gates see it and the step takes it: ``gradient: divided``.

Ravi and Larochelle, ICLR 2017, https://openreview.net/forum?id=rJY0-Kcll. Cost: a forward and backward pass of the base
learner and of the LSTM on each of its weights a step; memory grows with inner_steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import repeat
from metarun.meta_learners.base import GradientLearner
from metarun.models.cells import log_and_sign
from metarun.trees import detach, ravel

Moving = tuple[Tensor, Any]  # phi as one vector [n], and the optimizer's state


@dataclass(frozen=True)
class MetaLSTM(GradientLearner):
    """A learned start, and a learned ``network`` (``GatedUpdate``) that takes the steps.

    ``preprocessing`` is p of ``log_and_sign`` (above 0), and ``inner_steps`` the number of steps. ``gradient`` is the
    mean over the support set, or that divided by S.
    """

    network: nn.Module
    preprocessing: float
    inner_steps: int
    gradient: Literal["mean", "divided"] = "mean"

    def __post_init__(self) -> None:
        if self.preprocessing <= 0:
            raise ValueError(f"preprocessing is {self.preprocessing}; p must be above 0 (the paper has 10).")

    def init(self) -> Params:
        return {"start": parameters_of(self.base_learner), "optimizer": parameters_of(self.network)}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        phi, unravel = ravel(theta["start"])

        def loss(phi: Tensor, support: Batch) -> Tensor:
            return self.support_loss(unravel(phi), support)

        def step(moving: Moving, optimizer: Params, support: Batch) -> Moving:
            phi, state = moving
            g, value = detach(grad_and_value(loss)(detach(phi), support))  # [n], []
            g = g / len(support.y) if self.gradient == "divided" else g
            seen = [log_and_sign(g, self.preprocessing), log_and_sign(value, self.preprocessing).expand(len(g), 2)]
            return functional_call(self.network, optimizer, (torch.cat(seen, 1), phi, g, state))

        moving = (phi, self.network.start(phi))  # type: ignore[operator]
        return (unravel(phi) for phi, _ in repeat(step, moving, steps, theta["optimizer"], support))
