"""scripts/bootstrap.py: installs once, repairs, refuses clearly, and hands over exit codes and signals.

Nothing is installed here: the environment is a folder whose Python is a link to this one, or a small shell script.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bootstrap.py"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in environments are POSIX ones")


def load_bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """A repository, a place for its environment, and the commands that the script would have run."""

    def __init__(self, root: Path):
        self.bootstrap = load_bootstrap()
        self.bootstrap.ROOT = root / "repository"
        self.bootstrap.NEEDED_GB = 0
        self.bootstrap.call = self.call
        self.pyproject = root / "repository" / "pyproject.toml"
        self.pyproject.parent.mkdir(exist_ok=True)
        self.pyproject.write_text("[project]\n")
        self.venv = root / "venv"
        self.calls, self.pip_code = [], 0

    def call(self, command, lock):
        self.calls.append(command[2])  # python -m WHAT
        if command[2] == "venv":
            (self.venv / "bin").mkdir(exist_ok=True)
            (self.venv / "bin" / "python").symlink_to(sys.executable)
            return 0
        return self.pip_code

    def install(self):
        """What one call runs."""
        self.calls.clear()
        self.bootstrap.ensure_environment(self.venv)
        return list(self.calls)

    def failing_install(self, capsys):
        with pytest.raises(SystemExit) as error:
            self.install()
        assert error.value.code == 1
        return capsys.readouterr().err


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_only_the_first_call_installs(world):
    assert world.install() == ["venv", "pip"]
    assert world.install() == []


def test_a_changed_pyproject_installs_into_the_same_environment(world):
    world.install()
    world.pyproject.write_text("[project]\nname = 'other'\n")
    assert world.install() == ["pip"]
    assert world.install() == []


def test_an_environment_of_another_checkout_is_pointed_at_this_one(world, tmp_path):
    world.install()
    world.bootstrap.ROOT = world.pyproject.parent.rename(tmp_path / "moved")
    assert world.install() == ["pip"]


def test_another_python_makes_the_environment_anew(world, monkeypatch):
    world.install()
    monkeypatch.setattr(world.bootstrap, "running_version", lambda: "3.99")
    assert world.install() == ["venv", "pip"]


def test_a_failed_first_install_is_cleared_and_made_anew(world, capsys):
    world.pip_code = 1
    assert "pip could not install metarun" in world.failing_install(capsys)
    left_over = world.venv / "lib" / "half.py"
    left_over.parent.mkdir()
    left_over.touch()
    world.pip_code = 0
    assert world.install() == ["venv", "pip"]
    assert not left_over.exists()
    assert world.install() == []


def test_an_install_interrupted_before_it_had_a_python_is_made_anew(world):
    world.venv.mkdir()
    (world.venv / world.bootstrap.OWNED).touch()
    (world.venv / "lib").mkdir()
    assert world.install() == ["venv", "pip"]


def test_a_failed_update_keeps_the_environment_and_is_tried_again(world, capsys):
    before = world.pyproject.read_text()
    world.install()
    world.pyproject.write_text("[project]\nname = 'a mistake'\n")
    world.pip_code = 1
    world.failing_install(capsys)
    world.pip_code = 0
    world.pyproject.write_text(before)
    assert world.install() == ["pip"]


def test_a_lost_python_makes_the_environment_anew(world):
    world.install()
    (world.venv / "bin" / "python").unlink()
    assert world.install() == ["venv", "pip"]


def test_a_working_environment_that_others_made_is_used_and_never_cleared(world, monkeypatch, capsys):
    world.venv.mkdir()
    world.call(["python", "-m", "venv"], lock=0)
    assert world.install() == ["pip"]
    monkeypatch.setattr(world.bootstrap, "running_version", lambda: "3.99")
    assert "was not made by this script" in world.failing_install(capsys)
    assert (world.venv / "bin" / "python").exists()


def test_a_folder_with_other_files_is_refused_and_left_alone(world, capsys):
    world.venv.mkdir()
    (world.venv / "thesis.tex").touch()
    assert "METARUN_VENV" in world.failing_install(capsys)
    assert (world.venv / "thesis.tex").exists()


def test_a_small_disk_is_refused_before_anything_is_made(world, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(world.bootstrap, "NEEDED_GB", 6)
    monkeypatch.setattr(world.bootstrap.shutil, "disk_usage", lambda _: usage(9e9, 7e9, 2e9))
    message = world.failing_install(capsys)
    assert "2.0 GB of free space" in message
    assert "about 6 GB" in message
    assert world.calls == []


def test_a_missing_venv_module_names_the_apt_line(world, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
    message = world.failing_install(capsys)
    assert "lacks the module ensurepip" in message
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in message
    assert not world.venv.exists()


def test_of_two_first_calls_at_once_one_installs_and_the_other_waits(tmp_path):
    driver = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_bootstrap import World
world = World(Path({str(tmp_path)!r}))
def slow_call(command, lock):
    time.sleep(0.3)
    return world.call(command, lock)
world.bootstrap.call = slow_call
print(world.install())
"""
    both = [subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["['venv', 'pip']", "[]"]


def ready_environment(folder: Path, python: str) -> dict[str, str]:
    """An environment that passes for installed, with a shell script as its Python; returns the variables to use it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "bin" / "python").chmod(0o755)
    bootstrap = load_bootstrap()
    (folder / bootstrap.STAMP).write_text(bootstrap.fingerprint())
    return {**os.environ, "METARUN_VENV": str(folder)}


def test_run_starts_metarun_here_and_test_starts_pytest_in_the_repository(tmp_path):
    env = ready_environment(tmp_path / "venv", 'pwd; for word in "$@"; do echo "$word"; done')

    def lines(*arguments):
        return subprocess.check_output(
            [sys.executable, SCRIPT, *arguments], env=env, cwd=tmp_path, text=True
        ).splitlines()

    assert lines("run", "seed=1", "a b") == [str(tmp_path), "-m", "metarun", "seed=1", "a b"]
    assert lines("test", "-x") == [str(SCRIPT.parent.parent), "-m", "pytest", "-m", "not slow", "-x"]
    assert lines("install") == [str(tmp_path / "venv" / "bin" / "python")]


def test_the_exit_code_is_the_childs(tmp_path):
    env = ready_environment(tmp_path / "venv", "exit 7")
    assert subprocess.run([sys.executable, SCRIPT, "run"], env=env, check=False).returncode == 7


def test_sigterm_reaches_the_child(tmp_path):
    env = ready_environment(tmp_path / "venv", "trap 'exit 9' TERM; echo started; while :; do sleep 0.05; done")
    with subprocess.Popen([sys.executable, SCRIPT, "run"], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.wait(timeout=30) == 9


def test_control_c_during_the_install_exits_130_without_a_traceback(tmp_path):
    driver = f"""
import runpy, shutil, subprocess, sys, time, types
shutil.disk_usage = lambda _: types.SimpleNamespace(free=9e9)
subprocess.call = lambda *a, **k: (print("installing", flush=True), time.sleep(30))
sys.argv = ["bootstrap.py", "run"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    env = {**os.environ, "METARUN_VENV": str(tmp_path / "venv")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", driver], env=env, **pipes) as process:
        assert process.stdout.readline() == "installing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [[], ["tset"], ["install", "torch"]])
def test_an_unknown_command_shows_the_usage_and_exits_2(arguments):
    result = subprocess.run([sys.executable, SCRIPT, *arguments], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "scripts/bootstrap.py run [overrides ...]" in result.stderr


def test_a_python_too_old_is_named_with_the_rule(capsys):
    with pytest.raises(SystemExit) as error:
        load_bootstrap().check_python((3, 8, 18))
    assert error.value.code == 2
    assert f"metarun needs Python 3.10 or newer; this is 3.8 ({sys.executable})" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9"])
def test_an_old_python_can_run_the_script_far_enough_to_say_so(version):
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode != 0:
        pytest.skip(f"no working python{version} on PATH")
    result = subprocess.run([python, SCRIPT, "run"], check=False, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert f"metarun needs Python 3.10 or newer; this is {version}" in result.stderr
