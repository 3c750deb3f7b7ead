"""Damaged files: of a completed run, and of data of the user's own."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from small_runs import SMALL, OwnData, completed_run
from wrong_input import ANY, Case

RESUME, LONGER = ("resume=run",), ("resume=run", "steps=3")
BEST, LAST = ("evaluate", "run"), ("evaluate", "run", "--checkpoint=last")


# ---- damages of any file ----


class Damage(NamedTuple):
    """What is done to a file, and a name for it."""

    name: str
    do: Callable[[Path], object]


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def written(content: bytes) -> Damage:
    return Damage(f"{content[:30]!r}", lambda path: path.write_bytes(content))


HALF = Damage("half of it", lambda path: path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)]))
EMPTY = Damage("nothing", lambda path: path.write_bytes(b""))
BINARY = Damage("any bytes", lambda path: path.write_bytes(bytes(range(256)) * 8))
ZEROS = Damage("zeros", lambda path: path.write_bytes(bytes(path.stat().st_size)))  # what is left without power
LATIN_1 = Damage("Latin-1", lambda path: path.write_bytes("# für Größe\n".encode("latin-1") + path.read_bytes()))
FOLDER = Damage("a folder", become_a_folder)
OF_ANY = [
    *(HALF, EMPTY, BINARY, ZEROS, LATIN_1, FOLDER, Damage("gone", Path.unlink)),
    *map(
        written, (b"{}", b"null", b"[]", b"5", b'"abc"', b'{"a": {"b": [1, 2, {"c": null}]}}', b"{{{{", b"- a\n- b\n")
    ),
    Damage("depth", lambda path: path.write_bytes(b"[" * 20000)),
]


# ---- damages of a checkpoint ----


def in_state(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return Damage(name, damage)


def without(key: str) -> Damage:
    return in_state(f"without {key}", lambda state: state.pop(key))


def with_value(key: str, value: Any) -> Damage:
    return in_state(f"{key}={str(value)[:20]}", lambda state: state.update({key: value}))


def of_each_leaf(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def of(state: dict[str, Any]) -> None:
        state["theta"] = {key: change(leaf) for key, leaf in state["theta"].items()}

    return in_state(name, of)


def of_the_first_leaf(name: str, value: Any) -> Damage:
    return in_state(name, lambda state: state["theta"].update({next(iter(state["theta"])): value}))


VALUES: dict[str, tuple[Any, ...]] = {
    "step": (-5, "3", None, 1.5, float("nan")),
    "validated": (-5, "3", None),
    "best": (None, {"value": float("nan"), "step": 1}, {"value": "a"}, []),
    "means": (None, {}, {"a": 1}, []),
    "optimizer": (None, {}, {"state": {}, "param_groups": []}, []),
    "scheduler": (None, {}, [], {"last_epoch": "a"}),
    "generators": (None, {}, {"cpu": torch.zeros(3), "cuda": []}, {"cpu": 5, "cuda": 5}),
    "theta": (None, {}, [], 5, torch.zeros(3)),
    "format": (None, 2, "1", [1]),
}
OF_CHECKPOINTS = [  # and whatever reads one of them must refuse it
    *(without(key) for key in VALUES),
    *(with_value(key, value) for key, values in VALUES.items() for value in values),
    of_each_leaf("NaN in theta", lambda leaf: leaf * float("nan")),
    of_each_leaf("infinite theta", lambda leaf: leaf / 0),
    of_each_leaf("other shapes", lambda leaf: leaf[None]),
    of_each_leaf("whole numbers", lambda leaf: leaf.to(torch.int64)),
    of_each_leaf("sparse", lambda leaf: leaf.to_sparse()),
    in_state("a leaf less", lambda state: state["theta"].popitem()),
    in_state("a leaf more", lambda state: state["theta"].update(more=torch.zeros(3))),
    of_the_first_leaf("a number for a leaf", 5),
    of_the_first_leaf("None for a leaf", None),
    of_the_first_leaf("one other shape", torch.zeros(7, 7)),
]
LIKELY = [of_each_leaf("another dtype", torch.Tensor.double), with_value("step", 10**9), with_value("best", {})]


# ---- damages of the other files of a run ----

IN_JSON: dict[str, tuple[Any, ...]] = {
    "status.json": (
        {"state": 5},
        {"state": "completed", "step": "abc"},
        {"state": "running", "pid": "x"},
        {"step": []},
    ),
    "execution.json": (
        *({"chosen": "looped", "threads": n} for n in (0, -1, "a", None, 1.5)),
        *({"chosen": name, "threads": 1} for name in ("", "foo", None, 5)),
    ),
    "run.json": ({"history": 5}, {"history": [5]}, {"data": 5}, {"data": None, "history": None}, {"history": {}}),
    "results.json": ({"test/mse": 5}, {"test/mse": {}}, {"test/mse": {"mean": "a", "ci95": None}}),
}
BOMB = "rates: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 9)
)
IN_CONFIG = {  # by name: what is replaced, and what by
    "no steps": ("steps: 2\n", ""),
    "steps are a word": ("steps: 2\n", "steps: abc\n"),
    "a key more": ("steps: 2\n", "steps: 2\nfoo: 5\n"),
    "a key twice": ("steps: 2\n", "steps: 2\nsteps: 3\n"),
    "no task": ("task:\n", "tusk:\n"),
    "a rate of nan": ("inner_lr: 0.01", "inner_lr: .nan"),
    "the shell": ("metarun.tasks.sinusoid.Sinusoid", "os.system"),
    "an interpolation to nowhere": ("steps: 2\n", "steps: ${nowhere}\n"),
    "an interpolation in a circle": ("steps: 2\n", "steps: ${seed}\nseed: ${steps}\n"),
    "a tab": ("steps: 2\n", "\tsteps: 2\n"),
    "an anchor bomb": ("rates: {}\n", BOMB),
    "depth within": ("rates: {}\n", "rates: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n"),
    "a Python object": ("rates: {}\n", "rates: !!python/object/apply:os.system ['touch executed']\n"),
}


def in_config(name: str) -> Damage:
    def damage(path: Path) -> None:
        old, new = IN_CONFIG[name]
        text = path.read_text()
        assert old in text, name
        path.write_text(text.replace(old, new, 1))

    return Damage(name, damage)


# ---- damages of data ----


def with_line(content: bytes) -> Damage:
    return Damage(f"and {content[:30]!r}", lambda path: path.write_bytes(path.read_bytes() + content + b"\n"))


ROWS = (
    *(b"s0,nan,1", b"s0,inf,1", b"s0,1e400,1", b"s0,1", b"s0,1,2,3", b"s0,a,1", b"s0,,1"),
    *(b'"s0,1,1', b"\xff\xfe,1,1", b",1,1"),
)
LINES = (
    *(b"{}", b"[]", b"null", b"5", b'{"text": 5, "label": "a"}', b'{"text": "a", "label": null}', b'{"text": "a"}'),
    b"{" * 5000,
)
OF_DATA = {
    "photos/class0/0.png": [HALF, EMPTY, BINARY, ZEROS, FOLDER, written(b"GIF89a")],
    "table.csv": [
        *(HALF, EMPTY, BINARY, ZEROS, FOLDER, LATIN_1, *map(with_line, ROWS)),
        *map(written, (b"subject,dose,response\n", b"subject,dose,dose,response\n1,2,3,4\n", b"a;b;c\n1;2;3\n")),
    ],
    "sentences.jsonl": [HALF, EMPTY, BINARY, ZEROS, FOLDER, LATIN_1, *map(with_line, LINES)],
}


# ---- cases ----


def cases(number: int, seed: int, data: OwnData, place: Path) -> list[Case]:
    """At least ``number`` damages, each seen by the commands that read the file; or a sample of so many."""
    damages = [*_of_a_run(completed_run(place)), *_of_data(data)]
    if number < 80:
        damages = random.Random(seed).sample(damages, number)
    return [case for group in damages for case in group]


def _of_a_run(run: Path) -> Iterator[list[Case]]:
    """Each damage, with the commands that read the run's folder."""
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        if not path.is_file() or name.name == ".lock":
            continue
        damages = [*OF_ANY, *(written(json.dumps(content).encode()) for content in IN_JSON.get(str(name), ()))]
        damages += [*OF_CHECKPOINTS, *LIKELY] if name.suffix == ".pt" else []
        damages += [in_config(key) for key in IN_CONFIG] if name.name == "config.yaml" else []
        for damage in damages:
            yield [_seen(run, name, damage, command) for command in (RESUME, LONGER, BEST, LAST)]
    for odd in ("events.out.tfevents.abc", "evaluations", "profile", "checkpoints/.last.pt.1.tmp"):
        yield [_seen(run, Path(odd), BINARY, command) for command in (RESUME, LONGER, BEST, LAST)]


