"""mini-ImageNet and tieredImageNet in each layout that goes round, of a few classes drawn here."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, pad

from metarun.errors import DataError, MissingDataError
from metarun.tasks.image_classes import ImageClasses
from metarun.tasks.imagenet import Benchmark, cubic, images_of, lanczos, mini_imagenet, tiered_imagenet
from metarun.tasks.store import Prepared
from tests.tasks.pictures_of import DAMAGES, PLACE, SHARED, SIZES, arguments, colour, left, picture, png

CLASSES = {
    "train": ["n00000001", "n00000002", "n00000003"],
    "val": ["n00000004", "n00000005"],
    "test": ["n00000006", "n00000007"],
}
TINY = Benchmark("Tiny", "mini-imagenet", CLASSES, num_images=2, resize=lanczos)


def array(rgb: tuple[int, int, int]) -> np.ndarray:
    return np.full((84, 84, 3), rgb, dtype=np.uint8)


def cache(folder: Path, classes: dict[str, list[str]] = CLASSES, protocol: int = 2) -> None:
    folder.mkdir(parents=True)
    for split, names in classes.items():
        images = np.stack([array(colour(name, i)) for i in range(2) for name in names])  # not in the order of classes
        places = {name: [c, len(names) + c] for c, name in enumerate(names)}
        content = pickle.dumps({"image_data": images, "class_dict": places}, protocol=protocol)
        (folder / f"mini-imagenet-cache-{split}.pkl").write_bytes(content)


def pngs(folder: Path, classes: dict[str, list[str]] = CLASSES) -> None:
    folder.mkdir(parents=True)
    for split, names in classes.items():
        files = [np.frombuffer(png(colour(name, i)), dtype=np.uint8)[:, None] for i in range(2) for name in names]
        labels = {"label_specific": np.array([*range(len(names))] * 2), "label_specific_str": names}
        (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files))
        (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels))


def csv_files(folder: Path, classes: dict[str, list[str]] = CLASSES) -> None:
    folder.mkdir(parents=True)
    for split, names in classes.items():
        rows = [(f"{name}{i:08}.png", name) for name in names for i in range(2)]
        (folder / f"{split}.csv").write_text("\n".join(["filename,label", *map(",".join, rows)]))
        for file, name in rows:
            picture(folder / "images" / file, colour(name, int(file[-5])))


def folders(folder: Path, classes: dict[str, list[str]] = CLASSES) -> None:
    for split, names in classes.items():
        for name in names:
            for i in range(2):
                picture(folder / split / name / f"{i}.png", colour(name, i))


def flat_folders(folder: Path, classes: dict[str, list[str]] = CLASSES) -> None:
    folders(folder, classes)
    for split in classes:
        for path in (folder / split).iterdir():
            path.rename(folder / path.name)
        (folder / split).rmdir()


WRITERS: list[Callable[..., None]] = [cache, pngs, csv_files, folders, flat_folders]


def prepared(data_root: Path) -> Prepared:
    return images_of(TINY, data_root).source.prepared()


def colours_of(found: Prepared) -> dict[str, list[tuple[int, ...]]]:
    """The colours of each class, all of whose images must have one colour."""
    assert (found.rows == found.rows[..., :1, :1]).all()
    ends = np.cumsum(found.counts)
    return {
        name: [tuple(map(int, image[:, 0, 0])) for image in found.rows[end - count : end]]
        for name, count, end in zip(found.names, found.counts, ends, strict=True)
    }


@pytest.mark.parametrize("write", WRITERS)
def test_every_layout_gives_the_images_of_each_class_and_its_split(tmp_path, write):
    write(tmp_path / "mini-imagenet")
    data = images_of(TINY, tmp_path)
    found = data.source.prepared()
    assert found.rows.shape == (14, 3, 84, 84)
    expected = {
        f"{split}/{name}": sorted(colour(name, i) for i in range(2)) for split in CLASSES for name in CLASSES[split]
    }
    assert colours_of(found) == expected
    assert data.splits_of(found.names) == [split for split in CLASSES for _ in CLASSES[split]]


def striped(path: Path) -> None:
    """A photo of 40 x 120 pixels: its middle black, all else white."""
    image = np.full((40, 120, 3), 255, dtype=np.uint8)
    image[:, 40:80] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.mark.parametrize("resize", [lanczos, cubic])
def test_photos_are_squashed_and_none_of_them_is_cut_away(tmp_path, resize):
    folders(tmp_path / "mini-imagenet")
    striped(tmp_path / "mini-imagenet" / "train" / "n00000001" / "0.png")
    benchmark = TINY._replace(num_images=None, resize=resize)
    rows = images_of(benchmark, tmp_path).source.prepared().rows[:2]
    columns = rows[:, 0, 42]
    assert any(row[[0, 10, 42, 73, 83]].tolist() == [255, 255, 0, 255, 255] for row in columns)


def test_new_photos_are_read_as_those_of_the_training_were(tmp_path):
    folders(tmp_path / "mini-imagenet")
    striped(tmp_path / "new.png")
    data = images_of(TINY._replace(resize=cubic), tmp_path)
    task = ImageClasses(data=lambda: data, **SIZES, **SHARED, **PLACE)
    x = task.reader().inputs([tmp_path / "new.png"])
    assert x[0, 0, 42, [0, 10, 42, 73, 83]].tolist() == [1, 1, 0, 1, 1]


def test_mini_imagenet_is_resized_as_by_mamls_release_and_tiered_as_by_opencv():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (168, 252, 3)).astype(np.uint8))
    assert np.array_equal(lanczos(photo), np.asarray(photo.resize((84, 84), Image.Resampling.LANCZOS)))
    # halves and thirds: pixel i lies at 2 i + 0.5 of the rows and at 3 i + 1 of the columns; OpenCV's a is -0.75
    at_a_half = torch.tensor([-3.0, 19.0, 19.0, -3.0], dtype=torch.float64) / 32
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[:, None, :, 1::3].double()
    x = conv2d(pad(x, (0, 0, 1, 1), mode="replicate"), at_a_half[None, None, :, None], stride=(2, 1))
    expected = x[:, 0].permute(1, 2, 0).clamp(0, 255).numpy()
    assert np.abs(cubic(photo) - expected).max() <= 0.51


def test_arrays_that_were_prepared_by_cutting_are_not_taken_for_squashed_ones(tmp_path):
    folders(tmp_path / "mini-imagenet")
    prepared(tmp_path)
    assert left(tmp_path) == ["mini-imagenet-84-2"]


@pytest.mark.parametrize("write", WRITERS)
def test_copies_whose_images_lie_in_another_order_give_the_same_arrays(tmp_path, write, monkeypatch):
    write(tmp_path / "a" / "mini-imagenet")
    monkeypatch.setitem(globals(), "colour", lambda name, i, first=colour: first(name, 1 - i))
    write(tmp_path / "b" / "mini-imagenet")
    assert prepared(tmp_path / "a").sha256 == prepared(tmp_path / "b").sha256


def test_every_protocol_of_pickle_is_read(tmp_path):
    digests = set()
    for protocol in (2, 3, 4, 5):
        cache(tmp_path / str(protocol) / "mini-imagenet", protocol=protocol)
        digests.add(prepared(tmp_path / str(protocol)).sha256)
    assert len(digests) == 1


@pytest.mark.parametrize("write", WRITERS)
def test_a_class_that_is_not_listed_or_missing_is_refused(tmp_path, write):
    classes = {**CLASSES, "val": ["n00000004"]}
    write(tmp_path / "mini-imagenet", classes)
    with pytest.raises(DataError, match=r"is not Tiny: its split 'val' holds 1 classes and must hold the 2 of"):
        prepared(tmp_path)
    assert left(tmp_path) == []


def test_classes_of_another_split_are_refused_by_name(tmp_path):
    folders(tmp_path / "mini-imagenet", {**CLASSES, "val": ["n00000004", "n00000009"]})
    with pytest.raises(DataError, match=r"\(see n00000005, n00000009\)"):
        prepared(tmp_path)


def test_a_class_with_images_missing_is_refused_by_name(tmp_path):
    folders(tmp_path / "mini-imagenet")
    (tmp_path / "mini-imagenet" / "train" / "n00000002" / "1.png").unlink()
    with pytest.raises(DataError, match=r"class n00000002 of the split 'train' holds 1 images and must hold 2"):
        prepared(tmp_path)
    assert left(tmp_path) == []


def test_names_in_words_need_only_be_as_many_and_may_repeat(tmp_path):
    pngs(tmp_path / "mini-imagenet", {**CLASSES, "train": ["crane", "ox", "crane"]})
    assert prepared(tmp_path).names[:3] == ("train/000", "train/001", "train/002")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (cache, "mini-imagenet-cache-val.pkl"),
        (pngs, "test_images_png.pkl"),
        (pngs, "train_labels.pkl"),
        (csv_files, "images/n0000000200000001.png"),
        (folders, "train/n00000002/1.png"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_nothing_is_left(tmp_path, write, name, damage):
    write(tmp_path / "mini-imagenet")
    damage(tmp_path / "mini-imagenet" / name)
    with pytest.raises(DataError, match=rf"{name} (cannot be read|is no image)"):
        prepared(tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("write", "name"), [(cache, "mini-imagenet-cache-val.pkl"), (csv_files, "val.csv")])
def test_a_missing_part_is_an_error_that_names_it(tmp_path, write, name):
    write(tmp_path / "mini-imagenet")
    (tmp_path / "mini-imagenet" / name).unlink()
    with pytest.raises(DataError, match=rf"{name}.*No such file"):
        prepared(tmp_path)


def test_images_of_another_size_in_a_cache_are_refused(tmp_path):
    cache(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps({"image_data": np.zeros((6, 32, 32, 3), dtype=np.uint8), "class_dict": {}}))
    with pytest.raises(
        DataError, match=r"train.pkl holds images uint8 \(32, 32, 3\) and must hold uint8 \(84, 84, 3\)"
    ):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("task", "name"), [(mini_imagenet, "mini-ImageNet"), (tiered_imagenet, "tieredImageNet")], ids=["mini", "tiered"]
)
def test_without_images_the_message_says_why_what_and_where(tmp_path, task, name):
    with pytest.raises(
        MissingDataError, match=rf"{name} needs its images in .*may not be downloaded.*image-net.org.*pkl"
    ):
        task(**arguments(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_lists_have_the_published_numbers_of_classes_and_no_class_twice():
    from metarun.tasks.splits import published_splits

    for name, sizes in (("mini_imagenet", [64, 16, 20]), ("tiered_imagenet", [351, 97, 160])):
        listed = published_splits(name)
        assert [len(names) for names in listed.values()] == sizes
        assert len({name for names in listed.values() for name in names}) == sum(sizes)
