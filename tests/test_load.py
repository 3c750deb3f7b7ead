"""``metarun.load``: a finished run as a model in Python, and as scikit-learn's estimators."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metarun
from metarun.applied import calibrated
from metarun.applied.estimators import Classifier
from metarun.applied.trained import trained
from metarun.errors import ConfigError, DataError
from metarun.evaluation.calibration import running_norms
from metarun.tasks.store import load_prepared
from metarun.trees import tree_map
from tests.applying import SIZE, data, drawings, run, sentence
from tests.running import environment

SHAPES = ("circle", "square", "zigzag", "a cross")  # 4, where training had 3 ways


@pytest.fixture
def photos(tmp_path) -> tuple[list, list, list, list]:
    """Support and query files of shapes that no training saw, with their names."""
    x, y, queries, truth = [], [], [], []
    for c, name in enumerate(SHAPES):
        files = drawings(tmp_path / name, c + 2, range(20, 25), size=31)
        x, y, queries, truth = x + files[:2], y + [name] * 2, queries + files[2:], truth + [name] * 3
    return x, y, queries, truth


def test_importing_metarun_does_not_import_torch():
    code = "import sys, metarun; print('torch' in sys.modules); metarun.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_loading_and_predicting_leave_draws_and_threads_as_they_were(photos):
    (x, y, queries, _), folder = photos, run("protonet")
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    metarun.load(folder).adapt(x, y).predict(queries)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def statistics(folder: Path, *overrides: str) -> list[torch.Tensor]:
    """Mean and variance of each ``running`` norm of a model that is loaded."""
    layers = running_norms(metarun.load(folder, *overrides).run.experiment.learner).values()
    return [tensor for layer in layers for tensor in (layer.mean, layer.var)]


@pytest.fixture
def calibrations(monkeypatch) -> list[str]:
    """Grows by one with each calibration."""
    found: list[str] = []
    original = calibrated.calibrate
    monkeypatch.setattr(calibrated, "calibrate", lambda *given: [found.append("once"), original(*given)])
    return found


def test_running_norms_are_calibrated_once_and_the_same_bits_are_used_again(tmp_path, calibrations):
    folder = Path(shutil.copytree(run("running norms"), tmp_path / "run"))
    (folder / "checkpoints" / "norms.pt").unlink(missing_ok=True)
    first, again = statistics(folder), statistics(folder)
    assert len(calibrations) == 1
    assert len(first) > 0 and all(len(tensor) > 0 for tensor in first)
    (folder / "checkpoints" / "norms.pt").unlink()
    anew = statistics(folder)
    assert len(calibrations) == 2
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, anew, strict=True))


@pytest.mark.parametrize("change", ["theta", "episodes", "code", "damage", "own code"])
def test_running_norms_are_calibrated_again_where_anything_is_another(change, tmp_path, calibrations, monkeypatch):
    folder = Path(shutil.copytree(run("running norms"), tmp_path / "run"))
    statistics(folder)
    del calibrations[:]
    best, kept, overrides = folder / "checkpoints" / "best.pt", folder / "checkpoints" / "norms.pt", []
    if change == "theta":
        state = torch.load(best, weights_only=True)
        torch.save(state | {"theta": tree_map(lambda leaf: leaf + 0.01, state["theta"])}, best)
    elif change == "episodes":
        overrides = ["seed=5"]
    elif change == "code":
        monkeypatch.setattr(calibrated, "code_digest", lambda: "another")
    elif change == "damage":
        kept.write_bytes(kept.read_bytes()[:100])
    else:
        monkeypatch.setattr(calibrated, "VERSIONED", ("torch",))
    statistics(folder, *overrides)
    assert calibrations == ["once"]


def test_a_model_knows_the_classes_it_is_adapted_to_by_the_users_names(photos):
    x, y, queries, truth = photos
    adapted = metarun.load(run("protonet")).adapt(x, y)
    assert adapted.classes_.tolist() == sorted(SHAPES)
    probabilities = adapted.predict_proba(queries)
    assert probabilities.shape == (12, 4) and np.allclose(probabilities.sum(1), 1)
    assert (adapted.predict(queries) == adapted.classes_[probabilities.argmax(1)]).all()
    assert np.mean(adapted.predict(queries) == truth) > 0.8


def test_images_are_read_as_those_of_the_training_were():
    model, folder = metarun.load(run("protonet")), data() / "photos" / "shape3"
    (prepared,) = (path for path in (data() / "prepared").glob("image_folder-*") if rows_of(path) is not None)
    rows, names = rows_of(prepared)
    expected = rows[names.index("shape3") * 4 : names.index("shape3") * 4 + 4] / np.float32(255)
    assert np.array_equal(model.reader.inputs(sorted(folder.iterdir())).numpy(), expected.astype(np.float32))


def test_images_of_more_than_8_bits_in_memory_are_warned_of_or_refused(tmp_path):
    reader = metarun.load(run("protonet")).reader
    deep = Image.fromarray(np.full((20, 20), 900, dtype="u2"))
    deep.save(tmp_path / "deep.png")
    for image in (deep, tmp_path / "deep.png"):
        with pytest.warns(UserWarning, match="these images: .*are read as those of the training were: as of 0"):
            reader.inputs([image])
    with pytest.raises(DataError, match=r"these images: .*the training had images of 8 bits alone"):
        reader.inputs([Image.fromarray(np.full((20, 20), 900, dtype="f4"))])


def rows_of(path):
    try:
        prepared = load_prepared(path, (1, SIZE, SIZE))
    except ValueError:
        return None
    return np.asarray(prepared.rows), prepared.names


def test_files_pictures_and_arrays_of_one_image_give_one_prediction(photos):
    x, y, queries, _ = photos
    model = metarun.load(run("protonet"))
    by_files = model.adapt(x, y).predict_proba(queries)
    pictures = model.adapt([Image.open(path) for path in x], y).predict_proba([Image.open(path) for path in queries])
    arrays = model.reader.inputs(x).numpy(), model.reader.inputs(queries).numpy()
    assert np.array_equal(pictures, by_files)
    assert np.array_equal(model.adapt(arrays[0], y).predict_proba(arrays[1]), by_files)


def test_the_order_of_the_classes_and_of_the_queries_does_not_matter(photos):
    x, y, queries, _ = photos
    model = metarun.load(run("maml"))
    three = [i for i, name in enumerate(y) if name != "zigzag"]
    x, y = [x[i] for i in three], [y[i] for i in three]
    there = model.adapt(x, y).predict_proba(queries)
    mixed = [4, 0, 2, 1, 3, 5]
    again = model.adapt([x[i] for i in mixed], [y[i] for i in mixed]).predict_proba(queries[::-1])[::-1]
    assert np.allclose(again, there, atol=1e-6)


def test_a_head_takes_fewer_classes_than_it_has_and_refuses_more(photos):
    x, y, queries, _ = photos
    model = metarun.load(run("maml"))
    assert model.adapt(x[:4], y[:4]).predict_proba(queries).shape == (12, 2)
    with pytest.raises(DataError, match=r"has 4 classes .* but the head of MAML has 3"):
        model.adapt(x, y)


def test_more_adaptation_steps_are_an_override(photos):
    x, y, queries, _ = photos
    few, many = (metarun.load(run("maml"), f"evaluation.inner_steps={k}") for k in (0, 20))
    assert not np.allclose(
        few.adapt(x[:4], y[:4]).predict_proba(queries), many.adapt(x[:4], y[:4]).predict_proba(queries)
    )
    with pytest.raises(ConfigError, match="evaluation can change"):
        metarun.load(run("maml"), "steps=3")


def test_running_norms_use_the_statistics_of_the_training_tasks(photos):
    """A query's prediction is then the same in any company."""
    x, y, queries, _ = photos
    model = metarun.load(run("running norms"))
    adapted = model.adapt(x, y)
    assert not model.looks_at_all_queries
    assert np.allclose(adapted.predict_proba(queries)[:1], adapted.predict_proba(queries[:1]), atol=1e-6)


