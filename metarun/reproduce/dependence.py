"""What a number depends on: the modules that its run computed with, and its configuration.

A card or receipt keeps a digest of both. Where today's differ, the number may be another one, and it is outdated. Comments,
docstrings and layout do not count, nor do the modules in ``TELL``.
"""

import ast
import hashlib
import io
import json
import re
import subprocess
import tokenize
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from metarun.config.schema import without_fetching
from metarun.sweep.composing import Composer

ROOT = Path(__file__).resolve().parents[2]
START = ("metarun.training.runner", "metarun.evaluation.scoring")
# Rooms and modules that check, tell, write or draw, and decide on no number of a run.
TELL: tuple[str, ...] = ("commands", "drawing", "errors", "files", "paths", "process")
TELL += ("training/signals", "reproduce/dependence")
TELL += tuple(f"config/{name}" for name in ("checks", "compose", "help", "schema", "targets", "trust"))
TELL += tuple(f"output/{name}" for name in ("figures", "folder", "metrics", "profiling", "report"))
TELL += tuple(f"output/{name}" for name in ("seen", "sink", "summary", "terminal"))
TELL += tuple(f"scripts/{name}" for name in ("published", "receipt", "same"))
# keys of a configuration
OF_THE_MACHINE = {"checkpoint_minutes", "data_root", "device", "devices", "exact", "log_every", "profile", "resume"}
OF_THE_MACHINE |= {"run_dir"}
COMPOSER = Composer([])  # composes once for command lines that differ in values alone


def today(command: str) -> dict[str, str]:
    """The digests of what the command of a receipt would use now."""
    words, _, runs = (part.split() for part in command.rpartition("# RUN: ")[2].partition("# RUNS: "))
    if words[0] == "python":
        return {"code": of_script(words[1], runs, None)}
    return digests(composed(tuple(words[1:])), None)


def of_script(script: str, runs: Sequence[str], commit: str | None) -> str:
    """The digest of what a script uses of metarun at ``commit`` (None: as it lies here): what decides on the numbers of its
    ``runs``, which are overrides, several values of a key with commas; of a script that names none, all of metarun."""
    if runs:
        from metarun.sweep.grammar import combinations

        modules = {
            target.rpartition(".")[0]
            for words in combinations(list(runs))
            for target in targets(composed(tuple(words)))
        }
        paths = sorted(reached({*START, *modules}, commit))
    else:
        code = [path for path in tracked(commit) if path.startswith("metarun/") and path.endswith(".py")]
        paths = [path for path in code if not tells(path)]
    return digest({path: text_of(path, commit) for path in [*paths, *parts_of(script, commit)]})


def parts_of(script: str, commit: str | None) -> list[str]:
    """The paths of a script and of all that it imports from beside it, but for those that only tell."""
    there, found, waiting = tracked(commit, "scripts"), list[str](), [script]
    while waiting:
        path = waiting.pop()
        if path not in found and not tells(path):
            found.append(path)
            beside = (f"scripts/{name}.py" for name in imported(text_of(path, commit)))
            waiting += [name for name in beside if name in there]
    return found


def digests(config: dict[str, Any], commit: str | None) -> dict[str, str]:
    """Of a run's configuration, and of the code at ``commit`` (None: as it lies here) that it names and all runs use."""
    kept = without_fetching({key: value for key, value in config.items() if key not in OF_THE_MACHINE})
    modules = {target.rpartition(".")[0] for target in targets(config) if target.startswith("metarun.")}
    files = {path: text_of(path, commit) for path in sorted(reached({*START, *modules}, commit))}
    return {"code": digest(files), "config": _hash(kept)}


def of_run(path: Path, facts: dict[str, Any]) -> dict[str, str] | None:
    """What the run in ``path``, of whose run.json these are the facts, depends on. None where no one commit holds the code
    of all its parts: some was not committed, or a part was continued by code that computes otherwise."""
    parts = [facts.get("git"), *(part["git"] for part in facts["history"] if "git" in part)]
    if not all(part and part["commit"] and not part["dirty"] for part in parts):
        return None
    config = saved(path / "config.yaml")
    try:
        found = [digests(config, commit) for commit in dict.fromkeys(part["commit"] for part in parts)]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] if all(one == found[0] for one in found) else None


