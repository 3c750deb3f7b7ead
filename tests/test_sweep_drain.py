"""Who runs which job of a sweep, what is tried again, and what is told of it; jobs act by a script, without training."""

import errno
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from metarun.errors import MetarunError
from metarun.output.folder import RunFolder
from metarun.sweep.drain import Drain, Launching, Limits
from metarun.sweep.job import Job
from metarun.sweep.launcher import Separate
from metarun.sweep.plan import planned
from metarun.sweep.slots import Slots
from metarun.sweep.view import View, final_table, progress_table
from tests.running import TINY, environment, metarun, state

pytestmark = pytest.mark.usefixtures("statuses_alone")
NONE = Limits()
ELSEWHERE = 1  # a process that is not of this sweep's parent
Act = Callable[[RunFolder, int], int | None]  # writes what a job writes; its exit code, or None: it goes on


def leaves(status: str, code: int, **details: Any) -> Act:
    """A job that leaves this state and exit code."""

    def act(folder: RunFolder, pid: int) -> int:
        folder.mark(status, **{"pid": pid, **details})
        return code

    return act


COMPLETES = leaves("completed", 0)


def goes_on(folder: RunFolder, pid: int) -> None:
    """A job that does not end by itself."""
    folder.mark("running", pid=pid)


class Stage:
    """A launcher whose jobs act by a script: each start of a job is the next act of its name."""

    def __init__(self, script: dict[str, list[Act]]) -> None:
        self.script = script
        self.codes: dict[int, int | None] = {}
        self.most = 0
        self.signals: list[int] = []

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], slot: IO[bytes]) -> int:
        pid, folder = 10**8 + len(self.codes), RunFolder(Path(output.name).parent)
        act = self.script[next(name for name in self.script if name in arguments)].pop(0)
        self.codes[pid] = act(folder, pid)
        self.most = max(self.most, list(self.codes.values()).count(None))
        return pid

    def process(self, started: int) -> int:
        return started

    def signal(self, pid: int, number: int) -> None:
        self.signals.append(number)
        self.codes[pid] = 128 + number

    def ended(self, pid: int) -> int | None:
        return self.codes[pid]

    def close(self) -> None:
        """Nothing is open."""


def drained(sweep: Path, limits: Limits = NONE, jobs: int = 1, **script: list[Act]) -> tuple[list[Job], Stage]:
    """The jobs seed=0, seed=1, ... after a drain in which they act by ``script``."""
    stage = Stage({f"seed={name.removeprefix('seed')}": acts for name, acts in script.items()})
    found = planned([f"seed={','.join(name.removeprefix('seed') for name in script)}"], [], sweep, build=False)
    Drain(found, sweep, Launching(Slots(jobs, gpus=[]), stage, []), limits, View(len(found))).run()
    return found, stage


def test_a_job_that_a_signal_ends_is_tried_again_as_often_as_allowed(tmp_path, capsys):
    killed = leaves("running", -signal.SIGKILL)
    (job,), _ = drained(tmp_path, Limits(retries=2), seed0=[killed, leaves("interrupted", 143), COMPLETES])
    assert job.completed and job.tries == 3
    assert "ended by signal 9" in (err := capsys.readouterr().err) and "attempt 3" in err
    (job,), _ = drained(tmp_path / "less", Limits(retries=1), seed0=[killed, killed, COMPLETES])
    assert not job.completed and job.tries == 2
    assert job.outcome.startswith("killed by signal 9")


@pytest.mark.parametrize("error", ["out of memory, with chunk=1 too: ...", 'File "a.py"\n_ArrayMemoryError: no 8 GiB'])
def test_a_job_without_memory_is_tried_again(error, tmp_path):
    acts = [leaves("failed", 1, error=error), COMPLETES]
    (job,), _ = drained(tmp_path, Limits(retries=1), seed0=acts)
    assert job.completed


@pytest.mark.parametrize(("status", "code"), [("failed", 2), ("diverged", 3), ("failed", 1)])
def test_what_would_fail_again_is_not_tried_again(status, code, tmp_path):
    (job,), _ = drained(tmp_path, Limits(retries=5), seed0=[leaves(status, code, error="why")])
    assert job.tries == 1 and job.outcome.startswith(f"failed, exit code {code}")


def test_without_retries_nothing_is_tried_again(tmp_path):
    (job,), _ = drained(tmp_path, seed0=[leaves("running", -9)])
    assert job.tries == 1 and not job.completed


def test_a_job_whose_time_is_over_is_stopped_with_its_checkpoint_and_not_tried_again(tmp_path):
    (first, second), stage = drained(tmp_path, Limits(retries=5, timeout=0.2), seed0=[goes_on], seed1=[COMPLETES])
    assert stage.signals == [signal.SIGTERM]
    assert first.tries == 1 and "its time of 0.2 s is over" in first.outcome
    assert second.completed