@pytest.mark.parametrize("features", ["hashed", "tokens"])
def test_sentences_are_encoded_as_those_of_the_training_were(features):
    model = metarun.load(run(features))
    task = model.run.experiment.task
    own = task.encoded.take(torch.arange(len(task.text_set.texts)))
    assert torch.equal(model.reader.inputs(list(task.text_set.texts)), own)


def test_sentences_of_new_classes_are_told_apart():
    x, y = [sentence(c, i) for c in (6, 7) for i in range(3)], ["hotel"] * 3 + ["taxi"] * 3
    queries = [sentence(c, i) for c in (6, 7) for i in range(10, 14)]
    adapted = metarun.load(run("hashed")).adapt(x, y)
    assert adapted.predict(np.array(queries)).tolist() == ["hotel"] * 4 + ["taxi"] * 4


@pytest.mark.parametrize(
    "rows", [{"Dose": [1, 2], "kind": ["a", "b"], 3: [0, 0]}, [{"Dose": 1, "kind": "a", 3: 0}] * 2]
)
def test_a_column_of_another_name_is_asked_about_in_the_examples_of_a_table(rows):
    with pytest.raises(ValueError, match=r"'dose' is missing.*did you mean 'Dose'\?; there are 'Dose', 'kind', '3'"):
        metarun.load(run("table")).adapt(rows, [1.0, 2.0])


