"""N ways, K shots, Q queries, B episodes. The releases of the tests have the names of CIFAR-100 and two images of each."""

import io
import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.errors import DataError, MissingDataError
from metarun.evaluation.episodes import manifest
from metarun.tasks import cifar
from metarun.tasks.cifar import CIFAR100, cifar_fs, fc100
from metarun.tasks.store import Prepared
from tests.tasks.pictures_of import DAMAGES, arguments, left, limit

TINY = replace(CIFAR100, files=(CIFAR100.files[0]._replace(num_examples=200),))


def prepared(data_root: Path) -> Prepared:
    return TINY.source(data_root, download=False).prepared()


def names() -> list[tuple[str, str]]:
    """(superclass, class) of 100: the listed ones under their names, the rest under others; five to a superclass."""
    classes = [name for listed in cifar.CIFAR_FS.values() for name in listed.split()]
    classes += [f"class{i:02}" for i in range(100 - len(classes))]
    superclasses = [name for listed in cifar.FC100.values() for name in listed.split()]
    superclasses += [f"superclass{i:02}" for i in range(20 - len(superclasses))]
    return sorted((superclasses[i % 20], name) for i, name in enumerate(classes))


def write(folder: Path, order: int = 0, changed: dict[bytes, object] | None = None) -> Path:
    """The three pickles; ``order`` shuffles the rows."""
    folder.mkdir(parents=True)
    fine = sorted(name for _, name in names())
    coarse = sorted({name for name, _ in names()})
    of = {name: coarse.index(superclass) for superclass, name in names()}
    meta = {b"fine_label_names": [n.encode() for n in fine], b"coarse_label_names": [n.encode() for n in coarse]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    for part in ("train", "test"):
        rows = np.random.default_rng(order).permutation(100)
        record = {
            b"data": np.stack([pixels(part, fine[c]) for c in rows]),
            b"fine_labels": rows.tolist(),
            b"coarse_labels": [of[fine[c]] for c in rows],
            b"filenames": [f"{part}_{fine[c]}.png".encode() for c in rows],
            **(changed or {}),
        }
        (folder / part).write_bytes(pickle.dumps(record, protocol=2))
    return folder


def pixels(part: str, name: str) -> np.ndarray:
    return np.random.default_rng([*f"{part}{name}".encode()]).integers(0, 256, 3072).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path / "cifar-100-python")
    return tmp_path


def pack(root: Path) -> Path:
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-100-python", "cifar-100-python")
    for path in (root / "cifar-100-python").iterdir():
        path.unlink()
    (root / "cifar-100-python").rmdir()
    return root / "cifar-100-python.tar.gz"


def test_images_are_those_of_the_pickles_by_class_and_file_name(root):
    found = prepared(root)
    assert list(found.names) == sorted("/".join(pair) for pair in names())
    for c, name in enumerate(found.names):
        expected = [pixels(part, name.split("/")[1]).reshape(3, 32, 32) for part in ("test", "train")]
        assert np.array_equal(found.rows[2 * c : 2 * c + 2], expected)


def test_the_archive_and_rows_in_another_order_give_the_same_images(root, tmp_path):
    digests = {prepared(root).sha256}
    write(tmp_path / "other" / "cifar-100-python", order=1)
    pack(tmp_path / "other")
    digests.add(prepared(tmp_path / "other").sha256)
    assert len(digests) == 1


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("above", ["", ".", "downloads/cifar-100-python"])
def test_an_archive_packed_otherwise_gives_the_same_images(root, tmp_path, mode, above):
    (tmp_path / "other").mkdir()
    with tarfile.open(tmp_path / "other" / "cifar-100-python.tar.gz", mode) as archive:
        archive.add(root / "cifar-100-python", above or "cifar-100-python")
        archive.add(root / "cifar-100-python" / "meta", f"{above}/._train")  # as macOS packs beside a file
    assert prepared(tmp_path / "other").sha256 == prepared(root).sha256


