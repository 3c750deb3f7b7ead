"""What an evaluation leaves: results.json in its published form, and the scores of each episode, from which it follows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator, ValidationError

from metarun.evaluation import kinds
from metarun.evaluation.episodes import hashes, manifest
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.flops import flops_of_evaluation, flops_of_training
from metarun.evaluation.intervals import Over, over
from metarun.evaluation.records import EpisodeScores, mean_over_tasks, read_records
from metarun.evaluation.scoring import Subject
from metarun.evaluation.speed import area, steps_to
from metarun.execution.execution import Looped
from metarun.models.dropout import dropping
from metarun.output.results import told
from tests.composing import OUTSIDE, experiment
from tests.running import ROOT, metarun, read

SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "schema" / "results.v1.json").read_text()))
BUDGET = ["steps=2", "meta_batch_size=2", "evaluation.every=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=12"]
TABLE = [
    *("task=csv_regression", f"task.path={OUTSIDE / 'measurements.csv'}", "task.task_column=subject"),
    *("task.input_columns=[dose]", "task.output_columns=[response]", "task.num_shots=2", "task.num_queries=2"),
    "task.test_share=0.5",
]
CLASSES = [
    *("task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", "task.num_ways=2", "task.num_queries=2"),
    *("task.split={train: 3, val: 3, test: 4}", "meta_learner=protonet"),
]
SMALL = ["base_learner.hidden=[6]", "execution=looped", "logger=none"]
KINDS = {
    "sinusoid": ["meta_learner.inner_steps=2", *SMALL],
    "table": [*TABLE, "meta_learner.inner_steps=1", *SMALL],
    "classes": [*CLASSES, *SMALL],
    "sizes": ["task.num_shots=[2,9]", "evaluation.num_tasks=45", "meta_learner.inner_steps=1", *SMALL],
    "elsewhere": ["evaluation.task=[harmonics,sinusoid]", "meta_learner.inner_steps=1", *SMALL],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A short run of every kind, each with an evaluation; nothing may change them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in KINDS.items():
        assert (outcome := metarun(*BUDGET, *words, f"run_dir={folder / name}")).code == 0, outcome.text
        assert (outcome := metarun("evaluate", str(folder / name), "evaluation.num_tasks=9")).code == 0, outcome.text
    return {name: folder / name for name in KINDS}


def evaluations(run: Path) -> list[Path]:
    return [run / "results.json", *(run / "evaluations").glob("*.json")]


# ---- the form ----


@pytest.mark.parametrize("name", KINDS)
def test_results_have_the_published_form(name, runs):
    assert len(evaluations(runs[name])) == 2
    for path in evaluations(runs[name]):
        SCHEMA.validate(read(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("test/mse", {"mean": 1.0}), ("learning_sped", {}), ("complexity", {"parameters": -1})],
)
def test_the_published_form_refuses_other_results(key, value, runs):
    with pytest.raises(ValidationError):
        SCHEMA.validate({**read(runs["sinusoid"] / "results.json"), key: value})


def test_numbers_that_are_not_finite_are_null_which_any_reader_of_json_can_read():
    assert told(Estimate(0.5, float("inf"), 1), Over("classes", float("nan"), 1)) == {
        **{"mean": 0.5, "ci95": None, "n": 1},
        **{"ci95_over_classes": None, "num_classes": 1},
    }


def test_results_say_which_score_is_the_tasks_own_and_whether_more_is_better(runs):
    told = {name: read(runs[name] / "results.json")["protocol"]["score"] for name in ("classes", "sinusoid")}
    assert told["classes"] == {"name": "accuracy", "higher_is_better": True}
    assert told["sinusoid"] == {"name": "mse", "higher_is_better": False}


# ---- episodes ----


@pytest.mark.parametrize("name", KINDS)
def test_means_and_intervals_follow_from_the_scores_of_the_episodes(name, runs):
    for path in evaluations(runs[name]):
        results = read(path)
        rows = read_records(path.with_name(results["episodes"]))
        for task in {row.get("task") for row in rows}:
            own = [row for row in rows if row.get("task") == task]
            assert [row["episode"] for row in own] == list(range(results["protocol"]["num_tasks"]))
            columns = {score: [row["scores"][score] for row in own] for score in own[0]["scores"]}
            for score, curve in own[0].get("curve", {}).items():
                columns |= {f"{score}_step_{k}": [row["curve"][score][k] for row in own] for k in range(len(curve))}
            for score, values in columns.items():
                found = results[f"test/{task}/{score}" if task else f"test/{score}"]
                expected = estimate(torch.tensor(values, dtype=torch.float64))
                assert (found["mean"], found["ci95"]) == pytest.approx(expected[:2], rel=1e-12)
                for kind in {*kinds.KINDS} & own[0].keys():
                    wider = over(kind, {"": np.array(values)}, [row[kind] for row in own])[""]
                    assert (found[f"ci95_over_{kind}"] or np.nan) == pytest.approx(wider.ci95, rel=1e-12, nan_ok=True)
                    assert found[f"num_{kind}"] == wider.number


def test_the_mean_over_tasks_follows_from_the_episodes_of_each(runs):
    results, rows = (read(runs["elsewhere"] / "results.json"), read_records(runs["elsewhere"] / "episodes.jsonl"))
    values = np.array([[r["scores"]["mse"] for r in rows if r["task"] == name] for name in ("harmonics", "sinusoid")])
    assert values.shape == (2, 12)
    assert results["test/mse"]["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert results["test/mse"]["n"] == 24


def test_an_episode_is_told_with_the_classes_or_the_task_that_it_is_of(runs):
    table, x = read_records(runs["table"] / "episodes.jsonl"), experiment(*TABLE)
    draw = x.task.draw("test", range(12))
    assert [row["tasks"] for row in table] == [[x.task.split["test"][task]] for task in draw["task"]]
    classes, x = read_records(runs["classes"] / "episodes.jsonl"), experiment(*CLASSES)
    draw = x.task.draw("test", range(12))
    assert [row["classes"] for row in classes] == [
        [x.task.pools["test"].names[c] for c in row] for row in draw["classes"]
    ]
    assert "classes" not in read_records(runs["sinusoid"] / "episodes.jsonl")[0]


def test_where_sizes_vary_an_interval_counts_the_draws_of_sizes_and_not_the_episodes(runs):
    rows = read_records(runs["sizes"] / "episodes.jsonl")
    assert [row["sizes"] for row in rows] == [[str(i // 20)] for i in range(45)]
    score = read(runs["sizes"] / "results.json")["test/mse"]
    assert score["num_sizes"] == 3 and score["ci95_over_sizes"] > 0
    assert f"; +- {score['ci95_over_sizes']:.4f} over the 3 draws of sizes" in (runs["sizes"] / "log.txt").read_text()
    (evaluated,) = (runs["sizes"] / "evaluations").glob("*.json")  # of 9 episodes, all of one size
    score = read(evaluated)["test/mse"]
    assert (score["num_sizes"], score["ci95_over_sizes"]) == (1, None)


def test_equal_hashes_are_of_equal_episodes(runs):
    task = experiment(*KINDS["sinusoid"]).task
    codes = hashes(task.draw("test", range(12)))
    assert [row["hash"] for row in read_records(runs["sinusoid"] / "episodes.jsonl")] == codes
    assert hashes(task.draw("test", [7, 3])) == [codes[7], codes[3]]
    assert len({*codes, *hashes(task.draw("val", range(12)))}) == 24
    assert manifest(task, "test", 12) == read(runs["sinusoid"] / "results.json")["protocol"]["manifest"]


def test_the_summary_says_how_sure_a_score_is_over_the_classes_that_it_is_of(runs):
    results = read(runs["classes"] / "results.json")["test/accuracy"]
    words = f"; +- {results['ci95_over_classes']:.4f} over the 4 classes"
    assert words in (runs["classes"] / "log.txt").read_text()
    assert "over" not in (runs["sinusoid"] / "log.txt").read_text().partition("test/mse")[2].splitlines()[0]


@pytest.mark.parametrize("content", ["", "{", "[]\n", '{"episode": 0}\n'])
def test_a_file_without_scores_of_episodes_is_refused(content, tmp_path):
    path = tmp_path / "episodes.jsonl"
    if content:
        path.write_text(content)
    with pytest.raises(ValueError):
        read_records(path)


def test_tasks_that_share_classes_are_not_taken_for_independent_ones():
    rng = np.random.default_rng(0)
    values, members = rng.normal(size=30), [[str(c)] for c in rng.integers(4, size=30)]
    part = EpisodeScores("test", {"score": values}, kind="tasks", members=members)
    both = mean_over_tasks([part, part])
    assert both.over()["score"].ci95 == pytest.approx(part.over()["score"].ci95, rel=1e-12)


# ---- learning speed ----


def test_the_area_under_an_adaptation_curve_is_its_mean_height():
    assert area(np.array([[0.0, 1, 1], [2, 2, 2]])).tolist() == [0.75, 2]


@pytest.mark.parametrize(
    ("curve", "expected"), [([0.2, 0.8, 0.91, 0.9], 2), ([4, 1, 0.8, 0.5, 0.4], 3), ([1, 1], None), ([0, 2], 1)]
)
def test_the_steps_to_90_percent_are_those_until_most_of_the_change_is_made(curve, expected):
    assert steps_to(0.9, np.array(curve)) == expected


def test_learning_speed_follows_from_the_curves_of_the_episodes(runs):
    speed = read(runs["sinusoid"] / "results.json")["learning_speed"]["mse"]
    curves = np.array([row["curve"]["mse"] for row in read_records(runs["sinusoid"] / "episodes.jsonl")])
    assert speed["steps"] == 2
    assert speed["area"]["mean"] == pytest.approx((curves[:, :-1] + curves[:, 1:]).mean() / 2, rel=1e-12)
    change = estimate(torch.from_numpy(curves[:, -1] - curves[:, 0]))
    assert (speed["change"]["mean"], speed["change"]["ci95"]) == pytest.approx(change[:2], rel=1e-12)
    assert read(runs["classes"] / "results.json")["learning_speed"] == {}  # prototypes are there at once


# ---- complexity ----


def test_flops_are_those_of_the_matrix_products_of_a_network():
    x = experiment("task=sinusoid", "base_learner.hidden=[8]", "meta_learner.inner_steps=3", "task.num_shots=5")
    subject = Subject(x.test_learner, x.theta_0, x.task, "test", 1, Looped())
    queries = len(x.task.sample("test", [0]).query.y[0])
    forward = 2 * (1 * 8 + 8 * 1)  # of one point: a multiplication and an addition for each weight
    backward = 2 * (1 * 8 + 2 * 8 * 1)  # to both weights, and to the hidden layer
    found = flops_of_evaluation(subject)
    assert found == {"adaptation_flops": 3 * 5 * (forward + backward), "prediction_flops": queries * forward}


def test_counting_flops_changes_no_parameter_and_no_generator():
    x = experiment("task=sinusoid", "base_learner.hidden=[8]", "meta_learner.inner_steps=1")
    before = torch.get_rng_state(), {name: leaf.clone() for name, leaf in x.theta_0.items()}
    found = flops_of_training(x.learner, x.theta_0, x.task, 4, dropping([], 0, 0))
    assert (
        found["step_flops"]
        > 4 * flops_of_training(x.learner, x.theta_0, x.task, 1, dropping([], 0, 0))["step_flops"] / 2
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(leaf, before[1][name]) for name, leaf in x.theta_0.items())
    assert all(leaf.grad is None for leaf in x.theta_0.values())


def test_what_cannot_be_counted_is_a_note_and_no_failure(monkeypatch):
    x = experiment("task=sinusoid", "base_learner.hidden=[8]", "meta_learner.inner_steps=1")

    def refuse(*_: object) -> None:
        raise RuntimeError("this operator is unknown\nand more")

    monkeypatch.setattr(type(x.test_learner), "adapt", refuse)
    found = flops_of_evaluation(Subject(x.test_learner, x.theta_0, x.task, "test", 1, Looped()))
    assert found == {"notes": ["FLOPs of an adaptation are not counted: this operator is unknown"]}