def of_numbers(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides on its run's numbers, but for the last digits that an execution has of its own."""
    return without_fetching({key: value for key, value in config.items() if key not in OF_THE_MACHINE | {"execution"}})


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def targets(node: Any) -> set[str]:
    """Every ``_target_`` in a configuration."""
    if isinstance(node, dict):
        own = {node["_target_"]} if isinstance(node.get("_target_"), str) else set()
        return own.union(*map(targets, node.values()))
    return set().union(*map(targets, node)) if isinstance(node, list) else set()


def reached(modules: set[str], commit: str | None) -> set[str]:
    """The paths of these modules and of all that they import of metarun, but for those that only tell."""
    there, found, waiting = set(tracked(commit)), set(), list(modules)
    while waiting:
        path = path_of(waiting.pop(), there)
        if path and path not in found and not tells(path):
            found.add(path)
            waiting += imports(text_of(path, commit))
    return found


def tells(path: str) -> bool:
    """Whether a module decides on no number of a run."""
    name = path.removeprefix("metarun/").removesuffix(".py")
    return any(name == told or name.startswith(f"{told}/") for told in TELL)


def path_of(module: str, there: set[str]) -> str | None:
    """The path of a module among those that are there."""
    base = module.replace(".", "/")
    return next((path for path in (f"{base}.py", f"{base}/__init__.py") if path in there), None)


def imports(text: str) -> tuple[str, ...]:
    """The modules, or names in modules, that a source imports of metarun."""
    return tuple(name for name in imported(text) if name.startswith("metarun."))


@cache
def imported(text: str) -> tuple[str, ...]:
    """The modules, or names in modules, that a source imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def digest(files: dict[str, str]) -> str:
    """sha256 of the paths and of what of their text computes."""
    return hashlib.sha256(json.dumps({path: essence(text) for path, text in files.items()}).encode()).hexdigest()


@cache
def essence(text: str) -> str:
    """The characters of a source without comments, docstrings and white space; the same under any version of Python."""
    lines = text.splitlines(keepends=True)
    for start, end in sorted([*comments(text), *docstrings(text)], reverse=True):
        (first, column), (last, until) = start, end
        lines[first - 1 : last] = [lines[first - 1][:column] + lines[last - 1][until:]]
    return re.sub(r"\s+", "", "".join(lines))


Place = tuple[int, int]  # line from 1, column in characters


def comments(text: str) -> list[tuple[Place, Place]]:
    """Where the comments of a source begin and end."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]


def docstrings(text: str) -> list[tuple[Place, Place]]:
    """Where its docstrings do."""
    found, lines = [], text.splitlines()

    def place(line: int, offset: int) -> Place:  # ast counts bytes
        return line, len(lines[line - 1].encode()[:offset].decode())

    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                end = place(statement.end_lineno or 0, statement.end_col_offset or 0)
                found.append((place(statement.lineno, statement.col_offset), end))
    return found


@cache
def tracked(commit: str | None, folder: str = "metarun") -> tuple[str, ...]:
    """The paths of the code in ``folder`` at ``commit``, or as it lies here."""
    if commit is None:
        return tuple(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(f"{folder}/**/*.py")))
    return tuple(git("ls-tree", "-r", "--name-only", commit, folder).splitlines())


@cache
def text_of(path: str, commit: str | None) -> str:
    """A source at ``commit``, or as it lies here."""
    return (ROOT / path).read_text() if commit is None else git("show", f"{commit}:{path}")


def git(*words: str) -> str:
    """What git says of this checkout; raises CalledProcessError where it does not know."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The resolved configuration of a command line. Raises ConfigError where it is no longer one."""
    return plain(COMPOSER(list(overrides), ()))


def plain(config: Any) -> dict[str, Any]:
    """A configuration with its references resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def saved(path: Path) -> dict[str, Any]:
    """The configuration that a run left."""
    from omegaconf import OmegaConf

    return plain(OmegaConf.load(path))


def is_outdated(kept: dict[str, Any]) -> bool:
    """Whether the code or the configuration of a receipt's run has changed since, or the receipt cannot say."""
    if "depends_on" not in kept:
        return True
    try:
        return today(kept["command"]) != kept["depends_on"]
    except Exception:  # the command is none of today's
        return True
