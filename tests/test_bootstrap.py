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


def run_script(*arguments, python=sys.executable, env=None):
    return subprocess.run([python, SCRIPT, *arguments], env=env, check=False, capture_output=True, text=True)


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

    def call(self, command, lock=None, log=None):
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
    world.call(["python", "-m", "venv"])
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
def slow_call(*arguments):
    time.sleep(0.3)
    return world.call(*arguments)
world.bootstrap.call = slow_call
print(world.install())
"""
    both = [subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["['venv', 'pip']", "[]"]


def stand_in(folder: Path, python: str) -> dict[str, str]:
    """An environment whose Python is a shell script; returns the variables that make the script use it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "bin" / "python").chmod(0o755)
    return {**os.environ, "METARUN_VENV": str(folder)}


def ready_environment(folder: Path, python: str) -> dict[str, str]:
    """The same, with the stamp that says that all is installed."""
    env = stand_in(folder, python)
    bootstrap = load_bootstrap()
    (folder / bootstrap.STAMP).write_text(bootstrap.fingerprint())
    return env


def environment_to_update(folder: Path, pip: str) -> dict[str, str]:
    """The same without the stamp: the script asks its version, then runs pip in it."""
    return stand_in(folder, f'[ "$1" = -c ] && echo {sys.version_info[0]}.{sys.version_info[1]} && exit 0\n{pip}')


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
    assert run_script("run", env=env).returncode == 7


def test_sigterm_reaches_the_child(tmp_path):
    env = ready_environment(tmp_path / "venv", "trap 'exit 9' TERM; echo started; while :; do sleep 0.05; done")
    with subprocess.Popen([sys.executable, SCRIPT, "run"], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.wait(timeout=30) == 9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_install_ends_pip_and_the_script_without_a_traceback(tmp_path, number, code):
    pid_file = tmp_path / "pip.pid"
    env = environment_to_update(
        tmp_path / "venv", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60"
    )
    with subprocess.Popen([sys.executable, SCRIPT, "run"], env=env, stderr=subprocess.PIPE, text=True) as process:
        while not pid_file.exists():
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_what_pip_says_is_shown_only_when_it_fails(tmp_path):
    env = environment_to_update(tmp_path / "good", "echo Collecting torch")
    assert "Collecting" not in run_script("install", env=env).stderr
    env = environment_to_update(tmp_path / "bad", "echo 'ERROR: No matching distribution' >&2; exit 3")
    result = run_script("install", env=env)
    assert result.returncode == 1
    assert "ERROR: No matching distribution" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["tset"], ["install", "torch"]])
def test_an_unknown_command_shows_the_usage_and_exits_2(arguments):
    result = run_script(*arguments)
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
    result = run_script("run", python=python)
    assert result.returncode == 2
    assert f"metarun needs Python 3.10 or newer; this is {version}" in result.stderr
