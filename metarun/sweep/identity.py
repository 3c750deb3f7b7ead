"""What makes a run of a sweep the run that it is: the values that its numbers depend on, and the code that computes them."""

import hashlib
import json
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from metarun import __version__
from metarun.config.schema import without_fetching
from metarun.paths import PACKAGE

# of the root of a configuration: where and how a run is made, whose numbers are the same
NO_EFFECT: tuple[str, ...] = ("run_dir", "resume", "device", "devices", "exact", "data_root", "log_every")
NO_EFFECT += ("checkpoint_minutes", "profile", "logger")
DIGITS = 8  # of an identity, in the name of a folder


def identity(config: dict[str, Any], compared: Collection[str] = ()) -> str:
    """A hash of what the numbers of a run depend on; also of keys without effect on them that a sweep compares."""
    kept = without_fetching({key: value for key, value in config.items() if key not in NO_EFFECT or key in compared})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def code(config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The version and commit of metarun's code, a hash of what was changed since, empty where nothing was, and one of the
    modules in the config folders; None for what is not known."""

    def git(*words: str) -> str | None:
        try:
            command = ["git", "-C", str(PACKAGE), *words]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    known: dict[str, Any] = {"metarun": __version__, "commit": None, "changes": None}
    if git("ls-files", "core.py") == "core.py":
        added = (git("ls-files", "--others", "--exclude-standard", "--", "*.py") or "").splitlines()
        changes = _hash([PACKAGE / name for name in added], git("diff", "HEAD", "--", ".") or "")
        known |= {"commit": git("rev-parse", "HEAD"), "changes": changes}
    modules = [path for folder in config_dirs for path in (*folder.glob("*.py"), *folder.glob("*/*.py"))]
    return {**known, "outside": _hash(modules) or None}


def _hash(modules: Sequence[Path], changes: str = "") -> str:
    """A hash of modules and changes; empty where there are none."""
    texts = [(path.name, path.read_bytes()) for path in sorted(modules)]
    return hashlib.sha256(repr((texts, changes)).encode()).hexdigest()[:12] if texts or changes else ""


def other_code(then: Any, now: dict[str, Any]) -> str:
    """A sentence about code that is not that of the sweep's beginning; empty where it is, or nobody knows."""
    if not isinstance(then, dict):
        return ""

    def differs(name: str) -> bool:
        return None not in (then.get(name), now[name]) and then[name] != now[name]

    if differs("commit"):
        return f"the sweep began with commit {then['commit'][:10]}, and the code is now at {now['commit'][:10]}"
    if differs("metarun"):
        return f"the sweep began with metarun {then['metarun']}, and this is {now['metarun']}"
    if differs("changes"):
        return "metarun's code has other uncommitted changes than when the sweep began"
    if then.get("outside") != now["outside"]:
        return "the modules in --config-dir have changed since the sweep began"
    return ""
