"""Cart-pole: a cart on a rail carries a mass on a rod of no weight; a motor pushes the cart. Angle 0 is upright.

    (cart + pole) x'' + pole length (q'' cos q - q'^2 sin q) = force action - friction x'
    length q'' + x'' cos q = g sin q

The task for a controller: keep the pole within 12 degrees and the cart within 2.4 m, one point for every step it does
(Barto, Sutton and Anderson 1983, with the limits of Gymnasium's CartPole-v1 and a force of any strength).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.control.pendulum import G
from metarun.control.system import Range, System, check_ranges

LARGEST_ANGLE, LARGEST_POSITION = math.radians(12), 2.4


@dataclass(frozen=True)
class CartPole(System):
    """Cart on a rail with a pole to be kept upright; q is the position and the angle, and A = 1."""

    cart: Range  # kg
    pole: Range  # kg
    length: Range  # m
    friction: Range  # N s / m, of the cart on its rail
    force: Range  # N, of the full action
    reversible: bool

    coordinates = ("position, m", "angle, rad")
    angles = (False, True)
    reach = (2.4, 0.5, 2.0, 2.0)
    num_actions = 1
    dt = 0.02
    substeps = 1

    def __post_init__(self) -> None:
        check_ranges(self, ("cart", "pole", "length", "force"))

    def acceleration(self, parameters: Tensor, q: Tensor, v: Tensor, action: Tensor) -> Tensor:
        cart, pole, length, friction, force, direction = parameters.split(1, -1)
        angle, (speed, turn) = q[..., 1:], v.split(1, -1)
        sin, cos = angle.sin(), angle.cos()
        push = direction * force * action - friction * speed
        x = (push + pole * sin * (length * turn**2 - G * cos)) / (cart + pole * sin**2)
        return torch.cat([x, (G * sin - x * cos) / length], -1)

    def energy(self, parameters: Tensor, q: Tensor, v: Tensor) -> Tensor:
        cart, pole, length = parameters[..., :3].unbind(-1)
        angle, (speed, turn) = q[..., 1], v.unbind(-1)
        moving = (cart + pole) * speed**2 / 2 + pole * length * turn * (speed * angle.cos() + length * turn / 2)
        return moving + pole * G * length * angle.cos()

    def start(self, u: Tensor) -> Tensor:
        """States within 0.05 of zero, as in Gymnasium."""
        return 0.1 * (u - 0.5)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        position, angle, speed, turn = state.unbind(-1)
        return angle**2 + 0.05 * position**2 + 0.01 * (speed**2 + turn**2) + 1e-4 * action[..., 0] ** 2

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0])

    def holds(self, state: Tensor) -> Tensor:
        return (state[..., 1].abs() < LARGEST_ANGLE) & (state[..., 0].abs() < LARGEST_POSITION)
