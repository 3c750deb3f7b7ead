"""An alarm is told once, where it is true, and nowhere else; and looking for it changes no bit of a run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.evaluation.signs import Effect, Gradient, examples_of_norms, signs_of
from metarun.output.alarms import (
    Alarms,
    Facts,
    above_test,
    at_chance,
    broken_gradient,
    changes_nothing,
    inner_loss_rises,
    overfitting,
    poor_statistics,
)
from metarun.output.facts import facts_of
from metarun.output.kept import read_alarms
from metarun.output.metrics import written
from tests.composing import experiment, train
from tests.running import TINY, checkpoint, identical, killed, metarun

CLASSES = Facts("accuracy", True, chance=0.2, steps=1000, episodes_a_line=40, alike=lambda step: True)
ERRORS = Facts("mse", False, chance=None, steps=1000, episodes_a_line=40, alike=lambda step: True)
SMALL = ["steps=200", "meta_batch_size=4", "log_every=20", "base_learner.hidden=[16]", "evaluation.every=100"]
SMALL += ["evaluation.num_val_tasks=40", "evaluation.num_tasks=20", "dtype=float32", "execution=vmapped"]
SMALL += ["execution.compile=false"]


def alarms(run: Path) -> list[str]:
    return [alarm["alarm"] for alarm in read_alarms(run / "alarms.jsonl")]


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- runs that go wrong ----


@pytest.mark.parametrize(
    ("settings", "alarm"),
    [
        (["meta_learner.inner_lr=1e-9"], "adaptation_changes_nothing"),
        (["meta_learner.inner_lr=0.1", "optimizer=sgd", "optimizer.lr=1e-9"], "inner_loss_rises"),
        (["task=prototypes", "task.strength=0.0"], "at_chance"),  # images that have nothing to do with their classes
        (["optimizer=sgd", "optimizer.lr=1000.0", "clip_norm=1.0"], "meta_gradient"),  # every unit dies
    ],
)
def test_a_run_that_goes_wrong_tells_its_alarm_once(settings, alarm, tmp_path, capsys):
    train(tmp_path / "run", *SMALL, *settings)
    told = alarms(tmp_path / "run")
    assert told.count(alarm) == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("alarm at step")]) == len(told)
    assert (tmp_path / "run" / "log.txt").read_text().count("alarm at step") == len(told)


@pytest.mark.parametrize(
    "settings",
    [
        ["task=sinusoid"],
        ["task=prototypes"],
        ["task=prototypes", "meta_learner=protonet"],
        ["task=sinusoid", "meta_learner=cnp"],
        ["task=sinusoid", "meta_learner=r2d2"],
    ],
    ids=" ".join,
)
def test_a_run_that_goes_well_tells_none(settings, tmp_path):
    train(tmp_path / "run", *SMALL, *settings)
    assert alarms(tmp_path / "run") == []
    assert not (tmp_path / "run" / "alarms.jsonl").exists()


# ---- looking changes nothing ----


@pytest.mark.parametrize("learner", ["maml", "es_maml"])
def test_looking_for_alarms_changes_no_bit_of_a_run(learner, tmp_path, monkeypatch):
    train(tmp_path / "with", *TINY, f"meta_learner={learner}")
    monkeypatch.setattr("metarun.output.report.Reporter.examine", lambda *_: None)
    train(tmp_path / "without", *TINY, f"meta_learner={learner}")
    for name in ("last", "best"):
        assert identical(checkpoint(tmp_path / "with", name), checkpoint(tmp_path / "without", name))
    assert list(written(tmp_path / "with" / "metrics.jsonl")) == list(written(tmp_path / "without" / "metrics.jsonl"))


def test_a_killed_and_resumed_run_has_the_alarms_of_a_whole_one(tmp_path):
    settings = [*TINY, "meta_learner.inner_lr=1e-9"]
    assert metarun(*settings, f"run_dir={tmp_path / 'whole'}").code == 0
    killed("between two checkpoints", *settings, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert metarun(f"resume={tmp_path / 'run'}").code == 0
    assert read_alarms(tmp_path / "run" / "alarms.jsonl") == read_alarms(tmp_path / "whole" / "alarms.jsonl")
    assert alarms(tmp_path / "run") == ["adaptation_changes_nothing"]


def test_alarms_after_the_checkpoint_are_dropped_and_heard_again(tmp_path):
    path, told = tmp_path / "alarms.jsonl", []
    first = Alarms(path, 0, CLASSES, told.append)
    first.write(300, {"val/accuracy": 0.2, "val/accuracy_ci95": 0.01})
    first.write(400, {"val/accuracy": 0.2, "val/accuracy_ci95": 0.01})
    assert len(told) == 1 and [alarm["step"] for alarm in read_alarms(path)] == [300]
    Alarms(path, 300, CLASSES, told.append).write(300, {"val/accuracy": 0.2, "val/accuracy_ci95": 0.01})
    assert len(told) == 1
    assert Alarms(path, 200, CLASSES, told.append).told == read_alarms(path) == []


def test_a_damaged_line_of_the_alarms_is_left_out(tmp_path):
    (tmp_path / "alarms.jsonl").write_text('{"step": 1, "alarm": "a", "text": "b"}\n[]\n{"step": 2}\n{"step"')
    assert alarms(tmp_path) == ["a"]


# ---- the rules ----


def test_chance_is_told_only_after_the_beginning_and_inside_the_interval():
    assert "that of guessing" in at_chance(CLASSES, 500, 0.21, 0.02)
    assert "below that of guessing" in at_chance(CLASSES, 500, 0.15, 0.02)
    assert at_chance(CLASSES, 500, 0.25, 0.02) is None
    assert at_chance(CLASSES, 100, 0.20, 0.02) is None  # a tenth of the run
    assert at_chance(CLASSES, 500, 0.30, 0.6) is None  # too few episodes to tell
    assert at_chance(ERRORS, 500, 0.20, 0.02) is None


def test_overfitting_is_a_training_score_far_above_that_of_validation():
    assert overfitting(CLASSES, [0.95, 0.97, 0.96], 0.6, 0.02)
    assert overfitting(CLASSES, [0.95, 0.97, 0.96], 0.8, 0.02) is None
    assert overfitting(CLASSES, [0.95], 0.6, 0.02) is None  # too few episodes
    assert overfitting(CLASSES, [0.95, 0.97, 0.96], 0.6, 0.2) is None
    assert overfitting(ERRORS, [0.1, 0.1, 0.1], 0.9, 0.1) and overfitting(ERRORS, [0.9, 0.9, 0.9], 0.1, 0.1) is None


@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ([], [True, True, True]),
        (["meta_learner.inner_steps=3", "evaluation.inner_steps=3"], [True, True, True]),
        (["meta_learner.inner_steps=3", "evaluation.inner_steps=0"], [False, False, False]),
        (["task.train_num_shots=9"], [False, False, False]),
        (["task.num_shots=[2,9]"], [True, True, True]),
        (["task=prototypes"], [True, True, True]),
        (["task.train_num_shots=[2,10]"], [False, False, False]),
        (["task.num_dims=4", "task.grow_dims=[2,1,10]"], [False, False, True]),
        (["task.grow_shots=[2,4,10]"], [False, False, True]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_training_is_like_validation_where_learner_and_episodes_are(settings, alike):
    facts = facts_of(experiment("task=linear_regression", *settings))
    assert [facts.alike(step) for step in (0, 10, 20)] == alike


def test_training_that_is_not_like_validation_is_not_compared_with_it(tmp_path):
    for facts, told in ((CLASSES, ["overfitting"]), (replace(CLASSES, alike=lambda step: step >= 200), [])):
        path = tmp_path / f"{len(told)}.jsonl"
        heard = Alarms(path, 0, facts, lambda _: None)
        heard.write(100, {"val/accuracy": 0.6, "val/accuracy_ci95": 0.01})
        for step in (110, 120, 130):
            heard.write(step, {"train/accuracy": 0.95})
        heard.write(200, {"val/accuracy": 0.6, "val/accuracy_ci95": 0.01})
        assert [alarm["alarm"] for alarm in read_alarms(path)] == told


def test_guessing_is_as_good_as_the_ways_of_the_validation_let_it_be(tmp_path):
    def chance(*settings: str) -> float | None:
        return facts_of(experiment(*settings, "evaluation.num_val_tasks=60")).chance

    assert chance("task=prototypes", "task.num_ways=4") == pytest.approx(1 / 4)
    assert chance("task=sinusoid") is None
    requests = Path(__file__).parent / "outside" / "requests.jsonl"
    words = ["task=text_jsonl", f"task.path={requests}", f"data_root={tmp_path}", "task.split={train:4,val:3,test:3}"]
    settings = [*words, "task.num_ways=[2,3]", "task.num_shots=1", "task.num_queries=2", "meta_learner=protonet"]
    built = experiment(*settings, "evaluation.num_val_tasks=200")
    ways = [int(built.task.at("val", i).sample("val", [0]).query.y.max()) + 1 for i in range(10)]
    assert facts_of(built).chance == pytest.approx(sum(1 / n for n in ways) / 10) and len(set(ways)) > 1


def test_a_test_far_below_the_best_validation_is_told_through_the_numbers_of_a_run(tmp_path):
    told = []
    heard = Alarms(tmp_path / "alarms.jsonl", 0, CLASSES, told.append)
    heard.write(500, {"val/accuracy": 0.9, "val/accuracy_ci95": 0.01})
    heard.write(1000, {"val/accuracy": 0.7, "val/accuracy_ci95": 0.01})
    heard.write(1000, {"test/accuracy": 0.5})
    assert alarms(tmp_path) == ["validation_above_test"] and "0.9 at best, but test/accuracy is 0.5" in told[0]
    assert above_test(CLASSES, (0.9, 0.01), 0.8) is None and above_test(CLASSES, (0.5, 0.01), 0.9) is None


def test_inner_steps_change_nothing_only_where_no_loss_of_any_task_moves():
    still = losses(1.0, 2.0)
    assert changes_nothing(Effect((still, still), (still, still * (1 + 1e-6))))
    assert changes_nothing(Effect((still, still), (still, losses(1.0, 1.9)))) is None
    assert changes_nothing(Effect((still, losses(1.1, 2.0)), None)) is None


def test_the_support_loss_rises_only_where_it_does_in_most_tasks():
    low, high = losses(1.0, 1.0, 1.0), losses(2.0, 2.0, 0.9)
    assert inner_loss_rises(Effect((low, low), (low, high)))
    assert inner_loss_rises(Effect((low, low), (high, low))) is None
    assert inner_loss_rises(Effect((low, low), (low, losses(9.0, 0.9, 0.9)))) is None
    assert inner_loss_rises(Effect((low, high), None)) is None


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (Gradient(math.inf, 1.0, [], 4), "explodes"),
        (Gradient(math.nan, 1.0, [], 4), "explodes"),
        (Gradient(1e6, 1.0, [], 4), "explodes"),
        (Gradient(0.0, 5.0, ["a", "b"], 2), "nothing is learned any more"),
        (Gradient(0.5, 5.0, ["a", "b", "c"], 4), "exactly zero in 3 of 4 parts"),
    ],
)
def test_a_broken_meta_gradient_is_told_for_what_it_is(gradient, words):
    assert words in broken_gradient(gradient)


def test_a_usual_meta_gradient_is_none():
    assert broken_gradient(Gradient(0.5, 5.0, ["head.weight", "head.bias"], 4)) is None


def test_statistics_of_no_example_or_one_are_told():
    assert "never trained" in poor_statistics(0) and "single example" in poor_statistics(1)
    assert poor_statistics(2) is None and poor_statistics(None) is None


def test_norms_count_the_examples_of_their_mode():
    def fewest(*overrides: str) -> int | None:
        built = experiment("task=prototypes", "base_learner=conv4", "base_learner.channels=4", *overrides)
        return examples_of_norms(built.subject(built.theta_0, "val", 4, built.execution), built.task.sample("val", [0]))

    batch = built_sizes()
    assert fewest("base_learner.batch_norm=transductive") == batch[1]
    assert fewest("base_learner.batch_norm=running") == 32 * batch[1]
    assert fewest("base_learner.batch_norm=support", "meta_learner=maml") == batch[0]


def built_sizes() -> tuple[int, int]:
    one = experiment("task=prototypes").task.sample("val", [0])
    return len(one.support.y[0]), len(one.query.y[0])


def test_a_norm_that_stays_as_torch_made_it_was_never_trained():
    built = experiment("task=prototypes")
    built.test_learner.base_learner.add_module("norm", torch.nn.BatchNorm2d(3).eval())
    subject = built.subject(built.theta_0, "val", 4, built.execution)
    assert examples_of_norms(subject, built.task.sample("val", [0])) == 0
    built.test_learner.base_learner.norm.running_mean += 1
    assert examples_of_norms(subject, built.task.sample("val", [0])) is None


def test_a_learner_without_inner_steps_has_no_effect_to_look_at():
    built = experiment("task=prototypes", "meta_learner=protonet")
    subject = built.subject(built.theta_0, "val", 4, built.execution)
    assert signs_of(subject, built.learner.meta_loss, built.task, 2).effect is None


def test_a_run_of_before_there_were_alarms_goes_on(tmp_path):
    run = Path(shutil.copytree(Path(__file__).parent / "outside" / "runs" / "sinusoid", tmp_path / "run"))
    assert metarun(f"resume={run}", "steps=8").code == 0
    assert alarms(run) == []


def test_the_page_lists_every_alarm():
    rules = (Path(__file__).parents[1] / "metarun" / "output" / "alarms.py").read_text()
    page = (Path(__file__).parents[1] / "docs" / "alarms.md").read_text()
    names = {line.split('"')[1] for line in rules.splitlines() if "self._raise(step" in line}
    assert len(names) == 7 and all(f"`{name}`" in page for name in names)
