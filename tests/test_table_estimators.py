"""A small network that was trained on drawn tables, as scikit-learn estimators."""

import functools
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

import metarun
from metarun.applied.table_inputs import Levels
from tests.running import metarun as command

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_iris, load_wine, make_blobs, make_regression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

BUDGET = [
    *["steps=150", "meta_batch_size=8", "task.num_features=[2,10]", "task.num_classes=[2,4]", "log_every=50"],
    *["task.num_shots=60", "task.train_num_shots=60", "task.train_num_queries=20", "task.num_queries=20"],
    *["task.num_layers=[1,1]", "meta_learner.width=16", "meta_learner.layers=1", "meta_learner.heads=2"],
    *["meta_learner.feedforward=16", "meta_learner.cells=8", "meta_learner.bins=20", "optimizer.lr=0.01"],
    *["evaluation.every=150", "evaluation.num_val_tasks=8", "evaluation.num_tasks=8", "logger=none", "device=cpu"],
    *["execution=vmapped", "execution.threads=1", "dtype=float64"],
]
NAMES = np.array(["setosa", "versicolor", "virginica"])


@functools.cache
def model(kind: str):
    """A model that learned in seconds what scikit-learn's checks ask for."""
    folder = Path(tempfile.mkdtemp()) / kind
    experiment = "pfn_tables" if kind == "classification" else "pfn_tables_regression"
    assert command(f"experiment={experiment}", *BUDGET, f"run_dir={folder}").code == 0
    return metarun.load(folder)


def classifier(**settings: object):
    return model("classification").as_classifier(**{"num_orders": 2, **settings})


def regressor(**settings: object):
    return model("regression").as_regressor(**{"num_orders": 2, **settings})