def test_rows_by_column_by_row_and_as_an_array_give_one_prediction():
    model = metarun.load(run("table"))
    columns = {"dose": [0.5, 1.5, 2.5], "kind": ["a", "b", "a"]}
    rows = [{"dose": d, "kind": k, "more": 1} for d, k in zip(columns["dose"], columns["kind"], strict=True)]
    array = np.array([columns["dose"], columns["kind"]], dtype=object).T
    y = [3.0, 5.0, 9.0]
    found = [model.adapt(x, y).predict(columns) for x in (columns, rows, array)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


ODD_TABLES = {
    "rows of two kinds": ([{"dose": 1.0, "kind": "a"}, 3], "the array has shape"),
    "a number for a column": ({"dose": 1.0, "kind": "a"}, "column 'dose' is no list of entries"),
    "a text for a column": ({"dose": [1.0, 2.0], "kind": "ab"}, "column 'kind' is no list of entries"),
    "a category that is missing": ({"dose": [1.0, 2.0], "kind": ["a", type("NAType", (), {})()]}, "'kind' is empty"),
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_rows_that_make_no_table_are_refused_in_plain_words(name):
    rows, said = ODD_TABLES[name]
    with pytest.raises(DataError, match=said):
        metarun.load(run("table")).adapt(rows, [3.0, 5.0])


@pytest.mark.parametrize(("y", "said"), [(["a", "b"], "targets must be numbers"), ([np.nan, 1.0], "hold NaN")])
def test_a_score_of_targets_that_are_no_numbers_is_refused(y, said):
    rows = {"dose": [0.5, 1.5], "kind": ["a", "b"]}
    with pytest.raises(DataError, match=said):
        metarun.load(run("table")).as_regressor().fit(rows, [300.0, 500.0]).score(rows, y)


def test_predictions_are_in_the_units_of_the_targets_with_a_deviation():
    model = metarun.load(run("table"))
    columns = {"dose": [0.5, 1.5, 2.5], "kind": ["a", "b", "a"]}
    mean, deviation = model.adapt(columns, [300.0, 500.0, 900.0]).posterior(columns)
    assert mean.shape == deviation.shape == (3,) and (deviation > 0).all()
    (fit,) = model.reader.columns.outputs
    z = model.reader.targets(mean)[:, 0]
    assert np.allclose(np.exp(z * fit.deviation[0] + fit.mean[0]), mean)


def test_a_model_of_generated_curves_takes_arrays_alone():
    model = metarun.load(run("sinusoid"))
    x = np.linspace(-5, 5, 6)[:, None]
    assert model.adapt(x, np.sin(x)).predict(x).shape == (6, 1)
    assert model.adapt(x, np.sin(x)[:, 0]).predict(x).shape == (6,)
    with pytest.raises(DataError, match=r"takes inputs of shape \[1\]"):
        model.adapt(x[:, 0], np.sin(x))


WRONG = {
    "no label for each": (lambda x: (x, ["a"] * (len(x) - 1)), "give one for each"),
    "one class": (lambda x: (x, ["a"] * len(x)), "with one class every answer is right"),
    "a label that is missing": (lambda x: (x, ["a", None, *["b"] * (len(x) - 2)]), "example 1 has no label"),
    "a label that pandas calls missing": (
        lambda x: (x, np.array(["a", type("NAType", (), {})(), *["b"] * (len(x) - 2)], dtype=object)),
        "example 1 has no label",
    ),
    "a label of blanks": (lambda x: (x, ["a", " ", *["b"] * (len(x) - 2)]), "example 1 has no label"),
    "an image of two classes": (
        lambda x: ([*x[:2], x[0]], ["a", "b", "b"]),
        r"1 example is of two classes: example 2 \(b\) = example 0 \(a\)\. Delete each from the class",
    ),
    "labels of two kinds in a list": (lambda x: (x, ["a", 1, *["b"] * (len(x) - 2)]), "of several kinds"),
    "pixels out of range": (
        lambda x: (np.full((8, 1, SIZE, SIZE), 255), ["a", "b"] * 4),
        "images are numbers from 0 to 1",
    ),
    "labels of two kinds": (lambda x: (x, np.array(["a", 1, *["b"] * (len(x) - 2)], dtype=object)), "of several kinds"),
    "no file": (lambda x: ([*x[:-1], "absent.png"], ["a", "b"] * (len(x) // 2)), "absent.png is no image"),
    "another size": (lambda x: (np.zeros((8, 1, 9, 9)), ["a", "b"] * 4), r"takes inputs of shape \[1, 12, 12\]"),
    "not finite": (lambda x: (np.full((8, 1, SIZE, SIZE), np.nan), ["a", "b"] * 4), "not finite"),
    "words": (lambda x: (["a sentence."] * 8, ["a", "b"] * 4), "is no image that can be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_examples_that_do_not_fit_are_refused_with_what_is_wrong(name, photos):
    make, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        metarun.load(run("protonet")).adapt(*make(photos[0]))


class Frame(dict):
    """What a data frame is to a reader: as long as its columns, whose names are what a loop over it gives."""

    ndim, columns = 2, ["text"]

    def __len__(self) -> int:
        return len(self["text"])


@pytest.mark.parametrize("kind", [dict, Frame, frozenset])
def test_sentences_in_columns_by_name_or_in_no_order_are_refused(kind):
    adapted = metarun.load(run("hashed")).adapt(["a card", "my card", "a flight", "the flight"], ["c", "c", "f", "f"])
    texts = ["which card", "no flight"]
    with pytest.raises(DataError, match=f"the sentences are a {kind.__name__}, but must be a list"):
        adapted.predict(kind(texts) if kind is frozenset else kind({"text": texts}))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["card", "card ", "fly", "Fly"],
            "nearly equal, and taken for different ones: 'Fly' and 'fly', 'card' and 'card '",
        ),
        (["card", "card", "nan", "nan"], "classes named 'nan' are what missing entries"),
        ([0.1, 0.25, 0.1, 3.5], "classes that are numbers with fractions, as of a quantity: 0.1, 0.25, 3.5"),
        ([1.0, 2.0, 1.0, 2.0], ""),
    ],
)
def test_labels_that_may_be_one_or_none_or_a_quantity_are_warned_of(labels, said, recwarn):
    metarun.load(run("hashed")).adapt(["a card", "my card", "a flight", "the flight"], labels)
    messages = [str(warning.message) for warning in recwarn if "metarun:" in str(warning.message)]
    assert len(messages) == bool(said) and all(said in message for message in messages)


def test_a_sentence_of_two_classes_is_refused_and_others_of_unknown_words_are_not():
    model = metarun.load(run("tokens"))
    with pytest.raises(DataError, match=r"example 1 \(b\) = example 0 \(a\)"):
        model.adapt(["please balance", "Please  balance"], ["a", "b"])
    assert [*model.adapt(["qqq", "zzz"], ["a", "b"]).classes_] == ["a", "b"]


RAGGED, COMPLEX = [[1.0, 2.0]] * 7 + [[1.0]], np.ones((8, 1), complex)
OF_CLASSES = {
    "ragged": (RAGGED, "labels make no array"),
    "dictionaries": ([{}] * 8, "of one without an order"),
    "masked": (np.ma.masked_equal([0, 1] * 4, 1), "some of the labels are masked"),
}
OF_NUMBERS = {
    "ragged": (RAGGED, "labels make no array"),
    "complex": (COMPLEX, "must be numbers, but are complex128"),
    "times": (np.array(["NaT", "2020"] * 4, dtype="M8[D]"), "must be numbers, but are datetime64"),
    "masked": (np.ma.masked_equal([0.0, 1] * 4, 1), "some of the labels are masked"),
    "no end": (10**400, "no list as labels"),
    "none": ([], "8 examples and 0 of them"),
}
INPUTS = {
    "sinusoid": {
        "one number": (3, r"shape \[\], but the model takes"),
        "nothing": (None, "are NoneType, but must be an array of numbers"),
        "ragged": (RAGGED, "examples make no array"),
        "complex": (torch.ones(8, 1, dtype=torch.complex64), "must hold real numbers"),
    },
    "protonet": {"files and numbers": (["a.png", 1] * 4, "example 1 is int")},
    "hashed": {
        "nothing": (None, "are NoneType"),
        "half a character": (["\ud800"] * 8, "a sentence holds half a character"),
    },
    "table": {"no columns": ([{}] * 8, "there are none")},
}
MANY = {"protonet": np.zeros((8, 1, SIZE, SIZE)), "sinusoid": np.linspace(-5, 5, 8)[:, None]}


@pytest.mark.parametrize(
    ("kind", "name"), [("protonet", k) for k in OF_CLASSES] + [("sinusoid", k) for k in OF_NUMBERS]
)
def test_labels_of_any_wrong_kind_are_refused_in_plain_words(kind, name):
    y, said = {"protonet": OF_CLASSES, "sinusoid": OF_NUMBERS}[kind][name]
    with pytest.raises(DataError, match=said):
        metarun.load(run(kind)).adapt(MANY[kind], y)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, given in INPUTS.items() for name in given])
def test_inputs_of_any_wrong_kind_are_refused_in_plain_words(kind, name):
    x, said = INPUTS[kind][name]
    with pytest.raises(DataError, match=said):
        metarun.load(run(kind)).adapt(x, [1.0, 2.0] * 4)


@pytest.mark.parametrize("kind", [np.longdouble, ">f8", np.float16])
def test_numbers_of_any_kind_and_order_are_taken(kind):
    x, model = MANY["sinusoid"], metarun.load(run("sinusoid"))
    found = model.adapt(x.astype(kind)[::-1], torch.tensor(x[::-1].copy(), requires_grad=True)).predict(x.astype(kind))
    assert np.allclose(found, model.adapt(x, x).predict(x), atol=0.01 if kind == np.float16 else 1e-4)


ARGUMENTS = {
    "a number for the run": ((3,), {}, "run is 3, but must be the folder of a run"),
    "a list of overrides": (("run", ["device=cpu"]), {}, r"an override is \['device=cpu'\].*as \*LIST"),
    "a number for a folder": (("run",), {"config_dir": [3]}, "config_dir is 3, but must be a folder"),
    "a module": (("run",), {"allow": np}, "allow is <module 'numpy'.*must be the name of a package"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_another_kind_are_refused_in_plain_words(name):
    positional, named, said = ARGUMENTS[name]
    with pytest.raises(ConfigError, match=said):
        metarun.load(*positional, **named)


@pytest.mark.parametrize("given", [str, Path, lambda folder: [Path(folder)], lambda folder: (str(folder),)])
def test_a_config_folder_is_a_text_a_path_or_a_list(given, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_ALLOW", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    loaded = metarun.load(run("sinusoid"), config_dir=given(tmp_path), allow="numpy")
    assert "numpy" in os.environ["METARUN_ALLOW"].split(":") and str(tmp_path) in sys.path
    assert loaded.learner


def test_an_estimator_of_no_model_and_a_score_without_labels_are_refused():
    with pytest.raises(DataError, match="the model is int, but must be"):
        Classifier(3)
    x = np.random.default_rng(0).random((8, 1, SIZE, SIZE))
    with pytest.raises(DataError, match="example 0 has no label"):
        metarun.load(run("protonet")).as_classifier().fit(x, ["a", "b"] * 4).score(x, [None] * 8)


def test_threads_that_share_a_model_get_what_one_thread_gets():
    model, x = metarun.load(run("sinusoid")), np.linspace(-5, 5, 6)[:, None]
    adapted = [model.adapt(x, a * np.sin(x)) for a in (0.5, 1.0, 2.0, 4.0)]
    alone = [each.predict(x) for each in adapted]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: adapted[i % 4].predict(x), range(80)))
    assert all(np.array_equal(values, alone[i % 4]) for i, values in enumerate(found))
    assert all(np.array_equal(each.predict(x), values) for each, values in zip(adapted, alone, strict=True))


def test_a_folder_without_a_run_or_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        metarun.load(tmp_path)
    (tmp_path / "config.yaml").write_bytes((run("protonet") / "config.yaml").read_bytes())
    (tmp_path / "status.json").write_text(json.dumps({"state": "interrupted", "step": 1}))
    with pytest.raises(ConfigError, match=r"no checkpoint .*best.pt \(the run's state: interrupted\)"):
        metarun.load(tmp_path)


def test_a_removed_checkpoint_of_an_ended_run_is_not_said_to_come_by_going_on(tmp_path):
    folder = Path(shutil.copytree(run("protonet"), tmp_path / "run"))
    (folder / "checkpoints" / "last.pt").unlink()
    with pytest.raises(
        ConfigError, match=r"last.pt .*removed after .*: restore it; --checkpoint best takes .* left\.$"
    ):
        trained(folder, [], "last", [])
    (folder / "checkpoints" / "best.pt").unlink()
    with pytest.raises(ConfigError, match=r"best.pt .*: restore it\.$"):
        metarun.load(folder)


def test_as_an_estimator_it_is_copied_and_cross_validated_by_scikit_learn(photos):
    base, selection = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.model_selection")
    x, y, queries, truth = photos
    classifier = metarun.load(run("protonet")).as_classifier()
    copied = base.clone(classifier).fit(x, y)
    assert base.is_classifier(classifier) and copied.classes_.tolist() == sorted(SHAPES)
    assert copied.score(queries, truth) == np.mean(copied.predict(queries) == truth)
    assert selection.cross_val_score(classifier, [*x, *queries], [*y, *truth], cv=3).mean() > 0.8
    regressor = metarun.load(run("sinusoid")).as_regressor()
    points = np.linspace(-5, 5, 12)[:, None]
    assert base.is_regressor(regressor)
    assert selection.cross_val_score(regressor, points, np.sin(points[:, 0]), cv=2).shape == (2,)
    assert base.clone(regressor).fit(points, np.sin(points)).score(points, np.sin(points)) < 1


def test_scores_of_an_estimator_take_labels_of_either_shape_and_refuse_what_has_none(photos):
    x = np.linspace(-5, 5, 12)[:, None]
    y = np.sin(x[:, 0])
    regressor = metarun.load(run("sinusoid")).as_regressor()
    with pytest.raises(DataError, match="call fit"):
        regressor.predict(x)
    regressor.fit(x, y)
    assert regressor.score(x, y) == regressor.score(x, y[:, None])
    with pytest.raises(DataError, match="give one for each"):
        regressor.score(x, y[:3])
    with pytest.raises(DataError, match="targets are all the same"):
        regressor.score(x, np.ones(12))
    files, names, queries, truth = photos
    classifier = metarun.load(run("protonet")).as_classifier().fit(files, names)
    assert classifier.score(queries, truth) == classifier.score(queries, np.array(truth)[:, None])


def test_an_estimator_of_the_other_kind_is_refused():
    with pytest.raises(DataError, match=r"use as_regressor\(\)"):
        metarun.load(run("sinusoid")).as_classifier()
    with pytest.raises(DataError, match=r"use as_classifier\(\)"):
        metarun.load(run("protonet")).as_regressor()


def test_load_is_among_the_names_that_a_notebook_offers():
    assert "load" in dir(metarun)
