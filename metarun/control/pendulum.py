"""Pendulum: a mass on a rod of no weight, with a motor at the pivot. Angle 0 is upright.

    mass length^2 q'' = mass g length sin q - friction q' + torque action

The task for a controller: swing up from hanging, and stay there; the motor is too weak to lift most of them at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.control.system import Range, System, check_ranges, wrapped

G = 9.81  # m / s^2


@dataclass(frozen=True)
class Pendulum(System):
    """Pendulum to be swung up; q is its angle, and A = 1."""

    mass: Range  # kg
    length: Range  # m
    friction: Range  # N m s
    torque: Range  # N m, of the full action
    reversible: bool

    coordinates = ("angle, rad",)
    angles = (True,)
    reach = (math.pi, 6.0)
    num_actions = 1
    dt = 0.05
    substeps = 1

    def __post_init__(self) -> None:
        check_ranges(self, ("mass", "length", "torque"))

    def acceleration(self, parameters: Tensor, q: Tensor, v: Tensor, action: Tensor) -> Tensor:
        mass, length, friction, torque, direction = parameters.split(1, -1)
        turning = direction * torque * action - friction * v
        return G / length * q.sin() + turning / (mass * length**2)

    def energy(self, parameters: Tensor, q: Tensor, v: Tensor) -> Tensor:
        mass, length = parameters[..., 0], parameters[..., 1]
        return mass * length * (length * v[..., 0] ** 2 / 2 + G * q[..., 0].cos())

    def start(self, u: Tensor) -> Tensor:
        """States that hang up to 0.1 rad aside, at rest."""
        return torch.stack([math.pi + 0.2 * (u[..., 0] - 0.5), torch.zeros_like(u[..., 0])], -1)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Cost of Gymnasium's Pendulum-v1."""
        angle, speed = wrapped(state[..., 0]), state[..., 1]
        return angle**2 + 0.1 * speed**2 + 0.001 * action[..., 0] ** 2

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        return -self.cost(state, action)

    def holds(self, state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0], dtype=torch.bool)
