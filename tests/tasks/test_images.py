"""N ways, K shots, Q queries, B episodes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.counter import uniform
from metarun.errors import DataError, DataProblems, MissingDataError
from metarun.tasks.episodes import ClassPool, EpisodeSize, check_pools, draw_examples
from metarun.tasks.images import Mapped, OnDevice, gather, image_batch, pixels_on
from metarun.tasks.sizes import sizes_by_split
from metarun.tasks.splits import SPLITS
from metarun.tasks.store import ClassRows, Prepared, Source, exclusive, load_prepared

SHAPE = (2, 3)
CONTENT = {
    "a": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
    "b": 200 + np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
}
POOL = ClassPool(("a", "b", "c", "d"), np.array([0, 5, 12, 15]), np.array([5, 7, 3, 4]))


def gone() -> str:
    return "the archive is gone."


def content() -> ClassRows:
    yield from CONTENT.items()


def prepare(folder: Path) -> Prepared:
    return Source(folder, SHAPE, content).prepared()


def must_not_be_called() -> ClassRows:
    raise AssertionError("read again")
    yield


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.name != f".{folder.name}.lock")


# ---------------------------------------------------------------------------------------------------- prepared arrays


def test_a_prepared_set_is_what_was_read_class_after_class(tmp_path):
    images, names, counts, _, _ = prepare(tmp_path / "set")
    assert np.array_equal(images, np.concatenate(list(CONTENT.values())))
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert (names, counts.tolist()) == (("a", "b"), [4, 2])


def test_the_digest_is_the_sha256_of_the_bytes_of_the_array(tmp_path):
    found = prepare(tmp_path / "set")
    assert found.sha256 == hashlib.sha256(found.rows.tobytes()).hexdigest()


def test_a_long_preparation_says_how_far_it_is(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    prepare(tmp_path / "quick")
    monkeypatch.setattr("metarun.tasks.store.SIGN_OF_LIFE", -1.0)
    prepare(tmp_path / "long")
    said = [record.getMessage() for record in caplog.records if "so far" in record.getMessage()]
    assert said == ["Prepared so far: classes 1, examples 4", "Prepared so far: classes 2, examples 6"]


def test_a_prepared_set_is_read_from_disk_the_second_time(tmp_path):
    first = prepare(tmp_path / "set")
    second = Source(tmp_path / "set", SHAPE, must_not_be_called, gone).prepared()
    assert np.array_equal(first.rows, second.rows)
    assert first[1] == second[1]
    assert first.sha256 == second.sha256


def test_a_missing_source_is_reported_and_nothing_is_created(tmp_path):
    with pytest.raises(MissingDataError, match="the archive is gone"):
        Source(tmp_path / "typo" / "set", SHAPE, content, gone).prepared()
    assert list(tmp_path.iterdir()) == []


def truncate(folder: Path) -> None:
    with open(folder / "images.npy", "r+b") as file:
        file.truncate(140)


def lengthen(folder: Path) -> None:
    with open(folder / "images.npy", "ab") as file:
        file.write(b"x")


def empty_array(folder: Path) -> None:
    (folder / "images.npy").write_bytes(b"")


def cut_index(folder: Path) -> None:
    (folder / "index.json").write_text((folder / "index.json").read_text()[:30])


def remove_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def edit_index(folder: Path, **changed: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changed}))


DAMAGES = [
    truncate,
    lengthen,
    empty_array,
    cut_index,
    remove_index,
    partial(edit_index, format=0),
    partial(edit_index, classes=[["a", 4], ["b", 3]]),
    partial(edit_index, classes=[["a"]]),
    partial(edit_index, classes=[]),
    partial(edit_index, classes=None),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_prepared_again(tmp_path, damage):
    digest = prepare(tmp_path / "set").sha256
    damage(tmp_path / "set")
    with pytest.raises(DataError):
        load_prepared(tmp_path / "set", SHAPE)
    assert prepare(tmp_path / "set").sha256 == digest
    assert left_behind(tmp_path / "set") == ["set"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_without_its_source_is_an_error_that_names_both(tmp_path, damage):
    prepare(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(DataError, match=r"set.*cannot be prepared again: the archive is gone"):
        Source(tmp_path / "set", SHAPE, content, gone).prepared()


def test_images_of_another_shape_are_not_accepted(tmp_path):
    prepare(tmp_path / "set")
    with pytest.raises(DataError, match="its index demands"):
        load_prepared(tmp_path / "set", (3, 3))


@pytest.mark.parametrize("error", [DataError("foreign"), KeyboardInterrupt(), RuntimeError("bug")])
def test_nothing_is_left_when_reading_fails_half_way(tmp_path, error):
    def breaks() -> ClassRows:
        yield "a", CONTENT["a"]
        raise error

    with pytest.raises(type(error)):
        Source(tmp_path / "set", SHAPE, breaks).prepared()
    assert left_behind(tmp_path / "set") == []


def test_a_full_disk_is_a_data_error_and_nothing_is_left(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits, the stand-in for a full disk, are POSIX")

    def large() -> ClassRows:
        for name in "abcdef":
            yield name, np.zeros((50_000, *SHAPE), dtype=np.uint8)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(DataError, match=r"set.*Free some space"):
            Source(tmp_path / "set", SHAPE, large).prepared()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_behind(tmp_path / "set") == []


def test_a_data_root_that_cannot_be_written_is_a_data_error_that_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")  # a file in the place of the folder: not even root can write below it
    with pytest.raises(DataError, match=r"could not write.*data_root \(or METARUN_DATA\)"):
        prepare(tmp_path / "file" / "set")


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".set.123.partial").mkdir()
    prepare(tmp_path / "set")
    assert left_behind(tmp_path / "set") == ["set"]


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


PREPARE_SLOWLY = """
import sys, time
from pathlib import Path
from tests.tasks.test_images import CONTENT, SHAPE
from metarun.tasks.store import Source

