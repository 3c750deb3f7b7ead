"""Wrong command lines: flags, words and quotes that nobody should type, and config folders that nobody should write."""

import random
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from small_runs import TINY, completed_run
from wrong_input import ANY, REFUSED, Case

LINES = Path(__file__).with_suffix(".txt")
LONG, VERY_LONG = "x" * 300, "x" * 5000
ODD = ("''", "''''", LONG, "'é漢😀'", "'r_[red]x[/nope]'", "'a b'", "'a\tb'", "/dev/null", "/dev/null/x", "/proc/x")
CONTROL = (("--config-dir", "a\nb"), ("steps=\n",), ("steps=3\nseed=4",), ("\x1b[31msteps=3",))
OKAY = frozenset({0, 2})
FAILED = ANY - {0}

# ---- config folders: the files in them, and what is typed ----

LEARNER = "_target_: mine.Mine\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 50)}]}}\n" for i in range(1, 9))


def task(text: str) -> dict[str, str]:
    return {"task/bad.yaml": text}


def experiment(text: str) -> dict[str, str]:
    return {"experiment/bad.yaml": text}


def learner(code: str) -> dict[str, str]:
    return {"mine.py": code, "meta_learner/bad.yaml": LEARNER}


FOLDERS: dict[str, dict[str, str]] = {  # by name: the files of a config folder; its option "bad" is chosen
    "a list at the top": task("- a\n- b\n"),
    "a word at the top": task("abc\n"),
    "nothing": task(""),
    "null": task("null\n"),
    "defaults in a circle": task("defaults: [bad]\n_target_: x.Y\n"),
    "defaults in a wider circle": {"task/bad.yaml": "defaults: [worse]\n", "task/worse.yaml": "defaults: [bad]\n"},
    "an experiment in a circle": experiment("# @package _global_\ndefaults: [bad]\nsteps: 3\n"),
    "defaults that are a word": task("defaults: abc\n"),
    "defaults that are a number": task("defaults: 5\n"),
    "defaults of nothing": task("defaults: [nowhere]\n"),
    "defaults of mappings": task("defaults: [{a: {b: c}}]\n"),
    "an integer key": task("1: 2\n_target_: metarun.tasks.sinusoid.Sinusoid\n"),
    "a null key": task("null: 2\n"),
    "a list as a key": task("? [a, b]\n: 2\n"),
    "a date": task("_target_: metarun.tasks.sinusoid.Sinusoid\nnum_shots: 2026-01-01\n"),
    "depth": task("a: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n"),
    "depth of lists": task("a: " + "[" * 2000 + "]" * 2000 + "\n"),
    "an anchor bomb": task(BOMB),
    "a merge bomb": task(MERGES),
    "an anchor that holds itself": task("a: &a\n  b: *a\n"),
    "a Python object": task("a: !!python/object/apply:os.system ['touch executed']\n"),
    "a tag": task("a: !foo bar\n"),
    "broken YAML": task("a: [\n"),
    "a tab": task("a:\n\tb: 1\n"),
    "two documents": task("a: 1\n---\nb: 2\n"),
    "a key twice": task("_target_: metarun.tasks.sinusoid.Sinusoid\n_target_: x.Y\n"),
    "Latin-1": task("\udce9: 1\n"),
    "zeros": task("\x00" * 100),
    "an unknown package": task("# @package foo.bar\n_target_: x.Y\n"),
    "a package of nonsense": task("# @package [[\n_target_: x.Y\n"),
    "an experiment with an unknown key": experiment("# @package _global_\nstepz: 3\n"),
    "an experiment with a wrong type": experiment("# @package _global_\nsteps: abc\n"),
    "an experiment that overrides nothing": experiment("# @package _global_\ndefaults: [{override /foo: bar}]\n"),
    "an experiment that overrides by nothing": experiment(
        "# @package _global_\ndefaults: [{override /task: nowhere}]\n"
    ),
    "an experiment without a package": experiment("steps: 3\n"),
    "an interpolation in a circle": task("_target_: x.Y\na: ${.b}\nb: ${.a}\n"),
    "an interpolation to nowhere": task("_target_: metarun.tasks.sinusoid.Sinusoid\na: ${nowhere}\n"),
    "a broken interpolation": task("_target_: metarun.tasks.sinusoid.Sinusoid\na: ${\n"),
    "no target": task("a: 1\n"),
    "a folder for a file": {"task/bad.yaml/x": ""},
    "a class that is no learner": learner("class Mine:\n    pass\n"),
    "a function for a learner": learner("def Mine(**given):\n    return 5\n"),
    "a value for a learner": learner("Mine = 5\n"),
    "a module that does not parse": learner("def (:\n"),
    "a module that raises": learner("raise RuntimeError('no')\n"),
    "a module that exits": learner("import sys\nsys.exit(3)\n"),
    "a module of zeros": learner("\x00"),
    "a module that lacks a package": learner("import nowhere\n"),
    "an abstract learner": learner("from metarun.core import MetaLearner as Mine\n"),
    "a class that raises": {
        "mine.py": "from torch import nn\nclass Mine(nn.Module):\n    def __init__(self):\n        raise KeyError('no')\n",
        "base_learner/bad.yaml": LEARNER,
    },
    "a module of a standard name": {"json.py": "", "task/bad.yaml": "_target_: json.loads\n"},
}
NAMES = ("a'b", "a, b", "a[b", "a b", "a=b", "sw~p", "a#b", "é漢", "$x", "{a}", "[red]x[b]", "a:b", "a~", "-x", "%s")


