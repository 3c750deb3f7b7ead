"""The planner finds what it should, and a controller with the true dynamics beats none on each system."""

import pytest
import torch

from metarun.control.closed_loop import at_random, controlled, planning_noise
from metarun.control.planner import CrossEntropy, moved_on, predicted_costs
from metarun.errors import ConfigError
from tests.composing import experiment
from tests.control.systems import NAMES, system_of, task_of

# a point on a line that an action moves: the best action of a step is the way to the goal
GOALS = torch.tensor([0.5, -0.3, 0.0]).double()


def move(state, action):
    return state + action


def distance(state, action):
    return (state[..., 0] - GOALS[: len(state), None]) ** 2


def noise(planner, num_actions=1):
    generator = torch.Generator().manual_seed(0)
    shape = (planner.iterations, planner.population, planner.horizon, num_actions)
    return torch.randn(shape, generator=generator).double()


def test_the_plan_of_each_task_goes_to_its_own_goal_at_once():
    planner = CrossEntropy(horizon=3, population=100, num_elites=10, iterations=8)
    plan = planner.plan(move, distance, torch.zeros(3, 1).double(), torch.zeros(3, 3, 1).double(), noise(planner))
    torch.testing.assert_close(plan[:, 0, 0], GOALS, rtol=0, atol=0.05)
    assert plan[:, 1:].abs().max() < 0.1  # and stays there


def test_one_iteration_with_one_elite_is_the_best_of_the_drawn_sequences():
    planner = CrossEntropy(horizon=3, population=20, num_elites=1, iterations=1)
    draw, state = noise(planner), torch.zeros(3, 1).double()
    plan = planner.plan(move, distance, state, torch.zeros(3, 3, 1).double(), draw)
    costs = predicted_costs(move, distance, state, draw[0].clamp(-1, 1).expand(3, -1, -1, -1))
    for t in range(3):
        assert torch.equal(plan[t], draw[0, costs[t].argmin()].clamp(-1, 1))


def test_predicted_costs_add_up_the_costs_of_the_states_that_follow():
    actions = torch.tensor([[[[0.5], [0.0]], [[1.0], [-0.5]]]]).double()  # [T, N, H, A]
    costs = predicted_costs(move, distance, torch.zeros(1, 1).double(), actions)
    torch.testing.assert_close(costs, torch.tensor([[0.0, 0.25 + 0.0]]).double())


def test_a_plan_moves_on_by_one_step():
    plan = torch.arange(6.0).reshape(1, 3, 2)
    assert moved_on(plan).tolist() == [[[2.0, 3.0], [4.0, 5.0], [0.0, 0.0]]]


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_beats_random_actions_by_far(name):
    steps = {"pendulum": 60, "cart_pole": 60, "two_link_arm": 25}[name]
    task, planner = task_of(name), CrossEntropy(12, 32, 6, 2)
    system, parameters = task.system, task.parameters(task.draw("test", range(6)))
    oracle, states = controlled(system, parameters, true_dynamics(system, parameters), planner, steps, 0)
    by_chance, _ = at_random(system, parameters, steps, 0)
    assert states.shape == (6, steps + 1, len(system.reach))
    if name == "cart_pole":
        assert oracle.mean() > 0.95 * steps and by_chance.mean() < 0.8 * steps
    else:
        assert oracle.mean() > 0.8 * by_chance.mean()  # both negative


def true_dynamics(system, parameters):
    return lambda state, action: system.step(parameters[:, None], state, action)


def test_a_controlled_episode_is_the_same_again_and_in_other_company():
    task, planner = task_of("cart_pole"), CrossEntropy(5, 16, 4, 2)
    system, parameters = task.system, task.parameters(task.draw("test", range(4)))
    together, states = controlled(system, parameters, true_dynamics(system, parameters), planner, 10, 0)
    again, _ = controlled(system, parameters, true_dynamics(system, parameters), planner, 10, 0)
    assert torch.equal(together, again)
    few, states_of_few = controlled(system, parameters[:2], true_dynamics(system, parameters[:2]), planner, 10, 0)
    assert torch.equal(few, together[:2]) and torch.allclose(states_of_few, states[:2], rtol=0, atol=1e-12)
    assert not torch.equal(
        states[:, 1], controlled(system, parameters, true_dynamics(system, parameters), planner, 10, 1)[1][:, 1]
    )


def test_nothing_is_added_up_after_the_pole_has_fallen():
    system = system_of("cart_pole", "task.system.force=[15,15]", "task.system.cart=[0.5,0.5]")
    parameters = system.parameters(torch.zeros(1, len(system.ranges) + 1).double())

    def push(state, action):  # a model by which full force costs nothing, and any other does
        return torch.cat([state[..., :3] * 0, 10 * (1 - action)], -1)

    total, states = controlled(system, parameters, push, CrossEntropy(1, 50, 1, 1), 100, 0)
    fallen = int((~system.holds(states[0])).double().argmax())
    assert 0 < fallen < 60
    assert total.item() == fallen - 1  # a point for each step that ends upright


def test_noise_is_that_of_a_step_and_of_no_task():
    planner, system = CrossEntropy(4, 8, 2, 3), system_of("two_link_arm")
    first = planning_noise(planner, system, 0, 0)
    assert first.shape == (3, 8, 4, 2)
    assert not torch.equal(first, planning_noise(planner, system, 0, 1))
    assert not torch.equal(first, planning_noise(planner, system, 1, 0))


def test_wrong_planners_are_refused():
    with pytest.raises(ConfigError, match=r"must all be 1 or more"):
        experiment("task=pendulum", "task.planner.horizon=0")
    with pytest.raises(ConfigError, match=r"num_elites is 65, but only 64 sequences"):
        experiment("task=pendulum", "task.planner.num_elites=65")
