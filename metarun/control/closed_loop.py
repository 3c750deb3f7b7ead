"""Controlled episodes of many tasks at once: plan on a model, act on the true system, and add up the reward.

T tasks, H steps of a plan, A actions
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metarun.control.planner import CrossEntropy, Model, moved_on
from metarun.control.system import System
from metarun.counter import normal, uniform


def controlled(
    system: System, parameters: Tensor, model: Model, planner: CrossEntropy, num_steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Control each system by the plans that ``model`` suggests: returns [T] and states [T, num_steps + 1, 2n].

    Start and noise depend on the seed and the number of the task or step alone, so all models meet the same.
    """
    state = first_states(system, len(parameters), seed).to(parameters)
    plan = state.new_zeros(len(state), planner.horizon, system.num_actions)

    def policy(step: int, state: Tensor) -> Tensor:
        nonlocal plan
        plan = planner.plan(model, system.cost, state, plan, planning_noise(planner, system, seed, step).to(state))
        action = plan[:, 0]
        plan = moved_on(plan)
        return action

    return episode(system, parameters, state, policy, num_steps)


def at_random(system: System, parameters: Tensor, num_steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns [T] and states [T, num_steps + 1, 2n] under actions drawn uniformly: what no plan is worth."""
    indices = np.arange(len(parameters))
    u = uniform(seed, "control/random", indices, num_steps * system.num_actions)
    actions = torch.from_numpy(2 * u - 1).to(parameters).unflatten(1, (num_steps, -1))
    state = first_states(system, len(parameters), seed).to(parameters)
    return episode(system, parameters, state, lambda step, state: actions[:, step], num_steps)


def episode(
    system: System, parameters: Tensor, state: Tensor, policy: Callable[[int, Tensor], Tensor], num_steps: int
) -> tuple[Tensor, Tensor]:
    """Run ``policy(step, state [T, 2n]) -> action [T, A]``; give back returns [T] and states [T, num_steps + 1, 2n]."""
    going, total, states = system.holds(state), state.new_zeros(len(state)), [state]
    for step in range(num_steps):
        action = policy(step, state)
        state = system.step(parameters, state, action)
        going = going & system.holds(state)
        total = total + torch.where(going, system.reward(state, action), 0)
        states.append(state)
    return total, torch.stack(states, 1)


def first_states(system: System, num_tasks: int, seed: int) -> Tensor:
    """States [num_tasks, 2n] where episodes begin; each depends on the seed and the number of its task alone."""
    u = uniform(seed, "control/start", np.arange(num_tasks), len(system.reach))
    return system.start(torch.from_numpy(u))


def planning_noise(planner: CrossEntropy, system: System, seed: int, step: int) -> Tensor:
    """Noise ~ N(0, 1) for the plan of a step [iterations, N, H, A]: the same for every task and model."""
    shape = (planner.iterations, planner.population, planner.horizon, system.num_actions)
    count = int(np.prod(shape))
    u = uniform(seed, "control/plan", np.array([step]), count + count % 2)[0]
    return torch.from_numpy(normal(u)[:count]).reshape(shape)
