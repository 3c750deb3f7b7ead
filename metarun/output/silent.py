"""The reporter of a process that is not the first of its run: it tells nobody anything."""

from collections.abc import Callable
from typing import Any

from metarun.output.folder import RunFolder


class Silent:
    """Has every method of a ``Reporter``, each without effect. Nobody but the first process uses its ``folder``."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **named: None
