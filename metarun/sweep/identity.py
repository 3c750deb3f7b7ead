"""What makes a run of a sweep the run that it is: the values that its numbers depend on, and the code that computes them."""

import hashlib
import json
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

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
    """The commit of metarun's code, whether it has changes, and a hash of the modules in the config folders; None for
    what is not known."""

    def git(*words: str) -> str | None:
        try:
            command = ["git", "-C", str(PACKAGE), *words]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    ours = git("ls-files", "core.py") == "core.py"
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".") if ours else None
    return {
        "commit": git("rev-parse", "HEAD") if ours else None,
        "changed": None if changes is None else bool(changes),
        "outside": _hash_of_modules(config_dirs),
    }


def _hash_of_modules(folders: Sequence[Path]) -> str | None:
    modules = [path for folder in folders for path in (*folder.glob("*.py"), *folder.glob("*/*.py"))]
    texts = [(path.name, path.read_bytes()) for path in sorted(modules)]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:12] if texts else None


def other_code(then: Any, now: dict[str, Any]) -> str:
    """A sentence about code that is not that of the sweep's beginning; empty where it is, or nobody knows."""
    if not isinstance(then, dict):
        return ""
    if then.get("commit") and now["commit"] and then["commit"] != now["commit"]:
        return f"the sweep began with commit {then['commit'][:10]}, and the code is now at {now['commit'][:10]}"
    if then.get("outside") != now["outside"]:
        return "the modules in --config-dir have changed since the sweep began"
    return ""
