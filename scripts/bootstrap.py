#!/usr/bin/env python3
"""Make metarun's environment once, then run metarun or its tests in it.

    python3 scripts/bootstrap.py run [overrides ...]       metarun with these overrides
    python3 scripts/bootstrap.py test [pytest args ...]    the fast tests: pytest -m "not slow"
    python3 scripts/bootstrap.py install                   only the environment; prints its Python

The first call installs (minutes, about 6 GB with CUDA); later calls start at once, until pyproject.toml or the Python
changes. The environment is .venv in the repository, or the folder that METARUN_VENV names.
"""

# Parsed by any Python 3.6 or newer, so that an old one can be told what is wrong: annotations of generics stay quoted.
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 10)
NEEDED_GB = 6 if sys.platform == "linux" else 2  # the CUDA libraries come only with torch's Linux wheels
STAMP = "metarun-stamp"  # fingerprint of what a finished install installed
OWNED = "metarun-made-by-bootstrap"  # only a folder with this mark is ever cleared
LOCK = "metarun-lock"
LOG = "metarun-install.log"


def main(argv: "list[str]") -> int:
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if argv[:1] not in (["run"], ["test"], ["install"]) or (argv[0] == "install" and argv[1:]):
        say(f"unknown command {' '.join(argv)!r}. Use run, test or install:\n\n{__doc__}")
        return 2
    check_python(sys.version_info[:3])
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    command, arguments = argv[0], argv[1:]
    venv = venv_folder()
    ensure_environment(venv)
    if command == "install":
        print(python_of(venv))
        return 0
    if command == "run":
        return hand_over([str(python_of(venv)), "-m", "metarun", *arguments])
    os.chdir(str(ROOT))
    return hand_over([str(python_of(venv)), "-m", "pytest", "-m", "not slow", *arguments])


def stop(number: int, _: object) -> NoReturn:
    """Leave with the shell's code for this signal (130, 143); on the way subprocess.call ends pip and waits."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)  # a second signal must not break off the waiting
    say("interrupted; the next call goes on from here")
    raise SystemExit(128 + number)


def hand_over(command: "list[str]") -> int:
    """Become ``command`` where the system can, so that signals and the exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child too, and its exit code is waited for
    return subprocess.call(command)


def ensure_environment(venv: Path) -> None:
    """Install unless the stamp says that exactly this was installed; of two calls at once, one installs, one waits."""
    if is_ready(venv):
        return
    check_venv_module()
    try:
        venv.mkdir(parents=True, exist_ok=True)
        lock_file = (venv / LOCK).open("a")
    except OSError as error:
        fail(f"cannot write to {venv}: {error.strerror}. Set METARUN_VENV to a folder that you may write to.")
    with lock_file:
        wait_for(lock_file)
        if not is_ready(venv):
            with (venv / LOG).open("w") as log:
                install(venv, lock_file, log)


def install(venv: Path, lock: TextIO, log: TextIO) -> None:
    started = time.monotonic()
    finished_once = (venv / STAMP).exists() or not (venv / OWNED).exists()
    version = version_of(venv)
    if finished_once and version == running_version():
        say(f"installing what pyproject.toml asks for into {venv} ...")
        (venv / STAMP).write_text("updating\n")
    else:
        rebuild(venv, version, lock, log)
    pip = [str(python_of(venv)), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    if call([*pip, "-e", f"{ROOT}[test]"], lock, log) != 0:
        show_end(venv / LOG)
        fail(
            f"pip could not install metarun; the end of its output is above, all of it in {venv / LOG}. "
            "If the reason was the network or a full disk, put that right and call again: the next call repairs the "
            f"environment. If it keeps failing, delete {venv} first."
        )
    scratch = venv / (STAMP + ".new")
    scratch.write_text(fingerprint())
    os.replace(str(scratch), str(venv / STAMP))
    say(f"environment ready after {time.monotonic() - started:.0f} s")


def rebuild(venv: Path, version: str, lock: TextIO, log: TextIO) -> None:
    """Make the environment from nothing; what an interrupted install left is cleared, what others made is refused."""
    rest = [path for path in venv.iterdir() if path.name not in (OWNED, LOCK, LOG)]
    if rest and not (venv / OWNED).exists():
        what = f"an environment of Python {version}" if version else "not a working environment"
        fail(
            f"{venv} is {what}, this is Python {running_version()}, and the folder was not made by this script, so it "
            f"stays as it is. Delete it, set METARUN_VENV to another folder, or call this script with that Python."
        )
    (venv / OWNED).touch()
    if rest:
        other_python = version not in ("", running_version())
        reason = f"it is of Python {version}" if other_python else "its install did not finish"
        say(f"clearing {venv}: {reason} ...")
    for path in rest:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        else:
            path.unlink()
    check_disk(venv)
    say(f"making the environment in {venv}; this first time takes minutes (PyTorch is large).")
    say(f"to watch: {venv / LOG}")
    if call([sys.executable, "-m", "venv", str(venv)], lock, log) != 0:
        show_end(venv / LOG)
        fail(f"{sys.executable} could not make an environment in {venv}; its message is above.")


def is_ready(venv: Path) -> bool:
    stamp = venv / STAMP
    return python_of(venv).exists() and stamp.is_file() and stamp.read_text() == fingerprint()


def fingerprint() -> str:
    """What the environment depends on. The place is part of it: an editable install points at one checkout."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return f"pyproject.toml sha256 {digest}\npython {running_version()}\ncheckout {ROOT}\n"


def venv_folder() -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("METARUN_VENV") or str(ROOT / ".venv"))))


def python_of(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def running_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def version_of(venv: Path) -> str:
    """``3.11`` for a working environment, empty for one whose Python or pip does not start."""
    ask = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        output = subprocess.check_output([str(python_of(venv)), "-c", ask], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return output.decode().strip()


def call(command: "list[str]", lock: TextIO, log: TextIO) -> int:
    """Run to the end. The child shares the lock, so a killed bootstrap does not free it while pip still writes."""
    if os.name == "nt":
        return subprocess.call(command, stdout=log, stderr=log)
    return subprocess.call(command, stdout=log, stderr=log, pass_fds=(lock.fileno(),))


def show_end(log: Path) -> None:
    sys.stderr.write("\n".join(log.read_text(errors="replace").splitlines()[-40:]) + "\n")


def wait_for(lock_file: TextIO) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another call is installing; waiting for it ...")
        fcntl.flock(lock_file, fcntl.LOCK_EX)


def check_python(version: "tuple[int, ...]") -> None:
    if tuple(version[:2]) < MINIMUM_PYTHON:
        fail(
            "metarun needs Python {}.{} or newer; this is {}.{} ({}). Call this script with a newer one, for instance "
            "python3.12 scripts/bootstrap.py".format(*MINIMUM_PYTHON, *version[:2], sys.executable),
            code=2,
        )


def check_venv_module() -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        fail(
            f"this Python ({sys.executable}) cannot make environments: it lacks the module {' and '.join(missing)}. "
            f"On Debian and Ubuntu: apt install python{running_version()}-venv"
        )


def check_disk(folder: Path) -> None:
    free = shutil.disk_usage(str(folder)).free / 1e9
    if free < NEEDED_GB:
        fail(
            f"{folder} has {free:.1f} GB of free space, and the environment needs about {NEEDED_GB} GB. "
            "Free some, or set METARUN_VENV to a folder on a larger disk."
        )


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the command that is run."""
    print(f"bootstrap: {text}", file=sys.stderr, flush=True)


def fail(text: str, code: int = 1) -> NoReturn:
    say(text)
    raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
