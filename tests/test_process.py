"""Settings of the process, each tried in a process of its own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from metarun import process
from metarun.commands import doctor
from metarun.commands.doctor import Finding, findings
from metarun.process import THRESHOLDS

FREED = """
from metarun.process import prepare, return_freed_memory
prepare()
import torch
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = held()
x = torch.ones(2**26)
del x
kept = held() - before
return_freed_memory()
print(kept, held() - before)
"""

BOUNDED = """
import resource
from metarun import process
from metarun.errors import memory_refusal
import torch
held, most = process.memory_left(), resource.RLIM_INFINITY
assert held > 2**30
resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
with process.bounded_memory("cpu"):
    try:
        torch.empty(held)
    except RuntimeError as error:
        print(memory_refusal(error))
    process.memory_left = lambda: 1
    with process.bounded_memory("cpu"):
        torch.empty(2**20)
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == most
with process.bounded_memory("cuda"):
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == most
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system does not say what is free")
def test_more_memory_than_there_is_is_refused_and_kills_no_process():
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "can't allocate memory" in done.stdout


GROUPS = {
    "version 2, a job within a job": (
        "0::/slurm/job7",
        {"slurm/job7/memory.max": "max", "slurm/memory.max": "800"},
        [800],
    ),
    "version 2, a container": ("0::/", {"memory.max": "300"}, [300]),
    "version 1, two limits": (
        "7:cpu:/docker/a\n4:memory:/docker/a",
        {"memory/docker/a/memory.limit_in_bytes": "500", "memory/memory.limit_in_bytes": "900", "cpu/memory.max": "1"},
        [500, 900],
    ),
    "version 1, of which a container sees the lowest alone": (
        "4:memory:/docker/a",
        {"memory/memory.limit_in_bytes": "500"},
        [500],
    ),
    "none": ("7:cpu:/", {"cpu/memory.max": "1"}, []),
}


@pytest.mark.parametrize(("groups", "files", "limits"), GROUPS.values(), ids=GROUPS)
def test_limits_of_containers_and_of_jobs_are_found(groups, files, limits, tmp_path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in [("../../../proc/self/cgroup", groups), *files.items()]:
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="ascii")
    assert process.memory_limits(tmp_path) == limits


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="elsewhere the system does not say what is free")
def test_a_process_takes_no_more_than_its_container_has(monkeypatch):
    free = process.memory_left()
    monkeypatch.setattr(process, "memory_limits", lambda: [2**28])  # resident, besides what is promised already
    assert process.memory_left() < min(free, 2**28 + int(Path("/proc/self/statm").read_text().split()[5]) * 4096 + 1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_freed_memory_is_kept_until_it_is_returned():
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=env)
    kept, left = map(float, done.stdout.split())
    assert kept > 200
    assert left < 50


def test_the_doctor_says_what_the_allocator_does_and_how_to_mend_it(monkeypatch):
    for name in (*THRESHOLDS, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)

    def found() -> Finding:
        return next(finding for finding in findings(Path("nowhere")) if finding.what == "allocator")

    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: True)
    assert found().state == "ok"
    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: False)
    assert found().state == "slow"
    assert not sys.platform.startswith("linux") or "LD_PRELOAD=libjemalloc" in found().fix
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert found().fix == "unset MALLOC_TRIM_THRESHOLD_"
    monkeypatch.setenv("LD_PRELOAD", "/lib/libjemalloc.so.2")
    assert found() == Finding("allocator", "ok", "libjemalloc.so.2")


def test_the_doctor_counts_all_cores_where_the_system_tells_no_affinity(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    (threads,) = [finding for finding in doctor._processor() if finding.what == "threads"]
    assert threads.state == "ok" and threads.value == "8 of 8 cores"


@pytest.mark.parametrize("present", [True, False])
def test_the_doctor_names_the_search_and_no_sweeper_that_is_refused(present, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name if present else None)
    found = {finding.what: finding for finding in doctor._launchers()}
    assert found["metarun search"].fix == ("" if present else "pip install 'metarun[search]'")
    assert not [what for what in found if what.startswith("hydra/")]