def read():
    with open(sys.argv[2], "a") as log:
        log.write("read ")
    time.sleep(0.5)
    yield from CONTENT.items()

print(Source(Path(sys.argv[1]), SHAPE, read).prepared().sha256)
"""


def test_of_two_processes_one_prepares_and_both_get_the_result(tmp_path):
    processes = [run_python(PREPARE_SLOWLY, tmp_path / "set", tmp_path / "log") for _ in range(2)]
    digests = {process.communicate(timeout=240)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert digests == {load_prepared(tmp_path / "set", SHAPE).sha256}
    assert (tmp_path / "log").read_text() == "read "


HOLD_LOCK = """
import sys, time
from pathlib import Path
from metarun.tasks.store import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="the lock is POSIX only")
def test_a_killed_holder_frees_the_lock(tmp_path):
    holder = run_python(HOLD_LOCK, tmp_path / "lock")
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    start = time.monotonic()
    with exclusive(tmp_path / "lock"):
        assert time.monotonic() - start < 5


# ----------------------------------------------------------------------------------------------------------- episodes


def draw(size: EpisodeSize, num_episodes: int, pool: ClassPool = POOL) -> dict[str, np.ndarray]:
    ways, shots, queries = size
    return draw_examples(uniform(0, "s", np.arange(num_episodes), ways * (1 + shots + queries)), pool, size)


