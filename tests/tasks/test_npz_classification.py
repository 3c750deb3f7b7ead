"""Arrays with classes whose tasks are subjects: what episodes hold, the splits, the scale, and every wrong file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun import load
from metarun.errors import DataError, MissingDataError
from metarun.tasks.npz_classification import NpzClassification
from tests.running import metarun, scores

NAMES = ("left", "rest", "right")
SIZES = {"num_shots": 2, "num_queries": 3, "train_num_shots": None, "train_num_queries": None}
SPLIT = {"val_share": 0.2, "test_share": 0.2, "split_seed": 0, "split": None}


def windows(path: Path, **changed) -> dict[str, np.ndarray]:
    """Windows of 7 subjects, 2 channels of 4 points: each class has its own level, and each subject turns the levels."""
    rng, x, y, subject = np.random.default_rng(0), [], [], []
    for s in range(7):
        for c in rng.permutation(np.repeat(range(3), 10)):
            x.append(100 + 30 * rng.normal(size=(2, 4)) + np.array([[(c + s) % 3], [c]]) * 300)
            y.append(NAMES[c])
            subject.append(f"s{s}")
    arrays = {"x": np.array(x), "y": np.array(y), "subject": np.array(subject)} | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


@pytest.fixture
def path(tmp_path) -> Path:
    windows(tmp_path / "windows.npz")
    return tmp_path / "windows.npz"


def task(path: Path, **changed) -> NpzClassification:
    given = {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float64, "task_array": "subject"}
    own = {"path": str(path), "val_tasks": ["s5"], "test_tasks": ["s6"]}
    return NpzClassification(**{**SIZES, **SPLIT, **given, **own, **changed})


def test_an_episode_is_of_one_subject_with_every_class_and_no_window_twice(path):
    a_task, arrays = task(path, test_tasks=["s3", "s6"]), np.load(path)
    draw = a_task.draw("test", range(300))
    episodes = a_task.episodes(draw)
    for b, name in enumerate(a_task.split["test"][t] for t in draw["task"]):
        rows = np.concatenate([draw["support"][b], draw["query"][b]], 1)  # [N, K + Q]
        assert len({*rows.ravel()}) == 15 and {*arrays["subject"][rows.ravel()]} == {name}
        assert (arrays["y"][rows] == np.array(NAMES)[:, None]).all()
    place = draw["query"][7].ravel()[draw["query_order"][7]]
    assert [NAMES[label] for label in episodes.query.y[7]] == arrays["y"][place].tolist()
    assert torch.equal(episodes.query.x[7], a_task.x[place])
    assert {*a_task.drawn_from("test", draw).names[0]} <= {"s3", "s6"}


def test_queries_do_not_stand_class_after_class(path):
    y = task(path).sample("test", range(300)).query.y
    assert (y.diff(dim=1) >= 0).all(1).float().mean() < 0.05  # 1 in 2100 by chance
    assert y.double().mean(0).tolist() == pytest.approx([1.0] * 9, abs=0.25)


def test_an_episode_of_arrays_is_the_same_alone_and_in_company(path):
    together, alone = (task(path).sample("train", numbers) for numbers in ([4, 2**33], [2**33]))
    assert torch.equal(together.support.x[1:], alone.support.x) and torch.equal(together.query.y[1:], alone.query.y)


def test_channels_are_standardised_by_the_training_subjects_alone(path):
    a_task, arrays = task(path), np.load(path)
    train = arrays["x"][~np.isin(arrays["subject"], ["s5", "s6"])]
    mean, deviation = train.mean((0, 2), keepdims=True), train.std((0, 2), keepdims=True)
    assert np.allclose(a_task.x, (arrays["x"] - mean) / deviation, atol=1e-5)
    new = windows(path.with_name("new.npz"), x=arrays["x"] * 3)["x"]
    fitted = json.loads(json.dumps(a_task.fitted()))
    other = task(path.with_name("new.npz"), split={"test": "all"}, fitted=fitted)
    assert other.splits == ("test",) and len(other.split["test"]) == 7
    assert torch.equal(other.x, a_task.reader().inputs(new))
    assert np.allclose(other.x, (new - mean) / deviation, atol=1e-5)


def test_subjects_are_split_by_shares_or_by_names_as_those_of_a_table(path):
    assert [len(task(path, val_tasks=None, test_tasks=None).split[s]) for s in ("train", "val", "test")] == [5, 1, 1]
    assert task(path).split == {"train": [f"s{s}" for s in range(5)], "val": ["s5"], "test": ["s6"]}
    for s in range(7):  # one subject is left out, and the subject of the validation is drawn of the others
        split = task(path, val_tasks=None, test_tasks=[f"s{s}"]).split
        assert split["test"] == [f"s{s}"] and len(split["val"]) == 1 and len({*split["train"]} - {*split["val"]}) == 5
    with pytest.raises(ValueError, match="name 's9', which is no task of the data"):
        task(path, test_tasks=["s9"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject": None}, "lacks subject; it holds x, y"),
        ({"y": np.array(["a", "b"])}, r"has the shapes x \[210, 2, 4\], y \[2\], subject \[210\], but must have"),
        ({"x": np.zeros(210)}, r"must have x \[n, ...\]"),
        ({"x": np.full((210, 2), np.nan)}, "windows.npz: the array holds numbers that are not finite"),
        ({"y": np.full(210, "a")}, "holds the class 'a' alone"),
        ({"y": np.array([""] + ["a", "b"] * 104 + ["a"])}, "rows without a class or a task: 0. Leave them out"),
        (
            {"y": np.array([*"ab" * 104, "c", "c"])},
            "num_queries is 5, but in train 's0' has 0 of 'c'",
        ),
    ],
)
def test_a_wrong_file_of_arrays_is_an_error_that_says_what_is_wrong(path, changed, message):
    windows(path, **changed)
    with pytest.raises(DataError, match=message):
        task(path)


# ---- what is told of rows and names ----


def told(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_copies_of_a_row_are_kept_once_and_change_nothing_but_the_fingerprint(path, caplog):
    caplog.set_level("INFO", "metarun")
    plain = task(path)
    arrays = windows(path)
    assert told(caplog) == ""
    np.savez(path, **{name: np.concatenate([array, array[3:5]]) for name, array in arrays.items()})
    doubled = task(path)
    assert "2 rows are copies of another of the same task and class, and left out (counted from 0): 210 = 3, " in told(
        caplog
    )
    draws = [a_task.draw("train", range(50)) for a_task in (plain, doubled)]
    assert all((draws[0][name] == draws[1][name]).all() for name in draws[0])
    assert doubled.fingerprint().endswith("without 2 copies") and "without" not in plain.fingerprint()
    np.savez(path, **{name: np.repeat(array[::3], 3, 0) for name, array in arrays.items()})
    with pytest.raises(DataError, match="num_queries is 5, but in train"):  # each row alone is too few
        task(path)


def test_rows_of_two_classes_and_of_two_tasks_are_told(path, caplog):
    caplog.set_level("INFO", "metarun")
    arrays = windows(path)
    x, y, subject = arrays["x"].copy(), arrays["y"], arrays["subject"]
    other = int(np.flatnonzero(y[:30] != y[0])[0])
    x[other] = x[0]
    windows(path, x=x)
    task(path)
    assert f"1 row equals one of the same task in another class (counted from 0): {other} ({y[other]}) = 0" in told(
        caplog
    )
    windows(path, x=np.concatenate([x, x[:30]]), y=np.concatenate([y, y[:30]]), subject=[*subject, *["twin"] * 30])
    task(path)
    assert "1 task has the rows of another task, under another name: 'twin' = 's0'" in told(caplog)


def test_names_that_may_be_one_and_arrays_that_are_not_read_are_told(path, caplog):
    caplog.set_level("INFO", "metarun")
    subject = [{"s0": "S1", "s2": "nan"}.get(name, name) for name in windows(path)["subject"]]
    windows(path, subject=subject, trial=np.arange(210), split=np.array(["train"] * 210))
    task(path)
    assert "not read are the arrays 'trial', 'split'; tasks are split by task.val_tasks and task.test_tasks." in told(
        caplog
    )
    assert "names of tasks that are nearly equal, and taken for different ones: 'S1' and 's1'" in told(caplog)
    assert "tasks named 'nan' are what missing entries are often written as" in told(caplog)


def test_examples_of_two_subjects_are_refused_and_one_is_named(path):
    arrays = windows(path)
    reader = task(path).reader()
    with pytest.raises(DataError, match=r"rows of 2 tasks \(subject: s0, s1\), but a model is adapted to one"):
        windows(path.with_name("new.npz"), **{name: array[:60] for name, array in arrays.items()})
        reader.read(path.with_name("new.npz"), labelled=True)
    windows(path.with_name("new.npz"), **{name: array[:30] for name, array in arrays.items()})
    assert reader.read(path.with_name("new.npz"), labelled=False).task == "s0"


def test_a_file_of_arrays_with_other_classes_than_the_runs_is_refused(path):
    fitted = task(path).fitted()
    windows(path, y=np.array([*"abc" * 70]))
    with pytest.raises(ValueError, match="has the classes a, b, c; the run learned left, rest, right"):
        task(path, split={"test": "all"}, fitted=fitted)
    with pytest.raises(MissingDataError, match="there is no such file"):
        task(path.with_name("gone.npz"))


def test_a_run_on_subjects_learns_and_is_applied_in_the_users_units(path, tmp_path):
    words = ["task=npz_classification", f"task.path={path}", "task.val_tasks=[s5]", "task.test_tasks=[s4,s6]"]
    words += ["task.num_shots=2", "task.num_queries=3", "meta_learner=protonet", "base_learner=mlp", "steps=40"]
    words += ["evaluation.every=20", "evaluation.num_val_tasks=20", "evaluation.num_tasks=40"]
    words += ["base_learner.hidden=[16]", "logger=none", "device=cpu", "execution=looped"]
    outcome = metarun(*words, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0 and "only 2 test tasks: " in outcome.out, outcome.text
    kept = scores(tmp_path / "run")["test/accuracy"]
    assert kept["mean"] > 0.9 and kept["num_tasks"] == 2
    arrays = np.load(path)
    own = arrays["subject"] == "s6"
    x, y = arrays["x"][own], arrays["y"][own]
    predicted = load(tmp_path / "run").adapt(x[:12], y[:12]).predict(x[12:])
    assert (predicted == y[12:]).mean() > 0.9
    again = metarun("evaluate", str(tmp_path / "run"), "task.split={test: all}", "evaluation.num_tasks=20")
    assert again.code == 0 and "test tasks were trained on" in again.out, again.text
