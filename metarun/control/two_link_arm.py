"""Two-link arm: two uniform rods in a horizontal plane, a motor in either joint. The second angle is the elbow's.

    M(q) q'' + c(q, q') = torque action - friction q'

The task for a controller: stretch out along the axis, q = 0, and stay there. M and c as in Spong, Hutchinson and
Vidyasagar, Robot Modeling and Control, 2006, section 7.3, with the rods' own inertia mass length^2 / 12.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.control.system import Range, System, check_ranges, wrapped


@dataclass(frozen=True)
class TwoLinkArm(System):
    """Arm of two rods to be stretched out; q is the angles of shoulder and elbow, and A = 2."""

    mass1: Range  # kg
    mass2: Range
    length1: Range  # m
    length2: Range
    friction: Range  # N m s, in both joints
    torque: Range  # N m, of the full action
    reversible: bool

    coordinates = ("shoulder, rad", "elbow, rad")
    angles = (True, True)
    reach = (math.pi, math.pi, 3.0, 3.0)
    num_actions = 2
    dt = 0.05
    substeps = 2  # a fast elbow turns in less than dt: one step would be off by up to 0.15 rad/s, two by 0.01

    def __post_init__(self) -> None:
        check_ranges(self, ("mass1", "mass2", "length1", "length2", "torque"))

    def acceleration(self, parameters: Tensor, q: Tensor, v: Tensor, action: Tensor) -> Tensor:
        friction, torque, direction = parameters[..., 4:].split(1, -1)
        m11, m12, m22 = self.inertia(parameters, q)
        _, mass2, length1, length2 = parameters[..., :4].unbind(-1)
        twist = mass2 * length1 * length2 / 2 * q[..., 1].sin()
        v1, v2 = v.unbind(-1)
        centrifugal = torch.stack([-twist * v2 * (2 * v1 + v2), twist * v1**2], -1)
        t1, t2 = (direction * torque * action - friction * v - centrifugal).unbind(-1)
        return torch.stack([m22 * t1 - m12 * t2, m11 * t2 - m12 * t1], -1) / (m11 * m22 - m12**2)[..., None]

    def inertia(self, parameters: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries M11, M12 = M21 and M22 of the inertia matrix, each [...], in kg m^2."""
        mass1, mass2, length1, length2 = parameters[..., :4].unbind(-1)
        own = mass2 * length2**2 / 3
        coupling = mass2 * length1 * length2 / 2 * q[..., 1].cos()
        return (mass1 / 3 + mass2) * length1**2 + own + 2 * coupling, own + coupling, own + 0 * coupling

    def energy(self, parameters: Tensor, q: Tensor, v: Tensor) -> Tensor:
        m11, m12, m22 = self.inertia(parameters, q)
        v1, v2 = v.unbind(-1)
        return (m11 * v1**2 + m22 * v2**2) / 2 + m12 * v1 * v2

    def start(self, u: Tensor) -> Tensor:
        """States of any posture, at rest."""
        q = math.pi * (2 * u[..., :2] - 1)
        return torch.cat([q, torch.zeros_like(q)], -1)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        q, v = state.chunk(2, -1)
        return (wrapped(q) ** 2 + 0.1 * v**2 + 0.001 * action**2).sum(-1)

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        return -self.cost(state, action)

    def holds(self, state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0], dtype=torch.bool)