def test_a_job_that_does_not_stop_in_time_is_killed_once(tmp_path, monkeypatch):
    monkeypatch.setattr("metarun.sweep.drain.GRACE_SECONDS", 0.1)

    class Slow(Stage):
        def signal(self, pid: int, number: int) -> None:
            self.signals.append(number)
            if number == signal.SIGKILL:
                threading.Timer(0.3, lambda: self.codes.update({pid: -9})).start()

    found, stage = planned(["seed=0"], [], tmp_path, build=False), Slow({"seed=0": [goes_on]})
    Drain(found, tmp_path, Launching(Slots(1, gpus=[]), stage, []), Limits(timeout=0.1), View(1)).run()
    assert stage.signals == [signal.SIGTERM, signal.SIGKILL] and found[0].outcome.startswith("stopped, its time")


def test_the_folder_decides_what_is_completed_and_not_the_exit_code(tmp_path):
    jobs, _ = drained(tmp_path, seed0=[leaves("completed", 1)], seed1=[leaves("interrupted", 0)])
    assert [job.completed for job in jobs] == [True, False]


def test_a_folder_that_takes_no_run_stops_no_other_and_the_table_says_why(tmp_path, capsys, monkeypatch):
    first, second, _ = planned(["seed=0,1,2"], [], tmp_path, build=False)
    first.folder.path.mkdir()
    first.folder.checkpoints.touch()
    opened = Path.open

    def full(path: Path, *mode: Any, **more: Any) -> Any:
        if path == second.folder.path / "output.txt" and "ab" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *mode, **more)

    monkeypatch.setattr(Path, "open", full)
    jobs, _ = drained(tmp_path, seed0=[], seed1=[], seed2=[COMPLETES])
    assert [job.completed for job in jobs] == [False, False, True]
    assert final_table(jobs, tmp_path) == 1
    out, err = capsys.readouterr()
    assert "cannot write to the run folder" in " ".join(out.split()) and "No space left" in " ".join(out.split())
    assert "seed=0: not begun: cannot write to the run folder" in err


def test_a_job_that_its_launcher_cannot_start_stops_no_other(tmp_path, capsys):
    def full(folder: RunFolder, pid: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    jobs, _ = drained(tmp_path, seed0=[full], seed1=[COMPLETES])
    assert [job.completed for job in jobs] == [False, True]
    assert "seed=0: not begun: [Errno 28] No space left on device" in capsys.readouterr().err


def test_never_more_jobs_run_at_once_than_asked_for(tmp_path):
    def slow(folder: RunFolder, pid: int) -> None:
        folder.mark("running", pid=pid)
        threading.Timer(0.2, lambda: (folder.mark("completed", pid=pid), stages[0].codes.update({pid: 0}))).start()

    stages = [Stage({f"seed={n}": [slow] for n in range(5)})]
    found = planned(["seed=range(5)"], [], tmp_path, build=False)
    Drain(found, tmp_path, Launching(Slots(2, gpus=[]), stages[0], []), Limits(), View(5)).run()
    assert stages[0].most == 2 and all(job.completed for job in found)


def test_a_place_has_as_many_gpus_as_the_jobs_ask_devices(tmp_path):
    seen = []

    class Notes(Stage):
        def start(self, arguments: list[str], environment: dict[str, str], *files: IO[bytes]) -> int:
            seen.append(environment["CUDA_VISIBLE_DEVICES"])
            return super().start(arguments, environment, *files)

    found = planned(["seed=0,1", "devices=2"], [], tmp_path, build=False)
    stage = Notes({"seed=0": [goes_on], "seed=1": [COMPLETES]})
    launching = Launching(Slots(2, gpus=["0", "1", "2", "3"]), stage, [])
    Drain(found, tmp_path, launching, Limits(timeout=0.2), View(2)).run()
    assert seen == ["0,1", "2,3"]


# ---- other parents ----


def test_a_job_that_another_process_began_at_the_same_moment_is_no_failure(tmp_path):
    (job,), _ = drained(tmp_path, seed0=[leaves("running", 1, pid=ELSEWHERE), COMPLETES])
    assert job.completed and job.tries == 1


@pytest.fixture
def looks_often(monkeypatch) -> None:
    monkeypatch.setattr("metarun.sweep.drain.LOOK_SECONDS", 0.2)


@pytest.mark.usefixtures("looks_often")
def test_a_job_of_another_process_is_waited_for_and_counts_by_what_it_left(tmp_path, capsys):
    first, second = planned(["seed=0,1"], [], tmp_path, build=False)
    first.folder.create()
    lock = (first.folder.path / ".lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(2.5, lambda: (first.folder.mark("completed", pid=ELSEWHERE), lock.close())).start()
    jobs, _ = drained(tmp_path, seed0=[], seed1=[COMPLETES])
    assert all(job.completed for job in jobs)
    err = capsys.readouterr().err
    assert "seed=0: in progress in another process" in err and "seed=0: completed elsewhere" in err
    assert second.folder.path == jobs[1].folder.path


@pytest.mark.parametrize("wrong", [-3600, 3600])
def test_the_clock_of_another_machine_does_not_decide_what_is_news(wrong, tmp_path):
    first, second = planned(["seed=0,1"], [], tmp_path, build=False)
    for job, pid in ((first, 1), (second, 2)):
        job.folder.create()
        job.folder.mark(
            "failed", pid=pid, updated=time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + wrong))
        )

    def fails_elsewhere(folder: RunFolder, pid: int) -> int:
        later = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + wrong + 1))
        second.folder.mark("failed", pid=ELSEWHERE, updated=later)
        return COMPLETES(folder, pid) or 0

    jobs, _ = drained(tmp_path, seed0=[fails_elsewhere], seed1=[])
    assert jobs[0].completed and jobs[1].outcome == "failed elsewhere"


