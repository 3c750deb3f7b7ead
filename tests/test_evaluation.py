"""Scores and their intervals are what they say, the episodes behind them are fixed, and scoring touches nothing."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, MetaLearner, TaskDistribution, TaskSpec
from metarun.evaluation import episodes as episodes_module
from metarun.evaluation.calibration import calibrated
from metarun.evaluation.episodes import chunks_of, manifest, tasks_at_a_time
from metarun.evaluation.estimates import Estimate, estimate, mean_of
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.scoring import Evaluator, Subject, evaluate
from metarun.evaluation.suite import Scored, Suite
from metarun.evaluation.whole import evaluate_all
from metarun.execution.execution import Looped, Vmapped
from metarun.models.norm_state import norms
from metarun.objectives import SQUARED_ERROR
from metarun.output import checkpoint
from metarun.output.folder import RunFolder
from metarun.output.report import Reporter
from metarun.training.runner import Runner
from metarun.training.signals import StopRequest
from metarun.trees import slice_tasks, tree_leaves
from tests.composing import experiment, train

ROOT = Path(__file__).parent.parent
RUNNING = ["task=prototypes", "meta_learner=protonet", "base_learner.hidden=[4]", "base_learner.batch_norm=running"]

# ---- estimates ----


def test_an_estimate_is_the_mean_and_the_interval_of_students_t():
    values = [0.5, 0.25, 1.0, 0.75, 0.0]
    mean = sum(values) / 5
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)  # of a sample: n - 1
    actual = estimate(torch.tensor(values))
    half = 2.7764451051977987 * deviation / math.sqrt(5)  # the quantile of 4 degrees of freedom
    assert actual == (pytest.approx(mean, rel=1e-15), pytest.approx(half, rel=1e-14), 5)


def test_an_estimate_of_float32_scores_is_computed_in_double():
    assert estimate(torch.tensor([1e8, 1e8 + 8]).float()).mean == 1e8 + 4  # float32 cannot hold it


def test_the_interval_of_a_single_episode_is_infinite():
    assert estimate(torch.tensor([0.3]).double()) == (pytest.approx(0.3), math.inf, 1)


def test_the_interval_covers_the_true_mean_in_95_of_100_samples():
    samples = torch.randn(4000, 60, generator=torch.Generator().manual_seed(0))
    covered = np.mean([abs(e.mean) <= e.ci95 for e in map(estimate, samples)])
    # the standard error of 4000 draws is 0.4%
    assert 0.93 < covered < 0.96


# ---- evaluate ----


def score(phi: Tensor, query: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    value = query.y[0] + phi
    return value, {"score": value, "twice": 2 * value}


@dataclass(frozen=True)
class Adder(MetaLearner):
    """phi = theta + inner_steps, and the score of an episode is the first query target plus phi."""

    inner_steps: int

    def init(self) -> Tensor:
        return torch.zeros(()).double()

    def adapt(self, theta: Tensor, support: Batch) -> Tensor:
        return theta + self.inner_steps

    def query_loss(self, phi: Tensor, query: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return score(phi, query)


@dataclass(frozen=True)
class Stepless(MetaLearner):
    """The same with phi = theta, and no steps to look at."""

    def init(self) -> Tensor:
        return torch.zeros(()).double()

    def adapt(self, theta: Tensor, support: Batch) -> Tensor:
        return theta

    def query_loss(self, phi: Tensor, query: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return score(phi, query)


class Counting(TaskDistribution):
    """Episode i of any split holds the number i; it notes which splits were asked for."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def draw(self, split, indices) -> Draw:
        self.asked.append((split, list(indices)))
        return {"number": np.asarray(indices, dtype=np.float64)[:, None]}

    def episodes(self, draw: Draw) -> Episode:
        number = torch.from_numpy(draw["number"])
        return Episode(Batch(number, number), Batch(number, number))

    def fingerprint(self) -> str:
        return "counting"


@pytest.mark.parametrize("execution", [Vmapped(None), Looped()], ids=lambda e: e.describe())
def test_scores_are_the_estimates_of_the_scores_of_the_episodes(execution):
    numbers = torch.arange(60).double()
    scores = evaluate(Subject(Adder(2), torch.tensor(0.5).double(), Counting(), "val", 60, execution), curve=True)
    for k in range(3):
        assert scores[f"score_step_{k}"] == estimate(numbers + 0.5 + k)
        assert scores[f"twice_step_{k}"] == estimate(2 * (numbers + 0.5 + k))
    assert scores["score"] == scores["score_step_2"]
    assert scores["twice"] == scores["twice_step_2"]
    assert len(scores) == 8


