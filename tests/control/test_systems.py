"""The dynamics against an independent form of the equations, integrated by scipy, and against conservation of energy."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.func import vmap

from metarun.control.encoding import Encoding
from metarun.errors import ConfigError
from tests.composing import experiment
from tests.control.systems import NAMES, system_of, task_of

G = 9.81


def drawn(system, count, seed=0):
    """Parameters [count, P + 1], states [count, 2n] and actions [count, A]."""
    torch.manual_seed(seed)
    parameters = system.parameters(torch.rand(count, len(system.ranges) + 1).double())
    state = (2 * torch.rand(count, len(system.reach)) - 1).double() * torch.tensor(system.reach)
    return parameters, state, (2 * torch.rand(count, system.num_actions) - 1).double()


def pendulum(p, q, v, u):
    """Torques about the pivot over the moment of inertia."""
    mass, length, friction, torque, direction = p
    return (mass * G * length * np.sin(q) - friction * v + direction * torque * u) / (mass * length**2)


def cart_pole(p, q, v, u):
    """Euler and Lagrange's two equations, solved as a linear system."""
    cart, pole, length, friction, force, direction = p
    sin, cos = np.sin(q[1]), np.cos(q[1])
    matrix = np.array([[cart + pole, pole * length * cos], [pole * length * cos, pole * length**2]])
    push = direction * force * u[0] - friction * v[0]
    return np.linalg.solve(matrix, [push + pole * length * v[1] ** 2 * sin, pole * G * length * sin])


def two_link_arm(p, q, v, u):
    """M from the Jacobians of the rods' centres; the velocity terms by Christoffel symbols from differences of M."""
    m1, m2, l1, l2, friction, torque, direction = p

    def inertia(q):
        a, b = q[0], q[0] + q[1]
        first = np.array([[-l1 / 2 * np.sin(a), 0], [l1 / 2 * np.cos(a), 0]])
        second = np.array(
            [
                [-l1 * np.sin(a) - l2 / 2 * np.sin(b), -l2 / 2 * np.sin(b)],
                [l1 * np.cos(a) + l2 / 2 * np.cos(b), l2 / 2 * np.cos(b)],
            ]
        )
        turning = m1 * l1**2 / 12 * np.outer([1, 0], [1, 0]) + m2 * l2**2 / 12 * np.ones((2, 2))
        return m1 * first.T @ first + m2 * second.T @ second + turning

    h = 1e-5
    slopes = [(inertia(q + h * e) - inertia(q - h * e)) / (2 * h) for e in np.eye(2)]  # dM / dq_k
    velocity_terms = sum(slopes[k] @ v * v[k] for k in range(2)) - np.array([v @ slopes[k] @ v for k in range(2)]) / 2
    return np.linalg.solve(inertia(q), direction * torque * u - friction * v - velocity_terms)


INDEPENDENT = {"pendulum": pendulum, "cart_pole": cart_pole, "two_link_arm": two_link_arm}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_an_independent_form_of_the_equations_integrated_by_scipy(name):
    system, n = system_of(name), len(system_of(name).angles)
    parameters, states, actions = drawn(system, 20)
    following = system.step(parameters, states, actions).numpy()
    for p, state, action, mine in zip(parameters.numpy(), states.numpy(), actions.numpy(), following, strict=True):

        def slope(_, s, p=p, action=action):
            return np.concatenate([s[n:], INDEPENDENT[name](p, s[:n], s[n:], action)])

        exact = solve_ivp(slope, (0, system.dt), state, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
        # a step is off by (rate * h)^5 / 120; the arm's elbow has rates of 20 / s, and velocities change by 2 a step
        np.testing.assert_allclose(mine, exact, rtol=0, atol=0.02 if name == "two_link_arm" else 1e-4)
    accelerations = system.acceleration(parameters, *states.chunk(2, -1), actions).numpy()
    for p, state, action, mine in zip(parameters.numpy(), states.numpy(), actions.numpy(), accelerations, strict=True):
        expected = INDEPENDENT[name](p, state[:n], state[n:], action)
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-6)  # differences with h = 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_energy_is_conserved_without_friction_and_action(name):
    system = system_of(name, "task.system.friction=[0,0]")
    parameters, state, actions = drawn(system, 10)
    states = system.simulate(parameters, state / 3, actions[:, None].expand(-1, 50, -1) * 0)
    q, v = states.chunk(2, -1)
    energy = system.energy(parameters[:, None], q, v)  # [10, 51]
    scale = energy.abs().amax(1) + 0.1
    assert ((energy - energy[:, :1]).abs().amax(1) / scale).max() < 2e-3  # RK4 loses (rate * dt)^6 a step
    assert (v[:, -1] - v[:, 0]).abs().min(-1).values.max() > 0.1  # they did move


