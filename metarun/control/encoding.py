"""Encoding of a mechanical system for a network: the inputs that it sees, and what its outputs mean.

    inputs:  sine and cosine of angles, other coordinates and velocities over their reach, and the action
    outputs: the change of the velocities within dt, standardised
    next:    v + change for the velocities, q + dt (v + next v) / 2 for the coordinates (trapezoidal rule, error dt^3)

n coordinates, A actions, D inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.control.system import System, wrapped

FARTHEST = 10.0  # times the reach: a wrong model's rollout ends there, and not at infinity


@dataclass(frozen=True)
class Encoding:
    """Inputs and outputs of a network for ``system``; ``mean`` and ``deviation`` standardise the outputs."""

    system: System
    mean: Tensor  # [n] of the change of velocities over training tasks
    deviation: Tensor  # [n]

    @property
    def num_inputs(self) -> int:
        """The number D of inputs: two for an angle, one for another coordinate, and one for each velocity and action."""
        n = len(self.system.angles)
        return 2 * n + sum(self.system.angles) + self.system.num_actions

    def inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """Inputs [..., D] for a state [..., 2n] and an action [..., A]."""
        n, columns = len(self.system.angles), []
        for i, is_angle in enumerate(self.system.angles):
            q = state[..., i : i + 1]
            columns += [q.sin(), q.cos()] if is_angle else [q / self.system.reach[i]]
        return torch.cat([*columns, state[..., n:] / state.new_tensor(self.system.reach[n:]), action], -1)

    def state(self, inputs: Tensor) -> Tensor:
        """Decode the state [..., 2n] of inputs [..., D]; angles are in (-pi, pi]."""
        n, columns, at = len(self.system.angles), [], 0
        for i, is_angle in enumerate(self.system.angles):
            here = inputs[..., at]
            columns.append(torch.atan2(here, inputs[..., at + 1]) if is_angle else here * self.system.reach[i])
            at += 2 if is_angle else 1
        velocities = inputs[..., at : at + n] * inputs.new_tensor(self.system.reach[n:])
        return torch.cat([torch.stack(columns, -1), velocities], -1)

    def action(self, inputs: Tensor) -> Tensor:
        """Decode the action [..., A] of inputs [..., D]."""
        return inputs[..., -self.system.num_actions :]

    def outputs(self, state: Tensor, following: Tensor) -> Tensor:
        """Outputs [..., n] of the transition from ``state`` to ``following``."""
        n = len(self.system.angles)
        change = following[..., n:] - state[..., n:]
        return (change - self.mean.to(change)) / self.deviation.to(change)

    def advance(self, state: Tensor, outputs: Tensor) -> Tensor:
        """Compute the state [..., 2n] that follows ``state`` by a network's ``outputs`` [..., n].

        Its entries stay within FARTHEST times the reach.
        """
        q, v = state.chunk(2, -1)
        following = v + self.mean.to(outputs) + self.deviation.to(outputs) * outputs
        new = torch.cat([q + self.system.dt * (v + following) / 2, following], -1)
        limit = FARTHEST * new.new_tensor(self.system.reach)
        return torch.minimum(torch.maximum(new, -limit), limit)

    def squared_distance(self, state: Tensor, other: Tensor) -> Tensor:
        """Mean over the 2n entries of ((state - other) / reach)^2: [...]; angles by the shorter way round."""
        q, v = (state - other).chunk(2, -1)
        q = torch.stack([wrapped(x) if a else x for x, a in zip(q.unbind(-1), self.system.angles, strict=True)], -1)
        return ((torch.cat([q, v], -1) / q.new_tensor(self.system.reach)) ** 2).mean(-1)
