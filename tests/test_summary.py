"""What a run says of its scores at the end: what they are worth, and what they depend on."""

import dataclasses

import numpy as np
import pytest
import torch

from metarun.config.experiment import Experiment
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.intervals import half_width
from metarun.evaluation.records import EpisodeScores
from metarun.evaluation.whole import Evaluation
from metarun.output.summary import conditions, summary
from tests.composing import experiment

RIDGE, MEANS = "ridge regression of the support", "nearest class mean of the raw inputs"


@pytest.fixture(scope="module")
def sinusoid() -> Experiment:
    return experiment("task=sinusoid", "task.train_num_shots=null")


@pytest.fixture(scope="module")
def prototypes() -> Experiment:
    return experiment("task=prototypes")


def values(mean: float, ci95: float, period: int, n: int = 608) -> np.ndarray:
    """Scores of n episodes with that mean and interval; those of periods 1, 2, 4, ... do not correlate."""
    deviation = ci95 / half_width(1.0, n) * np.sqrt((n - 1) / n)
    return mean + deviation * (1 - 2 * (np.arange(n) // period % 2))


def evaluation(x: Experiment, trained: np.ndarray, untrained: np.ndarray) -> Evaluation:
    """What has these scores in each episode."""
    name = x.task.spec.objective.score_name
    scores = {name: trained, f"baseline_{name}": untrained}
    told = {key: estimate(torch.from_numpy(found)) for key, found in scores.items()}
    return Evaluation(told, episodes=[EpisodeScores("test", scores)])


def last_line(x: Experiment, trained: tuple[float, float], untrained: tuple[float, float]) -> str:
    return summary(x, evaluation(x, values(*trained, 1), values(*untrained, 2)), 100).splitlines()[-1]


def test_the_summary_tells_the_score_without_training_and_what_gets_it(prototypes, sinusoid):
    said = last_line(prototypes, (0.9, 0.01), (0.5, 0.01))
    assert said == "without any training (nearest class mean of the raw inputs): 0.5000 +- 0.0100"
    said = last_line(sinusoid, (0.1, 0.01), (0.5, 0.01))
    assert said == "without any training (ridge regression of the support): 0.5000 +- 0.0100"


def test_without_training_tasks_of_equal_episodes_are_not_taken_for_independent_ones():
    x = experiment("task=prototypes", "evaluation.task={near: prototypes, far: prototypes}")
    one = evaluation(x, values(0.9, 0.01, 1), values(0.5, 0.01, 2))
    both = [dataclasses.replace(one.episodes[0], task=task) for task in ("near", "far")]
    told = {f"{task}{name}": score for task in ("", "near/", "far/") for name, score in one.scores.items()}
    said = summary(x, Evaluation(told, episodes=both), 100)
    assert "without any training (nearest class mean of the raw inputs): 0.5000 +- 0.0100" in said


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (0.30, "did not help: BASELINE would be better by 0.2000 +- 0.0500"),
        (0.48, "did not help: BASELINE would be better by 0.0200 +- 0.0500, which is within the interval"),
        (0.54, "may not have helped: it is better than BASELINE by 0.0400 +- 0.0500, which is within the interval"),
    ],
)
def test_the_last_line_says_where_training_did_not_help(prototypes, sinusoid, trained, said):
    for kind, score, baseline in ((prototypes, trained, MEANS), (sinusoid, 1 - trained, RIDGE)):
        assert last_line(kind, (score, 0.03), (0.5, 0.04)) == f"training {said.replace('BASELINE', baseline)}"


FEW, WITHIN = "+- WIDE over the 3 classes", "which is within the interval over the classes"


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            -0.02,
            f"did not help: {MEANS} would be better by 0.0200 +- NARROW; {FEW}, {WITHIN}",
        ),
        (
            0.02,
            f"may not have helped: it is better than {MEANS} by 0.0200 +- NARROW; {FEW}, {WITHIN}",
        ),
        (-0.3, f"did not help: {MEANS} would be better by 0.3000 +- NARROW; {FEW}"),
        (0.3, ""),
    ],
)
def test_what_few_classes_leave_open_is_not_concluded_from_many_episodes(prototypes, gain, said):
    classes, hard, effects = np.arange(600) % 3, values(0.5, 0.04, 1, 600), np.array([-0.03, 0.01, 0.02])
    found = evaluation(prototypes, hard + gain + effects[classes], hard)
    (part,) = found.episodes
    part = dataclasses.replace(part, kind="classes", members=[[f"class {c}"] for c in classes])
    last = summary(prototypes, dataclasses.replace(found, episodes=[part]), 100).splitlines()[-1]
    narrow, wide = (half_width(effects.std(ddof=ddof), n) for ddof, n in ((0, 600), (1, 3)))
    expected = said.replace("NARROW", f"{narrow:.4f}").replace("WIDE", f"{wide:.4f}")
    assert last.removeprefix("training ") == expected or (not said and "help" not in last)


