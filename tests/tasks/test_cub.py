import hashlib
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from metarun.errors import DataError, MissingDataError
from metarun.tasks.cub import CUB, cub, split_of
from metarun.tasks.published import Published
from metarun.tasks.store import Prepared
from tests.tasks.pictures_of import DAMAGES, arguments, colour, left, picture
from tests.tasks.served import served

NAMES = [f"{n:03}.Bird_{n}" for n in range(1, 9)]
TINY = replace(CUB, files=(CUB.files[0]._replace(num_classes=8, num_examples=20),))


def prepared(data_root: Path, release: Published = TINY, download: bool = False) -> Prepared:
    return release.source(data_root, download).prepared()


def write(root: Path) -> Path:
    """Uneven classes: three images of the first four, two of the others."""
    for n, name in enumerate(NAMES):
        for i in range(3 if n < 4 else 2):
            picture(root / "CUB_200_2011" / "images" / name / f"{name}_{i}.jpg", colour(name, i), (90, 120))
    (root / "CUB_200_2011" / "classes.txt").write_text("not read")
    return root / "CUB_200_2011"


def pack(root: Path) -> Path:
    folder = write(root)
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(folder, folder.name)
        archive.add(folder / "classes.txt", "attributes.txt")
    folder.rename(root / "elsewhere")
    return root / "CUB_200_2011.tgz"


def test_the_folder_and_the_archive_give_the_same_images_of_uneven_classes(tmp_path):
    write(tmp_path / "a")
    pack(tmp_path / "b")
    of_folder, of_archive = (prepared(tmp_path / name) for name in "ab")
    assert of_folder.names == of_archive.names == tuple(NAMES)
    assert of_folder.counts.tolist() == [3] * 4 + [2] * 4
    assert of_folder.sha256 == of_archive.sha256
    assert of_folder.rows.shape == (20, 3, 84, 84)


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz"])
@pytest.mark.parametrize("above", [".", "birds/CUB_200_2011"])
def test_an_archive_packed_otherwise_gives_the_same_images(tmp_path, mode, above):
    folder = write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "CUB_200_2011.tgz", mode) as archive:
        archive.add(folder, above)
        archive.add(folder / "classes.txt", f"{above}/images/{NAMES[0]}/._0.jpg")  # as macOS packs beside a file
    assert prepared(tmp_path / "b").sha256 == prepared(tmp_path / "a").sha256


def test_every_second_class_trains_and_every_fourth_tests():
    assert [split_of(name) for name in NAMES[:4]] == ["train", "val", "train", "test"]
    assert Counter(split_of(f"{n:03}.Bird") for n in range(1, 201)) == {"train": 100, "val": 50, "test": 50}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_or_photo_is_an_error_that_names_it_and_nothing_is_left(tmp_path, damage):
    damage(pack(tmp_path / "a"))
    with pytest.raises(DataError, match=r"CUB_200_2011.tgz is not a whole archive.*task.download=true"):
        prepared(tmp_path / "a")
    damage(write(tmp_path / "b") / "images" / NAMES[2] / f"{NAMES[2]}_1.jpg")
    with pytest.raises(DataError, match=rf"{NAMES[2]}_1.jpg is no image that can be read"):
        prepared(tmp_path / "b")
    assert left(tmp_path / "a") == left(tmp_path / "b") == []


def test_another_number_of_photos_is_refused(tmp_path):
    (write(tmp_path) / "images" / NAMES[0] / f"{NAMES[0]}_0.jpg").unlink()
    with pytest.raises(DataError, match=r"holds 8 classes and 19 photos, and CUB has 8 and 20"):
        prepared(tmp_path)


def test_an_archive_is_downloaded_checked_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive = pack(tmp_path / "web")
    with served(tmp_path / "web") as server:
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        remote = TINY.files[0]._replace(url=f"{server.url}/{archive.name}", md5=md5)
        assert len(prepared(tmp_path / "data", replace(TINY, files=(remote,)), download=True).names) == 8


def test_without_photos_the_message_says_which_where_and_how(tmp_path):
    with pytest.raises(
        MissingDataError, match=r"needs .*CUB_200_2011.tgz .*task.download=true.*data.caltech.edu.*research"
    ):
        cub(**arguments(tmp_path, download=False))
    assert list(tmp_path.iterdir()) == []
