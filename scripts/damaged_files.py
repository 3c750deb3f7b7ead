"""Damaged files: of a completed run, and of data of the user's own."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from wrong_input import ANY, Case, answer

TINY = (
    *("device=cpu", "execution=looped", "steps=2", "meta_batch_size=1", "log_every=1", "base_learner.hidden=[8]"),
    *("evaluation.every=1", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2"),
)
Damage = Callable[[Path], object]


# ---- data of the user's own ----


@dataclass(frozen=True)
class OwnData:
    """Images in class folders, a table and sentences, all small; and how tasks read them."""

    folder: Path

    @property
    def root(self) -> str:
        """Where what is prepared of them lies."""
        return f"data_root={self.folder / 'prepared'}"

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Overrides for a task of each kind of input."""
        return {
            "numbers": (),
            "images": ("task=image_folder", *self.files_of("task=image_folder")),
            "words": ("task=text_jsonl", "task/features=tokens", *self.files_of("task=text_jsonl")),
        }

    def files_of(self, choice: str) -> tuple[str, ...]:
        """What a choice of a task, or an experiment with one, needs to find its files; nothing for tasks without any."""
        columns = ("task.task_column=subject", "task.input_columns=[dose]", "task.output_columns=[response]")
        files = {
            "task=image_folder": (f"task.path={self.folder / 'photos'}", "task.size=28", "task.num_queries=2"),
            "task=text_jsonl": (f"task.path={self.folder / 'sentences.jsonl'}",),
            "task=csv_regression": (f"task.path={self.folder / 'table.csv'}", *columns),
            "experiment=protonet_text": (f"task.path={self.folder / 'sentences.jsonl'}",),
        }
        return (*files[choice], self.root) if choice in files else ()


