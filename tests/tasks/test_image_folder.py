"""N ways, K shots, Q queries, B episodes. A class of the tests is a name, an image of it one colour."""

import hashlib
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.errors import DataError, MissingDataError
from metarun.evaluation.episodes import manifest
from metarun.tasks.image_classes import ImageClasses
from metarun.tasks.image_files import decode
from metarun.tasks.image_folder import image_folder
from tests.tasks.pictures_of import DAMAGES, arguments, colour, left, limit, picture

CLASSES = {"cats/tabby": 3, "cats/lynx": 4, "dog": 2, "Emu": 5, "fox": 3, "gnu": 3}  # uneven
LISTS = {"train": ["dog", "fox"], "val": ["Emu", "gnu"], "test": ["cats/lynx", "cats/tabby"]}

# of the choices, which no arithmetic of a device touches: a constant of the project, not of a machine
MANIFEST = "5ed0f217dcf7d2b7273eef51f2680c4a592e7afe2c26a8f8b99ea93886378973"


def write(root: Path, classes: dict[str, int] = CLASSES, ending: str = "png") -> Path:
    for name, count in classes.items():
        for i in range(count):
            picture(root / name / f"{i}.{ending}", colour(name, i))
    return root


@pytest.fixture
def photos(tmp_path) -> Path:
    return write(tmp_path / "photos")


def task(photos: Path, **changed) -> ImageClasses:
    settings = {"path": str(photos), "size": 8, "channels": 3, "split": LISTS, "split_seed": 0}
    return image_folder(**arguments(photos.parent / "data", **{**settings, **changed}))


def shown(x: torch.Tensor) -> tuple[int, ...]:
    """The colour of an image [C, H, W] of one colour."""
    values = (255 * x).round().int().flatten(1)
    assert (values == values[:, :1]).all()
    return tuple(values[:, 0].tolist())


# ----------------------------------------------------------------------------------------------------------- episodes


def test_every_example_is_an_image_of_its_class_and_support_and_query_are_disjoint(photos):
    images = task(photos)
    draw = images.draw("test", range(30))
    episodes = images.episodes(draw)
    for b in range(30):
        seen = [*map(shown, episodes.support.x[b]), *map(shown, episodes.query.x[b])]
        labels = [*episodes.support.y[b].tolist(), *episodes.query.y[b].tolist()]
        for n, c in enumerate(draw["classes"][b]):
            name = images.pools["test"].names[c]
            of_class = [image for image, label in zip(seen, labels, strict=True) if label == n]
            assert len(of_class) == 2 and {*of_class} <= {colour(name, i) for i in range(CLASSES[name])}
        assert len({*seen}) == 4
    assert torch.equal(episodes.classes, torch.from_numpy(draw["classes"]))


def test_the_splits_are_as_listed_and_disjoint(photos):
    assert {split: sorted(pool.names) for split, pool in task(photos).pools.items()} == LISTS


def test_shares_split_every_class_once_and_another_seed_splits_otherwise(photos):
    write(photos, {f"class{i:02}": 2 for i in range(24)})
    pools = [task(photos, split=[0.5, 0.2, 0.3], split_seed=seed).pools for seed in (0, 0, 1)]
    names = [{split: pool.names for split, pool in of.items()} for of in pools]
    assert [len(names[0][split]) for split in ("train", "val", "test")] == [15, 6, 9]
    assert len({*sum(names[0].values(), ())}) == 30
    assert names[0] == names[1] != names[2]


def test_every_class_is_equally_often_at_every_label_though_they_are_uneven(photos):
    lists = {"train": [*CLASSES], "val": ["a", "b"], "test": ["c", "d"]}
    write(photos, dict.fromkeys("abcd", 2))
    classes = task(photos, split=lists).draw("train", range(6000))["classes"]
    for n in range(2):
        counts = np.bincount(classes[:, n], minlength=6)
        assert ((counts - 1000) ** 2 / 1000).sum() < limit(6)
    assert (classes[:, 0] > classes[:, 1]).mean() == pytest.approx(0.5, abs=0.04)  # labels are shuffled


def test_the_manifest_of_given_settings_is_a_known_hash(photos):
    assert manifest(task(photos), "test", 20) == MANIFEST


def test_a_class_too_small_and_too_few_classes_are_errors_that_name_them(photos):
    with pytest.raises(
        ValueError, match=r"num_queries is 3, but the class 'dog' of the split 'train' has only 2 examples"
    ):
        task(photos, num_queries=2)
    with pytest.raises(ValueError, match=r"task.num_ways is 3, but the split 'train' has only 2 classes"):
        task(photos, num_ways=3)


