"""Folders of the user's own images: masks and lists beside them, and classes that are in all splits."""

import logging
import os
from pathlib import Path

import pytest

from metarun.errors import DataError
from metarun.tasks.image_layout import notes_on_beside
from tests.tasks.pictures_of import colour, picture
from tests.tasks.test_image_reading import NAMES, images_of, task, write


@pytest.fixture
def photos(tmp_path) -> Path:
    return write(tmp_path / "photos", NAMES)


@pytest.fixture
def notes(caplog):
    caplog.set_level(logging.INFO, "metarun")
    return lambda: [record.getMessage() for record in caplog.records if "Preparing" not in record.getMessage()]


@pytest.mark.parametrize(
    "name",
    [
        *["0_mask.png", "0 mask.png", "0-depth.png", "0.seg.png", "0_gt.png"],
        *["0_mask_1.png", "0_thumb.png", "mask_0.png", "0_ground_truth.png", "0_Labels.PNG"],
    ],
)
def test_what_belongs_to_an_image_by_its_name_is_told_and_counts(photos, notes, name):
    picture(photos / "oak" / name, (1, 2, 3))
    assert len(images_of(task(photos))["oak"]) == 4
    (told,) = (note for note in notes() if "belongs to another" in note)
    assert told.startswith("1 of the images") and f": oak/{name}. Each counts" in told


def test_a_depth_map_belongs_to_a_picture_that_says_what_it_is(tmp_path):
    files = [tmp_path / "oak" / name for name in ("7_rgb.png", "7_depth.png", "image_8.png", "mask_8.png")]
    (told,) = notes_on_beside(tmp_path, files)
    assert ": oak/7_depth.png, oak/mask_8.png." in told


@pytest.mark.parametrize(
    "names",
    [
        *[("face_mask.png", "0.png"), ("mask.png", "mask2.png"), ("label.png", "depth.png"), ("0.png", "0_1.png")],
        ("n01440764_10026.png", "n01440764_10027.png"),
    ],
)
def test_names_without_an_image_that_they_belong_to_are_not_told(tmp_path, names):
    assert not notes_on_beside(tmp_path, [tmp_path / "oak" / name for name in names])


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["images", "masks"], r"photos has images, and beside them masks, .* lie in no class: put those of each"),
        (["images", "labels"], r"photos has images, and beside them labels"),
        (["JPEGImages", "SegmentationClass", "SegmentationObject"], r"them SegmentationClass and SegmentationObject"),
        (["images/oak", "masks/oak", "images/ash", "masks/ash"], r"photos has images, and beside them masks"),
        (["oak/images", "oak/masks", "ash/images", "ash/masks"], r"photos/ash has images, and beside them masks"),
        (["oak", "oak/ground_truth", "ash"], r"photos/oak has images, and beside them ground_truth"),
        (["images"], r"The images in .*photos/images lie in no class: put those of each class into a folder"),
    ],
)
def test_folders_of_images_and_what_belongs_to_each_are_no_classes(tmp_path, folders, said):
    write(tmp_path / "photos", folders)
    with pytest.raises(DataError, match=said):
        task(tmp_path / "photos", split=[1, 1, 1])


@pytest.mark.parametrize("beside", ["masks", "labels"])
def test_splits_of_images_and_masks_are_no_splits_of_classes(tmp_path, beside):
    write(tmp_path / "photos", [f"{split}/{part}" for split in ("train", "val", "test") for part in ("images", beside)])
    with pytest.raises(DataError, match=rf"photos/test has images, and beside them {beside}"):
        task(tmp_path / "photos", split="given")


def test_folders_that_are_called_so_are_classes_where_they_are_listed(tmp_path):
    names = [f"{name}/{part}" for name in ("ash", "oak", "elm") for part in ("images", "masks")]
    write(tmp_path / "photos", names)
    lists = {"train": names[:2], "val": names[2:4], "test": names[4:]}
    assert sorted(images_of(task(tmp_path / "photos", split=lists))) == sorted(names)


@pytest.mark.parametrize("more", [["mask", "no_mask"], ["masks", "hats"], ["photos", "drawings"], ["labels"]])
def test_classes_of_such_names_among_others_are_classes_and_not_spoken_of(photos, notes, more):
    write(photos, more)
    assert {*more} < {*images_of(task(photos, split=[1, 1, 1]))} and not notes()


def test_a_class_that_is_called_as_none_is_is_told(photos, notes):
    write(photos, ["Thumbnails", "unlabelled"])
    task(photos, split=[1, 1, 1])
    (told,) = notes()
    assert told.startswith("images in folders named Thumbnails, unlabelled count as examples of a class.")


def test_a_folder_of_images_in_each_class_is_not_spoken_of(tmp_path, notes):
    write(tmp_path / "photos", [f"{name}/images" for name in NAMES])
    assert sorted(images_of(task(tmp_path / "photos", split=[1, 1, 1]))) == [f"{name}/images" for name in NAMES]
    assert not notes()


@pytest.mark.parametrize("name", ["labels.csv", "annotations.json", "train.txt"])
def test_a_list_of_images_that_is_not_read_is_told_with_the_setting_that_reads_one(photos, notes, name):
    (photos / name).write_text("filename,label\noak/0.png,tree\n")
    (photos / "README.txt").write_text("Trees. Each folder is a class.")
    task(photos)
    (told,) = (note for note in notes() if "names images" in note)
    assert f": {name}. To take classes from a list" in told
    assert f"as {(photos / name).with_suffix('.csv')}: a CSV file with the columns filename and label." in told


def test_images_without_classes_are_answered_with_the_list_that_has_them(tmp_path):
    picture(tmp_path / "photos" / "0.png", colour(0))
    (tmp_path / "photos" / "labels.csv").write_text("filename,label\n0.png,oak\n")
    with pytest.raises(
        DataError, match=r"0.png lies in no class: .*name it in place of the folder, as .*labels.csv: a"
    ):
        task(tmp_path / "photos")


def test_splits_that_all_have_all_classes_are_answered_with_how_to_join_them(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / "photos" / split, NAMES)
    joined = r"put those of a class into one folder .*photos/<class>, and classes are split by lot"
    with pytest.raises(DataError, match=rf"are splits and no classes.* all have ash, birch, .*{joined}"):
        task(tmp_path / "photos", split=[1, 1, 1])
    with pytest.raises(DataError, match=rf"the class 'ash' is in the split 'test' .* 5 more\. .*all classes, {joined}"):
        task(tmp_path / "photos", split="given")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_an_error_that_names_it(photos):
    photos.chmod(0)
    try:
        with pytest.raises(DataError, match="photos cannot be read: Permission denied"):
            task(photos)
    finally:
        photos.chmod(0o700)
