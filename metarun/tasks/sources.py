"""Many data sets of one kind, one class of task distributions: what differs is a function that gives the source."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from metarun.core import TaskDistribution


def task_from(kind: Callable[..., TaskDistribution]) -> Callable[[Callable[..., Any]], Callable[..., TaskDistribution]]:
    """A decorator: of a function that prepares a source, it makes the ``_target_`` of a YAML.

    ``kind`` takes a ``source`` without arguments beside its own settings; the result takes the settings of both, and shows
    them as its signature, by which a configuration is checked.
    """
    shared = inspect.signature(kind).parameters

    def decorate(source: Callable[..., Any]) -> Callable[..., TaskDistribution]:
        own = inspect.signature(source).parameters

        @wraps(source)
        def task(**settings: Any) -> TaskDistribution:
            of_source = {name: settings[name] if name in shared else settings.pop(name) for name in own}
            return kind(source=partial(source, **of_source), **settings)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in {**own, **shared}.values() if p.name != "source"]
        task.__signature__ = inspect.Signature(parameters, return_annotation=kind)  # type: ignore[attr-defined]
        task.__annotations__ = {**{p.name: p.annotation for p in parameters}, "return": kind}
        return task

    return decorate
