"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small kernels on a busy machine wait for each other
os.fsync = lambda descriptor: None  # a run waits for the disk 26 times, and no test cuts the power


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; tests that ask for it are marked ``data``."""
    root = os.environ.get("METARUN_DATA")
    if not root:
        pytest.skip("METARUN_DATA does not name a folder with the real data sets")
    return Path(root)
