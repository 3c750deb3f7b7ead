"""``metarun predict RUN``: files and folders of a user's, adapted to and predicted; one message where they are wrong."""

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metarun as package
from metarun.applied.prediction import PARTS
from metarun.commands.predict import refuse_place
from metarun.core import TaskSpec
from metarun.errors import ConfigError, DataError
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.reading import ArrayReader
from tests.applying import SIZE, drawings, run, sentence, table
from tests.running import metarun

SHAPES = ("circle", "square", "zigzag")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with support/CLASS/ and query/, three drawings and two of each shape, and one query of no known class."""
    for c, name in enumerate(SHAPES):
        drawings(tmp_path / "support" / name, c + 2, range(20, 23), size=31)
        drawings(tmp_path / "query" / name, c + 2, range(30, 32), size=31)
    drawings(tmp_path / "query", 4, range(40, 41), size=31)
    return tmp_path


def predict(kind: str, folder: Path, *words: object, code: int = 0) -> list[dict[str, str]]:
    """The table that ``metarun predict`` writes."""
    outcome = metarun("predict", str(run(kind)), *map(str, words), f"--out={folder / 'out.csv'}")
    assert outcome.code == code, outcome.text
    with (folder / "out.csv").open() as file:
        return list(csv.DictReader(file))


def npz_parts(folder: Path) -> list[str]:
    return [f"--support={folder / 's.npz'}", f"--query={folder / 'q.npz'}"]


def of_folder(photos: Path) -> list[str]:
    return [f"--support={photos / 'support'}", f"--query={photos / 'query'}"]


def test_a_folder_of_images_is_predicted_with_a_probability_of_each_class(photos):
    rows = predict("protonet", photos, *of_folder(photos))
    assert [row["item"] for row in rows][:2] == ["40.png", "circle/30.png"] and len(rows) == 7
    assert [row["label"] for row in rows] == ["", *(name for name in SHAPES for _ in range(2))]
    for row in rows:
        probabilities = {name: float(row[f"p_{name}"]) for name in SHAPES}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["predicted"] == max(probabilities, key=probabilities.get)


def test_an_image_whose_name_is_no_text_is_predicted(photos):
    os.rename(photos / "query" / "40.png", os.fsencode(photos / "query") + b"/caf\xe9.png")
    items = [row["item"] for row in predict("protonet", photos, *of_folder(photos))]
    assert len(items) == 7 and r"caf\udce9.png" in items


def test_numbers_in_another_unit_than_those_of_the_training_are_told(tmp_path, recwarn):
    lines = table(tmp_path / "all.csv", ["new"], 12).read_text().splitlines()
    (tmp_path / "s.csv").write_text("\n".join(lines[:7]))
    parts = [f"--support={tmp_path / 's.csv'}", f"--query={tmp_path / 'q.csv'}", f"--out={tmp_path / 'out.csv'}"]
    (tmp_path / "q.csv").write_text("\n".join([lines[0], *lines[7:9]]))
    assert "same unit" not in metarun("predict", str(run("table")), *parts).text
    (tmp_path / "q.csv").write_text("\n".join([lines[0], lines[7], "new,150,a,3"]))
    outcome = metarun("predict", str(run("table")), *parts)
    assert outcome.code == 0 and "column 'dose' has 1 numbers that are more than 10 deviations" in outcome.err
    assert "line 3. Are they in the same unit?" in outcome.err and not [
        w for w in recwarn if "overflow" in str(w.message)
    ]


def test_the_command_and_python_predict_alike(photos):
    rows = predict("maml", photos, *of_folder(photos))
    files = sorted(photos.glob("support/*/*.png"))
    adapted = package.load(run("maml")).adapt(files, [file.parent.name for file in files])
    there = adapted.predict_proba([photos / "query" / row["item"] for row in rows])
    assert np.allclose([[float(row[f"p_{name}"]) for name in SHAPES] for row in rows], there, atol=1e-6)


def test_the_score_is_printed_with_the_number_of_labelled_queries(photos):
    out = metarun("predict", str(run("protonet")), *of_folder(photos), f"--out={photos / 'out.csv'}").out
    rows = list(csv.DictReader((photos / "out.csv").open()))
    right = sum(row["label"] == row["predicted"] for row in rows if row["label"])
    assert "adapted to 9 examples of 3 classes; predicted 7" in out
    assert f"accuracy: {right / 6:.4g}, over the 6 queries that have a label" in out


def test_a_csv_of_images_and_an_npz_predict_as_the_folder_does(photos):
    rows = predict("protonet", photos, *of_folder(photos))
    files = sorted(photos.glob("support/*/*.png"))
    lines = [f"{file.relative_to(photos)},{file.parent.name}" for file in files]
    (photos / "support.csv").write_text("\n".join(["filename,label", *lines]))
    (photos / "query.csv").write_text("\n".join(["filename", *(f"query/{row['item']}" for row in rows)]))
    listed = predict("protonet", photos, f"--support={photos / 'support.csv'}", f"--query={photos / 'query.csv'}")
    model = package.load(run("protonet"))
    x, queries = (model.reader.inputs(paths) for paths in (files, [photos / "query" / row["item"] for row in rows]))
    np.savez(photos / "support.npz", x=x.numpy(), y=[file.parent.name for file in files])
    np.savez(photos / "query.npz", x=queries.numpy())
    arrays = predict("protonet", photos, f"--support={photos / 'support.npz'}", f"--query={photos / 'query.npz'}")
    for name in ("predicted", *(f"p_{name}" for name in SHAPES)):
        assert [row[name] for row in rows] == [row[name] for row in listed] == [row[name] for row in arrays]


def test_sentences_of_new_classes_are_predicted_from_lines_without_labels(tmp_path):
    support = [{"text": sentence(c, i), "label": name} for c, name in ((6, "hotel"), (7, "taxi")) for i in range(3)]
    (tmp_path / "support.jsonl").write_text("\n".join(map(json.dumps, support)))
    texts = [sentence(c, i) for c in (6, 7) for i in range(10, 13)]
    truth = ["hotel"] * 3 + ["taxi"] * 3
    (tmp_path / "query.txt").write_text("\n".join([texts[0].replace(" ", "\u2028", 1), *texts[1:], ""]))
    (tmp_path / "query.csv").write_text("\n".join(["text", *(f'"{text}"' for text in texts)]))
    labelled = [{"text": text, "label": label} for text, label in zip(texts, [*truth[:-1], None], strict=True)]
    (tmp_path / "query.json").write_text(json.dumps(labelled))
    for name in ("query.txt", "query.csv", "query.json"):
        rows = predict("hashed", tmp_path, f"--support={tmp_path / 'support.jsonl'}", f"--query={tmp_path / name}")
        assert [row["item"] for row in rows] == texts and [row["predicted"] for row in rows] == truth
        assert [row.get("label", "") for row in rows] == ([*truth[:-1], ""] if name == "query.json" else [""] * 6)


def test_classes_may_be_whole_numbers_of_which_0_is_one(tmp_path):
    for part, numbers in (("support", range(3)), ("query", range(10, 13))):
        rows = [{"text": sentence(c, i), "label": c - 6} for c in (6, 7) for i in numbers]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = [f"--{part}={tmp_path / part}.jsonl" for part in ("support", "query")]
    assert [row["label"] for row in predict("hashed", tmp_path, *parts)] == ["0"] * 3 + ["1"] * 3


def test_a_new_subject_of_a_table_is_predicted_in_its_own_unit(tmp_path):
    support = table(tmp_path / "support.csv", ["new"], 6)
    query = table(tmp_path / "query.csv", ["new"], 12)
    rows = predict("table", tmp_path, f"--support={support}", f"--query={query}")
    given = list(csv.DictReader(query.open()))
    assert [float(row["given_level"]) for row in rows] == pytest.approx([float(row["level"]) for row in given])
    assert all(float(row["deviation_level"]) > 0 and float(row["predicted_level"]) > 0 for row in rows)
    unlabelled = table(tmp_path / "unlabelled.csv", ["new"], 12, level=False)
    again = predict("table", tmp_path, f"--support={support}", f"--query={unlabelled}")
    assert [row["predicted_level"] for row in again] == [row["predicted_level"] for row in rows]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_new_rows_may_have_another_separator_than_the_table_of_the_training(separator, tmp_path):
    rows = [["dose", "kind", "level"], ["0.5", "a", "3"], ["1.5", "b", "5"]]
    for mark, name in ((",", "s.csv"), (separator, "q.csv")):
        (tmp_path / name).write_text("\n".join(map(mark.join, rows)))
    by = [predict("table", tmp_path, f"--support={tmp_path / 's.csv'}", f"--query={tmp_path / n}.csv") for n in "sq"]
    assert by[0] == by[1] and len(by[0]) == 2


def test_rows_of_a_pipe_and_its_separator_are_read_though_it_gives_them_but_once(tmp_path):
    (tmp_path / "s.csv").write_text("dose,kind,level\n0.5,a,3\n1.5,b,5")
    end, beginning = os.pipe()
    os.write(beginning, (tmp_path / "s.csv").read_bytes().replace(b",", b";"))
    os.close(beginning)
    assert len(predict("table", tmp_path, f"--support={tmp_path / 's.csv'}", f"--query=/dev/fd/{end}")) == 2
    os.close(end)


def test_many_tasks_are_predicted_in_one_call_each_by_its_own_support(photos):
    tasks = photos / "tasks"
    for name in ("first", "second"):
        shutil.copytree(photos / "support", tasks / name / "support")
        shutil.copytree(photos / "query", tasks / name / "query")
    shutil.rmtree(tasks / "second" / "support" / "circle")
    shutil.rmtree(tasks / "second" / "query" / "circle")
    phi = photos / "phi.pt"
    rows = predict("protonet", photos, f"--tasks={tasks}", f"--save-phi={phi}")
    alone = predict("protonet", photos, *of_folder(photos))
    assert [row["p_square"] for row in rows if row["task"] == "first"] == [row["p_square"] for row in alone]
    assert {row["p_circle"] for row in rows if row["task"] == "second"} == {""}
    saved = torch.load(phi, weights_only=True)
    assert saved["tasks"]["second"]["classes"] == ["square", "zigzag"]
    assert saved["tasks"]["first"]["phi"]["prototypes"].shape[0] == 3


def seen_images(folder: Path) -> list[str]:
    photos = [drawings(folder / "support" / name, c + 2, range(20, 23)) for c, name in enumerate(SHAPES)]
    for c, name in enumerate(SHAPES):
        drawings(folder / "query" / name, c + 2, range(30, 32))
    for number, image in enumerate((photos[0][0], photos[1][1])):
        shutil.copy(image, folder / "query" / SHAPES[number] / f"again{number}.png")
    return ["support", "query"]


def seen_sentences(folder: Path) -> list[str]:
    support = [(sentence(c, i), c) for c in (6, 7) for i in range(3)]
    query = [(sentence(c, i), c) for c in (6, 7) for i in range(10, 13)] + [(support[0][0].upper(), 6), support[4]]
    for name, rows in (("s.jsonl", support), ("q.jsonl", query)):
        lines = [json.dumps({"text": text, "label": str(c)}) for text, c in rows]
        (folder / name).write_text("\n".join(lines))
    return ["s.jsonl", "q.jsonl"]


def seen_rows(folder: Path) -> list[str]:
    lines = table(folder / "all.csv", ["new"], 12).read_text().splitlines()
    (folder / "s.csv").write_text("\n".join(lines[:7]))
    other = lines[3].rpartition(",")[0] + ",77"  # measured anew
    (folder / "q.csv").write_text("\n".join([lines[0], *lines[7:12], other, *lines[1:3]]))
    return ["s.csv", "q.csv"]


SEEN = {"protonet": seen_images, "hashed": seen_sentences, "table": seen_rows}


@pytest.mark.parametrize("kind", SEEN)
def test_queries_that_stand_in_the_support_are_named_and_not_scored(kind, tmp_path):
    parts = [f"--{part}={tmp_path / name}" for part, name in zip(PARTS, SEEN[kind](tmp_path), strict=True)]
    outcome = metarun("predict", str(run(kind)), *parts, f"--out={tmp_path / 'out.csv'}")
    assert outcome.code == 0 and "2 of 8 queries are examples of the support, too" in outcome.err, outcome.text
    assert "over the 6 queries that have a label and are not in the support" in outcome.out
    all_in = [parts[0], parts[0].replace("--support", "--query")]
    outcome = metarun("predict", str(run(kind)), *all_in, f"--out={tmp_path / 'out.csv'}")
    assert "and no score counts them" in outcome.err and "over the" not in outcome.out, outcome.text


@pytest.mark.parametrize("kind", ["hashed", "table"])
def test_examples_that_are_there_more_than_once_are_told(kind, tmp_path):
    names = SEEN[kind](tmp_path)
    for name in names:
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join([*lines, *lines[1:3]]))
    parts = [f"--{part}={tmp_path / name}" for part, name in zip(PARTS, names, strict=True)]
    outcome = metarun("predict", str(run(kind)), *parts, f"--out={tmp_path / 'out.csv'}")
    assert outcome.code == 0, outcome.text
    for part, name in zip(PARTS, names, strict=True):
        assert f"{tmp_path / name}: 2 examples repeat another of the {part}, and each counts: " in outcome.err


def test_classes_that_differ_by_blanks_or_case_alone_are_told_of(tmp_path):
    arrays(tmp_path, of_shape(4), [" red oak", "red  oak", "fir", "red oak "])
    outcome = metarun("predict", str(run("protonet")), *npz_parts(tmp_path), f"--out={tmp_path / 'out.csv'}")
    assert (
        "names of classes that are nearly equal, and taken for different ones: 'red  oak' and 'red oak'" in outcome.err
    ), outcome.text
    assert "of 3 classes" in outcome.out


def test_the_interval_of_equal_scores_or_of_one_is_unknown(photos):
    tasks = photos / "tasks"
    for name in ("first", "second", "third"):
        shutil.copytree(photos / "support", tasks / name / "support")
        shutil.copytree(photos / "query", tasks / name / "query")
    words = ["predict", str(run("protonet")), f"--tasks={tasks}", f"--out={photos / 'out.csv'}"]
    assert "unknown, for the 3 tasks that have labels score the same" in metarun(*words).out
    for name in ("first", "second"):
        for shape in SHAPES:
            shutil.rmtree(tasks / name / "query" / shape)
    assert "unknown, for 1 task has labels" in metarun(*words).out


def test_what_is_written_is_said_where_the_disk_refuses_the_second_file(photos):
    (photos / "phi.pt").symlink_to(photos / "absent" / "phi.pt")
    words = [*of_folder(photos), f"--out={photos / 'out.csv'}", f"--save-phi={photos / 'phi.pt'}"]
    outcome = metarun("predict", str(run("protonet")), *words)
    assert outcome.code == 2 and f"cannot be written: No such file or directory. {photos / 'out.csv'} is" in outcome.err


def test_the_field_that_is_read_of_queries_is_told_where_there_are_others(tmp_path):
    support = [json.dumps({"text": sentence(c, 0), "label": str(c)}) for c in (6, 7)]
    (tmp_path / "s.jsonl").write_text("\n".join(support))
    (tmp_path / "q.csv").write_text("text,body\nplease taxi,what\n")
    parts = [f"--support={tmp_path / 's.jsonl'}", f"--query={tmp_path / 'q.csv'}", f"--out={tmp_path / 'out.csv'}"]
    outcome = metarun("predict", str(run("hashed")), *parts)
    assert "q.csv: sentences are in the field 'text'. Not read: 'body'." in outcome.err, outcome.text


def test_how_images_of_more_than_8_bits_are_read_is_told_or_refused(photos):
    pixels = np.asarray(Image.open(photos / "query" / "40.png"))
    (photos / "query" / "40.png").unlink()
    words = ["predict", str(run("protonet")), *of_folder(photos), f"--out={photos / 'out.csv'}"]
    Image.fromarray(pixels.astype("u2") * 16).save(photos / "query" / "deep.png")
    outcome = metarun(*words)
    assert outcome.code == 0 and "are read as those of the training were: as of 0 (black) to 65535" in outcome.err
    (photos / "query" / "deep.png").unlink()
    Image.fromarray(pixels.astype("f4")).save(photos / "query" / "float.tif")
    outcome = metarun(*words)
    assert outcome.code == 2 and "the training had images of 8 bits alone" in outcome.err, outcome.text


def flat(folder: Path) -> None:
    for file in (folder / "support").glob("*/*.png"):
        file.rename(folder / "support" / f"{file.parent.name}{file.name}")


def alone(folder: Path) -> None:
    for name in SHAPES[1:]:
        shutil.rmtree(folder / "support" / name)


def test_masks_beside_the_images_of_a_support_are_told(photos):
    for i in (20, 21, 22):
        drawings(photos / "support" / "circle", 8, range(i, i + 1))[0].rename(
            photos / "support" / "circle" / f"{i}_mask.png"
        )
    drawings(photos / "support" / "circle", 2, range(20, 23), size=31)
    outcome = metarun("predict", str(run("protonet")), *of_folder(photos), f"--out={photos / 'out.csv'}")
    assert outcome.code == 0, outcome.text
    assert "3 of the images are by their names what belongs to another, as a mask" in outcome.text


WRONG = {
    "no labels in the support": (flat, "lies in no class: put the images of each class into a folder"),
    "one class": (alone, "all examples are of the class circle"),
    "an empty support": (
        lambda folder: [shutil.rmtree(folder / "support" / name) for name in SHAPES],
        "holds no images",
    ),
    "an unreadable file": (lambda folder: (folder / "query" / "40.png").write_text("text"), "40.png is no image"),
    "a query class that the support has not": (
        lambda folder: drawings(folder / "query" / "cross", 7, range(2)),
        "has the classes 'cross', but the support has 'circle', 'square', 'zigzag' alone",
    ),
    "more ways than the head has": (
        lambda folder: drawings(folder / "support" / "cross", 7, range(2)),
        "the support has 4 classes (circle, cross, square, zigzag), but the head of MAML has 3",
    ),
    "the folder of both": (
        lambda folder: [drawings(folder / "support" / part, 1, range(2)) for part in ("support", "query")],
        "has folders named support and query",
    ),
    "masks in folders beside images": (
        lambda folder: [
            drawings(folder / "support" / "cross" / part, c, range(2)) for c, part in enumerate(("images", "masks"))
        ],
        "support/cross has images, and beside them masks, which by the name holds what belongs to each",
    ),
    "no query": (lambda folder: shutil.rmtree(folder / "query"), "--query"),
    "an image in two classes": (
        lambda folder: shutil.copy(folder / "support" / "circle" / "20.png", folder / "support" / "square"),
        "1 example is of two classes: square/20.png (square) = circle/20.png (circle). Delete each from the class",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_images_is_one_message_and_nothing_is_written(name, photos):
    change, said = WRONG[name]
    change(photos)
    outcome = metarun("predict", str(run("maml")), *of_folder(photos), f"--out={photos / 'out.csv'}")
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.text
    assert "1 problem in" in outcome.err and not (photos / "out.csv").exists()


def wrong_npz(folder: Path) -> tuple[str, str]:
    np.savez(folder / "s.npz", x=np.zeros((4, 1, SIZE, SIZE + 1)), y=["a", "a", "b", "b"])
    return "s.npz", "s.npz"


def labels_of_shape(folder: Path, *shape: int) -> tuple[str, str]:
    x, y = of_shape(4), np.array(["a", "a", "b", "b"])
    np.savez(folder / "s.npz", x=x, y=y)
    np.savez(folder / "q.npz", x=x, y=y[: np.prod(shape, dtype=int)].reshape(shape))
    return "s.npz", "q.npz"


def arrays(folder: Path, x: object, y: object, query: object = 0) -> tuple[str, str]:
    np.savez(folder / "s.npz", x=x, y=y)
    np.savez(folder / "q.npz", x=x if isinstance(query, int) else query)
    return "s.npz", "q.npz"


def far(path: Path) -> Path:
    path.write_text("subject,dose,kind\na,1,a\na,1e300,a\n")
    return path


def npy(folder: Path) -> tuple[str, str]:
    with (folder / "s.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    return "s.npz", "s.npz"


def of_shape(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, SIZE, SIZE))


FILES = {
    "labels in a column": ("protonet", lambda f: labels_of_shape(f, 4, 1), "y has shape [4, 1], but each example"),
    "one label for all": ("protonet", labels_of_shape, "4 examples in x and one number in y"),
    "an array of another size": ("protonet", wrong_npz, "but the model takes inputs of shape [1, 12, 12]"),
    "a damaged npz": (
        "protonet",
        lambda f: ((f / "s.npz").write_text("no"), "s.npz")[1:] * 2,
        "cannot be read as arrays",
    ),
    "an npy by the name of an npz": ("sinusoid", npy, "it is no .npz file, or not a whole one"),
    "labels that are objects": (
        "protonet",
        lambda f: arrays(f, of_shape(2), np.array(["a", 1], dtype=object)),
        "objects are never read",
    ),
    "complex labels": (
        "protonet",
        lambda f: arrays(f, of_shape(2), np.array([1j, 2])),
        "y holds complex128, but a class",
    ),
    "labels in bytes of another code": (
        "protonet",
        lambda f: arrays(f, of_shape(2), np.array([b"\xff", b"b"])),
        "bytes that are not UTF-8",
    ),
    "a label that is NaN": (
        "protonet",
        lambda f: arrays(f, of_shape(2), np.array([0, np.nan])),
        "example 1 has no label",
    ),
    "bytes of 0 and 1": (
        "protonet",
        lambda f: arrays(f, (of_shape(2) > 0.5).astype("uint8"), ["a", "b"]),
        "the array is black: its highest number is 1 of 255",
    ),
    "bytes times 256": (
        "protonet",
        lambda f: arrays(f, (of_shape(2) * 255).round().astype("uint16") * 256, ["a", "b"]),
        "divide by 65535, which is white.",
    ),
    "bytes as whole numbers": (
        "protonet",
        lambda f: arrays(f, (of_shape(2) * 255).round(), ["a", "b"]),
        "divide by 255, which is white, or give .astype('uint8').",
    ),
    "images from -1 to 1": (
        "protonet",
        lambda f: arrays(f, of_shape(2) * 2 - 1, ["a", "b"]),
        "or bytes: add 1 and divide by 2.",
    ),
    "images a little above 1": (
        "protonet",
        lambda f: arrays(f, of_shape(2) * 1.05, ["a", "b"]),
        "limit them by .clip(0, 1).",
    ),
    "complex targets": ("sinusoid", lambda f: arrays(f, np.zeros((2, 1)), np.array([1j, 2])), "but are complex128"),
    "numbers that the dtype of the model has not": (
        "sinusoid",
        lambda f: arrays(f, np.zeros((2, 1)), np.zeros(2), np.array([[0.0], [1e300]])),
        "too large for the model, which computes in torch.float32",
    ),
    "a number of a table that the dtype of the model has not": (
        "table",
        lambda f: (table(f / "t.csv", ["a"], 3).name, far(f / "q.csv").name),
        "q.csv, line 3: numbers that are too large for the model",
    ),
    "complex numbers for a table": (
        "table",
        lambda f: (table(f / "t.csv", ["a"], 3).name, arrays(f, np.array([[1j, 2]]), [1.0])[1]),
        "column 'dose' is '1j', which is not a finite number",
    ),
    "JSON that is nested too deep": (
        "hashed",
        lambda f: ((f / "t.jsonl").write_text("[" * 100000), "t.jsonl")[1:] * 2,
        "t.jsonl is not read as JSON: it is nested too deep",
    ),
    "JSON with a number of thousands of digits": (
        "hashed",
        lambda f: ((f / "t.jsonl").write_text(f'{{"text": "a", "label": {"1" * 5000}}}'), "t.jsonl")[1:] * 2,
        "line 1 is not read as JSON: Exceeds the limit",
    ),
    "a text that is no list": (
        "hashed",
        lambda f: arrays(f, np.array("a b c"), np.array("a")),
        "but must hold numbers",
    ),
    "a CSV of a generated task": (
        "sinusoid",
        lambda f: (table(f / "t.csv", ["a"], 3).name,) * 2,
        ".npz file of arrays",
    ),
    "texts without labels": (
        "hashed",
        lambda f: ((f / "t.csv").write_text("text\na b c\n"), "t.csv")[1:] * 2,
        "must name the columns text and label",
    ),
    "labels that differ by case": (
        "hashed",
        lambda f: ((f / "t.csv").write_text("text,label\na b c,Taxi\nd e f,taxi\n"), "t.csv")[1:] * 2,
        "differ by case or blanks alone",
    ),
    "a sentence in two classes": (
        "hashed",
        lambda f: ((f / "t.csv").write_text("text,label\na  B,taxi\nc d,hotel\nA b,hotel\n"), "t.csv")[1:] * 2,
        "t.csv: 1 example is of two classes: A b (hotel) = a B (taxi). Delete each from the class",
    ),
    "an array in two classes": (
        "protonet",
        lambda f: arrays(f, of_shape(2)[[0, 1, 0]], ["a", "b", "b"]),
        "s.npz: 1 example is of two classes: 2 (b) = 0 (a)",
    ),
    "two subjects": ("table", lambda f: (table(f / "t.csv", ["a", "b"], 3).name,) * 2, "holds rows of 2 tasks"),
    "another subject in the query": (
        "table",
        lambda f: (table(f / "t.csv", ["a"], 3).name, table(f / "q.csv", ["b"], 3).name),
        "holds rows of 'b', but the support those of 'a'",
    ),
    "a table without the outputs": (
        "table",
        lambda f: (table(f / "t.csv", ["a"], 3, level=False).name,) * 2,
        "the column 'level' is missing",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_wrong_with_a_file_is_one_message_and_nothing_is_written(name, tmp_path):
    kind, make, said = FILES[name]
    support, query = make(tmp_path)
    words = [f"--support={tmp_path / support}", f"--query={tmp_path / query}", f"--out={tmp_path / 'out.csv'}"]
    outcome = metarun("predict", str(run(kind)), *words)
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.text
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2", "g", "i2", ">i8", "u1", "u2"])
def test_numbers_of_every_dtype_and_order_predict_alike(kind, tmp_path):
    x, y = np.arange(8).reshape(4, 2), np.arange(4.0)
    parts = [f"--{part}={tmp_path / part[0]}.npz" for part in ("support", "query")]
    arrays(tmp_path, x[:, :1].astype("f4"), y)
    rows = predict("sinusoid", tmp_path, *parts)
    arrays(tmp_path, np.asfortranarray(x.astype(kind))[:, :1], y)
    assert predict("sinusoid", tmp_path, *parts) == rows


def test_a_prediction_that_is_not_finite_is_refused_and_names_no_class():
    adapted = package.load(run("maml")).adapt(of_shape(4), list("abab"))
    queries = torch.tensor([0.5, 3e38])[:, None, None, None].expand(2, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"prediction of query 1, counted from 0, is not finite \(1 of 2 are not\)"):
        adapted.probabilities(queries)


def test_labels_of_arrays_are_whole_numbers_also_where_one_is_missing(tmp_path):
    arrays(tmp_path, of_shape(4), [0, 1, 0, 1])
    np.savez(tmp_path / "q.npz", x=of_shape(4), y=[0, np.nan, 1, 1])
    rows = predict("protonet", tmp_path, f"--support={tmp_path / 's.npz'}", f"--query={tmp_path / 'q.npz'}")
    assert [row["label"] for row in rows] == ["0", "", "1", "1"] and {"p_0", "p_1"} < {*rows[0]}


def test_only_earlier_predictions_are_replaced_and_no_other_file(photos):
    picture, phi = photos / "support" / "circle" / "20.png", photos / "phi.pt"
    other = photos / "weights.pt"
    torch.save({"theta": torch.zeros(2)}, other)
    for words in ([f"--out={picture}"], [f"--save-phi={picture}"], [f"--save-phi={other}"]):
        before = [file.read_bytes() for file in (picture, other)]
        outcome = metarun("predict", str(run("protonet")), *of_folder(photos), *words)
        assert outcome.code == 2 and "that file holds something else" in outcome.err, outcome.text
        assert [file.read_bytes() for file in (picture, other)] == before
    for _ in range(2):
        predict("protonet", photos, *of_folder(photos), f"--save-phi={phi}")


@pytest.mark.parametrize(
    "beginning", [b"item,", b"task,item,", b'\xef\xbb\xbf"item","', b"\xef\xbb\xbftask;item;", b"item\t"]
)
def test_a_table_of_predictions_that_a_spreadsheet_saved_again_is_replaced(beginning, tmp_path):
    (tmp_path / "out.csv").write_bytes(beginning)
    refuse_place("--out", tmp_path / "out.csv")
    (tmp_path / "out.csv").write_bytes(beginning.replace(b"item", b"items"))
    with pytest.raises(ConfigError, match="holds something else"):
        refuse_place("--out", tmp_path / "out.csv")


def test_wrong_places_are_refused_before_the_run_is_loaded(photos):
    file, new = photos / "examples.npz", photos / "new"
    file.touch()
    for words, said in (
        ([], "name labelled examples by --support"),
        ([*of_folder(photos), f"--tasks={photos}"], "leave --support and --query out"),
        ([f"--tasks={photos / 'absent'}"], "there is no such folder"),
        ([f"--tasks={photos}"], "must hold one support and one query"),
        ([*of_folder(photos), f"--out={photos}"], "that is a folder"),
        ([*of_folder(photos), f"--out={photos / 'a' / 'b.csv'}"], "there is no folder"),
        ([f"--support={file}", f"--query={file}", f"--out={file}"], "holds examples that are read"),
        ([*of_folder(photos), f"--out={new}", f"--save-phi={new}"], "is that of --out"),
        ([*of_folder(photos), "--out=-"], "that is no regular file"),
        ([*of_folder(photos), f"--out={os.devnull}"], "that is no regular file"),
        ([*of_folder(photos), f"--out={photos / ('a' * 300)}"], "(File name too long)"),
        ([f"--support={photos / ('a' * 300)}", f"--query={photos}"], "(File name too long)"),
    ):
        outcome = metarun("predict", str(photos / "no run"), *words)
        assert outcome.code == 2 and said in outcome.err, outcome.text


@pytest.mark.data
@pytest.mark.slow
def test_drawings_of_unseen_characters_are_told_apart_after_a_short_training(data_root, tmp_path):
    folder = tmp_path / "run"
    words = ["task=omniglot", "meta_learner=protonet", "base_learner=conv4", "base_learner.channels=16", "steps=60"]
    budget = ["task.train_num_ways=20", "device=cpu", "evaluation.num_tasks=20", "evaluation.num_val_tasks=20"]
    outcome = metarun(*words, *budget, "meta_batch_size=1", "evaluation.every=60", f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    with zipfile.ZipFile(data_root / "omniglot-py" / "images_evaluation.zip") as archive:
        for c, place in enumerate(
            ("Tibetan/character01", "Tengwar/character02", "ULOG/character03", "Keble/character04")
        ):
            members = sorted(name for name in archive.namelist() if f"/{place}/" in name and name.endswith(".png"))
            for number, member in enumerate(members[:10]):
                part = tmp_path / ("support" if number < 5 else "query") / f"sign{c}"
                part.mkdir(parents=True, exist_ok=True)
                (part / f"{number}.png").write_bytes(archive.read(member))
    places = [f"--support={tmp_path / 'support'}", f"--query={tmp_path / 'query'}", f"--out={tmp_path / 'out.csv'}"]
    outcome = metarun("predict", str(folder), *places)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert np.mean([row["label"] == row["predicted"] for row in rows]) > 0.8, outcome.text


def test_equal_rows_of_numbers_may_be_of_two_classes_and_are_no_repeats(tmp_path):
    def read(*shape):
        np.savez(tmp_path / "two.npz", x=np.zeros((2, *shape)), y=["a", "b"])
        spec = TaskSpec(shape, 2, CROSS_ENTROPY, num_ways=2)
        return ArrayReader(spec, torch.device("cpu"), torch.float32).read(tmp_path / "two.npz", labelled=True)

    found = read(2)
    assert found.labels.tolist() == ["a", "b"] and len({*found.keys}) == 2
    with pytest.raises(DataError, match="of two classes"):  # images are seldom equal by chance
        read(1, 2, 2)