@pytest.mark.parametrize("estimator", [classifier, regressor])
def test_estimators_pass_the_checks_of_scikit_learn(estimator):
    """None is expected to fail. What scikit-learn skips is said there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator(), on_fail=None)
    failed = {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    assert not failed
    assert len(results) > 40


def test_classes_keep_their_names_and_probabilities_are_in_their_order():
    x, y = load_iris(return_X_y=True)
    fitted = classifier(max_rows=200).fit(x, NAMES[y])
    assert fitted.classes_.tolist() == NAMES.tolist()
    probabilities = fitted.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    assert (fitted.predict(x) == NAMES[probabilities.argmax(1)]).all()
    assert fitted.score(x, NAMES[y]) > 0.85


def test_an_estimator_works_in_a_pipeline_and_a_grid_search():
    x, y = load_wine(return_X_y=True)
    x = x[:, :8]
    pipeline = make_pipeline(StandardScaler(), classifier(max_rows=200))
    search = GridSearchCV(pipeline, {"tableclassifier__num_orders": [1, 3]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.85
    assert cross_val_score(regressor(max_rows=200), *make_regression(90, 4, noise=1, random_state=0), cv=3).min() > 0.7


def test_a_clone_has_the_model_and_its_settings_and_is_not_fitted():
    one = classifier(num_orders=3, max_rows=50, random_state=7)
    other = clone(one.fit(*make_blobs(40, 3, random_state=0)))
    assert other.get_params() == one.get_params() and other.model is one.model and not hasattr(other, "readings_")


def test_a_fitted_estimator_survives_a_pickle():
    x, y = make_blobs(40, 3, random_state=0)
    fitted = classifier().fit(x, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(x), fitted.predict_proba(x))


def test_the_same_seed_gives_the_same_readings_and_the_order_of_rows_does_not_matter():
    x, y = make_blobs(50, 3, random_state=0)
    order = np.random.default_rng(0).permutation(50)
    a, b = classifier().fit(x, y), classifier().fit(x[order], y[order])
    np.testing.assert_allclose(a.predict_proba(x), b.predict_proba(x), atol=1e-9)


def test_data_frames_with_texts_categories_and_missing_values_are_read():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], 60)
    size = pandas.Categorical(rng.choice(["small", "large"], 60))
    frame = pandas.DataFrame({"colour": colour, "size": size, "weight": rng.normal(size=60), "whole": range(60)})
    y = np.where(colour == "red", "yes", "no")
    frame.loc[::7, "weight"] = np.nan
    frame.loc[5, "colour"] = None
    fitted = classifier().fit(frame, y)
    assert fitted.feature_names_in_.tolist() == list(frame)
    assert fitted.score(frame, y) > 0.8
    other = frame.assign(colour="violet")  # a level that was not there is missing
    assert np.isfinite(fitted.predict_proba(other)).all()
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame.rename(columns={"colour": "shade"}))


def test_missing_values_have_a_column_that_says_so():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.integers(2, size=60)
    x[y == 1, 1] = np.where(rng.random((y == 1).sum()) < 0.8, np.nan, x[y == 1, 1])
    assert classifier().fit(x, y).score(x, y) > 0.75  # the values say nothing, their absence says much


def test_more_columns_than_the_model_reads_are_shared_out_with_a_warning():
    x, y = make_blobs(60, 25, centers=3, random_state=0)
    with pytest.warns(UserWarning, match="25 columns vary, and the model reads 10"):
        fitted = classifier().fit(x, y)
    seen = np.concatenate([one.columns for one in fitted.readings_])
    assert set(seen.tolist()) == set(range(25)) and fitted.score(x, y) > 0.9


def test_more_rows_than_the_model_was_trained_on_are_drawn_with_a_warning():
    x, y = make_blobs(150, 3, centers=[[0, 0, 0], [4, 4, 4]], random_state=0)
    y[:3] = 2  # a rare class is never left out
    with pytest.warns(UserWarning, match="there are 150 rows, and the model was trained on 60"):
        fitted = classifier().fit(x, y)
    assert [len(one.rows) for one in fitted.readings_] == [60, 60]
    assert all(set(y[one.rows]) == {0, 1, 2} for one in fitted.readings_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(classifier(max_rows=150).fit(x, y).readings_[0].rows) == 150


def test_more_classes_than_the_model_has_are_refused_with_the_fix():
    x, y = make_blobs(60, 3, centers=6, random_state=0)
    with pytest.raises(ValueError, match=r"6 classes, and the model tells 4 apart.*OutputCodeClassifier"):
        classifier().fit(x, y)


def test_a_regressor_predicts_in_the_units_of_its_targets_and_knows_its_deviation():
    x, y = make_regression(60, 4, noise=5, random_state=0)
    fitted = regressor().fit(x, 1000 + 50 * y)
    mean, deviation = fitted.predict(x, return_std=True)
    assert fitted.score(x, 1000 + 50 * y) > 0.8
    np.testing.assert_array_equal(mean, fitted.predict(x))
    shifted = regressor().fit(x, y).predict(x, return_std=True)
    np.testing.assert_allclose(mean, 1000 + 50 * shifted[0], rtol=1e-6)
    np.testing.assert_allclose(deviation, 50 * shifted[1], rtol=1e-6)


def test_the_wrong_kind_of_estimator_is_refused():
    with pytest.raises(ValueError, match="as_regressor"):
        model("regression").as_classifier()
    with pytest.raises(ValueError, match="as_classifier"):
        model("classification").as_regressor()


# ---- what columns and targets may hold ----


def inputs(trained_on: object, asked: object) -> list[float]:
    """The numbers of one column of queries, by the levels of one of labelled rows."""
    pandas = pytest.importorskip("pandas")
    of, queries = (pandas.DataFrame({"a": values}) for values in (trained_on, asked))
    return Levels.found(of).numbers(queries)[:, 0].tolist()


def test_ordered_categories_keep_their_order_and_unseen_ones_their_place():
    pandas = pytest.importorskip("pandas")
    kind = pandas.CategoricalDtype(["small", "medium", "large"], ordered=True)
    column = pandas.Categorical(["large", "small"], dtype=kind)
    assert inputs(column, ["small", "medium", "large"]) == [0, 1, 2]
    assert inputs(["small", "large"], ["small", "large"]) == [1, 0]  # without an order: by the alphabet


@pytest.mark.parametrize("asked", [[1, 10, 2], [1.0, 10.0, 2.0], ["1", "10", "2"]])
def test_numbers_and_texts_of_numbers_are_the_same_in_training_and_queries(asked):
    assert inputs(["10", "1", "2", None], asked) == inputs([10, 1, 2, None], asked) == [1, 10, 2]
    level = inputs(["1", "10", "2", "many"], asked)  # a number beside words is the level of its text
    assert level == [0, 1, 2]


@pytest.mark.parametrize(
    "texts", [("1,5", "10,0"), ("10%", "9%"), ("1.5", "n.d.", "2.5"), ("2021-03-04", "2021-03-05")]
)
def test_texts_that_people_read_as_numbers_are_warned_of_as_they_become_levels(texts):
    x = np.array([[text, k] for k, text in enumerate(texts * 4)], dtype=object)
    with pytest.warns(UserWarning, match="column 0 has texts that look like .* numbered by the alphabet"):
        classifier().fit(x, [k % 2 for k in range(len(x))])


def test_yes_and_no_are_read_alike_as_texts_and_as_booleans():
    assert inputs(["True", "False"], [True, False]) == inputs([True, False], [True, False]) == [1, 0]


def test_numbers_where_the_model_was_fitted_to_words_are_refused_and_not_missing():
    with pytest.raises(ValueError, match=r"column 'a' has texts where .* as 'blue', and here numbers, as 3\.0"):
        inputs(["red", "blue"], [3.0, 4.0])


def test_levels_that_are_written_otherwise_or_all_unknown_are_warned_of():
    x = np.array([["red", k] for k in range(10)] + [["blue", -k] for k in range(10)], dtype=object)
    fitted = classifier().fit(x, np.arange(20) // 10)
    said = r"column 0 holds 'RED', which the labelled rows lack, and is missing to the model. They have 'blue', 'red'"
    with pytest.warns(UserWarning, match=said):
        fitted.predict(np.array([["RED", 1], ["blue", 1]], dtype=object))
    with pytest.warns(UserWarning, match=r"column 0 holds 'green', which"):
        fitted.predict_proba(np.array([["green", 1]], dtype=object))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(np.array([["green", 1], ["blue", 1]], dtype=object))  # one new level among known ones


def test_classes_that_are_missing_or_nearly_equal_are_warned_of():
    with pytest.warns(UserWarning, match=r"classes named 'NA' are what missing entries are often written as"):
        classifier().fit(np.eye(20), ["yes", "NA"] * 10)
    with pytest.warns(UserWarning, match=r"nearly equal, and taken for different ones: 'Yes' and 'yes'"):
        classifier().fit(np.eye(20), ["yes", "Yes"] * 10)


def test_rows_of_texts_as_a_reader_of_csv_gives_them_are_a_table():
    rows = [["red", f"{k}"] for k in range(10)] + [["blue", f"{-k}"] for k in range(10)]
    frame = np.array(rows, dtype=object)
    y = np.arange(20) // 10
    given, as_array = classifier().fit(rows, y).predict_proba(rows), classifier().fit(frame, y).predict_proba(frame)
    assert np.array_equal(given, as_array)


def test_times_are_no_targets():
    with pytest.raises(ValueError, match="y holds times, which are of no unit; give numbers, as days since the first"):
        regressor().fit(np.eye(20), np.arange(20).astype("datetime64[D]"))


def test_a_column_without_values_tells_nothing_whatever_queries_hold_there():
    assert np.isnan(inputs([np.nan, np.nan], ["red", "blue"])).all()
    assert np.isnan(inputs([None, None], [3, 4])).all()


def test_times_are_numbers_and_a_missing_time_is_missing():
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2020-01-01", periods=3)
    found = np.array(inputs(days, pandas.to_datetime(["2020-01-02", None, "2020-01-04"])))
    assert found[2] - found[0] == 2 * 86400e9 and np.isnan(found[1])


@pytest.mark.parametrize("most", [1, 2])
def test_fewer_rows_than_classes_in_a_reading_are_refused_with_the_fix(most):
    x, y = make_blobs(40, 3, centers=3, random_state=0)
    with pytest.raises(ValueError, match="has a row of each of 3 classes: set max_rows to 3"):
        classifier(max_rows=most).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert classifier(max_rows=3).fit(x, y).predict_proba(x).shape == (40, 3)


@pytest.mark.parametrize(("setting", "value"), [("max_rows", 2.5), ("max_rows", 0), ("num_orders", 1.5)])
def test_settings_that_are_no_whole_numbers_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}; use a whole number"):
        classifier(**{setting: value}).fit(*make_blobs(40, 3, centers=2, random_state=0))


@pytest.mark.parametrize(
    ("make", "y", "said"),
    [
        (classifier, ["a", None], r"y has no value in row 1 \(10 have none\)"),
        (regressor, [1.0, None], r"y has no value in row 1 \(10 have none\)"),
        (classifier, ["a", 1], "texts and other values together"),
        (regressor, ["a", "b"], "y holds what is no number .*as_classifier"),
        (regressor, ["5%", "6%"], r"y holds what is no number .*5%.*write them without %"),
    ],
)
def test_targets_that_cannot_be_are_refused_in_plain_words(make, y, said):
    with pytest.raises(ValueError, match=said):
        make().fit(np.eye(20), np.array(y * 10, dtype=object))
