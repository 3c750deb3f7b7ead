"""What is read of the user's own images, what is not, and what is said of it."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.errors import DataError, DataProblems
from metarun.tasks.image_classes import ImageClasses
from metarun.tasks.image_folder import image_folder
from tests.tasks.pictures_of import arguments, colour, cut, left, picture

LISTS = {"train": ["ash", "birch"], "val": ["cedar", "elm"], "test": ["fir", "oak"]}
NAMES = [name for names in LISTS.values() for name in names]


def write(root: Path, names: list[str] = NAMES, count: int = 3, ending: str = "png") -> Path:
    for name in names:
        for i in range(count):
            picture(root / name / f"{i}.{ending}", colour(name, i))
    return root


@pytest.fixture
def photos(tmp_path) -> Path:
    return write(tmp_path / "photos")


@pytest.fixture
def notes(caplog):
    caplog.set_level(logging.INFO, "metarun")
    return lambda: [record.getMessage() for record in caplog.records if "Preparing" not in record.getMessage()]


def task(path: Path, root: Path | None = None, **changed) -> ImageClasses:
    settings = {"path": str(path), "size": 8, "channels": 3, "split": LISTS, "split_seed": 0}
    root = root or (path if path.is_dir() else path.parent).parent / "data"
    return image_folder(**arguments(root, **{**settings, **changed}))


def images_of(images: ImageClasses) -> dict[str, list[tuple[int, ...]]]:
    """The colours of the images of each class, each of one colour."""
    prepared, start, found = images.images, 0, {}
    for name, count in zip(prepared.names, prepared.counts, strict=True):
        found[name] = [tuple(map(int, row[:, 0, 0])) for row in prepared.rows[start : start + count]]
        start += count
    return found


# ------------------------------------------------------------------------------------------ left out, and taken in


@pytest.mark.parametrize(
    "name",
    [
        "oak/.ipynb_checkpoints/0-checkpoint.png",
        ".git/objects/x.png",
        "__MACOSX/oak/x.png",
        "oak/._0.png",
        "oak/Thumbs.db",
        "@eaDir/x.png",
        "lost+found/x.png",
        "oak/$RECYCLE.BIN/x.png",
        "System Volume Information/x.png",
    ],
)
def test_hidden_files_and_folders_are_not_read_and_not_spoken_of(photos, notes, name):
    picture(photos / "x.png", (0, 0, 0))
    (photos / name).parent.mkdir(parents=True, exist_ok=True)
    (photos / "x.png").rename(photos / name)
    assert images_of(task(photos)) == {name: [colour(name, i) for i in range(3)] for name in NAMES}
    assert notes() == []


@pytest.mark.parametrize("ending", ["tif", "TIFF", "gif", "bmp", "webp", "jfif", "ppm"])
def test_every_kind_of_file_that_pillow_reads_well_is_read(tmp_path, notes, ending):
    for name in NAMES:
        for i in range(3):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            kind = {"jfif": "JPEG", "ppm": "PPM", "tif": "TIFF"}.get(ending, ending.upper())
            image = Image.new("RGB", (20, 20), colour(name, i))
            image.save(tmp_path / "photos" / name / f"{i}.{ending}", kind)
    found = images_of(task(tmp_path / "photos"))
    assert all(np.abs(np.subtract(found[name], [colour(name, i) for i in range(3)])).max() <= 4 for name in NAMES)
    assert notes() == []


def test_other_files_are_counted_by_their_endings_once(photos, notes):
    for i in range(10):
        (photos / "oak" / f"{i}.HEIC").write_bytes(b"x")
    (photos / "README").write_text("")
    (photos / "oak" / "a.txt").write_text("")
    task(photos)
    (note,) = notes()
    assert note.startswith(f"12 files ignored in {photos}: .heic 10, without ending 1, .txt 1 (read are .png, ")


def test_folders_in_which_nothing_can_be_read_are_named(photos, notes):
    (photos / "empty").mkdir()
    (photos / "larch").mkdir()
    (photos / "larch" / "a.heic").write_bytes(b"x")
    task(photos)
    assert (
        f"2 folders of {photos} without an image that can be read, so no class: empty (empty), larch (.heic 1)."
        in notes()
    )


def test_a_folder_without_any_image_says_what_it_holds(tmp_path):
    (tmp_path / "photos" / "oak").mkdir(parents=True)
    (tmp_path / "photos" / "oak" / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no images .*1 file ignored in .*: .heic 1"):
        task(tmp_path / "photos")


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_to_classes_are_followed_and_those_that_lead_back_are_named(tmp_path, notes):
    photos = write(tmp_path / "photos", NAMES[1:])
    (photos / "ash").symlink_to(write(tmp_path / "elsewhere", ["ash"]) / "ash")
    (photos / "oak" / "again").symlink_to(photos)
    (photos / "oak" / "above").symlink_to(tmp_path)
    (photos / "oak" / "gone.png").symlink_to(tmp_path / "gone.png")
    (photos / "oak" / "itself").symlink_to(photos / "oak" / "itself")
    assert images_of(task(photos)) == {name: [colour(name, i) for i in range(3)] for name in NAMES}
    (note,) = notes()
    assert note.startswith(f"4 links ignored in {photos}, to nothing or back to a folder above: oak/above, oak/again, ")


def test_of_several_frames_or_pages_the_first_is_read_and_it_is_said(photos, notes):
    frames = [Image.new("RGB", (8, 8), rgb) for rgb in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(photos / "oak" / "9.tif", save_all=True, append_images=frames[1:])
    assert images_of(task(photos))["oak"][-1] == (250, 0, 0)
    assert notes() == ["1 images have several frames or pages; the first of each is read."]


# ------------------------------------------------------------------------------------------------------------ copies


def test_copies_of_an_image_are_kept_once_and_named_whenever_they_are_used(photos, notes):
    picture(photos / "oak" / "copy.bmp", colour("oak", 1))
    (photos / "elm" / "copy.png").write_bytes((photos / "elm" / "0.png").read_bytes())
    for _ in range(2):
        assert images_of(task(photos)) == {name: [colour(name, i) for i in range(3)] for name in NAMES}
    said = "2 copies of other images are left out: elm/copy.png = elm/0.png, oak/copy.bmp = oak/1.png."
    assert notes() == [said, said]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.npz", r"photos/{y\[i\]}"),
        ("train-images-idx3-ubyte", "holds arrays, which are not read"),
        ("x.tar.gz", "is an archive: unpack it"),
        ("oak/0.png", "is one image. Name the folder"),
    ],
)
def test_one_file_that_is_no_list_is_refused_with_what_to_do_with_it(photos, name, message):
    (photos / name).touch()
    with pytest.raises(DataError, match=message):
        task(photos / name)


def textured(path: Path, seed: int) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((40, 40))
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return image


def test_copies_that_are_not_equal_to_the_bit_are_told(photos, notes):
    for seed, name in enumerate(["oak/x.png", "oak/y.png", "fir/x.png"]):
        image = textured(photos / name, seed)
    image.save(photos / "fir" / "y.jpg", quality=80)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "fir" / "z.png")
    image.resize((90, 90)).point(lambda value: value * 0.9).save(photos / "oak" / "z.png")
    task(photos)
    assert [note.partition(" of the images")[0] for note in notes()] == ["2", "1"]
    assert "fir/y.jpg ~ fir/x.png, fir/z.png ~ fir/x.png. Delete copies" in notes()[0]
    assert "another class" in notes()[1] and "oak/z.png ~ fir/x.png" in notes()[1]


def test_near_copies_of_one_group_and_one_shape_in_other_colours_are_not_told(photos, notes):
    image = textured(photos / "oak" / "p1_x.png", 0)
    image.save(photos / "oak" / "p1_y.jpg")
    red, green, blue = image.split()
    Image.merge("RGB", (blue, red, green)).save(photos / "oak" / "p2_x.png")
    task(photos, group_pattern=r"p\d_|/\d\.")
    assert notes() == []


def test_classes_that_may_be_one_are_told_of_folders_and_of_lists(photos, notes):
    write(photos, ["oak/more", "fir_2", "fir-2", "7", "07", "ash, oak", "nan"])
    task(photos)
    assert notes() == [
        "classes named 'nan' are what missing entries are often written as; each is taken for one of the classes. Leave its "
        "examples out if they have none.",
        "classes that are several others at once, and taken for classes of their own: 'ash, oak'. An example has one class: "
        "leave them out.",
        "classes whose names are parts of other classes, and taken for different ones: 'oak/more' of 'oak'. Join each with "
        "that class if it is of it.",
        "names of classes that are nearly equal, and taken for different ones: '07' and '7', 'fir-2' and 'fir_2'. Write "
        "them alike where they are one.",
    ]


def test_classes_of_one_name_in_several_folders_are_told_but_for_numbered_ones(photos, notes):
    write(photos, ["2019/ash", "2020/Ash", "a/part1", "b/part1", "a/sorb", "b/yew"])
    task(photos)
    assert notes() == [
        "classes of one name in several folders, and taken for different ones: '2019/ash', '2020/Ash'. Join those that are "
        "one class."
    ]


def test_names_that_differ_by_html_or_marks_around_them_are_told(photos, notes):
    write(photos, ["R&D", "R&amp;D", "_larch", "'larch'"])
    task(photos)
    assert [note.split(": ", 1)[1] for note in notes()] == [
        "\"'larch'\" and '_larch', 'R&D' and 'R&amp;D'. Write them alike where they are one."
    ]


def test_a_folder_whose_name_is_no_text_is_named_with_the_fix(photos):
    write(photos, ["ash"])
    os.rename(photos / "ash", os.fsencode(photos) + b"/sapin\xe9")
    with pytest.raises(DataError, match=r"no text in UTF-8: 'sapin\\udce9'. Archives .* rename their folders"):
        task(photos)


def test_a_class_that_is_too_small_without_its_copies_is_refused(tmp_path):
    photos = write(tmp_path / "photos", count=2)
    picture(photos / "oak" / "1.png", colour("oak", 0))
    with pytest.raises(DataError, match=r"is 2, but the class 'oak' of the split 'test' has only 1 example"):
        task(photos)


def test_an_image_in_two_classes_is_refused_with_all_such_images(photos):
    for i in range(2):
        (photos / "oak" / f"x{i}.png").write_bytes((photos / "ash" / f"{i}.png").read_bytes())
    with pytest.raises(
        DataError, match=r"2 images lie in two classes each: oak/x0.png = ash/0.png, oak/x1.png = ash/1"
    ):
        task(photos)
    assert left(photos.parent / "data") == []


def test_images_that_are_equal_only_when_they_are_small_are_no_copies(photos, notes):
    for i, turn in enumerate((0, 90)):
        pattern = np.kron(np.eye(2, dtype=np.uint8), np.full((16, 16), 200, dtype=np.uint8))
        Image.fromarray(np.rot90(pattern, turn // 90)).save(photos / ("oak", "ash")[i] / "9.png")
    task(photos, size=1)
    assert notes() == []


# ------------------------------------------------------------------------------------------------------------- ranges


def deep(path: Path, value: float, dtype: type = np.uint16, side: int = 8) -> None:
    Image.fromarray(np.full((side, side), value, dtype=dtype)).save(path)


@pytest.mark.parametrize(
    ("highest", "top"), [(200, 255), (1000, 1023), (3900, 4095), (4095, 4095), (16000, 16383), (40000, 65535)]
)
def test_the_highest_value_of_a_data_set_decides_the_range_of_its_deep_images(photos, notes, highest, top):
    deep(photos / "oak" / "7.png", highest // 2)
    deep(photos / "oak" / "8.tif", highest)
    found = images_of(task(photos))["oak"][-2:]
    assert found == [((highest // 2) * 255 // top,) * 3, (highest * 255 // top,) * 3]
    assert notes() == [
        f"2 images have values of more than 8 bits, from {highest // 2} to {highest}: they are read as of 0 (black) to "
        f"{top} (white)."
    ]


def test_values_below_zero_and_floats_are_read_as_of_their_own_range(photos, notes):
    deep(photos / "oak" / "6.tif", -1000, np.int32)
    deep(photos / "oak" / "7.tif", 3000, np.int32)
    deep(photos / "fir" / "7.tif", -0.5, np.float32, 9)
    deep(photos / "fir" / "8.tif", 1.5, np.float32, 9)
    deep(photos / "fir" / "9.tif", 0.5, np.float32, 9)
    found = images_of(task(photos))
    assert [rgb[0] for rgb in found["oak"][-2:] + found["fir"][-3:]] == [0, 255, 0, 255, 127]
    assert [note.partition(":")[0] for note in notes()] == [
        "2 images have values of more than 8 bits, from -1000 to 3000",
        "3 images have float values",
    ]


def test_other_images_are_read_by_the_range_of_the_training(photos, notes, tmp_path):
    deep(photos / "oak" / "7.png", 4000)
    fitted = json.loads(json.dumps(task(photos).fitted()))
    assert fitted == {"ranges": [[0, 4095], [0, 1]]}
    other = write(tmp_path / "other")
    assert task(other, fitted=fitted).fitted() == {}
    deep(other / "oak" / "7.png", 1000)
    assert images_of(task(other))["oak"][-1] == (1000 * 255 // 1023,) * 3
    notes()
    assert images_of(task(other, fitted=fitted))["oak"][-1] == (1000 * 255 // 4095,) * 3
    assert notes()[-1].startswith(
        "images of more than 8 bits are read as those of the training were: as of 0 (black) to 4095"
    )
    before = len(left(tmp_path / "data"))
    assert images_of(task(photos, fitted=fitted)) == images_of(task(photos))
    assert len(left(tmp_path / "data")) == before, "what the run has prepared is used again"


def test_a_float_image_with_values_that_are_not_finite_is_named(photos):
    deep(photos / "oak" / "9.tif", np.nan, np.float32)
    with pytest.raises(DataError, match=r"oak/9.tif is no image that can be read: it has values that are not finite"):
        task(photos)


@pytest.mark.parametrize(("mode", "grey"), [("1", 255), ("L", 77), ("P", 77), ("CMYK", 178), ("LA", 77), ("PA", 77)])
def test_every_mode_of_pillow_becomes_eight_bits_of_grey(photos, mode, grey):
    colours = {"1": 1, "CMYK": (0, 0, 0, 77), "LA": (77, 255), "PA": (77, 255)}
    image = Image.new(mode, (8, 8), colours.get(mode, 77))
    if mode in ("P", "PA"):
        image.putpalette([v for v in range(256) for _ in range(3)])
    image.save(photos / "oak" / "9.tif") if mode != "PA" else image.convert("LA").save(photos / "oak" / "9.tif")
    assert images_of(task(photos))["oak"][-1] == (grey,) * 3


# ------------------------------------------------------------------------------------------------- all faults at once


def test_all_broken_images_are_named_in_one_message(photos):
    for i, name in enumerate(NAMES):
        cut(photos / name / f"{i % 3}.png")
    with pytest.raises(DataProblems) as raised:
        task(photos)
    (problem,) = raised.value.problems
    assert problem.count("is no image that can be read") == 5
    assert problem.endswith("(and 1 more)")
    assert left(photos.parent / "data") == []


def test_too_few_classes_small_classes_and_broken_images_are_told_together(photos):
    for name in ("ash", "oak"):
        (photos / name / "2.png").unlink()
    cut(photos / "fir" / "0.png")
    with pytest.raises(DataProblems) as raised:
        task(photos, split=[1, 1, 1], num_ways=3, num_queries=2)
    said = "\n".join(raised.value.problems)
    assert "3 splits x 3 ways need 9 classes, there are 6: lower task.num_ways to 2 or add classes" in said
    assert "'ash'" in said and "'oak'" in said and "fir/0.png is no image" in said
    assert left(photos.parent / "data") == []


def test_all_files_that_a_csv_file_names_in_vain_are_named(photos):
    (photos / "list.csv").write_text("filename,label\noak/7.png,oak\noak/8.png,oak\noak/0.png,oak\n")
    with pytest.raises(DataError, match=r"line 2 names .*oak/7.png.*line 3 names .*oak/8.png"):
        task(photos / "list.csv", photos.parent / "data", split=[1, 1, 1])


def test_a_data_set_of_few_low_values_is_said_to_be_nearly_black(photos, notes):
    draws = np.random.default_rng(0)
    for file in photos.rglob("*.png"):
        Image.fromarray(draws.integers(0, 16, (8, 8)).astype("uint8")).save(file)
    task(photos)
    rule = "nearly black: their highest value is 15 of 255. If 15 is meant as white, multiply the values by 17."
    assert any(rule in note for note in notes())


# ------------------------------------------------------------------------------------------- what the data says itself


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "TEST"), ("training", "validation"), ("dev", "test")]
)
def test_folders_that_are_splits_are_refused_where_they_would_become_classes(tmp_path, names):
    for name in names:
        write(tmp_path / "photos" / name)
    with pytest.raises(DataError, match=r"photos has folders named .*, which are splits.*add task.split=given"):
        task(tmp_path / "photos", split=[1, 1, 1])


def test_folders_of_splits_by_other_names_are_refused_with_what_to_call_them(tmp_path):
    for name in ("base", "val", "novel"):
        write(tmp_path / "photos" / name)
    with pytest.raises(DataError, match=r"named base, novel, .*name them train, val and test and add task.split=given"):
        task(tmp_path / "photos", split=[1, 1, 1])


def test_splits_within_a_class_are_refused(photos):
    write(photos / "oak", ["train", "test"])
    with pytest.raises(
        DataError, match=r"photos/oak has folders named test, train.*put all images of a class into one"
    ):
        task(photos, split=[1, 1, 1])


def test_one_class_that_is_called_train_is_a_class(photos):
    write(photos, ["train"])
    assert "train" in images_of(task(photos, split=[1, 1, 1]))


@pytest.mark.parametrize("split", ["given", [1, 1, 1]])
def test_folders_named_support_and_query_are_refused_with_the_reason(tmp_path, split):
    inner = "train" if split == "given" else "."
    for part in ("Support", "query"):
        write(tmp_path / "photos" / inner / part)
    with pytest.raises(DataError, match=r"folders named support and query, but metarun draws both itself"):
        task(tmp_path / "photos", split=split)


@pytest.mark.parametrize(
    "names", [("Train", "valid", "TEST"), ("training", "validation", "testing"), ("train", "dev", "test")]
)
def test_other_names_of_splits_are_understood(tmp_path, names):
    for split, name in zip(LISTS, names, strict=True):
        write(tmp_path / "photos" / name, LISTS[split])
    pools = task(tmp_path / "photos", split="given").pools
    assert {split: sorted(pool.names) for split, pool in pools.items()} == LISTS
    lines = [
        f"{name}/{c}/{i}.png,{c},{name}"
        for s, name in zip(LISTS, names, strict=True)
        for c in LISTS[s]
        for i in range(3)
    ]
    (tmp_path / "photos" / "list.csv").write_text("\n".join(["filename,label,split", *lines]))
    pools = task(tmp_path / "photos" / "list.csv", tmp_path / "data", split="given").pools
    assert {split: sorted(pool.names) for split, pool in pools.items()} == LISTS


def test_a_folder_that_is_no_split_is_named_where_splits_are_given(tmp_path):
    write(tmp_path / "photos" / "train", NAMES)
    write(tmp_path / "photos" / "holdout", ["yew"])
    with pytest.raises(ValueError, match=r"does not say which .* the class 'yew' \(it says 'holdout'\) is in"):
        task(tmp_path / "photos", split="given")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "filename,label\na.png,oak, red\nb.png,elm, green",
            r"line 2 has 3 entries, where the header has 2.*line 3 has 3",
        ),
        ("filename,label,label\na.png,oak,elm", r"line 1: several columns are named label"),
        ("filename,label\na\0.png,oak", r"list.csv, line 2 holds a NUL \(a byte 0\)"),
        ("filename,label,split\na.png,oak", r"line 2 has 2 entries, where the header has 3"),
        (
            'filename,label\n"a.png,oak',
            r"list.csv, line 2: unexpected end of data\. Quotation marks must come in pairs",
        ),
        (f"filename,label\na.png,{'a' * 140_000}", r"list.csv, line 2: an entry has more than 131072 letters.*Shorten"),
        ("PK\3\4\udcff", r"list.csv is a zip archive, or a workbook, that is not whole.*: unzip "),
        ("PAR1", r"list.csv is a parquet file\. .*pandas.read_parquet"),
        ('[{"filename": "a.png"}]', r"list.csv is a file of JSON\. .*pandas.read_json"),
        ("<html>", r"list.csv is a web page"),
    ],
)
def test_lines_of_a_csv_file_that_do_not_fit_its_header_are_refused(photos, text, message):
    (photos / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        task(photos / "list.csv", photos.parent / "data")


@pytest.mark.parametrize("separator", [" , ", ";", "\t"])
def test_a_csv_file_of_images_is_read_whatever_separates_its_columns(photos, separator):
    lines = [f"{name}/{i}.png{separator}{name}" for name in NAMES for i in range(3)]
    for ending in ("\n", "\r\n", "\r"):
        (photos / "list.csv").write_text(ending.join([f"filename{separator}label", *lines]), newline="")
        assert images_of(task(photos / "list.csv", photos.parent / "data")) == images_of(task(photos))


def test_a_list_of_images_says_its_separator_and_writes_its_header_as_it_likes(photos):
    lines = [f"{name}/{i}.png:{name}" for name in NAMES for i in range(3)]
    (photos / "list.csv").write_text("\n".join(["sep=:", "Filename:LABEL", *lines]))
    assert images_of(task(photos / "list.csv", photos.parent / "data")) == images_of(task(photos))
    (photos / "list.csv").write_text("\n".join(["sep=:", "Filename:LABEL", *lines, "gone.png:elm:3"]))
    with pytest.raises(DataError, match=r"list.csv, line 21 has 3 entries"):
        task(photos / "list.csv", photos.parent / "data")


def test_a_list_of_images_that_was_written_on_windows_is_read(photos):
    lines = [f"{name}\\{i}.png,{name}" for name in NAMES for i in range(3)]
    (photos / "list.csv").write_text("\r\n".join(["filename,label", *lines]), newline="")
    assert images_of(task(photos / "list.csv", photos.parent / "data")) == images_of(task(photos))


def test_quotation_marks_after_a_blank_are_none_of_a_class(photos):
    lines = [f'{name}/{i}.png, "{name}"' if i else f"{name}/{i}.png,{name}" for name in NAMES for i in range(3)]
    (photos / "list.csv").write_text("\n".join(['filename, "label"', *lines]))
    assert images_of(task(photos / "list.csv", photos.parent / "data")) == images_of(task(photos))


def test_a_column_that_says_splits_by_another_name_is_told_with_the_fix(photos, notes):
    lines = [
        f"{name}/{i}.png,{name},{('train', 'dev', 'test')[k % 3]}" for k, name in enumerate(NAMES) for i in range(3)
    ]
    (photos / "list.csv").write_text("\n".join(["filename,label,fold", *lines]))
    task(photos / "list.csv", photos.parent / "data")
    said = "not read are the columns fold; fold says splits: name it split, and task.split=given uses it."
    assert notes() == [f"{photos / 'list.csv'}: {said}"]


def test_columns_of_a_csv_file_that_are_not_read_are_named(photos, notes):
    lines = [f"{name}/{i}.png,{name},train,7" for name in NAMES for i in range(3)]
    (photos / "list.csv").write_text("\n".join(["filename,label,split,width", *lines]))
    task(photos / "list.csv", photos.parent / "data")
    assert notes() == [f"{photos / 'list.csv'}: not read are the columns split, width; task.split=given uses split."]
