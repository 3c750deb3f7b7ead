"""Whole runs as a user makes them: in this process, in another one, and killed at a chosen point; and what they left."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from metarun.commands.main import main
from metarun.sweep.preloaded import Preloaded
from tests.composing import composed, last_of_each, once
from tests.forked import Forked, Workers, nothing_to_wait_for

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = f"--config-dir={ROOT / 'tests' / 'outside'}"
TINY = [
    *["device=cpu", "execution=looped", "steps=12", "meta_batch_size=2", "log_every=3", "base_learner.hidden=[8]"],
    *["task.num_queries=5", "evaluation.every=5", "evaluation.num_val_tasks=4", "evaluation.num_tasks=6"],
]  # validations and checkpoints after 0, 5, 10 and 12 steps


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@contextmanager
def untouched_process() -> Iterator[None]:
    """Undo what a command does to sys.path, sys.argv, the environment and the signal handlers."""
    path, argv = list(sys.path), list(sys.argv)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            sys.path[:], sys.argv[:] = path, argv
            for number, handler in handlers.items():
                signal.signal(number, handler)


def metarun(*arguments: str, as_given: bool = False) -> Outcome:
    """``metarun ARGUMENTS`` in this process; without ``as_given`` a key's last value alone."""
    out, err, code = io.StringIO(), io.StringIO(), -1
    words = list(map(str, arguments))
    workers = mock.patch("metarun.sweep.preloaded.Preloaded.fresh", Workers.fresh)
    sooner = mock.patch.multiple("metarun.config.compose", composed=composed, compose=once)
    with untouched_process(), redirect_stdout(out), redirect_stderr(err), workers, sooner, nothing_to_wait_for():
        try:
            main(words if as_given else last_of_each(*words))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which this checkout's metarun is imported."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def forked(function: str, *arguments: str, argv: Sequence[object], cwd: Path) -> Forked:
    """``function(*arguments)`` of this module in a process of its own, as if the command line were ``argv``."""
    folder = Path(tempfile.mkdtemp(dir=cwd.parent))
    command = ["metarun", *last_of_each(*map(str, argv))]
    return Forked(
        f"tests.running.{function}", list(arguments), command, cwd, environment(), (folder / "out", folder / "err")
    )


def whole_command() -> None:
    """The command line of this process."""
    main(sys.argv[1:])


def whole_search() -> None:
    """The search of this process's command line, whose runs are forked from a fork of it: one made before the search takes
    its lock, which a fork would hold beyond the search's death."""
    workers = Preloaded.forked(main)
    with mock.patch("metarun.sweep.preloaded.Preloaded.fresh", lambda *_: workers):
        main(sys.argv[1:])


def apart(*arguments: object, cwd: Path) -> Outcome:
    """``metarun ARGUMENTS`` in a process of its own."""
    job = forked("whole_command", argv=arguments, cwd=cwd)
    out, err = job.communicate(timeout=120)
    return Outcome(int(job.returncode or 0), out, err)


def sweep(*arguments: str, cwd: Path | None = None) -> Outcome:
    """``metarun -m ARGUMENTS`` in a process of its own, as ``begun_sweep`` begins it."""
    job = begun_sweep(*arguments, cwd=cwd)
    out, err = job.communicate(timeout=300)
    return Outcome(int(job.returncode or 0), out, err)


def begun_sweep(*arguments: str, cwd: Path | None = None) -> Forked:
    """A process of ``metarun -m ARGUMENTS`` that has torch loaded and has computed nothing, so that it may fork its runs;
    in a new folder, where none is given."""
    folder = cwd or Path(tempfile.mkdtemp()) / "here"
    folder.mkdir(exist_ok=True)
    return forked("whole_sweep", argv=["-m", *arguments], cwd=folder)


def whole_sweep() -> None:
    """The sweep of this process's command line."""
    with mock.patch("metarun.commands.sweep.can_fork", lambda: True):
        main(sys.argv[1:])