# ---------------------------------------------------------------------------------------------------------- where from


def test_folders_may_say_the_split(tmp_path):
    for split, names in LISTS.items():
        write(tmp_path / "photos" / split, dict.fromkeys(names, 2))
    assert {s: sorted(pool.names) for s, pool in task(tmp_path / "photos", split="given").pools.items()} == LISTS


def csv_of(photos: Path, lines: list[str], header: str = "filename,label,split") -> Path:
    path = photos / "list.csv"
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    return path


def lines_of(lists: dict[str, list[str]]) -> list[str]:
    return [f"{name}/{i}.png,{name},{split}" for split, names in lists.items() for name in names for i in range(2)]


def test_a_csv_file_may_say_the_class_and_the_split(photos):
    csv_file = csv_of(photos, lines_of(LISTS))
    images = image_folder(
        **arguments(photos.parent, path=str(csv_file), size=8, channels=1, split="given", split_seed=0)
    )
    assert {s: sorted(pool.names) for s, pool in images.pools.items()} == LISTS
    assert {*images.pools["train"].count} == {2}
    assert images.spec.input_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (
            ["dog/0.png,dog,train"],
            "file,class,split",
            "must name the columns filename and label, but it is 'file,class",
        ),
        (["dog/0.png,,train"], "filename,label,split", r"list.csv, line 2 has no filename or no label"),
        (
            ["dog/9.png,dog,train"],
            "filename,label,split",
            r"list.csv, line 2 names .*9.png, which cannot be read: No such",
        ),
        (["dog/0.png,dog,train"] * 2, "filename,label,split", r"0.png is named twice .*line 2 and .*line 3"),
        (
            ["dog/0.png,dog,train", "dog/1.png,dog,test"],
            "filename,label,split",
            "'dog' is in the split 'train' .*line 2",
        ),
        ([], "filename,label,split", r"holds no images"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_an_error_that_says_where(photos, lines, header, message):
    with pytest.raises(DataError, match=message):
        task(csv_of(photos, lines, header), split="given")
    assert left(photos.parent / "data") == []


def test_what_lies_elsewhere_or_nowhere_is_an_error_that_says_what_to_do(tmp_path, photos):
    with pytest.raises(
        MissingDataError, match=r"task.path .*typo does not exist. Name a folder with a folder of images"
    ):
        task(tmp_path / "typo")
    (tmp_path / "empty" / "dog").mkdir(parents=True)
    with pytest.raises(DataError, match=r"task.path .*empty holds no images \(files that end in .png"):
        task(tmp_path / "empty")
    picture(photos / "stray.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"stray.png lies in no class: put the images of each class into a folder"):
        task(photos)


def test_a_class_of_images_is_one_in_both_unicode_forms_of_its_name(tmp_path):
    composed, apart = "thé", unicodedata.normalize("NFD", "thé")
    photos = write(tmp_path / "photos", {**CLASSES, apart: 4})
    assert "thé" in task(photos, split={**LISTS, "test": [composed, "cats/lynx"]}).pools["test"].names
    lines = [f"{apart}/{i}.png,{(composed, apart)[i % 2]},test" for i in range(4)]
    table = csv_of(photos, [*lines_of(LISTS), *lines])
    images = task(photos, path=str(table), split="given")
    assert dict(zip(images.images.names, images.images.counts, strict=True))["thé"] == 4
    assert [*images.reader().examples(table, labelled=False).labels].count("thé") == 4


def test_classes_that_differ_by_case_and_classes_in_two_splits_are_refused(tmp_path):
    write(tmp_path / "a", {"Dog": 2, "dog": 2})
    with pytest.raises(DataError, match=r"classes 'Dog' .* and 'dog' .* differ by case or blanks alone"):
        task(tmp_path / "a")
    write(tmp_path / "c", {"big oak": 2, "big  oak": 2})
    with pytest.raises(DataError, match=r"'big  oak' .* and 'big oak' .* differ by case or blanks alone"):
        task(tmp_path / "c")
    write(tmp_path / "b" / "train", {"dog": 2})
    write(tmp_path / "b" / "test", {"Dog": 2})
    with pytest.raises(DataError, match=r"class 'dog' is in the split 'test' .*and in 'train'.*must not share a class"):
        task(tmp_path / "b", split="given")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("given", r"does not say which of train, val, test the class"),
        ([0.5, 0.5], r"task.split is \[0.5, 0.5\]; give three shares above 0"),
        ([1, 0, 0], r"give three shares above 0"),
        ({"train": ["dog"]}, r"must do so for train, val, test"),
        ({**LISTS, "train": ["dgo"]}, r"task.split.train names 'dgo', which is no class; did you mean 'dog'"),
        ({**LISTS, "train": ["dog", "gnu"]}, r"lists the class 'gnu' twice; splits must not share a class"),
    ],
)
def test_a_split_that_does_not_fit_is_an_error(tmp_path, split, message):
    photos = write(tmp_path / "photos" / "photos").parent if split == "given" else write(tmp_path / "photos")
    with pytest.raises(ValueError, match=message):
        task(photos, split=split)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_whole_image_is_an_error_that_names_it_and_nothing_is_left(photos, damage):
    damage(photos / "fox" / "1.png")
    with pytest.raises(DataError, match=r"fox/1.png is no image that can be read: .* Replace or delete it"):
        task(photos)
    assert left(photos.parent / "data") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_an_error_that_names_it(photos):
    (photos / "fox" / "1.png").chmod(0)
    with pytest.raises(DataError, match=r"fox/1.png is no image that can be read: .*Permission denied"):
        task(photos)


