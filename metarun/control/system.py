"""Mechanical systems with unknown parameters: q'' = acceleration(parameters, q, q', action), stepped by Runge and Kutta.

A state is (q, q') of n coordinates each; an action is in [-1, 1]^A, held for ``dt`` seconds. Everything is batched: states
and actions lead with the same axes "...", parameters with those or with ones that broadcast to them; vmap works as well.

n coordinates, A actions, P parameters
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

Range = tuple[float, float]  # lowest and highest value; a task draws uniformly between them


class System(ABC):
    """Base of mechanical systems: frozen dataclasses whose fields are ranges of parameters, and ``reversible``."""

    coordinates: ClassVar[tuple[str, ...]]  # names and units of q
    angles: ClassVar[tuple[bool, ...]]  # which of q are angles: they wrap, and a network sees their sine and cosine
    reach: ClassVar[tuple[float, ...]]  # states to identify lie in [-reach, reach], of q and then of q' [2n]
    num_actions: ClassVar[int]
    dt: ClassVar[float]  # seconds between two states
    substeps: ClassVar[int]  # of the integration within them
    reversible: bool  # whether a motor may be wired the other way round, so that actions count negative

    @abstractmethod
    def acceleration(self, parameters: Tensor, q: Tensor, v: Tensor, action: Tensor) -> Tensor:
        """Acceleration q'' [..., n] for ``parameters`` [..., P + 1], the last of which is the motors' direction, 1 or -1."""

    @abstractmethod
    def energy(self, parameters: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Energy in joules [...], constant without friction and action."""

    @abstractmethod
    def start(self, u: Tensor) -> Tensor:
        """State [..., 2n] where a controlled episode begins, for uniforms u [..., 2n]."""

    @abstractmethod
    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Cost [...] of a state and an action, which a planner minimises."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        """Reward [...] of a state and an action, which the score adds up."""

    @abstractmethod
    def holds(self, state: Tensor) -> Tensor:
        """Mask [...] of episodes that go on: nothing is added up from the first state where it is false."""

    @property
    def ranges(self) -> dict[str, Range]:
        """Ranges of the unknown parameters by name, in the order of ``parameters``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "reversible"}  # type: ignore[arg-type]

    def parameters(self, u: Tensor) -> Tensor:
        """Turn uniforms [..., P + 1] into parameters within their ranges, and the direction of the motors, last."""
        low, high = u.new_tensor(list(self.ranges.values())).T
        direction = torch.where((u[..., -1:] < 0.5) & self.reversible, -1.0, 1.0).to(u)
        return torch.cat([low + (high - low) * u[..., :-1], direction], -1)

    def step(self, parameters: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """Compute the state ``dt`` seconds later [..., 2n], by ``substeps`` of Runge and Kutta's classical method."""

        def slope(state: Tensor) -> Tensor:
            q, v = state.chunk(2, -1)
            return torch.cat([v, self.acceleration(parameters, q, v, action)], -1)

        h = self.dt / self.substeps
        for _ in range(self.substeps):
            k1 = slope(state)
            k2 = slope(state + h / 2 * k1)
            k3 = slope(state + h / 2 * k2)
            k4 = slope(state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state

    def simulate(self, parameters: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Run the system under ``actions`` [..., H, A]: all states [..., H + 1, 2n], ``state`` the first."""
        states = [state]
        for action in actions.unbind(-2):
            states.append(self.step(parameters, states[-1], action))
        return torch.stack(states, -2)


def check_ranges(system: System, positive: tuple[str, ...]) -> None:
    """Raise ValueError unless every range is one, those named ``positive`` lie above 0, and none below it."""
    for name, (low, high) in system.ranges.items():
        if low > high or low < 0 or (low == 0 and name in positive):
            rule = "above 0" if name in positive else "0 or more"
            raise ValueError(f"task.system.{name} is [{low}, {high}]; give [lowest, highest], both {rule}.")


def wrapped(angle: Tensor) -> Tensor:
    """Return the same angle in (-pi, pi], in radians."""
    return torch.atan2(angle.sin(), angle.cos())
