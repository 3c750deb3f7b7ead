"""metarun's documented commands on data as a user has it, beside what needs no training.

    python scripts/own_data.py DIR [WORD ...]     writes sentences and folders of images into DIR, and runs the commands
                                                  there whose names hold all of the words (clinc150 maml, say), one
                                                  after the other in this process; complete ones are kept
    python scripts/own_data.py DIR --publish      runs nothing; writes docs/receipts/own_data.json from the runs in DIR,
                                                  and their table into docs/your_own_data.md
    python scripts/own_data.py --publish          writes that table anew from the receipt

Needs CLINC150, Banking77, Omniglot and CIFAR-100 in METARUN_DATA. A data set of DATA is made by the function that it names,
from a part of what is published there; the commands are those of docs/your_own_data.md, section by section.
"""

import csv
import json
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from published import complete, filled, markdown, percent, place_of_runs, read_receipts, run_to_its_end, write_receipts
from receipt import RECEIPTS, receipt

PAGE = RECEIPTS.parent / "your_own_data.md"
OF_TRAINING = re.compile(r"^training (?:did not help|may not have helped).*", re.MULTILINE)  # the last line of a log
KEPT = RECEIPTS / "own_data.json"
ALPHABETS = ("Futurama", "Greek", "Hebrew", "Korean", "Latin")
PARTS = ("train", "train", "train", "val", "test")  # of classes in alphabetical order, again and again


# -------------------------------------------------------------------------------------------------------------- data

Sentences = Iterable[tuple[str, str]]  # text and class