@pytest.mark.parametrize("mode", ["bz2", "xz"])
def test_a_damaged_archive_of_another_compression_is_refused_too(root, mode):
    with tarfile.open(root / "packed", f"w:{mode}") as archive:
        archive.add(root / "cifar-100-python", "cifar-100-python")
    content = bytearray((root / "packed").read_bytes())
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    pack(root).write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-100-python.* is not CIFAR-100 as published"):
        prepared(root)


@pytest.mark.parametrize(("task", "sizes"), [(cifar_fs, (64, 16, 20)), (fc100, (60, 20, 20))])
def test_the_splits_are_disjoint_and_have_the_published_sizes(root, task, sizes):
    prepared(root)
    pools = task(**arguments(root, download=False)).pools
    assert tuple(len(pools[split].names) for split in ("train", "val", "test")) == sizes
    assert len({name for pool in pools.values() for name in pool.names}) == 100
    if task is fc100:
        supers = [{name.split("/")[0] for name in pool.names} for pool in pools.values()]
        assert [len(names) for names in supers] == [12, 4, 4] and not supers[0] & supers[1] | supers[1] & supers[2]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["meta", "train", "cifar-100-python.tar.gz"])
def test_damaged_files_are_an_error_that_says_what_to_do_and_nothing_is_left(root, part, damage):
    damage(pack(root) if part.endswith("gz") else root / "cifar-100-python" / part)
    with pytest.raises(DataError, match=r"cifar-100-python.* is not CIFAR-100 as published.*task.download=true"):
        prepared(root)
    assert left(root) == []


@pytest.mark.parametrize(
    "changed",
    [
        {b"data": np.zeros((100, 3071), dtype=np.uint8)},
        {b"data": np.zeros((100, 3072))},
        {b"fine_labels": [0] * 100},
        {b"fine_labels": list(range(99))},
        {b"filenames": None},
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, changed):
    write(tmp_path / "cifar-100-python", changed=changed)
    with pytest.raises(DataError, match=r"is not CIFAR-100 as published"):
        prepared(tmp_path)
    assert left(tmp_path) == []


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(root):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (root / "attacked",))

    (root / "cifar-100-python" / "train").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(DataError, match=r"asks for .*, but only numpy arrays are read"):
        prepared(root)
    assert not (root / "attacked").exists()


def test_without_files_the_message_says_which_where_and_how(tmp_path):
    message = r"needs .*cifar-100-python.tar.gz .*task.download=true.*https://www.cs.toronto.edu.*METARUN_DATA"
    with pytest.raises(MissingDataError, match=message):
        cifar_fs(**arguments(tmp_path, download=False))


def test_pickles_of_every_numpy_and_protocol_are_read():
    from metarun.tasks.pickles import load_arrays

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps({"a": np.arange(6).reshape(2, 3), "b": [np.zeros(2, dtype=np.uint8)]}, protocol=protocol)
        for name in (b"numpy.core", b"numpy._core"):
            written = content
            if protocol < 4:  # later protocols frame their strings with lengths
                written = content.replace(b"numpy._core", name).replace(b"numpy.core", name)
            loaded = load_arrays(io.BytesIO(written))
            first = loaded.get("a", loaded.get(b"a"))
            assert first.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.data
def test_the_real_set_has_the_published_means_and_every_class_is_drawn_alike(data_root):
    task = cifar_fs(**arguments(data_root, download=False, num_ways=5, num_queries=15))
    means = task.images.rows[::7].mean((0, 2, 3)) / 255
    assert means == pytest.approx([0.507, 0.487, 0.441], abs=0.005)  # published for the training part
    classes = Counter(task.draw("test", range(4000))["classes"].ravel().tolist())
    assert sum((n - 1000) ** 2 / 1000 for n in classes.values()) < limit(20)
    assert len(classes) == 20


@pytest.mark.data
def test_the_manifest_of_the_published_protocol_is_a_known_hash(data_root):
    task = cifar_fs(**arguments(data_root, download=False, num_ways=5, num_shots=5, num_queries=15))
    assert manifest(task, "test", 1000) == "480b7fbb2caf471272cf7e0f21907db92cf274dd9671c1ff403741da34303717"
    assert task.sample("test", [0]).support.x.dtype == torch.float64