@pytest.mark.parametrize(("learner", "curve"), [(Adder(2), False), (Stepless(), True)])
def test_without_a_curve_there_is_one_estimate_for_each_score(learner, curve):
    scores = evaluate(Subject(learner, learner.init(), Counting(), "val", 4, Looped()), curve=curve)
    assert scores.keys() == {"score", "twice"}


def test_evaluation_can_be_stopped_between_chunks():
    class Stop(Exception): ...

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        evaluate(Subject(Adder(1), Adder(1).init(), Counting(), "val", 60, Looped(), between=stop))


def test_an_evaluation_without_episodes_is_refused():
    with pytest.raises(ValueError, match="no episodes"):
        evaluate(Subject(Adder(1), Adder(1).init(), Counting(), "val", 0, Looped()))


@pytest.mark.parametrize("num_tasks", [1, 24, 25, 26, 60])
def test_chunks_hold_every_episode_once_and_in_order(num_tasks):
    parts = [at.sample("test", indices) for at, indices in chunks_of(Counting(), "test", num_tasks)]
    numbers = torch.cat([part.query.y[:, 0] for part in parts])
    assert numbers.tolist() == list(range(num_tasks))


@pytest.mark.parametrize(("elements", "expected"), [(40, 25), (2**16, 16), (2**17, 8), (2**20, 1), (2**22, 1)])
def test_fewer_tasks_are_evaluated_at_a_time_where_they_are_large(elements, expected):
    quarter = torch.zeros(1, elements // 4)
    batch = Batch(quarter, quarter)
    assert tasks_at_a_time(Episode(batch, batch)) == expected  # 2**20 numbers on a CPU, at least one task


# ---- evaluators ----


class Half(Evaluator):
    """Half of each task's score, and the number of tasks."""

    def scores(self, subject: Subject, phi: Tensor, episode: Episode) -> dict[str, Tensor]:
        return {"half": (episode.query.y[0] + phi) / 2}

    def estimates(self, subject: Subject) -> dict[str, Estimate]:
        return {"tasks": Estimate(subject.num_tasks, 0.0, 1)}


@pytest.mark.parametrize("execution", [Vmapped(None), Looped()], ids=lambda e: e.describe())
@pytest.mark.parametrize("curve", [False, True])
def test_what_an_evaluator_scores_of_a_task_takes_no_second_adaptation(execution, curve, monkeypatch):
    adapted: list[tuple] = []
    monkeypatch.setattr(Adder, "adapt", lambda *args, used=Adder.adapt: adapted.append(args) or used(*args))
    subject, calls = Subject(Adder(2), Adder(2).init(), Counting(), "val", 60, execution), []
    for evaluators in ([], [Half()]):
        adapted.clear()
        scores = evaluate(subject, evaluators, curve)
        calls.append(len(adapted))
    assert calls[0] == calls[1] > 0
    for k in [0, 1, 2] * curve:
        assert scores[f"half_step_{k}"] == estimate((torch.arange(60).double() + k) / 2)
    assert scores["half"] == estimate((torch.arange(60).double() + 2) / 2)


@pytest.mark.parametrize("final", [False, True])
def test_what_an_evaluator_estimates_by_itself_is_told_of_the_final_test_alone(final):
    own = Scored(Counting(), Adder(2), {})
    subject = Subject(own.learner, Adder(2).init(), own.task, "val", 4, Looped())
    scores = evaluate_all(Suite(own, {}), subject, [Half()], final).scores
    assert ("tasks" in scores) == ("half_step_1" in scores) == final
    assert {"score", "half"} <= scores.keys()


def test_of_tasks_elsewhere_scores_have_a_mean_and_what_evaluators_estimate_has_not():
    own, other = Scored(Counting(), Adder(2), {}), Scored(Counting(), Adder(5), {})
    subject = Subject(own.learner, Adder(2).init(), own.task, "test", 4, Looped())
    scores = evaluate_all(Suite(own, {"a": own, "b": other}), subject, [Half()], final=True).scores
    alone = mean_of([scores["a/half"], scores["b/half"]])
    assert (scores["half"].mean, scores["half"].n) == (alone.mean, alone.n)
    # both have the same episodes, of which two scores say no more than one
    assert scores["half"].ci95 == pytest.approx(scores["a/half"].ci95, rel=1e-12)
    assert scores["b/half"].mean - scores["a/half"].mean == 1.5  # 3 steps more
    assert {name for name in scores if "tasks" in name} == {"a/tasks", "b/tasks"}


# ---- manifests ----

MANIFEST = """
import sys
from metarun.evaluation.episodes import manifest
from tests.composing import experiment
print(manifest(experiment(*sys.argv[2:]).task, sys.argv[1], 600))
"""

# These literals are the benchmark's identity: a change of one makes every earlier result another benchmark's.
SINUSOID_5_SHOT = "b0bc41fda8fbe4d0997d6527a0af200383ce0230c3f0c212dd41561f18eaa885"
OMNIGLOT_5_WAY_1_SHOT = "3e85b20ce391ade74d6b45f0b9e59b6cb0ce9774fa114d2522410d8d7cea98f0"


def test_the_manifest_is_the_same_in_another_process():
    command = [sys.executable, "-c", MANIFEST, "test", "task=prototypes"]
    env = {**os.environ, "PYTHONHASHSEED": "1"}  # strings hash differently there
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == manifest(experiment("task=prototypes").task, "test", 600)


def test_the_manifest_of_the_sinusoid_has_not_changed():
    size = ["task.num_shots=5", "task.num_queries=100", "task.query_grid=false"]
    assert manifest(experiment("task=sinusoid", "seed=0", *size).task, "test", 600) == SINUSOID_5_SHOT


@pytest.mark.data
def test_the_manifest_of_omniglot_has_not_changed(data_root):
    size = ["task.num_ways=5", "task.num_shots=1", "task.num_queries=5", "task.rotations=per_task"]
    task = experiment("task=omniglot", "seed=0", *size, f"data_root={data_root}", "base_learner.hidden=[4]").task
    assert manifest(task, "test", 600) == OMNIGLOT_5_WAY_1_SHOT


@pytest.mark.parametrize(
    "changed", [["seed=1"], ["task.num_shots=6"], ["task.num_queries=99"], ["task.query_grid=true"]]
)
def test_the_manifest_changes_with_what_decides_the_episodes(changed):
    before, after = (manifest(experiment("task=sinusoid", *more).task, "test", 20) for more in ([], changed))
    assert before != after


def test_the_manifest_changes_with_the_split_and_the_number_of_episodes():
    task = experiment("task=sinusoid").task
    assert len({manifest(task, split, n) for split in ("val", "test") for n in (19, 20)}) == 4


def test_the_manifest_does_not_depend_on_what_was_drawn_before():
    task = experiment("task=prototypes").task
    before = manifest(task, "test", 30)
    [at.sample("test", indices) for at, indices in chunks_of(task, "test", 30)]
    task.sample("test", [29, 3])
    assert manifest(task, "test", 30) == before


def test_the_episodes_of_a_manifest_do_not_depend_on_the_chunks_they_are_drawn_in(monkeypatch):
    task = experiment("task=prototypes").task
    whole = task.sample("test", range(30))
    for size in (1, 7, 30):
        monkeypatch.setattr(episodes_module, "CHUNK", size)
        parts = [at.sample("test", indices) for at, indices in chunks_of(task, "test", 30)]
        assert len(parts) == math.ceil(30 / size)
        for leaf, *pieces in zip(tree_leaves(whole), *map(tree_leaves, parts), strict=True):
            assert torch.equal(leaf, torch.cat(pieces))


def test_scores_do_not_depend_on_the_chunks(monkeypatch):
    x = experiment("task=prototypes", "meta_learner.inner_steps=2")
    theta, results = x.theta_0, []
    for size in (4, 30):
        monkeypatch.setattr(episodes_module, "CHUNK", size)
        results.append(evaluate(Subject(x.learner, theta, x.task, "val", 30, Vmapped(None)), curve=True))
    small, large = results
    assert all(small[name] == pytest.approx(large[name], rel=1e-12) for name in large)  # sums in another order


# ---- calibrated ----


def hand_statistics(weight: Tensor, bias: Tensor, task: TaskDistribution) -> tuple[Tensor, Tensor]:
    """Mean and variance of a first linear layer over the queries of the 32 first training tasks, all of them pooled."""
    x = task.sample("train", range(32)).query.x.flatten(2)  # [32, Q, 256]
    z = (x @ weight.T + bias).flatten(0, 1)
    return z.mean(0), z.var(0, unbiased=False)


def test_running_statistics_are_those_of_the_queries_of_training_tasks():
    x = experiment(*RUNNING)
    theta = x.theta_0
    mean, var = hand_statistics(theta["1.weight"], theta["1.bias"], x.task)
    with calibrated(x.learner, theta, x.task, Vmapped(None)):
        (layer,) = norms(x.learner.base_learner, "running").values()
        torch.testing.assert_close(layer.mean, mean, rtol=1e-12, atol=1e-13)  # sums in another order
        torch.testing.assert_close(layer.var, var, rtol=1e-12, atol=0)


@pytest.mark.parametrize("failing", [False, True])
def test_running_statistics_are_gone_afterwards(failing):
    x = experiment(*RUNNING)
    (layer,) = norms(x.learner.base_learner, "running").values()
    with (
        pytest.raises(RuntimeError) if failing else nullcontext(),
        calibrated(x.learner, x.theta_0, x.task, Looped()),
    ):
        assert layer.mean.numel() == layer.var.numel() == 4
        if failing:
            raise RuntimeError
    assert layer.mean.numel() == layer.var.numel() == 0
    assert layer.training
    assert layer.recorded is None


def test_a_prediction_with_running_statistics_is_the_one_computed_by_hand():
    x = experiment(*RUNNING)
    theta = x.theta_0
    support, query, _ = slice_tasks(x.task.sample("val", [3]), 0)
    mean, var = hand_statistics(theta["1.weight"], theta["1.bias"], x.task)

    def embed(images: Tensor) -> Tensor:
        z = images.flatten(1) @ theta["1.weight"].T + theta["1.bias"]
        return ((z - mean) / (var + 1e-5).sqrt() * theta["2.weight"] + theta["2.bias"]).relu()

    prototypes = embed(support.x).view(3, 2, 4).mean(1)
    expected = -(torch.cdist(embed(query.x), prototypes) ** 2)
    with calibrated(x.learner, theta, x.task, Looped()), eval_mode(x.learner):
        logits = x.learner.predict(x.learner.adapt(theta, support), query.x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)  # metarun expands the square of the distance


def test_calibration_does_nothing_where_no_norm_asks_for_it():
    x = experiment("task=prototypes", "base_learner.batch_norm=support")
    x.task.draw = forbidden
    with calibrated(x.learner, x.theta_0, x.task, Looped()):
        pass


def forbidden(*args: object) -> Draw:
    raise AssertionError("no episode is needed")


def test_training_gives_the_same_meta_gradient_beside_running_statistics():
    x = experiment(*RUNNING)
    theta, episodes = x.theta_0, x.task.sample("train", range(3))
    outside = Looped().mean_grad(x.learner.meta_loss, theta, episodes)
    with calibrated(x.learner, theta, x.task, Looped()):
        inside = Looped().mean_grad(x.learner.meta_loss, theta, episodes)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(inside), tree_leaves(outside), strict=True))