def own_data(folder: Path) -> OwnData:
    """Make the files."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for c in range(10):
        (folder / "photos" / f"class{c}").mkdir(parents=True)
        for i in range(8):
            picture = draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "photos" / f"class{c}" / f"{i}.png")
    rows = [f"s{s},{draw.normal():.3f},{draw.normal():.3f}" for s in range(20) for _ in range(12)]
    (folder / "table.csv").write_text("\n".join(["subject,dose,response", *rows]) + "\n")
    words = ["when", "do", "you", "open", "on", "monday", "is", "the", "late", "train"]
    lines = [
        json.dumps({"text": " ".join(draw.choice(words, 5)), "label": f"label{c}"})
        for c in range(10)
        for _ in range(12)
    ]
    (folder / "sentences.jsonl").write_text("\n".join(lines) + "\n")
    return OwnData(folder)


# ---- damages of any file ----


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def zeros(path: Path) -> None:
    """What a file system leaves of a file that was being written when the power went."""
    path.write_bytes(bytes(path.stat().st_size))


def latin_1(path: Path) -> None:
    path.write_bytes("# für Größe\n".encode("latin-1") + path.read_bytes())


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def vanish(path: Path) -> None:
    path.unlink()


def unreadable_text(text: str) -> Damage:
    def write(path: Path) -> None:
        path.write_text(text)

    write.__name__ = f"text {text[:20]}"
    return write


DAMAGES: list[Damage] = [
    *(truncate, empty, binary, zeros, latin_1, become_a_folder, vanish),
    *map(
        unreadable_text, ("{}", "null", "[]", "5", '"abc"', '{"a": {"b": [1, 2, {"c": null}]}}', "{{{{", "- a\n- b\n")
    ),
    unreadable_text("[" * 20000),
]


# ---- damages of a checkpoint, of status.json, ... ----


def in_state(change: Callable[[dict[str, Any]], object], name: str) -> Damage:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    damage.__name__ = name
    return damage


def _each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], object]:
    def of(state: dict[str, Any]) -> None:
        state["theta"] = {name: change(leaf) for name, leaf in state["theta"].items()}

    return of


def _first(state: dict[str, Any], value: Any) -> None:
    state["theta"][next(iter(state["theta"]))] = value


CHECKPOINT: list[Damage] = [
    *(
        in_state(lambda state, key=key: state.pop(key), f"without {key}")  # type: ignore[misc]
        for key in ("format", "theta", "step", "validated", "best", "means", "optimizer", "scheduler", "generators")
    ),
    *(
        in_state(lambda state, key=key, value=value: state.update({key: value}), f"{key}={str(value)[:20]}")  # type: ignore[misc]
        for key, value in [
            *[("step", v) for v in (-5, 10**9, "3", None, 1.5, float("nan"))],
            *[("validated", v) for v in (-5, "3", None)],
            *[("best", v) for v in ({}, None, {"value": float("nan"), "step": 1}, {"value": "a"}, [])],
            *[("means", v) for v in (None, {}, {"a": 1}, [])],
            *[("optimizer", v) for v in (None, {}, {"state": {}, "param_groups": []}, [])],
            *[("scheduler", v) for v in (None, {}, [], {"last_epoch": "a"})],
            *[("generators", v) for v in (None, {}, {"cpu": torch.zeros(3), "cuda": []}, {"cpu": 5, "cuda": 5})],
            *[("theta", v) for v in (None, {}, [], 5, torch.zeros(3))],
            *[("format", v) for v in (None, 2, "1", [1])],
        ]
    ),
    in_state(_each(lambda leaf: leaf * float("nan")), "NaN in theta"),
    in_state(_each(lambda leaf: leaf / 0), "infinite theta"),
    in_state(_each(lambda leaf: leaf[None]), "other shapes"),
    in_state(_each(lambda leaf: leaf.double()), "another dtype"),
    in_state(_each(lambda leaf: leaf.to(torch.int64)), "whole numbers"),
    in_state(_each(lambda leaf: leaf.to_sparse()), "sparse"),
    in_state(lambda state: state["theta"].popitem(), "a leaf less"),
    in_state(lambda state: state["theta"].update(more=torch.zeros(3)), "a leaf more"),
    in_state(lambda state: _first(state, 5), "a number for a leaf"),
    in_state(lambda state: _first(state, None), "None for a leaf"),
    in_state(lambda state: _first(state, torch.zeros(7, 7)), "one other shape"),
]
IN_JSON = {
    "status.json": (
        {"state": 5},
        {"state": "completed", "step": "abc"},
        {"state": "running", "pid": "x"},
        {"step": []},
    ),
    "execution.json": (
        *({"chosen": "looped", "threads": n} for n in (0, -1, 100000, "a", None, 1.5)),
        *(
            {"chosen": name, "threads": 1}
            for name in ("vmapped_0", "vmapped_-1", "", "foo", None, 5, "vmapped_99999999999")
        ),
    ),
    "run.json": ({"history": 5}, {"history": [5]}, {"data": 5}, {"data": None, "history": None}, {"history": {}}),
    "results.json": ({"test/mse": 5}, {"test/mse": {}}, {"test/mse": {"mean": "a", "ci95": None}}),
}
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
    "an anchor bomb": ("rates: {}\n", "rates: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 9))),
    "depth": ("rates: {}\n", "rates: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n"),
    "a Python object": ("rates: {}\n", "rates: !!python/object/apply:os.system ['touch executed']\n"),
}  # fmt: skip


def _json(content: Any) -> Damage:
    def write(path: Path) -> None:
        path.write_text(json.dumps(content))

    write.__name__ = json.dumps(content)[:40]
    return write


def _config(name: str) -> Damage:
    def write(path: Path) -> None:
        old, new = IN_CONFIG[name]
        text = path.read_text()
        assert old in text, name
        path.write_text(text.replace(old, new, 1))

    write.__name__ = name
    return write


# ---- damages of data ----


def _append(text: bytes) -> Damage:
    def write(path: Path) -> None:
        path.write_bytes(path.read_bytes() + text)

    write.__name__ = f"a line {text[:30]!r}"
    return write


OF_DATA: dict[str, list[Damage]] = {
    "photos/class0/0.png": [truncate, empty, binary, zeros, become_a_folder, unreadable_text("GIF89a")],
    "table.csv": [
        *(truncate, empty, binary, zeros, become_a_folder, latin_1),
        *map(
            _append, (b"s0,nan,1\n", b"s0,inf,1\n", b"s0,1e400,1\n", b"s0,1\n", b"s0,1,2,3\n", b"s0,a,1\n", b"s0,,1\n")
        ),
        *map(_append, (b"s0,1_0,1\n", b'"s0,1,1\n', b"\xff\xfe,1,1\n", b"s0,\x00,1\n", b",1,1\n")),
        *map(unreadable_text, ("subject,dose,response\n", "subject,dose,dose,response\n1,2,3,4\n", "a;b;c\n1;2;3\n")),
    ],
    "sentences.jsonl": [
        *(truncate, empty, binary, zeros, become_a_folder, latin_1),
        *map(
            _append,
            (b"{}\n", b"[]\n", b"null\n", b"5\n", b'{"text": 5, "label": "a"}\n', b'{"text": "", "label": "a"}\n'),
        ),
        *map(
            _append, (b'{"text": "a", "label": null}\n', b'{"text": "a"}\n', b"{" * 5000 + b"\n", b"[" * 50000 + b"\n")
        ),
        _append(b'{"text": "a", "label": "[red]x[/nope]"}\n'),
    ],
}


# ---- cases ----


def cases(number: int, seed: int, data: OwnData, place: Path) -> list[Case]:
    """At least ``number`` damages, each seen by the commands that read the file."""
    made = answer(Case("", "", (*TINY, "run_dir=run"), ANY), place)
    assert made.code == 0, made.text
    run = place / "run"
    damages = [*_of_a_run(run), *_of_data(data)]
    if number < 80:
        damages = random.Random(seed).sample(damages, number)
    return [case for group in damages for case in group]


def _of_a_run(run: Path) -> Iterator[list[Case]]:
    """Each damage, with the commands that read the run's folder."""
    files = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    for name in files:
        more = list(CHECKPOINT) if name.suffix == ".pt" else [_json(content) for content in IN_JSON.get(str(name), ())]
        more += [_config(key) for key in IN_CONFIG] if name.name == "config.yaml" else []
        for damage in [*DAMAGES, *more]:
            yield [_seen(run, name, damage, command) for command in COMMANDS]
    odd = {
        "events.out.tfevents.abc": binary,
        "evaluations": binary,
        "profile": binary,
        "checkpoints/.last.pt.1.tmp": binary,
    }
    for odd_name, damage in odd.items():
        yield [_seen(run, Path(odd_name), damage, command) for command in COMMANDS]


