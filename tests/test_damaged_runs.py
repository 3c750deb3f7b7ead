"""A run folder whose files are damaged: the answer names the file and the fix, and nothing else is touched."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun import files
from metarun.errors import CheckpointError
from metarun.output import lock
from metarun.output.checkpoint import like, load, refuse_damage, restoring
from metarun.output.folder import RunFolder
from metarun.trees import tree_map
from tests.running import metarun, state


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


# ---- checkpoints ----


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({key: value})


def each_leaf(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(theta=tree_map(change, state["theta"]))


PARTS = ("format", "theta", "step", "validated", "best", "means", "optimizer", "scheduler", "generators")
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"without {key}": lambda state, key=key: state.pop(key) for key in PARTS},
    "a step below 0": change("step", -5),
    "a step that is a word": change("step", "3"),
    "a step that is a fraction": change("step", 1.5),
    "validated after its step": change("validated", 10**6),
    "a best of nan": change("best", {"value": float("nan"), "step": 1}),
    "a best that is a list": change("best", []),
    "means of another kind": change("means", {"a": 1}),
    "an optimizer that is None": change("optimizer", None),
    "a scheduler without its step": change("scheduler", {}),
    "a generator of three bytes": change("generators", {"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}),
    "generators of numbers": change("generators", {"cpu": 5, "cuda": 5}),
    "theta of nothing": change("theta", {}),
    "theta of a number": change("theta", 5),
    "nan in theta": each_leaf(lambda leaf: leaf * float("nan")),
    "infinite theta": each_leaf(lambda leaf: leaf / 0),
    "whole numbers": each_leaf(lambda leaf: leaf.to(torch.int64)),
    "sparse tensors": each_leaf(lambda leaf: leaf.to_sparse()),
    "numbers for leaves": each_leaf(lambda leaf: 5.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_no_run_wrote_is_refused_with_its_name(damage, whole, tmp_path):
    path = Path(shutil.copy(whole / "checkpoints" / "last.pt", tmp_path))
    state = torch.load(path, weights_only=True)
    DAMAGES[damage](state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"the checkpoint {path} cannot be read \(ValueError: "):
        load(path, torch.device("cpu"))


def test_the_checkpoints_that_a_run_wrote_are_taken(whole):
    for name in ("last", "best"):
        refuse_damage(torch.load(whole / "checkpoints" / f"{name}.pt", weights_only=True))


@pytest.mark.parametrize("command", [["evaluate", "RUN", "--checkpoint=last"], ["resume=RUN", "steps=14"]])
@pytest.mark.parametrize("damage", ["nan in theta", "without optimizer", "a step below 0"])
def test_a_run_is_neither_continued_nor_scored_from_a_damaged_checkpoint(damage, command, run):
    path = run / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    DAMAGES[damage](content)
    torch.save(content, path)
    before = contents(run)
    outcome = metarun(*(text.replace("RUN", str(run)) for text in command))
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text and f"the checkpoint {path} cannot be read" in outcome.err
    assert contents(run) == before


def test_a_theta_of_other_shapes_is_refused_and_not_expanded(run):
    path = run / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    each_leaf(lambda leaf: leaf[None])(content)
    torch.save(content, path)
    outcome = metarun(f"resume={run}", "steps=14")
    assert outcome.code == 1, outcome.text
    assert f"the checkpoint {path} cannot be read (ValueError: a parameter has shape (1, " in outcome.err
    with pytest.raises(ValueError, match=r"has shape \(1, 3\), but the run's has shape \(2, 3\)"):
        like(torch.zeros(1, 3), torch.zeros(2, 3))


def test_what_does_not_fit_while_a_run_is_restored_is_an_error_of_its_checkpoint():
    path = Path("run", "last.pt")
    with pytest.raises(CheckpointError, match=r"last.pt cannot be read \(KeyError: 'exp_avg'\)"), restoring(path):
        {}["exp_avg"]


def test_a_checkpoint_that_is_a_folder_is_named(run):
    for name in ("last", "best"):
        (run / "checkpoints" / f"{name}.pt").unlink()
        (run / "checkpoints" / f"{name}.pt").mkdir()
    for command in ([f"resume={run}", "steps=14"], ["evaluate", str(run)]):
        outcome = metarun(*command)
        assert (outcome.code, "Traceback" in outcome.text) == (1, False)
        assert "is a folder. Move it away" in outcome.err


def test_the_answer_to_foreign_weights_gives_no_advice_to_trust_them(run):
    path = run / "checkpoints" / "best.pt"
    torch.save({"format": 1, "theta": Path("x")}, path)
    outcome = metarun("evaluate", str(run))
    assert outcome.code == 1
    assert "more than tensors and plain values" in outcome.err and "weights_only" not in outcome.err


def test_an_evaluation_that_diverges_stores_nothing_and_exits_with_3(run):
    outcome = metarun("evaluate", str(run), "meta_learner.inner_lr=1e30", "evaluation.inner_steps=5")
    assert outcome.code == 3, outcome.text
    assert "test/" in outcome.err
    assert not (run / "evaluations").exists()


# ---- config.yaml ----

BOMB = "rates: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 9)
)
CONFIGS = {
    "Latin-1": (lambda text: b"# Gr\xf6\xdfe\n" + text, "invalid start byte"),
    "zeros": (lambda text: bytes(len(text)), "cannot be read"),
    "nothing": (lambda text: b"", "it holds no settings"),
    "a list": (lambda text: b"- a\n", "it holds no settings"),
    "half of it": (lambda text: text[: text.index(b"meta_learner:")], "it lacks meta_learner, optimizer, scheduler"),
    "no steps": (lambda text: text.replace(b"steps: 12\n", b"", 1), "it lacks steps"),
    "a word for steps": (lambda text: text.replace(b"steps: 12\n", b"steps: abc\n", 1), "could not be converted"),
    "an interpolation": (lambda text: text.replace(b"dtype: float32", b"dtype: ${oc.env:HOME}"), "holds an interpolation"),
    "an anchor bomb": (lambda text: text.replace(b"rates: {}\n", BOMB.encode()), "unfold into more than 100000 values"),
    "depth": (lambda text: text + b"a: " + b"[" * 2000 + b"]" * 2000, "nested more than 50 levels deep"),
    "a Python object": (lambda text: text + b"a: !!python/object/apply:os.system ['exit 1']\n", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_config_of_a_run_that_cannot_be_followed_is_named_with_the_reason(damage, run):
    path = run / "config.yaml"
    write, reason = CONFIGS[damage]
    path.write_bytes(write(path.read_bytes()))
    before = contents(run)
    for command in ([f"resume={run}"], ["evaluate", str(run)]):
        outcome = metarun(*command)
        assert (outcome.code, "Traceback" in outcome.text) == (2, False), outcome.text
        assert f"{path} cannot be read: " in outcome.err and reason in outcome.err
    assert contents(run) == before


def test_a_config_of_a_run_with_a_wrong_value_is_named_beside_the_rule(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("inner_lr: 0.01", "inner_lr: .nan"))
    for command in ([f"resume={run}", "steps=14"], ["evaluate", str(run)]):
        outcome = metarun(*command)
        assert outcome.code == 2
        assert f"1 problem in {path}:" in outcome.err and "meta_learner.inner_lr is nan" in outcome.err


# ---- the other files ----

ODD = [
    b"",
    b"{}",
    b"null",
    b"[]",
    b"5",
    b"{{{",
    bytes(range(256)),
    b"[" * 20000,
    b"\xe9",
    b'{"state": 5}',
    b'{"step": []}',
]


@pytest.mark.parametrize("content", ODD, ids=lambda content: repr(content[:12]))
def test_a_status_that_no_run_wrote_says_nothing(content, run):
    (run / "status.json").write_bytes(content)
    assert RunFolder(run).read_status() == {"state": "unknown"}


def test_a_completed_run_without_a_whole_status_is_tested_again(run):
    (run / "status.json").write_text("{}")
    assert metarun(f"resume={run}").code == 0
    assert state(run) == "completed"


@pytest.mark.parametrize("content", [b'{"names": 5}', b'{"names": [5]}', b'{"names": {}}', b'{"names": null}', b"[]"])
def test_names_of_training_classes_that_no_run_wrote_are_named_with_the_fix(content, run):
    (run / "trained_on.json").write_bytes(content)
    outcome = metarun("evaluate", str(run), "evaluation.num_tasks=2")
    assert outcome.code == 1 and f"{run / 'trained_on.json'} is damaged. Remove it to go on" in outcome.err, (
        outcome.text
    )


@pytest.mark.parametrize(
    "content", [b"5", b"[" * 20000, b"\xff\xfe", b'{"data": 5}', b'{"history": {}}', b'{"history": null}']
)
def test_facts_that_no_run_wrote_are_named_with_the_fix(content, run):
    (run / "run.json").write_bytes(content)
    for command in ([f"resume={run}", "steps=14"], ["evaluate", str(run)]):
        outcome = metarun(*command)
        assert outcome.code == 1, outcome.text
        assert f"{run / 'run.json'} is damaged. Remove it" in outcome.err


@pytest.mark.parametrize(
    "content", [b"5", b"{}", b"[" * 20000, b'{"test/mse": 5}', b'{"test/mse": {"mean": "a", "ci95": null}}']
)
def test_results_that_no_run_wrote_are_named_with_the_fix(content, run):
    (run / "results.json").write_bytes(content)
    outcome = metarun(f"resume={run}")
    assert outcome.code == 1, outcome.text
    assert f"its results.json is gone or damaged. Score it again with: metarun evaluate {run}" in outcome.err


def test_a_run_goes_on_beside_metrics_and_events_that_are_no_texts(run):
    (run / "metrics.jsonl").write_bytes(bytes(range(256)) + b"\n" + b"[" * 20000)
    (run / "events.out.tfevents.abc").write_bytes(b"\xff")
    assert metarun(f"resume={run}", "steps=13").code == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [13, 13, 13]


def test_a_folder_in_the_place_of_a_file_is_named_and_can_be_moved_away(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    outcome = metarun(f"resume={run}", "steps=13")
    assert (outcome.code, "Traceback" in outcome.text) == (1, False), outcome.text
    assert f"'{run / 'metrics.jsonl'}'" in outcome.err and "move away what is in the place of a file" in outcome.err
    (run / "metrics.jsonl").rmdir()
    assert metarun(f"resume={run}", "steps=13").code == 0


# ---- file systems of networks ----


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_run_works_where_the_file_system_cannot_flush(number, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    files.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_disk_that_fails_to_flush_is_still_an_error(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_no_file_takes_the_place_of_a_pipe_or_device_and_a_link_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no regular file"):
        files.write_atomically(tmp_path / "pipe", b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for content in (b"content", b"other"):
        files.write_atomically(tmp_path / "link", content)
        assert (tmp_path / "file").read_bytes() == content and (tmp_path / "link").is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.skipif(lock.fcntl is None, reason="Windows has no such locks")
def test_a_run_works_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with RunFolder(tmp_path / "run").claimed():
        assert (tmp_path / "run" / "checkpoints").is_dir()