@pytest.mark.parametrize(
    "texts", [RUNNING, ["task=prototypes", "base_learner.batch_norm=running"]], ids=["protonet", "maml"]
)
def test_validating_often_or_seldom_ends_in_the_same_parameters(texts, tmp_path):
    ends = []
    for every in (1, 6):
        numbers = ["steps=6", f"evaluation.every={every}", "evaluation.num_val_tasks=3", "evaluation.num_tasks=3"]
        train(tmp_path / str(every), *texts, *numbers, "meta_batch_size=2")
        ends.append(checkpoint.load(tmp_path / str(every) / "checkpoints/last.pt", torch.device("cpu")))
    often, seldom = (tree_leaves(state["theta"]) for state in ends)
    assert all(torch.equal(a, b) for a, b in zip(often, seldom, strict=True))
    assert torch.equal(ends[0]["generators"]["cpu"], ends[1]["generators"]["cpu"])


# ---- generators ----


@pytest.mark.parametrize("inside", ["eval_mode", "calibrated"])
def test_numbers_drawn_inside_leave_the_generators_as_they_were(inside):
    x = experiment(*RUNNING)
    theta = x.theta_0
    contexts: dict[str, Callable] = {
        "eval_mode": lambda: eval_mode(x.learner),
        "calibrated": lambda: calibrated(drawing(x.learner), theta, x.task, Looped()),
    }
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with contexts[inside]():
        if inside == "eval_mode":
            torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def drawing(learner: MetaLearner) -> MetaLearner:
    """The learner, drawing a random number whenever it scores."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        torch.randn(1)
        return learner.objective.loss(outputs, y)

    return replace(learner, objective=replace(learner.objective, loss=loss))


def test_a_learner_that_draws_gets_the_same_numbers_at_every_evaluation():
    drawn = []
    for _ in range(2):
        with eval_mode(Adder(0)):
            drawn.append(torch.randn(3))
        torch.randn(1)
    assert torch.equal(*drawn)


# ---- the test classes ----


def test_only_the_final_test_reads_test_tasks_and_training_the_other_splits(tmp_path):
    numbers = ["steps=3", "evaluation.every=1", "evaluation.num_val_tasks=2", "evaluation.num_tasks=4", "log_every=1"]
    x = experiment(*RUNNING, *numbers, "meta_batch_size=2", "execution=auto")
    read: list[str] = []
    draw = x.task.draw

    def noting(split: str, indices) -> Draw:
        read.append(split)
        return draw(split, indices)

    x.task.draw = noting
    folder = RunFolder(tmp_path / "run")
    folder.create()
    runner = Runner(x, Reporter(folder, x, "config", 0), StopRequest())
    runner.train()
    assert set(read) == {"train", "val"}
    runner.test()
    assert set(read) == {"train", "val", "test"}
    runner.report.close("completed")
