"""Groups of kindred images: bursts that lie in one class, and patients that lie in several."""

from pathlib import Path

import numpy as np
import pytest

from metarun.counter import uniform, uniform_at
from metarun.errors import DataError
from metarun.tasks.episodes import ClassPool
from metarun.tasks.groups import GroupedPool
from metarun.tasks.image_folder import image_folder
from metarun.tasks.sizes import EpisodeSize
from tests.tasks.pictures_of import arguments, colour, limit, picture

SIZE = EpisodeSize(2, 2, 2)
COUNTS = np.array([12, 9, 10])
FIRST = np.cumsum(COUNTS) - COUNTS
POOL = ClassPool(("a", "b", "c"), FIRST, COUNTS)
APART = np.concatenate([10 * c + np.arange(n) % 5 for c, n in enumerate(COUNTS)])  # five groups in each class
SHARED = np.concatenate([np.arange(n) % 6 for n in COUNTS])  # the same six in all


def drawn(group_of: np.ndarray, indices: object = range(2000)) -> dict[str, np.ndarray]:
    return GroupedPool.of(POOL, group_of).draw(0, "s", indices, SIZE)


@pytest.mark.parametrize("group_of", [APART, SHARED, np.random.default_rng(0).integers(0, 9, COUNTS.sum())])
def test_no_group_is_in_support_and_query_of_an_episode_whatever_classes_share(group_of):
    draw = drawn(group_of)
    for support, query in zip(group_of[draw["support"]], group_of[draw["query"]], strict=True):
        assert not {*support.ravel()} & {*query.ravel()}
    for part in ("support", "query"):
        assert np.all(FIRST[draw["classes"]][..., None] <= draw[part])
        assert np.all(draw[part] < (FIRST + COUNTS)[draw["classes"]][..., None])


def test_within_a_class_every_image_of_an_episode_is_of_another_group():
    draw = drawn(APART)
    groups = np.sort(APART[np.concatenate([draw["support"], draw["query"]], -1)], -1)
    assert (np.diff(groups, axis=-1) > 0).all()


def test_every_group_of_a_class_is_equally_likely_and_every_image_of_a_group():
    draw = drawn(APART, np.arange(20000))
    for part in ("support", "query"):
        for c in range(3):
            images = draw[part][draw["classes"] == c].ravel()
            of_group = np.bincount(APART[images] - 10 * c, minlength=5)
            expected = len(images) / 5
            assert ((of_group - expected) ** 2 / expected).sum() < limit(5)
            of_image = np.bincount(images[APART[images] == 10 * c] - FIRST[c])[::5]
            assert ((of_image - of_image.mean()) ** 2 / of_image.mean()).sum() < limit(len(of_image))


def test_an_episode_is_the_same_whatever_is_drawn_beside_it():
    for group_of in (APART, np.random.default_rng(1).integers(0, 9, COUNTS.sum())):
        together, alone = drawn(group_of, np.arange(50)), drawn(group_of, np.array([37]))
        assert all(np.array_equal(together[name][37:38], alone[name]) for name in together)


def test_numbers_at_some_places_are_those_that_are_drawn_together():
    places = np.array([[0, 9, 5], [3, 4, 10]])
    episodes = np.array([7, 2**40])
    assert np.array_equal(
        uniform_at(1, "s", episodes, places), np.take_along_axis(uniform(1, "s", episodes, 11), places, 1)
    )


def test_groups_that_cannot_be_kept_apart_are_an_error_with_the_fix():
    one_each = np.concatenate([[0, 1], [0, 2, 2, 2]])
    pool = GroupedPool.of(ClassPool(("a", "b"), np.array([0, 2]), np.array([2, 4])), one_each)
    pool.draw(0, "s", np.arange(99), EpisodeSize(2, 1, 1))
    crossed = GroupedPool.of(
        ClassPool(("a", "b", "c"), np.arange(0, 6, 2), np.full(3, 2)), np.array([0, 1, 1, 2, 2, 0])
    )
    with pytest.raises(ValueError, match=r"the classes share too many groups. Lower task.num_shots"):
        crossed.draw(0, "s", np.arange(9), EpisodeSize(3, 1, 1))