def _seen(run: Path, name: Path, damage: Damage, command: tuple[str, ...]) -> Case:
    def before(folder: Path) -> None:
        shutil.copytree(run, folder / "run")
        damage.do(folder / "run" / name)

    read = {"last.pt": (LONGER, LAST), "best.pt": (BEST,)}.get(name.name, ())
    refused = damage in OF_CHECKPOINTS and command in read
    kind = "TensorBoard events" if "tfevents" in name.name else name.name
    expects = ANY - {0} if refused else ANY
    return Case("files", kind, command, expects, name.name, before, damage=f"{damage.name} in {name}", short=True)


def _of_data(data: OwnData) -> Iterator[list[Case]]:
    """Each damage of a file of the user's, with a run on it."""
    tasks = {
        "photos/class0/0.png": ("task=image_folder", "base_learner=linear"),
        "table.csv": ("task=csv_regression",),
        "sentences.jsonl": ("task=text_jsonl", "base_learner=embedding_bag"),
    }
    for name, damages in OF_DATA.items():
        argv = (*tasks[name], *data.files_of(tasks[name][0], "own"), *SMALL, "steps=2", "run_dir=run")
        for damage in damages:

            def before(folder: Path, name: str = name, damage: Damage = damage) -> None:
                shutil.copytree(data.folder, folder / "own", ignore=shutil.ignore_patterns("prepared"))
                damage.do(folder / "own" / name)

            path = Path(name)
            told = f"{damage.name} in {name}"
            yield [Case("files", f"data: {path.suffix[1:]}", argv, ANY, path.name, before, damage=told)]
