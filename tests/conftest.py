"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; tests that ask for it are marked ``data``."""
    root = os.environ.get("METARUN_DATA")
    if not root:
        pytest.skip("METARUN_DATA does not name a folder with the real data sets")
    return Path(root)
