"""Data efficiency: shares of the training classes or tasks, and the curve that a sweep over them draws."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t

from metarun.commands.data_efficiency import curves, figure, spread
from metarun.errors import ConfigError
from metarun.evaluation.episodes import manifest
from metarun.output.folder import RunFolder
from metarun.tasks.splits import thinned, train_share
from tests.composing import OUTSIDE, experiment
from tests.running import metarun, read, sweep

TABLE = [
    *("task=csv_regression", f"task.path={OUTSIDE / 'measurements.csv'}", "task.task_column=subject"),
    *("task.input_columns=[dose]", "task.output_columns=[response]", "task.num_shots=2", "task.num_queries=2"),
]
TEXTS = [
    *("task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", "task.num_ways=2", "task.num_queries=2"),
    *("task.split={train: 6, val: 2, test: 2}", "meta_learner=protonet", "task/features=tokens"),
    "base_learner=embedding_bag",
]
BUDGET = ["steps=2", "meta_batch_size=2", "evaluation.every=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=6"]

# ---- shares ----


def test_a_smaller_share_is_part_of_every_larger_one_whatever_the_order():
    names = [f"class {i}" for i in range(50)]
    shares = [train_share(names, fraction) for fraction in (0.01, 0.1, 0.2, 0.5, 1)]
    assert [len(share) for share in shares] == [1, 5, 10, 25, 50]
    assert all(small < large for small, large in pairwise(shares))
    assert train_share(names[::-1], 0.2) == shares[2]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"task\.train_fraction is .*above 0 and at most 1"):
        train_share(["a"], fraction)


def test_validation_and_test_classes_stay_where_training_classes_are_left_out():
    names, split_of = list("abcdefgh"), ["train", "val", "test", "train", "train", "train", "test", ""]
    found = thinned(names, split_of, 0.5)
    assert [of for of in found if of != "train"].count("") == 3
    assert [(a, b) for a, b in zip(found, split_of, strict=True) if b not in ("train", a)] == []
    assert thinned(names, split_of, 1.0) == tuple(split_of)


@pytest.mark.parametrize("words", [TABLE, TEXTS], ids=["table", "texts"])
def test_a_share_of_training_changes_no_test_episode_and_names_other_data(words):
    whole, half = (experiment(*words, f"task.train_fraction={fraction}").task for fraction in (1.0, 0.5))
    assert manifest(whole, "test", 20) == manifest(half, "test", 20)
    assert manifest(whole, "train", 20) != manifest(half, "train", 20)
    assert whole.fingerprint() != half.fingerprint()
    assert whole.fitted() != half.fitted()  # means of inputs, or a vocabulary, of the share alone


def test_a_share_of_a_table_has_that_part_of_its_training_tasks():
    whole, half = (experiment(*TABLE, f"task.train_fraction={fraction}").task for fraction in (1.0, 0.5))
    assert len(half.split["train"]) == round(len(whole.split["train"]) / 2)
    assert {*half.split["train"]} < {*whole.split["train"]}


def test_the_score_of_every_share_of_a_table_is_in_one_unit():
    whole, half = (experiment(*TABLE, f"task.train_fraction={fraction}").task for fraction in (1.0, 0.5))
    assert half.fitted()["outputs"] == whole.fitted()["outputs"]
    draw = whole.draw("test", range(5))
    torch.testing.assert_close(half.episodes(draw).query.y, whole.episodes(draw).query.y, rtol=0, atol=0)


@pytest.mark.data
def test_a_share_of_omniglot_has_that_part_of_its_training_characters(data_root):
    words = ["task=omniglot", f"data_root={data_root}", "base_learner.hidden=[4]"]
    tenth, whole = (experiment(*words, f"task.train_fraction={f}").task for f in (0.1, 1.0))
    assert [len(task.pools["train"].names) for task in (tenth, whole)] == [103, 1028]
    assert tenth.pools["test"].names == whole.pools["test"].names


# ---- the sweep ----


def test_the_option_becomes_a_sweep_over_the_share():
    assert spread(["seed=0,1", "evaluation=data_efficiency"], []) == ["seed=0,1", "task.train_fraction=0.1,0.2,0.5,1"]
    other = ["evaluation.train_fractions=[0.3,1.0]", "evaluation=data_efficiency"]
    assert spread(other, []) == ["task.train_fraction=0.3,1"]
    assert spread(["seed=0,1"], []) == ["seed=0,1"]


def test_shares_that_are_set_twice_are_refused():
    with pytest.raises(ConfigError, match=r"task\.train_fraction=0\.1"):
        spread(["evaluation=data_efficiency", "task.train_fraction=0.1"], [])


def test_without_m_the_option_is_refused_with_what_to_do():
    outcome = metarun("evaluation=data_efficiency", *TABLE)
    assert outcome.code == 2
    assert "evaluation.train_fractions has no effect on a single run: add -m" in outcome.err


def runs(folder: Path, scores: dict[tuple[str, int, float], float | None]) -> list[tuple[list[str], RunFolder]]:
    """Folders as runs leave them, of a learner, a seed and a share, with these scores."""
    found = []
    for i, ((learner, seed, fraction), score) in enumerate(scores.items()):
        run = RunFolder(folder / str(i))
        run.create()
        if score is not None:
            run.mark("completed", **{"test/mse": score})
            estimate = {"mean": score, "ci95": 0.1, "n": 6, "ci95_over_tasks": None, "num_tasks": 1}
            (run.path / "results.json").write_text(json.dumps({"test/mse": estimate}))
        overrides = ["steps=2", f"meta_learner={learner}", f"seed={seed}", f"task.train_fraction={fraction}"]
        found.append((overrides, run))
    return found


def test_a_point_is_the_mean_over_seeds_and_a_curve_one_combination_of_the_rest(tmp_path):
    scores = {("maml", s, f): 1 / f + s for s in (0, 1, 2) for f in (1.0, 0.5)} | {("cnp", 0, 1.0): 4.0}
    content = curves(runs(tmp_path, scores))
    maml, cnp = content["curves"]
    assert (content["score"], maml["name"], cnp["name"]) == ("test/mse", "meta_learner=maml", "meta_learner=cnp")
    assert [(p["train_fraction"], p["mean"], p["num_seeds"]) for p in maml["points"]] == [(0.5, 3, 3), (1.0, 2, 3)]
    half = t.ppf(0.975, 2) * np.std([0, 1, 2], ddof=1) / np.sqrt(3)
    assert maml["points"][0]["ci95_over_seeds"] == pytest.approx(half, rel=1e-7)
    assert cnp["points"][0] == {
        **{"train_fraction": 1.0, "mean": 4.0, "ci95": 0.1, "n": 6, "ci95_over_tasks": None, "num_tasks": 1},
        "num_seeds": 1,
    }
    axes = figure(content).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "100"]
    assert axes.get_title() == "95% over episodes or seeds"


def test_runs_without_a_score_are_named_and_not_averaged_away(tmp_path):
    content = curves(runs(tmp_path, {("maml", 0, 1.0): None, ("maml", 1, 1.0): 2.0, ("maml", 0, 0.5): None}))
    assert content["missing"] == ["0", "2"]
    assert [point["num_seeds"] for point in content["curves"][0]["points"]] == [1]


def test_a_sweep_over_shares_leaves_the_curve_of_its_runs(tmp_path):
    words = ["evaluation=data_efficiency", "evaluation.train_fractions=[0.5,1.0]", *TABLE, *BUDGET]
    words += [
        "base_learner.hidden=[4]",
        "execution=looped",
        "meta_learner.inner_steps=1",
        f"sweep_dir={tmp_path / 'sweep'}",
    ]
    done = sweep(*words, "jobs=2")
    assert done.code == 0, done.text
    content = read(tmp_path / "sweep" / "data_efficiency.json")
    found = {p["train_fraction"]: p["mean"] for p in content["curves"][0]["points"]}
    results = [read(path) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert found == {r["protocol"]["task"]["train_fraction"]: r["test/mse"]["mean"] for r in results}
    assert content["missing"] == [] and len(results) == 2
    assert (tmp_path / "sweep" / "data_efficiency.png").is_file()
    assert list((tmp_path / "sweep" / "data_efficiency").glob("events.out.tfevents.*"))
