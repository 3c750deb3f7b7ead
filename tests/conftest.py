"""Fixtures for the whole suite."""

import gc
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small kernels on a busy machine wait for each other
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * 2**30:  # runs write many small files: a sixth of their time
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
os.fsync = lambda descriptor: None  # a run waits for the disk 26 times, and no test cuts the power
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that a test starts would compile all of metarun again
gc.disable()  # until all is collected: a third of the time that collecting takes


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of Python's garbage collections, a twentieth of the processor time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000)


@pytest.fixture
def statuses_alone(monkeypatch) -> None:
    """The jobs of a sweep act by a script, and leave a status.json and no other file of a run."""
    monkeypatch.setattr("metarun.sweep.job.Job.damage", "")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, and that nothing happened to: to be read, or copied."""
    from tests.running import TINY, metarun

    run = tmp_path_factory.mktemp("whole") / "run"
    assert metarun(*TINY, f"run_dir={run}").code == 0
    return run


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; tests that ask for it are marked ``data``."""
    root = os.environ.get("METARUN_DATA")
    if not root:
        pytest.skip("METARUN_DATA does not name a folder with the real data sets")
    return Path(root)