def cases(number: int, seed: int, place: Path) -> list[Case]:
    """At least ``number`` command lines, or a sample of so many."""
    found = [*_lines(completed_run(place)), *_run_folders(), *_config_folders()]
    return found if number >= 300 else random.Random(seed).sample(found, number)


def _lines(run: Path) -> Iterator[Case]:
    """The command lines of the file; the last of them begin in a folder with a completed run."""

    def beside(folder: Path) -> None:
        shutil.copytree(run, folder / "run")

    section = ""
    for line in LINES.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            words = [word.replace("VERY_LONG", VERY_LONG).replace("LONG", LONG) for word in shlex.split(line)]
            expects = {"?": OKAY, "!": FAILED}.get(words[0], REFUSED)
            argv = tuple(words[words[0] in ("?", "!") :])
            yield Case("commands", section, argv, expects, before=beside if section == "beside a run" else None)
    yield from (Case("commands", "control characters", argv) for argv in CONTROL)


def _run_folders() -> Iterator[Case]:
    for text in ODD:
        for terminal in (False, True):
            yield Case("commands", "run_dir", (*TINY, f"run_dir={text}"), ANY, terminal=terminal)
    yield Case("commands", "run_dir", (*TINY, "run_dir="))
    for text in ("file", "file/run", "loop"):
        yield Case("commands", "run_dir", (*TINY, f"run_dir={text}"), FAILED, before=_file_and_loop)


def _file_and_loop(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")


def _config_folders() -> Iterator[Case]:
    for name, files in FOLDERS.items():
        group = next(path.split("/")[0] for path in files if "/bad.yaml" in path)
        chosen = ("--config-dir=mine", f"{group}=bad", "steps=1")
        yield Case("commands", "config folders", chosen, before=_written(files), damage=name)
    for name in NAMES:

        def before(folder: Path, name: str = name) -> None:
            _written({"task/mine.yaml": "defaults: [sinusoid]\n"})(folder)
            (folder / "mine").rename(folder / name)

        command = (f"--config-dir={name}", "task=mine", *TINY, "run_dir=run")
        yield Case("commands", "names of config folders", command, frozenset({0}), before=before)
        yield Case("commands", "names of sweep folders", ("-m", *TINY, "seed=-1,-2", f"sweep_dir={name}"))


def _written(files: dict[str, str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in files.items():
            path = folder / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode(errors="surrogateescape"))

    return write