def limit(cells: int) -> float:
    """About five standard deviations above the mean of a chi-square statistic with cells - 1 degrees of freedom."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def test_support_and_query_are_disjoint_images_of_the_drawn_class():
    drawn = draw(EpisodeSize(3, 1, 2), 3000)
    images = np.concatenate([drawn["support"], drawn["query"]], axis=-1)  # [B, N, K + Q]
    assert all(len(set(task.ravel())) == 9 for task in images)
    first, count = POOL.first[drawn["classes"]][..., None], POOL.count[drawn["classes"]][..., None]
    assert np.all((first <= images) & (images < first + count))


def test_every_assignment_of_classes_to_labels_is_equally_likely():
    classes = draw(EpisodeSize(4, 1, 1), 24000)["classes"]
    _, counts = np.unique(classes, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < limit(24)


def test_every_image_of_a_class_is_equally_likely_whatever_the_size_of_the_class():
    drawn = draw(EpisodeSize(1, 1, 1), 40000)
    for c in range(4):
        for key in ("support", "query"):
            ranks = drawn[key][drawn["classes"] == c].ravel() - POOL.first[c]
            counts = np.bincount(ranks, minlength=POOL.count[c])
            expected = len(ranks) / POOL.count[c]
            assert ((counts - expected) ** 2 / expected).sum() < limit(POOL.count[c])


def test_a_repeated_pool_offers_each_class_under_consecutive_places():
    pool = POOL.repeated(2)
    drawn = draw(EpisodeSize(8, 1, 2), 50, pool)
    assert np.array_equal(pool.first[drawn["classes"]], POOL.first[drawn["classes"] // 2])
    assert np.array_equal(np.sort(drawn["classes"]), np.tile(np.arange(8), (50, 1)))


def test_a_pool_of_some_classes_knows_where_their_images_are(tmp_path):
    found = prepare(tmp_path / "set")
    pool = ClassPool.of(found.names, found.counts, [False, True])
    assert (pool.names, pool.first.tolist(), pool.count.tolist()) == (("b",), [4], [2])


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 3, 4, 4)])
def test_gathered_rows_equal_rot90_of_their_images(shape):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=shape, dtype=np.uint8)
    images, turns = rng.integers(0, 5, size=40), rng.integers(0, 4, size=40)
    expected = [np.rot90(pixels[i], k, axes=(-2, -1)) for i, k in zip(images, turns, strict=True)]
    assert np.array_equal(gather(OnDevice(torch.from_numpy(pixels)), images, turns).numpy(), expected)


def test_batches_stand_in_the_draws_order_and_are_scaled_to_the_unit_interval():
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8)[:, None, None, None]
    images = np.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]]])  # [B, N, K]
    draw = {"support": images, "support_order": np.array([[0, 1, 2, 3], [3, 0, 2, 1]])}
    x, y, _ = image_batch(OnDevice(pixels), draw, "support", np.zeros((2, 2), dtype=np.int64), torch.float64)
    assert x.flatten(1).tolist() == [[0, 51 / 255, 102 / 255, 1], [0, 1, 51 / 255, 102 / 255]]
    assert x.shape == (2, 4, 1, 1, 1)
    assert y.tolist() == [[0, 0, 1, 1], [1, 0, 1, 0]]
    assert y.dtype == torch.int64


def test_an_image_is_turned_as_its_class_is_wherever_it_stands():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    draw = {"query": np.zeros((1, 2, 2), dtype=np.int64), "query_order": np.array([[2, 0, 3, 1]])}
    x, y, _ = image_batch(OnDevice(image), draw, "query", np.array([[0, 1]]), torch.float64)
    for row, label in zip(x[0], y[0].tolist(), strict=True):
        assert torch.equal(row, image[0].rot90(label, (-2, -1)).double() / 255)


def test_mapped_images_are_those_asked_for_in_their_order(tmp_path):
    found = prepare(tmp_path / "set")
    asked = np.array([5, 0, 3, 0, 5])
    mapped = pixels_on(torch.device("cpu"), found.rows)
    assert isinstance(mapped, Mapped)
    assert np.array_equal(mapped.take(asked).numpy(), found.rows[asked])


def test_verifying_reads_every_byte(tmp_path):
    prepare(tmp_path / "set").verified()
    content = bytearray((tmp_path / "set" / "images.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "set" / "images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"set has changed since it was prepared.*Delete the folder"):
        prepare(tmp_path / "set").verified()


def test_a_source_says_its_state_and_prepares_nothing(tmp_path):
    assert Source(tmp_path / "set", SHAPE, must_not_be_called).state() == "raw files found"
    assert Source(tmp_path / "set", SHAPE, must_not_be_called, gone).state() == "absent"
    assert list(tmp_path.iterdir()) == []
    prepare(tmp_path / "set")
    assert Source(tmp_path / "set", SHAPE, must_not_be_called, gone).state() == "ready"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_not_ready(tmp_path, damage):
    prepare(tmp_path / "set")
    damage(tmp_path / "set")
    assert Source(tmp_path / "set", SHAPE, content).state() == "raw files found"
    assert Source(tmp_path / "set", SHAPE, content, gone).state() == "absent"


def check(size: EpisodeSize, pool: ClassPool, split: str, test: EpisodeSize | None = None) -> None:
    """Of one split, where the test episodes have the size ``test``, or the same."""
    check_pools({split: pool}, {split: size, "test": test or size})


def test_sizes_that_a_pool_cannot_fill_are_errors_that_name_key_value_and_bound():
    check(EpisodeSize(4, 1, 2), POOL, "val")
    with pytest.raises(ValueError, match=r"task.num_ways is 5.*'val' has only 4 classes.*at most 4"):
        check(EpisodeSize(5, 1, 1), POOL, "val")
    with pytest.raises(ValueError, match=r"task.train_num_shots \+ task.train_num_queries is 4.*'c'.*only 3 examples"):
        check(EpisodeSize(2, 1, 3), POOL, "train", test=EpisodeSize(2, 1, 1))


def test_one_way_is_refused_for_every_answer_would_be_right():
    with pytest.raises(ValueError, match=r"task.train_num_ways is 1, but with one class .*Set it to 2 or more"):
        check(EpisodeSize(1, 1, 1), POOL, "train", test=EpisodeSize(2, 1, 1))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], r"only 0 classes. An episode takes 2 or more: the split 'val' needs more classes\.$"),
        ([3], r"only 1 class. An episode takes 2 or more: the split 'val' needs more classes\.$"),
        ([3, 1], r"only 1 example. An episode takes 2 or more: the class needs more examples\.$"),
    ],
)
def test_for_a_pool_too_small_for_any_episode_no_size_is_proposed_that_fails_too(counts, message):
    names = tuple("abc"[: len(counts)])
    pool = ClassPool(names, np.zeros(len(counts), dtype=np.int64), np.array(counts, dtype=np.int64))
    with pytest.raises(ValueError, match=message):
        check(EpisodeSize(2, 1, 1), pool, "val")


def test_every_class_that_is_too_small_is_named_and_how_many_classes_all_splits_need():
    pool = ClassPool(tuple("abc"), np.array([0, 9, 12]), np.array([9, 3, 4]))
    with pytest.raises(DataProblems) as raised:
        check_pools(dict.fromkeys(SPLITS, pool), dict.fromkeys(SPLITS, EpisodeSize(5, 1, 4)))
    problems = raised.value.problems
    assert problems[0].startswith(
        "3 splits x 5 ways need 15 classes, there are 9: lower task.num_ways to 3 or add classes"
    )
    assert "'task.split={train:3,val:3,test:3}'" in problems[0]
    assert [text[:21] for text in problems[1:4]] == ["task.num_ways is 5, b"] * 3
    assert problems[4] == (
        "task.num_shots + task.num_queries is 5, but the class 'b' of the split 'train' has only 3 examples, and too few "
        "have 5 others: 'b' 3, 'b' 3, 'c' 4, 'c' 4, 'c' 4. Lower their sum to at most 3."
    )


@pytest.mark.parametrize("size", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_sizes_below_one_are_errors_that_name_the_key(size):
    key = EpisodeSize._fields[[value < 1 for value in size].index(True)]
    with pytest.raises(ValueError, match=f"task.{key} is {min(size)}"):
        sizes_by_split(EpisodeSize, size, None, None, None)
