"""Learned optimizer: an LSTM, the same one for every weight of the base learner, turns gradients into steps.

    g_k = grad L(phi_k, support), a constant;   phi_{k+1} = phi_k + output_scale * u_k
    u_k, h_{k+1} = LSTM_theta(log_and_sign(g_k), h_k)
    min over theta of the mean over k = 1 ... inner_steps of L(phi_k, query)

theta is the LSTM's weights alone, so a trained one fits base learners of any size (``metarun evaluate RUN
base_learner.hidden=[40,40]``). phi_0 is the base learner's initial weights, the entries of each tensor in an order drawn
for each training step from ``seed``; evaluation uses the order of ``seed`` itself. Between segments of ``unroll`` steps
nothing is differentiated. The gradients g_k are constants, as in the paper.

Unlike the paper, theta takes one step a trajectory, along the sum of its segments' gradients, not one after each segment;
the tasks of a step share phi_0; a step is on the whole support set; and the losses that count are on the query set (on
quadratics the same problem; the paper takes a new minibatch at each step). The released code adds no preprocessing and
an output scale of 1 on quadratics, and p = 5 and 0.01 elsewhere.

Andrychowicz et al., NeurIPS 2016, https://arxiv.org/abs/1606.04474. Cost: a forward and backward pass of the base learner
and of the LSTM on each of its weights a step; memory grows with ``unroll``, not with ``inner_steps``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from metarun.core import Batch, Episode, Metrics, Params, parameters_of, surrogate, trainable
from metarun.counter import uniform
from metarun.inner.loops import checkpointed, constant_grad, outermost, repeat
from metarun.meta_learners.base import GradientLearner
from metarun.models.cells import log_and_sign
from metarun.trees import detach, ravel, tree_map, zip_map

Moving = tuple[Tensor, Any]  # phi as one vector [n], and the LSTM's state


@dataclass(frozen=True)
class LearnedOptimizer(GradientLearner):
    """An LSTM ``network``, all of theta, that trains the base learner from its initial weights.

    ``preprocessing`` is p of ``log_and_sign`` (above 0), ``output_scale`` multiplies the LSTM's outputs. A trajectory
    has ``inner_steps``, differentiated in segments of ``unroll`` (1 or more). ``seed`` decides on the order of initial
    weights.
    """

    outside_theta = ("base_learner",)  # its weights are where every task begins

    network: nn.Module
    preprocessing: float
    output_scale: float
    inner_steps: int
    unroll: int
    seed: int

    def __post_init__(self) -> None:
        if self.unroll < 1:
            raise ValueError(f"unroll is {self.unroll}; use 1 or more steps, or inner_steps for all of them.")
        if self.preprocessing <= 0:
            raise ValueError(f"preprocessing is {self.preprocessing}; p must be above 0 (the paper has 10).")

    def init(self) -> Params:
        return parameters_of(self.network)

    def at(self, step: int) -> "LearnedOptimizer":
        return replace(self, seed=self.seed + 1 + step)

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return (self.unravel(phi) for phi, _ in self.moves(theta, self.start(), support, steps))

    def start(self) -> Moving:
        """phi_0 and the LSTM's first state."""
        phi = torch.cat([shuffled(p.detach(), self.seed, n) for n, p in trainable(self.base_learner).items()])
        return phi, self.network.start(phi)  # type: ignore[operator]

    def moves(self, theta: Params, moving: Moving, support: Batch, steps: int) -> Iterator[Moving]:
        """phi and the state after 0, 1, ..., ``steps`` steps from ``moving``."""

        def loss(phi: Tensor, support: Batch) -> Tensor:
            return self.support_loss(self.unravel(phi), support)

        def step(moving: Moving, theta: Params, support: Batch) -> Moving:
            phi, state = moving
            gradient = constant_grad(loss, phi, support)  # [n]
            update, state = functional_call(self.network, theta, (log_and_sign(gradient, self.preprocessing), state))
            return phi + self.output_scale * update, state

        return repeat(step, moving, steps, theta, support)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        def segment(theta: Params, moving: Moving, steps: int) -> tuple[Tensor, tuple[Moving, Tensor]]:
            """Share of a segment in the mean loss along the trajectory; beside it, where the segment ends."""
            points = list(self.moves(theta, moving, episode.support, steps))[1:]
            losses = [checkpointed(self.loss_at, phi, episode) for phi, _ in points]
            share = torch.stack(losses).sum() / self.inner_steps
            return share, (points[-1], share)

        theta_, moving = detach(theta), self.start()
        gradient, mean = tree_map(torch.zeros_like, theta_), moving[0].new_zeros(())
        for k in range(0, self.inner_steps, self.unroll):
            steps = min(self.unroll, self.inner_steps - k)
            with outermost():
                part, (moving, share) = grad(segment, has_aux=True)(theta_, detach(moving), steps)
            gradient, mean = zip_map(torch.add, gradient, part), mean + share
        _, metrics = self.query_loss(self.ended(self.unravel(moving[0]), episode.support), episode.query)
        return surrogate(theta, gradient), {**metrics, "trajectory_loss": mean}

    def loss_at(self, phi: Tensor, episode: Episode) -> Tensor:
        """Query loss of phi [n]."""
        return self.query_loss(self.ended(self.unravel(phi), episode.support), episode.query)[0]

    def unravel(self, phi: Tensor) -> Params:
        """Parameters of the base learner by name, from phi [n]."""
        return ravel({name: p.detach() for name, p in trainable(self.base_learner).items()})[1](phi)


def shuffled(p: Tensor, seed: int, name: str) -> Tensor:
    """The entries of ``p`` in an order drawn from seed and name [n]: as good as drawn again, for independent entries."""
    return p.flatten()[torch.from_numpy(order(seed, name, p.numel())).to(p.device)]


@lru_cache(maxsize=64)
def order(seed: int, name: str, size: int) -> np.ndarray:
    """A permutation of 0 ... size - 1 [size] that depends on seed and name alone."""
    return np.argsort(uniform(seed, f"learned_optimizer/{name}", np.zeros(1), size)[0])