def test_what_was_prepared_is_used_again_until_a_file_or_a_setting_changes(photos):
    task(photos)
    assert task(photos).images.sha256 == task(photos, num_queries=1, seed=3).images.sha256
    assert len(left(photos.parent / "data")) == 1
    task(photos, size=9)
    picture(photos / "fox" / "1.png", (1, 2, 3))
    assert (1, 2, 3) in {tuple(image[:, 0, 0]) for image in task(photos).images.rows}
    assert len(left(photos.parent / "data")) == 3


def test_folders_and_files_that_are_alike_from_outside_are_told_apart(photos):
    """Bitmaps have one size whatever they show; copies and restored files have the times of others."""
    files = [photos / "fox" / "1.bmp", photos / "fox" / "2.bmp"]
    for shade, file in zip(((1, 2, 3), (4, 5, 6)), files, strict=True):
        picture(file, shade)
        os.utime(file, ns=(10**18, 10**18))
    other = Path(shutil.copytree(photos, photos.parent / "other"))
    picture(other / "fox" / "1.bmp", (7, 8, 9))
    os.utime(other / "fox" / "1.bmp", ns=(10**18, 10**18))

    def colours(folder: Path) -> list[tuple]:
        return [tuple(image[:, 0, 0]) for image in task(folder).images.rows]

    before = colours(photos)
    assert (7, 8, 9) in colours(other) and (7, 8, 9) not in before
    files[0].rename(photos / "kept")
    files[1].rename(files[0])
    (photos / "kept").rename(files[1])
    at = before.index((1, 2, 3)), before.index((4, 5, 6))
    assert [colours(photos)[i] for i in at] == [(4, 5, 6), (1, 2, 3)]


# ----------------------------------------------------------------------------------------------------------- decoding


def decoded(path: Path, channels: int = 3, size: int = 4) -> np.ndarray:
    return decode(path, path, size, channels)


def test_a_picture_is_cut_square_about_its_middle(tmp_path):
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (decoded(tmp_path / "wide.png") == 255).all()


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba", "la", "palette"):
        assert (decoded(tmp_path / f"{name}.png") == 255).all()


def test_a_palette_is_looked_up_and_grey_has_three_equal_channels_or_one(tmp_path):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert decoded(tmp_path / "palette.png")[:, 0, 0].tolist() == [10, 20, 30]
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert decoded(tmp_path / "grey.png").tolist() == np.full((3, 4, 4), 77).tolist()
    assert decoded(tmp_path / "grey.png", channels=1).tolist() == np.full((1, 4, 4), 77).tolist()


def test_sixteen_bits_become_eight_by_division(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (decoded(tmp_path / "deep.png") == 100).all()


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[0] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned: show it turned clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "turned.png")[0], np.rot90(pixels[..., 0], -1))


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "PNG"])
def test_every_format_is_read(tmp_path, ending):
    picture(tmp_path / f"image.{ending}", (120, 130, 140))
    assert np.abs(decoded(tmp_path / f"image.{ending}")[:, 1, 1].astype(int) - [120, 130, 140]).max() <= 3
    write(tmp_path / "photos", ending=ending)
    assert task(tmp_path / "photos").spec.num_train_classes == 2
    assert hashlib.sha256(task(tmp_path / "photos").images.rows.tobytes()).hexdigest() in (
        task(tmp_path / "photos").fingerprint()
    )