def process(*arguments: str, cwd: Path) -> Outcome:
    """``python -m metarun ARGUMENTS`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "metarun", *last_of_each(*map(str, arguments))],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def wait_for(condition: Callable[[], object], seconds: float, job: subprocess.Popen | Forked | None = None) -> None:
    """Wait until this holds: for so long at most, and while the job runs, where there is one."""
    end = time.monotonic() + seconds
    while not condition():
        assert (job is None or job.poll() is None) and time.monotonic() < end
        time.sleep(0.02)


# ---- dying at a chosen point ----


def on_call(
    number: int, action: Callable[..., Any], function: Callable[..., Any], match: str = ""
) -> Callable[..., Any]:
    """``function``, but its call ``number`` (from 1, of those with ``match`` in an argument) runs ``action`` first."""
    count = 0

    @functools.wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += any(match in str(arg) for arg in args)
        if count == number:
            count += 1  # once
            action(*args)
        return function(*args, **kwargs)

    return counting


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_way(path: Path, content: bytes) -> None:
    """In the middle of writing a file."""
    with path.with_name(f".{path.name}.{os.getpid()}.tmp").open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        die()


def die_within_the_line(metrics: Any, step: int, values: dict[str, float]) -> None:
    metrics.file.write(json.dumps({"step": step, **values})[:25])
    metrics.file.flush()
    die()


# What is patched, in which of its calls it dies (of those with the given text among the arguments), and how.
DEATHS = {
    "before the first checkpoint": ("metarun.training.runner.Runner.train_step", 4, "", die),
    "between two checkpoints": ("metarun.training.runner.Runner.train_step", 9, "", die),
    "while the start is validated": ("metarun.training.runner.evaluate_all", 1, "", die),
    "while best.pt of the start is written": ("metarun.output.checkpoint.write_atomically", 1, "best.pt", die_half_way),
    "while last.pt of the start is written": ("metarun.output.checkpoint.write_atomically", 1, "last.pt", die_half_way),
    "during a validation": ("metarun.training.runner.evaluate_all", 3, "", die),
    "in the middle of a line of metrics.jsonl": (
        "metarun.output.metrics.MetricsFile.write",
        6,
        "",
        die_within_the_line,
    ),
    "while best.pt is written": ("metarun.output.checkpoint.write_atomically", 2, "best.pt", die_half_way),
    "while last.pt is written": ("metarun.output.checkpoint.write_atomically", 3, "last.pt", die_half_way),
    "just before last.pt is renamed": ("os.replace", 3, "last.pt", die),
    "during the final test": ("metarun.evaluation.scoring.Complexity.estimates", 1, "", die),
    "before the run is marked as completed": ("metarun.output.folder.RunFolder.mark", 1, "completed", die),
}


def killed(point: str, *arguments: str, cwd: Path) -> None:
    """``metarun ARGUMENTS`` in a process that kills itself with SIGKILL at ``point``."""
    job = forked("die_at", point, argv=arguments, cwd=cwd)
    told = job.communicate(timeout=120)
    assert job.returncode == -signal.SIGKILL, f"it did not die at {point!r}: {told}"


def die_at(point: str) -> None:
    """Run the command line of this process until ``point``."""
    target, number, match, how = DEATHS[point]
    run_until(target, number, how, match)


def killed_at(target: str, number: str) -> None:
    """The command line of this process, which kills itself as call ``number`` of the function ``target`` begins."""
    run_until(target, int(number), die)


def stopped_at(target: str, number: str) -> None:
    """The same, where it sends itself SIGTERM."""
    run_until(target, int(number), lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def exhausted_at(target: str, number: str) -> None:
    """The same, where it finds no memory."""

    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    run_until(target, int(number), exhausted)


def run_until(target: str, number: int, action: Callable[..., Any], match: str = "") -> None:
    """The command line of this process; call ``number`` of the function ``target`` begins with ``action``."""
    import metarun.training.runner  # noqa: F401 (so that there is something to patch)

    module, _, name = target.rpartition(".")
    original = functools.reduce(getattr, target.split(".")[1:], __import__(target.split(".", maxsplit=1)[0]))
    with mock.patch(f"{module}.{name}", on_call(number, action, original, match)):
        main(sys.argv[1:])


# ---- standing still in a chosen phase ----


def in_python(*_: Any) -> None:
    """Compute for ever, back in Python after each operation."""
    Path("here").touch()
    while True:
        torch.ones(100).sum()


def in_torch(*_: Any) -> None:
    """Spend half a minute in one operation of torch, in which no Python runs."""
    Path("here").touch()
    torch.linalg.svdvals(torch.randn(5000, 5000))


# The phase of a run, what is patched, and in which of its calls it stands still.
PHASES = {
    "composing": ("metarun.config.compose.composed", 1),
    "measuring": ("metarun.execution.choosing._milliseconds", 2),
    "compiling": ("metarun.execution.compiled.lowered", 1),
    "training": ("metarun.execution.execution.Execution.mean_grad", 10),
    "validating": ("metarun.evaluation.whole.score_episodes", 3),
    "testing": ("metarun.evaluation.whole.score_episodes", 5),
}


def stand_still(phase: str, how: str) -> None:
    """Run the command line of this process until ``phase``; one that computes in Python is broken off sooner."""
    patience = mock.patch("metarun.training.signals.PATIENCE", 0.1) if how == "in_python" else nullcontext()
    with patience:
        run_until(*PHASES[phase], globals()[how])


# ---- what a run left ----


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def state(run: Path) -> str:
    return read(run / "status.json")["state"]


def scores(run: Path) -> dict[str, Any]:
    return {name: value for name, value in read(run / "results.json").items() if name.startswith("test/")}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of each tag, in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def checkpoint(run: Path, name: str) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def identical(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure, tensors bit by bit, and values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


def assert_as_if_never_stopped(run: Path, whole: Path) -> None:
    """Every number that ``run`` left is, bit by bit, what the uninterrupted run ``whole`` left, and is there once."""
    for name in ("last", "best"):
        mine, expected = checkpoint(run, name), checkpoint(whole, name)
        assert {key for key in expected if not identical(mine[key], expected[key])} == set()
    assert state(run) == "completed"
    assert scores(run) == scores(whole)
    assert metrics(run) == metrics(whole)
    assert scalars(run) == scalars(whole)
    assert not list(run.glob("**/.*.tmp"))
