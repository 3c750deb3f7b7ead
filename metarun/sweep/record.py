"""``sweep.json``: what a sweep is made of, for people and for programs."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun import __version__
from metarun.errors import ConfigError
from metarun.files import read_json, write_json
from metarun.output.lock import alone
from metarun.sweep.identity import code, other_code
from metarun.sweep.job import Job

NAME, LOCK = "sweep.json", ".lock"


def recorded(sweep: Path, jobs: Sequence[Job], config_dirs: Sequence[Path], kept: bool = False) -> list[str]:
    """Write what ``jobs`` are into the sweep's folder, beside those of earlier calls; warnings about what they find.

    ``kept``: whether runs of earlier calls count, beside those of ``jobs``.
    """
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        with alone(sweep / LOCK):
            return _recorded(sweep / NAME, jobs, code(config_dirs), kept)
    except OSError as error:
        why = f"cannot write to the sweep's folder {sweep} ({error.strerror})"
        raise ConfigError([f"{why}. Choose another with sweep_dir=PATH, or make this one writable."]) from error


def _recorded(path: Path, jobs: Sequence[Job], now: dict[str, Any], kept: bool) -> list[str]:
    before, rows, warnings = _kept(path)
    if (kept or any(job.folder.holds_a_run for job in jobs)) and (changed := other_code(before.get("code"), now)):
        warnings.append(
            f"{changed}: completed runs are kept as they are, and begun ones go on. For runs of one code choose another "
            "sweep_dir."
        )
    rows |= _rows(jobs)
    history = [
        *before["history"],
        {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "argv": sys.argv, "code": now},
    ]
    content = {"version": 1, "metarun": __version__, "code": before.get("code") or now, "history": history}
    write_json(path, {**content, "jobs": list(rows.values())})
    return warnings


def _kept(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """What the file of a sweep says, its jobs by their identities, and a warning where it cannot be read as that."""
    try:
        content = {"history": [], **(read_json(path) if path.exists() else {})}
        if not isinstance(content["history"], list):
            raise TypeError
        return content, {row["hash"]: row for row in content.get("jobs", [])}, []
    except (ValueError, KeyError, TypeError):
        return {"history": []}, {}, [f"{path} is damaged; it is written anew, and the runs are found by their folders"]


def added(sweep: Path, job: Job) -> None:
    """Write what a further job of a sweep is, whose beginning is ``recorded``."""
    with alone(sweep / LOCK):
        content, rows, _ = _kept(sweep / NAME)
        write_json(sweep / NAME, {**content, "jobs": list((rows | _rows([job])).values())})


def _rows(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """What is written of jobs, by their identities."""
    return {
        job.identity: {
            "name": job.name,
            "folder": job.folder.path.name,
            "overrides": job.overrides,
            "hash": job.identity,
            "config": job.config,
        }
        for job in jobs
    }
