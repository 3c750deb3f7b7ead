"""One process at a time has a run folder, also where the locks of a file system keep nobody away."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
import time
from typing import IO

import pytest

from metarun.errors import MetarunError
from metarun.output import lock
from metarun.output.folder import RunFolder
from metarun.output.lock import Lease, busy, claim
from metarun.sweep.slots import Slots
from tests.running import environment, wait_for


@pytest.fixture(params=["no locks", "locks that keep nobody away"])
def storage(request, monkeypatch) -> str:
    """Shared storage on which flock is refused, or granted to everybody."""

    def flock(file: object, operation: int) -> None:
        if request.param == "no locks":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    return request.param


def leave(folder, host: str, pid: int, silent: float = 0.0) -> None:
    """The lease of another process, which has been silent for so many seconds."""
    folder.mkdir(exist_ok=True)
    (folder / ".lease").write_text(f"{host} {pid} abc")
    then = time.time() - silent
    os.utime(folder / ".lease", (then, then))


def test_a_folder_that_another_machine_has_is_refused_whatever_the_locks_say(storage, tmp_path):
    leave(tmp_path / "run", "another", 1)
    assert busy(tmp_path / "run") or not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(MetarunError, match="in progress"), RunFolder(tmp_path / "run").claimed():
        pass
    assert (tmp_path / "run" / ".lease").read_text() == "another 1 abc"


def test_a_live_run_is_busy_also_where_nfs_grants_no_exclusive_lock_to_a_reader(tmp_path, monkeypatch):
    flock = fcntl.flock

    def of_nfs(file: IO[bytes], operation: int) -> None:
        """As the client of NFS 4 answers."""
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", of_nfs)
    with claim(tmp_path):
        assert busy(tmp_path)
    assert not busy(tmp_path)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ESTALE, errno.EIO])
def test_the_lease_says_whether_a_folder_is_busy_where_its_lock_tells_nothing(number, tmp_path, monkeypatch):
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    (tmp_path / ".lock").touch()
    leave(tmp_path, "another", 1)
    assert busy(tmp_path)
    leave(tmp_path, "another", 1, silent=2 * lock.STALE_SECONDS)
    assert not busy(tmp_path)


def test_a_lease_that_nobody_renews_is_taken_over(storage, tmp_path):
    leave(tmp_path / "run", "another", 1, silent=2 * lock.STALE_SECONDS)
    with RunFolder(tmp_path / "run").claimed():
        assert (tmp_path / "run" / ".lease").read_text().startswith(f"{platform.node()} {os.getpid()} ")
    assert not (tmp_path / "run" / ".lease").exists()


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(storage, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leave(tmp_path / "run", platform.node(), dead.pid)
    with claim(tmp_path / "run") as ours:
        assert ours


def test_of_two_processes_on_storage_without_locks_one_has_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    held = Lease(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        held.content = f"{platform.node()} {other.pid} abc"
        assert held.take(alone=False)
        (tmp_path / ".lock").touch()
        assert busy(tmp_path)
        with claim(tmp_path) as ours:
            assert not ours
    finally:
        other.kill()
        other.wait()
    with claim(tmp_path) as ours:
        assert ours


def test_a_lease_is_renewed_as_long_as_its_holder_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with claim(tmp_path):
        os.utime(tmp_path / ".lease", (1, 1))
        wait_for(lambda: (tmp_path / ".lease").stat().st_mtime != 1, 20)


def test_a_new_lease_that_was_taken_for_the_stale_one_is_given_back(tmp_path):
    leave(tmp_path, "another", 1)
    assert not Lease(tmp_path)._removed("what was read before")
    assert (tmp_path / ".lease").read_text() == "another 1 abc"
    assert not list(tmp_path.glob("*.tmp"))


SILENT = """
import sys, time
from metarun.output import lock
from pathlib import Path
lock.RENEW_SECONDS = 0.3
with lock.claim(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(60)
"""


def test_a_process_whose_folder_was_taken_over_writes_nothing_more(tmp_path):
    words = [sys.executable, "-c", SILENT, str(tmp_path)]
    job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert job.stdout.readline() == "here\n"
    leave(tmp_path, "another", 1)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 1 and "taken over" in err


LOOKS = """
import fcntl, sys, time
with open(sys.argv[1], "ab") as file:
    fcntl.flock(file, fcntl.LOCK_SH)
    print("here", flush=True)
    time.sleep(0.1)
"""


def test_a_run_begins_although_somebody_looks_at_its_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    looking = subprocess.Popen([sys.executable, "-c", LOOKS, str(folder.path / ".lock")], stdout=subprocess.PIPE)
    looking.stdout.readline()
    with folder.claimed():
        pass
    looking.wait()


def test_the_seconds_of_all_attempts_are_counted(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.mark("interrupted", seconds=100.0)
    with RunFolder(tmp_path / "run").claimed():
        again = RunFolder(tmp_path / "run")
        again.began = time.monotonic() - 100
        again.mark("running")
    assert again.read_status()["seconds"] >= 100


# ---- places of jobs ----


def test_a_machine_has_as_many_places_as_jobs_whoever_asks(tmp_path):
    taken = [Slots(2, gpus=[]).take(tmp_path, set()) for _ in range(3)]
    assert [slot and slot[0] for slot in taken] == [0, 1, None]
    taken[0][1].close()
    assert Slots(2, gpus=[]).take(tmp_path, set())[0] == 0


def test_a_place_is_held_as_long_as_the_job_lives_though_its_parent_is_gone(tmp_path):
    slot, file = Slots(1, gpus=[]).take(tmp_path, set())
    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[file.fileno()])
    file.close()
    assert Slots(1, gpus=[]).take(tmp_path, set()) is None
    job.kill()
    job.wait()
    assert Slots(1, gpus=[]).take(tmp_path, set())[0] == slot


def test_a_file_system_without_locks_still_gives_this_process_its_places(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    slots = Slots(2, gpus=[])
    assert slots.take(tmp_path, {0})[0] == 1
    assert slots.take(tmp_path, {0, 1}) is None
    assert fcntl is not None