def test_training_is_compared_with_its_baseline_episode_by_episode(prototypes):
    """One point better in every episode, of which some are far harder than others."""
    hard = values(0.5, 0.04, 1)
    assert "did not help" not in summary(prototypes, evaluation(prototypes, hard + 0.01, hard), 100)
    said = summary(prototypes, evaluation(prototypes, hard + values(-0.01, 0.001, 2), hard), 100)
    assert said.splitlines()[-1] == f"training did not help: {MEANS} would be better by 0.0100 +- 0.0010"


def test_a_score_beyond_the_interval_is_no_complaint(prototypes):
    assert "did not help" not in last_line(prototypes, (0.56, 0.03), (0.5, 0.04))


@pytest.mark.parametrize(
    ("untrained", "said"),
    [
        (0.30, ""),
        (0.47, ""),
        (0.60, ", and nearest class mean of the raw inputs would be better by 0.1500 +- 0.0500"),
    ],
)
def test_a_run_that_ends_with_its_start_says_so(prototypes, untrained, said):
    found = evaluation(prototypes, values(0.45, 0.03, 1), values(untrained, 0.04, 2))
    expected = f"training did not help: the best checkpoint is the start{said}"
    assert summary(prototypes, found, 0).splitlines()[-1] == expected


def test_a_start_without_a_baseline_is_said_too(sinusoid):
    assert summary(sinusoid, Evaluation({"mse": Estimate(1.0, 0.1, 600)}), 0).splitlines() == [
        "test/mse = 1.0000 +- 0.1000 (95% CI, 600 tasks)",
        "training did not help: the best checkpoint is the start",
    ]


def test_scores_without_a_baseline_are_no_complaint(sinusoid):
    assert summary(sinusoid, Evaluation({"mse": Estimate(1.0, 0.1, 600)}), 100).splitlines() == [
        "test/mse = 1.0000 +- 0.1000 (95% CI, 600 tasks)"
    ]


def test_over_tasks_elsewhere_the_mean_is_compared_with_the_mean_without_training():
    x = experiment("task=sinusoid", "evaluation.task=[sinusoid,harmonics]")
    scores = {
        "mse": Estimate(2.5, 0.1, 20),
        "sinusoid/mse": Estimate(1, 0.1, 10),
        "harmonics/mse": Estimate(4, 0.1, 10),
    }
    scores |= {"sinusoid/baseline_mse": Estimate(3, 0.3, 10), "harmonics/baseline_mse": Estimate(1, 0.4, 10)}
    of_each = {"sinusoid": (values(1, 0.1, 1), values(3, 0.3, 2)), "harmonics": (values(4, 0.1, 4), values(1, 0.4, 8))}
    parts = [
        EpisodeScores("test", {"mse": trained, "baseline_mse": untrained}, task=name)
        for name, (trained, untrained) in of_each.items()
    ]
    lines = summary(x, Evaluation(scores, episodes=parts), 100).splitlines()
    assert "without any training (ridge regression of the support): 2.0000 +- 0.2500" in lines
    assert lines[-1] == f"training did not help: {RIDGE} would be better by 0.5000 +- 0.2598"  # sqrt(0.27) / 2


def test_batch_norm_over_queries_is_said_with_their_number():
    x = experiment("task=prototypes", "base_learner=conv4", "base_learner.batch_norm=transductive")
    assert any("read the whole query batch (num_queries=" in line for line in conditions(x, "test"))
    x = experiment("task=prototypes", "base_learner=conv4", "base_learner.batch_norm=support")
    assert not any("query batch" in line for line in conditions(x, "test"))


def test_other_shots_in_training_are_said():
    x = experiment("task=sinusoid", "task.num_shots=20", "task.train_num_shots=10")
    assert conditions(x, "test") == ["training had other episodes than the test: num_shots was 10, and is 20 here"]


def test_the_shots_of_the_trained_run_are_said_in_an_evaluation_with_others(sinusoid):
    assert conditions(sinusoid, "test") == []
    trained = {**sinusoid.suite.own.node, "num_shots": 3}
    assert conditions(sinusoid, "test", trained) == [
        "training had other episodes than the test: num_shots was 3, and is 5 here"
    ]


def test_test_classes_are_named_where_they_are_few(prototypes, monkeypatch):
    names = ["oak", "red [pine]"]
    monkeypatch.setattr(prototypes.task, "class_names", lambda split: names, raising=False)
    assert "only 2 test classes: oak, red [pine]" in conditions(prototypes, "test")
    names += [str(number) for number in range(9)]
    assert not any("test classes" in line for line in conditions(prototypes, "test"))


@pytest.mark.parametrize(("kind", "line"), [("classes", "only 1 test class: oak"), ("tasks", "only 1 test task: oak")])
def test_a_single_test_class_or_task_is_said_in_the_singular(kind, line, prototypes, monkeypatch):
    monkeypatch.setattr(prototypes.task, "class_names", lambda split: ["oak"], raising=False)
    monkeypatch.setattr("metarun.output.summary.kind_of_names", lambda task, split: kind)
    assert line in conditions(prototypes, "test")
