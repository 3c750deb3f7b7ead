"""A signal is obeyed at once in every phase of a run, and what is left of the run goes on as if never stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.composing import last_of_each
from tests.forked import Forked
from tests.running import (
    PHASES,
    TINY,
    assert_as_if_never_stopped,
    checkpoint,
    environment,
    forked,
    metarun,
    state,
    wait_for,
)

Job = subprocess.Popen | Forked
SECONDS = 2.0 + 4.0  # to obey, and for a busy machine to end a process with torch in it
EXECUTION = {"measuring": ["execution=auto"], "compiling": ["execution=vmapped", "execution.compile=true"]}


def begun(command: list[str], cwd: Path, there: Path) -> subprocess.Popen:
    """The process of ``command``, once ``there`` exists, with the signals of a terminal's: nohup may silence some here."""

    def as_in_a_terminal() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    job = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,  # noqa: PLW1509 (no thread of ours holds a lock here)
    )
    return waited_for(there, job)


def waited_for(there: Path, job: Job) -> Job:
    wait_for(there.exists, 120, job)
    return job


def ended(job: Job, number: int) -> tuple[int, float, str]:
    """Exit code of ``job`` after a signal, the seconds that it took, and what it said."""
    start = time.monotonic()
    job.send_signal(number)
    try:
        _, err = job.communicate(timeout=60)
    finally:
        job.kill()
    return job.returncode, time.monotonic() - start, err


def stopped(phase: str, how: str, number: int, run: Path, cwd: Path) -> tuple[int, float, str]:
    """What ``ended`` says of a run that a signal finds standing still in ``phase``."""
    arguments = [*TINY, *EXECUTION.get(phase, []), f"run_dir={run}"]
    if phase == "composing":  # how Python itself ends is part of it
        driver = f"from tests.running import stand_still; stand_still({phase!r}, {how!r})"
        job: Job = begun([sys.executable, "-c", driver, *arguments], cwd, cwd / "here")
    else:
        job = waited_for(cwd / "here", forked("stand_still", phase, how, argv=arguments, cwd=cwd))
    if how == "in_torch":
        time.sleep(0.2)  # until it is there
    return ended(job, number)


@pytest.mark.parametrize(("phase", "how", "number"), [
    *((phase, "in_python", signal.SIGTERM) for phase in PHASES if phase != "composing"),
    ("training", "in_python", signal.SIGINT),
    ("training", "in_python", signal.SIGHUP),
    ("training", "in_python", signal.SIGUSR1),
    ("training", "in_python", signal.SIGUSR2),
    ("training", "in_torch", signal.SIGTERM),
    ("validating", "in_torch", signal.SIGHUP),
])  # fmt: skip
def test_a_computation_that_does_not_end_is_broken_off_and_the_run_can_be_continued(
    phase, how, number, whole, tmp_path
):
    run = tmp_path / "run"
    code, seconds, err = stopped(phase, how, number, run, tmp_path)
    assert code == 128 + number, err
    assert seconds < SECONDS
    assert state(run) == "interrupted"
    assert checkpoint(run, "last")["step"] == {"training": 7, "validating": 10, "testing": 12}.get(phase, 0)
    assert not (run / "results.json").exists()
    if phase not in EXECUTION:
        assert metarun(f"resume={run}").code == 0
        assert_as_if_never_stopped(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_configuration_is_composed_leaves_nothing(number, tmp_path):
    code, seconds, err = stopped("composing", "in_python", number, tmp_path / "run", tmp_path)
    assert code in (-number, 128 + number), err  # either is 128 + n to a shell
    assert seconds < SECONDS
    assert not (tmp_path / "run").exists()


def test_inner_steps_without_end_are_broken_off_while_they_are_measured(tmp_path):
    run, endless = tmp_path / "run", "meta_learner.inner_steps=100000"
    job = begun([sys.executable, "-m", "metarun", f"run_dir={run}", endless], tmp_path, run / "log.txt")
    time.sleep(1)
    code, seconds, err = ended(job, signal.SIGTERM)
    assert (code, state(run)) == (143, "interrupted"), err
    assert seconds < SECONDS


def test_nohup_keeps_its_promise(tmp_path):
    run = tmp_path / "run"
    command = ["nohup", sys.executable, "-m", "metarun", *last_of_each(*TINY, "steps=300", f"run_dir={run}")]
    job = begun(command, tmp_path, run / "checkpoints" / "last.pt")
    code, _, err = ended(job, signal.SIGHUP)
    assert (code, state(run)) == (0, "completed"), err
