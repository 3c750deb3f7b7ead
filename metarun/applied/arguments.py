"""What a caller from Python may give: texts and paths, one or a list, which a command line always gives as texts."""

import os
from typing import Any

from metarun.errors import ConfigError, shortened


def load_arguments(
    run: Any, overrides: Any, config_dir: Any, allow: Any
) -> tuple[str, list[str], list[str], list[str]]:
    """The arguments of ``metarun.load`` as texts. Raises ConfigError with all that are of another kind."""
    problems: list[str] = []
    where = _texts("run", [run], "the folder of a run, a string or a path", problems, os.PathLike)
    words = _texts("an override", [*overrides], "a string, 'KEY=VALUE'; write a list of them as *LIST", problems)
    folders = _texts("config_dir", _each(config_dir), "a folder or a list of folders", problems, os.PathLike)
    packages = _texts("allow", _each(allow), "the name of a package or a list of names", problems)
    if problems:
        raise ConfigError(problems, where="the arguments")
    return where[0], words, folders, packages


def _each(given: Any) -> list[Any]:
    """One value or several, as a list."""
    return [] if given is None else [*given] if isinstance(given, (list, tuple)) else [given]


def _texts(name: str, given: list[Any], rule: str, problems: list[str], *kinds: type) -> list[str]:
    for value in given:
        if not isinstance(value, (str, *kinds)):
            problems.append(f"{name} is {shortened(repr(value))}, but must be {rule}.")
    return [] if problems else [str(os.fspath(value)) for value in given]
