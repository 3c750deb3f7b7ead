"""Where an example stands in its episode says nothing about its class."""

import numpy as np
import pytest

from metarun.tasks.episodes import ordered, rows_of
from tests.composing import experiment

PUBLISHED = ("omniglot", "omniglot_lake", "cifar_fs", "fc100", "clinc150", "banking77")


@pytest.mark.parametrize(
    "name", ["logistic_regression", "mlp_problems", *(pytest.param(n, marks=pytest.mark.data) for n in PUBLISHED)]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_class_is_equally_often_at_every_place_of_support_and_query(name, split, request):
    where = [f"data_root={request.getfixturevalue('data_root')}"] * (name in PUBLISHED)
    task = experiment(f"task={name}", "base_learner.hidden=[8]", *where).task
    draw = task.draw(split, range(20 if name == "omniglot_lake" and split == "test" else 400))
    episodes = task.episodes(draw)
    for batch in episodes[:2]:
        labels = batch.y.numpy()
        assert len({row.tobytes() for row in labels}) > 1
        for place in labels.T:
            counts = np.bincount(place, minlength=labels.max() + 1)
            expected = len(labels) / len(counts)
            assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)  # five standard deviations


def test_an_order_belongs_to_the_episode_and_not_to_its_batch():
    draw = {"support": np.arange(3 * 2 * 2).reshape(3, 2, 2), "query": np.arange(3 * 2 * 5).reshape(3, 2, 5)}
    together = ordered(draw, 0, "s", [7, 2**33, 0])
    alone = ordered({name: part[1:2] for name, part in draw.items()}, 0, "s", [2**33])
    for name, values in alone.items():
        assert np.array_equal(values, together[name][1:2])


def test_the_rows_of_a_part_are_its_examples_each_once_with_its_class():
    draw = ordered({"support": np.arange(12).reshape(2, 3, 2), "query": np.arange(24).reshape(2, 3, 4)}, 1, "s", [0, 1])
    for part, shots in (("support", 2), ("query", 4)):
        numbers, labels = rows_of(draw, part)
        assert [sorted(row) for row in numbers.tolist()] == [row.ravel().tolist() for row in draw[part]]
        assert np.array_equal(labels, numbers % (3 * shots) // shots)
