"""Intervals hold what their names say: by the quantiles of scipy, closed forms, and simulated test sets."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t

from metarun.evaluation.estimates import estimate, mean_of
from metarun.evaluation.intervals import half_width, over
from metarun.evaluation.student import LARGE, student_t

REPEATS = 400  # simulated test sets; the standard error of a coverage of 95% is 1.1%


@pytest.mark.parametrize("df", [1, 2, 3, 4, 19, 20, 599, LARGE, LARGE + 1, 10**6])
def test_the_quantile_of_students_t_is_that_of_scipy(df):
    assert student_t(df) == pytest.approx(t.ppf(0.975, df), rel=1e-7)


def test_with_twenty_episodes_the_interval_takes_209_in_place_of_196():
    assert round(half_width(math.sqrt(20), 20), 2) == 2.09


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_of_few_episodes_covers_the_mean_in_95_of_100(n):
    samples = np.random.default_rng(n).standard_normal((4000, n))
    covered = np.mean([abs(e.mean) <= e.ci95 for e in map(estimate, torch.from_numpy(samples))])
    assert 0.94 < covered < 0.96  # the standard error is 0.35%


@pytest.mark.parametrize("sizes", [(5, 5), (4, 40), (20, 20, 20)])
def test_the_interval_of_a_mean_of_estimates_covers_95_of_100_or_more(sizes):
    rng, covered = np.random.default_rng(0), []
    for _ in range(REPEATS):
        both = mean_of([estimate(torch.from_numpy(rng.normal(0, 1 + n, n))) for n in sizes])
        covered.append(abs(both.mean) <= both.ci95)
    assert 0.94 < np.mean(covered) < 0.99


# ---- over classes ----


def one(values, members):
    return over("classes", {"score": np.asarray(values, dtype=float)}, members)["score"]


def test_over_tasks_of_equal_size_it_is_the_t_interval_of_their_means():
    values = np.random.default_rng(0).normal(size=(40, 4)) + np.array([0, 3, 4, 9])  # 40 episodes of each of 4 tasks
    found = one(values.reshape(-1), [[name] for name in "abcd"] * 40)
    means = values.mean(0)
    assert found == ("classes", pytest.approx(t.ppf(0.975, 3) * means.std(ddof=1) / 2, rel=1e-12), 4)


def test_of_classes_that_no_two_episodes_share_it_is_the_interval_of_the_episodes():
    values = np.random.default_rng(1).normal(size=20)
    found = one(values, [[f"{i}a", f"{i}b", f"{i}c"] for i in range(20)])
    assert found.ci95 == pytest.approx(estimate(torch.from_numpy(values)).ci95, rel=1e-12)


def test_of_all_ways_to_choose_classes_it_is_the_interval_of_the_classes_effects():
    effects = np.array([1.0, 3, 4, 8, 2, 5])
    pairs = [(a, b) for a in range(6) for b in range(6) if a != b] * 2000  # so many that no episode is noise
    found = one([effects[[a, b]].mean() for a, b in pairs], [[str(a), str(b)] for a, b in pairs])
    assert found.ci95 == pytest.approx(t.ppf(0.975, 5) * effects.std(ddof=1) / math.sqrt(6), rel=1e-3)


@pytest.mark.parametrize("members", [[["a"]] * 4, [["a", "b"], ["a", "c"], ["a", "b"], ["a", "c"]]])
def test_of_one_class_or_with_one_in_every_episode_it_is_not_known(members):
    assert math.isnan(one([0.1, 0.4, 0.3, 0.2], members).ci95)


def test_it_does_not_depend_on_the_order_of_episodes_or_on_names():
    rng = np.random.default_rng(2)
    values, classes = rng.normal(size=50), [rng.permutation(7)[:3].tolist() for _ in range(50)]
    order = rng.permutation(50)
    other = one(values[order], [[f"class {6 - c}" for c in classes[i]] for i in order])
    assert other.ci95 == pytest.approx(one(values, [[str(c) for c in names] for names in classes]).ci95, rel=1e-9)


SETS = {  # classes in the test set, ways, episodes; deviation of class effects, of those of pairs, of an episode
    "4 tasks of a table": (4, 1, 200, 1.0, 0.0, 1.0),
    "4 tasks that hardly differ": (4, 1, 200, 0.1, 0.0, 1.0),
    "7 classes, 5 ways": (7, 5, 200, 1.0, 0.0, 0.5),
    "7 classes, 5 ways, that hardly differ": (7, 5, 200, 0.2, 0.0, 1.0),
    "7 classes, 5 ways, as pairs": (7, 5, 200, 0.5, 1.0, 0.3),
    "20 classes, 5 ways, few episodes": (20, 5, 20, 1.0, 0.0, 1.0),
    "20 classes, 5 ways": (20, 5, 400, 0.4, 0.0, 1.0),
    "60 classes, 5 ways": (60, 5, 300, 1.0, 0.5, 1.0),
}


def simulated(number, ways, n, of_class, of_pair, of_episode, rng) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] of a true mean of 0, and the classes [n, ways] of the episodes: effects of classes and of their pairs."""
    effects, pairs = rng.normal(0, of_class, number), np.triu(rng.normal(0, of_pair, (number, number)), 1)
    classes = rng.random((n, number)).argsort(1)[:, :ways]
    scores = effects[classes].mean(1) + rng.normal(0, of_episode, n)
    if ways > 1:
        scores += (pairs + pairs.T)[classes[:, :, None], classes[:, None]].sum((1, 2)) / (ways * (ways - 1))
    return scores, classes


@pytest.mark.parametrize("name", SETS)
def test_the_interval_over_classes_covers_95_of_100_test_sets_or_more(name):
    rng, covered = np.random.default_rng(0), []
    for _ in range(REPEATS):
        scores, classes = simulated(*SETS[name], rng)
        covered.append(abs(scores.mean()) <= one(scores, classes.astype(str).tolist()).ci95)
    assert np.mean(covered) >= 0.93


def test_the_interval_over_episodes_says_nothing_of_other_classes():
    rng, covered = np.random.default_rng(0), []
    for _ in range(REPEATS):
        scores, _ = simulated(*SETS["4 tasks of a table"], rng)
        covered.append(abs(scores.mean()) <= estimate(torch.from_numpy(scores)).ci95)
    assert np.mean(covered) < 0.4  # which is why there is another
