"""A wheel holds the package and the whole configuration tree, and works from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built by the build backend itself: no network, no isolated environment."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, which the test extra installs")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_config_module_and_published_result_and_no_tests(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"metarun/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("configs/**/*.yaml")}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("metarun/**/*.py")}
    assert "metarun/configs/config.yaml" in configs
    published = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("metarun/published/*.yaml")}
    assert "metarun/published/maml.yaml" in published
    assert configs | modules | published <= held
    assert not [name for name in held if name.split("/")[0] in ("tests", "scripts", "configs")]


def test_an_installed_wheel_finds_its_own_configs_from_any_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # what installing a pure wheel does
    found = subprocess.run(
        [sys.executable, "-c", "from metarun.paths import config_dir; print(config_dir())"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == tmp_path / "site" / "metarun" / "configs"