COMMANDS = (("resume=run",), ("resume=run", "steps=3"), ("evaluate", "run"), ("evaluate", "run", "--checkpoint=last"))


def _seen(run: Path, name: Path, damage: Damage, command: tuple[str, ...]) -> Case:
    def before(folder: Path) -> None:
        shutil.copytree(run, folder / "run")
        damage(folder / "run" / name)

    label: str = damage.__name__  # type: ignore[attr-defined]
    expects = ANY - {0} if _must_be_refused(name, damage, command) else ANY
    return Case("files", _kind(name), command, expects, name.name, before, damage=f"{label} of {name}")


def _must_be_refused(name: Path, damage: Damage, command: tuple[str, ...]) -> bool:
    """Whether the command reads of the checkpoint what is damaged."""
    if damage not in CHECKPOINT or damage.__name__ == "another dtype":  # type: ignore[attr-defined]
        return False
    reads = "best" if command == COMMANDS[2] else "last"
    if name.stem != reads or command == COMMANDS[0]:  # complete already: nothing is read but the step
        return False
    of_training = ("validated", "best", "means", "optimizer", "scheduler", "generators")
    return command == COMMANDS[1] or not any(word in damage.__name__.split("=")[0] for word in of_training)  # type: ignore[attr-defined]


def _kind(name: Path) -> str:
    return "TensorBoard events" if "tfevents" in name.name else name.name


def _of_data(data: OwnData) -> Iterator[list[Case]]:
    """Each damage of a file of the user's, with a run on it."""
    reads = {
        "photos/class0/0.png": ("task=image_folder", "task.path=own/photos", "task.size=28", "task.num_queries=2", "base_learner=linear"),
        "table.csv": ("task=csv_regression", "task.path=own/table.csv", *data.files_of("task=csv_regression")[1:4]),
        "sentences.jsonl": ("task=text_jsonl", "task.path=own/sentences.jsonl", "base_learner=embedding_bag"),
    }  # fmt: skip
    for name, damages in OF_DATA.items():
        for damage in damages:

            def before(folder: Path, name: str = name, damage: Damage = damage) -> None:
                shutil.copytree(data.folder, folder / "own", ignore=shutil.ignore_patterns("prepared"))
                damage(folder / "own" / name)

            small = tuple(text for text in TINY if "hidden" not in text)
            argv = (*reads[name], *small, "data_root=prepared", "run_dir=run")
            label = f"{getattr(damage, '__name__', '')} of {name}"
            yield [Case("files", f"data: {Path(name).suffix[1:]}", argv, ANY, Path(name).name, before, damage=label)]
