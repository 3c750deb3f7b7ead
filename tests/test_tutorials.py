"""The commands of the quick start and of the tutorials are run, page by page and in their order, with a tiny budget."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metarun.config.help import COMMANDS
from tests.running import ROOT, metarun, sweep, untouched_process

TINY = [
    *["device=cpu", "steps=2", "meta_batch_size=2", "log_every=1", "evaluation.every=2", "evaluation.num_val_tasks=2"],
    *["evaluation.num_tasks=4", "execution=looped", "execution.compile=false"],
]
SMALL_IMAGES = ["task.size=28", "base_learner.channels=4"]
CANNOT = ("tensorboard", "doctor", "experiment=NAME", "evaluate RUN")  # a server; a machine; words to fill in
PAGES = ["quick_start", "tutorial_first_run", "tutorial_resume", "tutorial_own_algorithm", "your_own_data"]


def blocks(page: str, *languages: str) -> list[str]:
    """The page's blocks of code in one of these languages; "" is none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.M | re.S)
    return [text for language, text in found if language in languages]


def commands(page: str) -> list[list[str]]:
    """The command lines of metarun in the page's blocks, as lists of words, in their order."""
    lines = [line.removeprefix("$ ") for line in "".join(blocks(page, "")).replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("metarun ")]
    return [words[1:] for words in found]


def what_a_reader_has(folder: Path) -> None:
    """What the pages speak of, in the current folder: photos, sentences, and the table and algorithm that two make."""
    for i in range(10):
        (folder / "photos" / f"class{i}").mkdir(parents=True)
        for j in range(20):
            colour = (25 * i, 12 * j, (37 * i + 11 * j) % 256)
            Image.new("RGB", (84, 84), colour).save(folder / "photos" / f"class{i}" / f"burst{j}_{i}.png")
    shutil.copy(ROOT / "tests" / "outside" / "requests.jsonl", folder)
    for program in blocks("your_own_data", "python"):  # write vectors.npy and growth.csv
        exec(program, {})
    names = ["sign_maml.py", "meta_learner/sign_maml.yaml", "line.py", "task/line.yaml", "worst.py"]
    for name, text in zip(names, blocks("tutorial_own_algorithm", "python", "yaml"), strict=True):
        (folder / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mine" / name).write_text(text)


def tiny(words: list[str]) -> list[str]:
    """The words of a command line, and then what makes it small."""
    if words[0] == "explain":
        return [*shlex.split(re.sub(r" --tasks \d+", "", " ".join(words))), "--tasks", "2"]
    if words[0] in COMMANDS:
        return [*words, *["evaluation.num_tasks=4"] * (words[0] == "evaluate")]
    if any(re.match(r"resume=(?!auto)", word) for word in words):
        return [word if not word.startswith("steps=") else "steps=4" for word in words]
    images = SMALL_IMAGES if "task=image_folder" in words else []
    return [*words, *images, *(word for word in TINY if "execution=vmapped" not in words or word != "execution=looped")]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    what_a_reader_has(tmp_path)
    ran = 0
    for words in commands(page):
        line = " ".join(words)
        if not words or "..." in words or any(part in line for part in CANNOT):
            continue
        small = tiny(words)
        done = sweep(*(word for word in small if word != "-m"), cwd=tmp_path) if "-m" in words else metarun(*small)
        assert done.code == 0, f"metarun {' '.join(small)}\n{done.text}"
        ran += 1
    assert ran > 2


def test_no_command_of_a_page_names_the_digest_of_a_run():
    pages = [path.stem for path in (ROOT / "docs").glob("*.md")]
    named = [word for page in pages for line in commands(page) for word in line if re.search(r"-[0-9a-f]{6,8}$", word)]
    assert named == []


def test_files_that_the_pages_of_applying_use_are_made_by_a_program_of_one_of_them():
    made = set(re.findall(r'Path\("(\w+)"', "".join(blocks("apply", "python"))))
    for page in ("apply", "tutorial_sweep"):
        words = [
            word for line in commands(page) for word in line if line[0] in ("predict", "export") or "path=" in word
        ]
        named = {word.rpartition("=")[2].partition("/")[0] for word in words if "/" in word}
        assert named - made <= {"runs", "mine"}, page  # mine: in the first line, which stands for any


@pytest.mark.data
def test_the_programs_of_the_page_on_applying_make_the_files_that_its_commands_use(tmp_path, monkeypatch, data_root):
    monkeypatch.chdir(tmp_path)
    for program in [text for text in blocks("apply", "python") if "METARUN_DATA" in text]:
        exec(program, {})
    assert len(list(tmp_path.glob("signs/support/*/*.png"))) == 18 and len(list(tmp_path.rglob("*.png"))) == 54
    files = [(tmp_path / "desk" / f"{name}.csv").read_text().splitlines() for name in ("support", "query")]
    assert len(list(csv.DictReader(files[0]))) == 25 and len(list(csv.DictReader(files[1]))) >= 200


def test_the_programs_of_the_page_on_python_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with untouched_process():
        for program in blocks("python_api", "python"):
            exec(program, names)
    assert names["theta"] and isinstance(names["score"], float)