def test_what_an_earlier_attempt_of_ours_left_is_no_news(tmp_path):
    acts = [leaves("failed", 1, error="out of memory"), lambda folder, pid: -9, COMPLETES]
    (job,), _ = drained(tmp_path, Limits(retries=2), seed0=acts)
    assert job.completed and job.tries == 3


@pytest.mark.usefixtures("looks_often")
def test_a_job_whose_process_elsewhere_died_is_taken_over(tmp_path):
    (job,) = planned(["seed=0"], [], tmp_path, build=False)
    job.folder.create()
    lock = (job.folder.path / ".lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    job.folder.mark("running", pid=ELSEWHERE)
    threading.Timer(0.7, lock.close).start()
    (again,), _ = drained(tmp_path, seed0=[COMPLETES])
    assert again.completed and again.tries == 1


def test_what_failed_before_is_tried_again_and_what_fails_elsewhere_meanwhile_is_not(tmp_path):
    first, second = planned(["seed=0,1"], [], tmp_path, build=False)
    first.folder.create()
    first.folder.mark("failed", pid=ELSEWHERE)
    second.folder.create()

    def fails_elsewhere(folder: RunFolder, pid: int) -> int:
        second.folder.mark("failed", pid=ELSEWHERE)
        return COMPLETES(folder, pid) or 0

    jobs, _ = drained(tmp_path, seed0=[fails_elsewhere], seed1=[])
    assert [job.completed for job in jobs] == [True, False]
    assert jobs[1].outcome == "failed elsewhere"


# ---- what is told ----


def test_the_last_table_has_score_and_seconds_also_of_runs_that_were_kept(tmp_path, capsys):
    (job,) = planned(["seed=0"], [], tmp_path, build=False)
    job.folder.create()
    job.folder.mark("completed", **{"test/mse": 0.25, "seconds": 61.2})
    jobs, _ = drained(tmp_path, seed0=[], seed1=[leaves("failed", 1)])
    assert final_table(jobs, tmp_path) == 1
    out = capsys.readouterr().out
    assert "test/mse 0.25" in out and " 61 " in out and "1 of 2 runs completed" in out


def test_the_live_table_tells_state_step_score_and_time_left(tmp_path):
    (job,) = planned(["seed=0"], [], tmp_path, build=False)
    job.folder.create()
    job.begin(pid=7, slot=0, process=7)
    job.folder.mark("running", pid=7, step=10, steps=100, **{"val/mse": 0.5, "best_val/mse": 0.5})
    job.steps_seen = (time.monotonic() - 10, 0)
    table = progress_table([job])
    (name,), (what,), (step,), (score,), (left,) = (list(column.cells) for column in table.columns)
    assert (str(name), what, step, str(score)) == ("seed=0", "running", "10/100", "val/mse 0.5")
    assert left.startswith("0:01:3") or left.startswith("0:01:2")
    assert "1 running" in str(table.title)


# ---- other ways to start ----


def test_a_job_in_a_process_of_its_own_prints_into_its_file_and_holds_its_place(tmp_path):
    launcher = Separate()
    with (tmp_path / "out").open("ab") as output, (tmp_path / "slot").open("ab") as slot:
        pid = launcher.start(["--version"], environment(), output, slot)
    deadline = time.monotonic() + 60
    while launcher.ended(pid) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert launcher.ended(pid) == 0
    assert (tmp_path / "out").read_text().startswith("metarun ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere each job is a new process")
def test_a_process_that_has_computed_starts_a_sweep_without_forking_itself(tmp_path):
    outcome = metarun("-m", *TINY, "steps=2", "seed=0,1", "jobs=2", f"sweep_dir={tmp_path / 'sweep'}")
    assert outcome.code == 0, outcome.text
    assert [state(path.parent) for path in (tmp_path / "sweep").glob("*/status.json")] == ["completed"] * 2


def test_a_launcher_whose_process_is_gone_is_an_error_that_says_what_goes_on(tmp_path):
    class Gone(Stage):
        def ended(self, pid: int) -> int | None:
            raise MetarunError("the process that starts the runs was killed")

    found = planned(["seed=0"], [], tmp_path, build=False)
    launching = Launching(Slots(1, gpus=[]), Gone({"seed=0": [goes_on]}), [])
    with pytest.raises(MetarunError, match="was killed"):
        Drain(found, tmp_path, launching, Limits(), View(1)).run()
