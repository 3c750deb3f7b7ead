import re

import pytest
import torch

from metarun.applied.trained import trained
from metarun.errors import ConfigError
from metarun.evaluation.scoring import OfTheTask, Subject, evaluate
from metarun.execution.execution import Looped, Vmapped
from metarun.trees import slice_tasks
from tests.composing import experiment, train
from tests.control.systems import NAMES, task_of


class Truth:
    """A learner that knows the right outputs of the query, or says that nothing changes."""

    def __init__(self, y=None):
        self.y, self.step = y, 0

    def predict(self, phi, inputs):
        if self.y is None:
            return inputs.new_zeros(len(inputs), 1)
        self.step += 1
        return self.y[:, self.step - 1]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_standardised_over_training_tasks(name):
    query = task_of(name).sample("train", range(256)).query
    assert query.y.mean((0, 1)).abs().max() < 1e-6
    assert (query.y.std((0, 1)) - 1).abs().max() < 1e-6
    other = task_of(name).sample("test", range(400)).query.y
    assert (other.std((0, 1)) - 1).abs().max() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_transitions_follow_the_systems_own_dynamics_and_motions_are_continuous(name):
    task = task_of(name)
    draw = task.draw("val", range(3))
    support, query, _ = task.episodes(draw)
    encoding, parameters = task.encoding, task.parameters(draw)[:, None]
    for x, y, _ in (support, query):
        state = encoding.state(x)
        following = task.system.step(parameters, state, encoding.action(x))
        torch.testing.assert_close(y, encoding.outputs(state, following), rtol=1e-8, atol=1e-8)
    motions = encoding.state(query.x).unflatten(1, (-1, task.rollout_steps))  # [B, R, H, 2n]
    ends = encoding.advance(motions, query.y.unflatten(1, (-1, task.rollout_steps)))[:, :, :-1]
    assert encoding.squared_distance(ends, motions[:, :, 1:]).max() < 1e-4  # by the trapezoidal rule


def test_a_run_keeps_its_unit_of_outputs_where_it_is_tested_under_other_ranges(tmp_path):
    train(tmp_path / "run", "task=pendulum", "steps=1", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2")
    longer = trained(tmp_path / "run", ["task.system.length=[1.5,2]"], "best", []).experiment.task
    own = trained(tmp_path / "run", [], "best", []).experiment.task.encoding
    others = task_of("pendulum", "task.system.length=[1.5,2]").encoding
    assert torch.equal(longer.encoding.mean, own.mean) and torch.equal(longer.encoding.deviation, own.deviation)
    assert not torch.allclose(own.deviation, others.deviation, rtol=0.2)


def test_with_other_shots_systems_and_motions_are_the_same_and_support_grows():
    few, many = (task_of("pendulum", f"task.num_shots={k}").sample("test", [5]) for k in (3, 8))
    assert torch.equal(few.query.x, many.query.x)
    assert torch.equal(few.support.x, many.support.x[:, :3])


def test_the_rollout_error_of_the_truth_is_zero_and_of_no_change_is_not():
    task = task_of("pendulum")
    episode = slice_tasks(task.sample("test", [0]), 0)
    y = episode.query.y.unflatten(0, (-1, task.rollout_steps))
    assert task.further_scores(Truth(y), None, episode)["rollout_mse"] < 1e-5  # positions by the trapezoidal rule
    assert task.further_scores(Truth(), None, episode)["rollout_mse"] > 1e-3


def test_evaluation_adds_the_rollout_error_vmapped_as_looped():
    x = experiment("task=two_link_arm", "meta_learner=r2d2", "base_learner.hidden=[8]")
    theta = x.theta_0
    scores = [
        evaluate(Subject(x.test_learner, theta, x.task, "test", 3, execution), [OfTheTask()], curve=True)
        for execution in (Vmapped(None), Looped())
    ]
    assert scores[0]["rollout_mse"].mean > 0
    for name, score in scores[0].items():
        assert score.mean == pytest.approx(scores[1][name].mean, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_has_a_row_for_each_coordinate_and_a_line_for_each_system(name):
    task = task_of(name)
    figure = task.show("test", [0, 3])
    assert len(figure.axes) == len(task.system.reach)
    assert all(len(panel.lines) == 2 for panel in figure.axes)


def test_the_fingerprint_names_the_ranges():
    text = task_of("cart_pole", "task.system.pole=[0.1,0.2]").fingerprint()
    assert re.search(r"CartPole: .*pole \[0.1, 0.2\].*either way round", text)


def test_wrong_sizes_are_refused_with_the_rule():
    with pytest.raises(ConfigError, match=r"rollout_steps is 7, but the 50 query transitions"):
        experiment("task=pendulum", "task.rollout_steps=7")
    with pytest.raises(ConfigError, match=r"task.train_num_shots is 0"):
        experiment("task=pendulum", "task.train_num_shots=0")
    with pytest.raises(ConfigError, match=r"control_steps is 0"):
        experiment("task=pendulum", "task.control_steps=0")


def test_ranges_of_systems_that_do_not_move_in_finite_numbers_are_refused():
    with pytest.raises(
        ConfigError, match=r"without finite changes .*length1 \[1e\+30, 1e\+30\].*Correct those of task\.system"
    ):
        task_of("two_link_arm", "task.system.length1=[1e30,1e30]")