# ----------------------------------------------------------------------------------------------------- of the user's own

NAMES = ["ash", "birch", "cedar", "elm", "fir", "oak"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three bursts of two frames in each class, and their CSV file."""
    lines = ["filename,label,burst"]
    for name in NAMES:
        for i in range(6):
            file = f"{name}/burst{i // 2}/{i}.png" if name == "oak" else f"{name}/burst{i // 2}_{i}.png"
            picture(tmp_path / "photos" / file, colour(name, i))
            lines.append(f"{file},{name},{name}{i // 2}")
    (tmp_path / "photos" / "list.csv").write_text("\n".join(lines))
    return tmp_path / "photos"


def task(path: Path, **changed):
    settings = {"path": str(path), "size": 8, "channels": 3, "split": [1, 1, 1], "split_seed": 0}
    return image_folder(**arguments(path.parents[1] / "data", **{**settings, **changed}))


def test_a_column_of_a_csv_file_says_the_groups(photos):
    images = task(photos / "list.csv", group_column="burst")
    burst = np.repeat(np.arange(18), 2)
    draw = images.draw("test", range(500))
    groups = burst[np.concatenate([draw["support"], draw["query"]], -1)]
    assert (groups[..., 0] != groups[..., 1]).all()
    plain = task(photos / "list.csv")
    assert images.fingerprint().startswith(plain.fingerprint()) and images.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("pattern", [r"burst\d", r"/(burst\d)"])
def test_a_pattern_finds_the_groups_in_the_names_of_files_and_folders(photos, pattern):
    (photos / "list.csv").unlink()
    images = image_folder(
        **arguments(photos.parent / "data", path=str(photos), size=8, channels=3, split=[1, 1, 1], split_seed=0)
        | {"group_pattern": pattern}
    )
    assert sorted(name for pool in images.pools.values() for name in pool.names) == NAMES  # oak's bursts are folders
    burst = np.tile(np.repeat(np.arange(3), 2), 6)
    draw = images.draw("train", range(500))
    assert all(
        not {*s.ravel()} & {*q.ravel()} for s, q in zip(burst[draw["support"]], burst[draw["query"]], strict=True)
    )


def test_names_of_groups_that_are_nearly_equal_are_told(photos, caplog):
    caplog.set_level("INFO")
    lines = (photos / "list.csv").read_text().replace("oak0", "Oak0", 1)
    (photos / "list.csv").write_text(lines)
    task(photos / "list.csv", group_column="burst")
    assert "names of groups that are nearly equal, and taken for different ones: 'Oak0' and 'oak0'." in caplog.text


def test_copies_take_no_place_among_the_groups(photos):
    picture(photos / "ash" / "burst0_1.png", colour("ash", 0))
    group_of = task(photos / "list.csv", group_column="burst").group_of
    assert group_of.tolist() == np.repeat(np.arange(18), [1] + [2] * 17).tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_column": "brust"}, r"task.group_column is 'brust', but .* has no such column; did you mean 'burst'"),
        (
            {"group_column": "burst", "group_pattern": "x"},
            r"task.group_column names a column of a CSV file.*never both",
        ),
        ({"group_pattern": "("}, r"task.group_pattern is '\(', which is no regular expression"),
        ({"group_pattern": "ash"}, r"finds no group in birch/.* \(and 25 more\)"),
        ({"group_column": "burst", "num_queries": 3}, r"has only 3 groups, and too few have 5 others"),
    ],
)
def test_groups_that_do_not_fit_are_an_error(photos, changed, message):
    with pytest.raises((DataError, ValueError), match=message):
        task(photos / "list.csv", **changed)


def test_a_line_of_a_csv_file_without_a_group_is_refused(photos):
    with (photos / "list.csv").open("a") as file:
        file.write("\nash/x.png,ash,")
    with pytest.raises(DataError, match=r"line 38 has no burst. Say which group"):
        task(photos / "list.csv", group_column="burst")


def test_a_column_for_the_groups_of_a_folder_is_refused(photos):
    with pytest.raises(ValueError, match=r"For a folder set task.group_pattern instead"):
        task(photos / ".", group_column="burst")
