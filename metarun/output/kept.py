"""The files of a run folder, read as far as they can be: what cannot be read is noted, and empty."""

import json
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from metarun.config.yaml_files import refuse_bombs
from metarun.errors import shortened
from metarun.files import read_json

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick, where libyaml is there


def json_object(path: Path, damaged: list[str]) -> dict[str, Any]:
    """What a JSON file holds; empty, with a note in ``damaged``, where it is absent or holds no object."""
    try:
        return read_json(path)
    except ValueError as error:
        damaged.append(f"{path.name}: {'is missing' if not os.path.lexists(path) else _reason(error, path)}")
        return {}


def configuration(path: Path, damaged: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's configuration, and its values by dotted keys; both empty, with a note in ``damaged``, where it is lost."""
    try:
        content = path.read_bytes()
        if b"&" in content and b"*" in content:
            refuse_bombs(content)
        config = yaml.load(content, Loader=Loader)
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
        return config, flat(config)
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        damaged.append(f"{path.name}: {'is missing' if not os.path.lexists(path) else _reason(error, path)}")
        return {}, {}


def _reason(error: Exception, path: Path) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return "cannot be read: " + shortened(" ".join(said.replace(f"{path} ", "").split()), 100)


def flat(node: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted keys; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def mapping(value: Any) -> dict[str, Any]:
    """``value`` where it is a mapping; nothing where it is anything else, as in a damaged file."""
    return value if isinstance(value, dict) else {}


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever its letters; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; lines that hold none are left out, and an absent file has none."""
    rows = []
    for line in text_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def read_alarms(path: Path) -> list[dict[str, Any]]:
    """The alarms of a run, from its alarms.jsonl: step, name and text of each; none where there is no such file."""
    kinds = {"step": int, "alarm": str, "text": str}
    return [row for row in json_lines(path) if all(type(row.get(key)) is kind for key, kind in kinds.items())]


def number(value: Any) -> float | None:
    """``value`` where it is a finite number that a float can hold."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value if fits else None


def moment(text: Any) -> float | None:
    """Seconds since 1970 of a time as run folders have it, 2026-01-31T12:00:00+0000; None of anything else."""
    if not isinstance(text, str) or not re.fullmatch(r"[\d-]{10}T[\d:]{8}[+-]\d{4}", text):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (ValueError, OverflowError):
        return None