@pytest.mark.parametrize("name", NAMES)
def test_energy_falls_with_friction_and_without_action(name):
    system = system_of(name, "task.system.friction=[0.3,0.5]")
    parameters, state, actions = drawn(system, 10)
    ends = system.simulate(parameters, state / 3, actions[:, None].expand(-1, 50, -1) * 0)[:, [0, -1]]
    energy = system.energy(parameters[:, None], *ends.chunk(2, -1))
    assert (energy[:, 1] < energy[:, 0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_work_of_the_motors_is_the_change_of_energy(name):
    system = system_of(name, "task.system.friction=[0,0]")
    parameters, state, action = drawn(system, 10)
    q, v = (state / 2).requires_grad_().chunk(2, -1)
    energy = system.energy(parameters, q, v)
    by_q, by_v = torch.autograd.grad(energy.sum(), (q, v))
    power = (by_q * v + by_v * system.acceleration(parameters, q, v, action)).sum(-1)
    driven = v[:, :1] if name == "cart_pole" else v
    strength = parameters[:, -2:-1] * parameters[:, -1:]
    torch.testing.assert_close(power, (strength * action * driven).sum(-1))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_vmap_of_single_systems_and_broadcasts(name):
    system = system_of(name)
    parameters, state, action = drawn(system, 5)
    together = system.step(parameters, state, action)
    torch.testing.assert_close(vmap(system.step)(parameters, state, action), together, rtol=0, atol=1e-13)
    many = system.step(parameters[:, None], state.expand(5, -1, -1), action.expand(5, -1, -1))
    torch.testing.assert_close(many.diagonal(dim1=0, dim2=1).T, together, rtol=0, atol=1e-13)


def test_a_reversed_motor_turns_the_action_round_and_half_of_the_motors_are():
    system = system_of("pendulum")
    parameters, state, action = drawn(system, 1000)
    assert 0.4 < (parameters[:, -1] == -1).double().mean() < 0.6
    other = torch.cat([parameters[:, :-1], -parameters[:, -1:]], -1)
    assert torch.equal(system.step(other, state, -action), system.step(parameters, state, action))
    never = system_of("pendulum", "task.system.reversible=false")
    assert (drawn(never, 100)[0][:, -1] == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_fill_their_ranges(name):
    system = system_of(name)
    parameters = drawn(system, 2000)[0]
    for column, (low, high) in zip(parameters.T, system.ranges.values(), strict=False):
        assert low <= column.min() < low + 0.01 * (high - low) + 1e-9
        assert high - 0.01 * (high - low) - 1e-9 < column.max() <= high


@pytest.mark.parametrize("name", NAMES)
def test_the_encoding_gives_states_back_and_its_outputs_lead_to_the_next_state(name):
    encoding: Encoding = task_of(name).encoding
    system = encoding.system
    parameters, state, action = drawn(system, 50)
    inputs = encoding.inputs(state, action)
    assert inputs.shape == (50, encoding.num_inputs)
    torch.testing.assert_close(encoding.state(inputs), state)
    assert torch.equal(encoding.action(inputs), action)
    following = system.step(parameters, state, action)
    reached = encoding.advance(state, encoding.outputs(state, following))
    n = len(system.angles)
    torch.testing.assert_close(reached[:, n:], following[:, n:])
    off = (reached[:, :n] - following[:, :n]).abs()  # the trapezoidal rule is off by dt^3 / 12 of the third derivative
    assert off.median() < 1e-3 and off.max() < 0.05


def test_distance_goes_the_shorter_way_round_and_rollouts_end_at_ten_times_the_reach():
    encoding = task_of("pendulum").encoding
    a, b = torch.tensor([[[3.1, 0.0]], [[-3.1, 0.0]]], dtype=torch.float64)
    expected = ((2 * np.pi - 6.2) / np.pi) ** 2 / 2
    torch.testing.assert_close(encoding.squared_distance(a, b), torch.tensor([expected], dtype=torch.float64))
    far = encoding.advance(a, torch.tensor([[1e30]]).double())
    assert torch.equal(far[0], torch.tensor([10 * np.pi, 60.0], dtype=torch.float64))


def test_wrong_ranges_are_refused_with_the_rule():
    for name, text, rule in (
        ("mass", "[2,1]", "above 0"),
        ("length", "[0,1]", "above 0"),
        ("friction", "[-1,1]", "0 or more"),
    ):
        with pytest.raises(ConfigError, match=rf"task\.system\.{name} is .*both {rule}"):
            experiment("task=pendulum", f"task.system.{name}={text}")
