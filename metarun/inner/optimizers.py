"""Optimizers of an inner loop: pure functions of (params, gradient, state), differentiable through every step."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from metarun.core import Params
from metarun.trees import tree_leaves, tree_map, zip_map

InnerOptimizerName = Literal["sgd", "momentum", "rmsprop", "adam"]


class InnerOptimizer(Protocol):
    """``start`` gives the state before the first step (a pytree of tensors), ``step`` the next params and state."""

    def start(self, params: Params) -> Any:
        """The state before the first step."""
        ...

    def step(self, params: Params, gradient: Params, state: Any) -> tuple[Params, Any]:
        """The params after a step along ``gradient``, and the state for the next."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent: params <- params - lr * gradient."""

    lr: float

    def start(self, params: Params) -> Any:
        return ()

    def step(self, params: Params, gradient: Params, state: Any) -> tuple[Params, Any]:
        return zip_map(lambda p, g: p - self.lr * g, params, gradient), state


@dataclass(frozen=True)
class Momentum:
    """Heavy ball: v <- decay * v + gradient;   params <- params - lr * v        (as torch.optim.SGD's momentum)"""

    lr: float
    decay: float = 0.9

    def start(self, params: Params) -> Any:
        return tree_map(torch.zeros_like, params)

    def step(self, params: Params, gradient: Params, state: Any) -> tuple[Params, Any]:
        velocity = zip_map(lambda v, g: self.decay * v + g, state, gradient)
        return zip_map(lambda p, v: p - self.lr * v, params, velocity), velocity


@dataclass(frozen=True)
class RMSprop:
    """s <- decay * s + (1 - decay) * gradient^2;   params <- params - lr * gradient / sqrt(s)        (Hinton, 2012)

    With eps and eps_root as in ``Adam``, and torch's decay. The first steps are longer: s begins at zero.
    """

    lr: float
    decay: float = 0.99
    eps: float = 1e-8
    eps_root: float = 1e-16

    def start(self, params: Params) -> Any:
        return tree_map(torch.zeros_like, params)

    def step(self, params: Params, gradient: Params, state: Any) -> tuple[Params, Any]:
        square = zip_map(lambda s, g: self.decay * s + (1 - self.decay) * g * g, state, gradient)

        def moved(p: torch.Tensor, g: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return p - self.lr * g / ((s + self.eps_root).sqrt() + self.eps)

        return zip_map(moved, params, gradient, square), square


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba, ICLR 2015, with eps_root inside the square root: its slope at 0 is infinite, and the meta-gradient
    flows through it (where a gradient is exactly zero, as behind a dead ReLU, it would be NaN)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 1e-16

    def start(self, params: Params) -> Any:
        zeros, one = tree_map(torch.zeros_like, params), tree_leaves(params)[0].new_ones(())
        return {"mean": zeros, "square": zeros, "power": (one, one)}

    def step(self, params: Params, gradient: Params, state: Any) -> tuple[Params, Any]:
        b1, b2 = self.betas
        mean = zip_map(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], gradient)
        square = zip_map(lambda s, g: b2 * s + (1 - b2) * g * g, state["square"], gradient)
        power = (state["power"][0] * b1, state["power"][1] * b2)  # beta^k, for the corrections of the start at zero

        def moved(p: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return p - self.lr * (m / (1 - power[0])) / ((s / (1 - power[1]) + self.eps_root).sqrt() + self.eps)

        return zip_map(moved, params, mean, square), {"mean": mean, "square": square, "power": power}


def inner_optimizer(name: InnerOptimizerName, lr: float) -> InnerOptimizer:
    """The inner optimizer of that name, with its usual settings."""
    return {"sgd": SGD, "momentum": Momentum, "rmsprop": RMSprop, "adam": Adam}[name](lr)