def clinc150(root: Path) -> Sentences:
    """The sentences of CLINC150's 150 intents."""
    published = json.loads((root / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    return ((text, label) for part, rows in published.items() if "oos" not in part for text, label in rows)


def banking77(root: Path) -> Sentences:
    """The sentences of Banking77's 77 intents."""
    for part in ("train", "test"):
        with (root / "banking77" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
            yield from ((row["text"], row["category"]) for row in csv.DictReader(file))


def write_sentences(sentences: Sentences, keep: int, path: Path) -> None:
    """A CSV file with the columns text, label and split, of every ``keep``-th class, and each sentence once: four of
    CLINC150 are in two classes, which a file of one's own may not have."""
    rows = list(sentences)
    names = sorted({label for _, label in rows})[::keep]
    part_of = {name: PARTS[number % len(PARTS)] for number, name in enumerate(names)}
    label_of: dict[str, str] = {}
    for text, label in rows:
        if label in part_of:
            label_of.setdefault(text, label)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "split"])
        table.writerows([text, label, part_of[label]] for text, label in label_of.items())


def write_characters(root: Path, path: Path) -> None:
    """A folder a character, ``alphabet/character``, of the drawings of five of Omniglot's alphabets."""
    for parts, content in drawings(root):
        if parts[0] in ALPHABETS:
            write(path.joinpath(*parts), content)


def write_alphabets(root: Path, path: Path) -> None:
    """A folder an alphabet, with a folder for each of ten characters; four of the twenty drawings of each."""
    for parts, content in drawings(root):
        if parts[1] <= "character10" and int(parts[2][-6:-4]) <= 4:
            write(path.joinpath(*parts), content)


def drawings(root: Path) -> Iterator[tuple[tuple[str, str, str], bytes]]:
    """The path below the archive's folder, and the content, of Omniglot's background drawings."""
    with zipfile.ZipFile(root / "omniglot-py" / "images_background.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".png") and not name.startswith("__MACOSX"):
                alphabet, character, drawing = name.split("/")[-3:]
                yield (alphabet, character, drawing), archive.read(name)


def write_photos(root: Path, path: Path) -> None:
    """A folder a class, of the first 60 images of every third class of CIFAR-100."""
    from PIL import Image

    from metarun.tasks.cifar import CIFAR100

    prepared = CIFAR100.source(str(root), False).prepared()
    ends = prepared.counts.cumsum()
    for name, end, count in islice(zip(prepared.names, ends, prepared.counts, strict=True), 0, None, 3):
        folder = path / name.split("/")[-1]
        folder.mkdir(parents=True)
        for number, row in enumerate(prepared.rows[end - count : end - count + 60]):
            Image.fromarray(row.transpose(1, 2, 0)).save(folder / f"{number:03}.png")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class Data(NamedTuple):
    """A data set: its name in DIR, what it is, who writes it, and the beginning of its commands."""

    name: str
    what: str
    write: Callable[[Path, Path], None]
    command: str


TEXT = "experiment={}_text task.split=given task.num_ways=5"
IMAGES = "task=image_folder base_learner=conv4 base_learner.downsample=max_pool base_learner.batch_norm=running "
IMAGES += "base_learner.channels=32 meta_learner={} steps=200 meta_batch_size=4 task.num_ways=5"
DATA = (
    Data("clinc150.csv", "150 intents", lambda root, path: write_sentences(clinc150(root), 1, path), TEXT),
    Data("clinc150_few.csv", "25 of them", lambda root, path: write_sentences(clinc150(root), 6, path), TEXT),
    Data("banking77.csv", "77 intents", lambda root, path: write_sentences(banking77(root), 1, path), TEXT),
    Data("banking77_few.csv", "26 of them", lambda root, path: write_sentences(banking77(root), 3, path), TEXT),
    Data("characters", "138 characters, 20 drawings each", write_characters, f"{IMAGES} task.size=28 task.channels=1"),
    Data("photos", "34 classes of CIFAR-100, 60 photos each", write_photos, f"{IMAGES} task.size=32"),
    Data(
        "alphabets",
        "30 alphabets, by characters not seen in the support",
        write_alphabets,
        f"{IMAGES} task.size=28 task.channels=1 \"task.group_pattern='/(character[0-9]+)/'\"",
    ),
)


def commands() -> dict[str, tuple[Data, list[str]]]:
    """The data and the overrides of each run, by name: DATA-LEARNER-SHOTS."""
    found = {}
    for data in DATA:
        texts = data.name.endswith(".csv")
        for learner in ("protonet", "maml") if texts else ("protonet",):
            for shots in (1, 5) if texts else (5,):
                own = [f"task.path={data.name}", f"task.num_shots={shots}", "execution.threads=1"]
                words = [*shlex.split(data.command.format(learner)), *own]
                found[f"{data.name.removesuffix('.csv')}-{learner}-{shots}s"] = data, words
    return found


def run(name: str, data: Data, overrides: list[str]) -> None:
    """One run to its end in this folder, with its data there."""
    if not Path(data.name).exists():
        data.write(Path(os.environ["METARUN_DATA"]), Path(data.name))
    run_to_its_end(name, overrides)


# ------------------------------------------------------------------------------------------------------------- pages


def keep(place: Path) -> None:
    """docs/receipts/own_data.json: of each run in ``place`` the receipt, and what the last lines say of training."""
    kept = {}
    for name in complete(place, commands()):
        said = OF_TRAINING.findall((place / name / "log.txt").read_text())
        kept[name] = receipt(place / name) | {"said": said[-1] if said else ""}
    write_receipts(KEPT, kept)


def table(kept: dict[str, Any]) -> str:
    """A row a run: its data and command, its accuracy and that without training, and what it says of training."""
    rows = []
    for name, (data, _) in commands().items():
        if name not in kept:
            continue
        results, (_, learner, shots) = kept[name]["results"], name.split("-")
        without = results.get("test/frozen_accuracy") or results["test/baseline_accuracy"]
        cells = [f"`{data.name}`: {data.what}", f"{learner}, {shots[:-1]}", percent(results["test/accuracy"])]
        rows.append([*cells, percent(without), kept[name]["said"]])
    return markdown(("data", "learner, shots", "accuracy", "without training", "last line"), rows)


def with_table(text: str) -> str:
    """``text`` with the table of the receipt."""
    return filled(text, "own data", lambda _: table(read_receipts(KEPT)))


def main(argv: list[str] | None = None) -> None:
    args = place_of_runs(argv, __doc__, "runs", keep, PAGE, with_table)
    if args is None:
        return
    os.chdir(args.place)
    for name, (data, overrides) in commands().items():
        if set(args.words) <= set(name.split("-")) and not Path(name, "results.json").is_file():
            run(name, data, overrides)


if __name__ == "__main__":
    main()
