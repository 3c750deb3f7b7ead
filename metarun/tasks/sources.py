"""Task distributions of prepared data, and many data sets of one kind: what differs is a function that names the data."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from metarun.core import TaskDistribution
from metarun.tasks.store import Prepared, Source


class PreparedTask(TaskDistribution):
    """A task distribution of prepared arrays. Its ``sources`` tell their state without building it."""

    prepared: tuple[Prepared, ...]

    @staticmethod
    @abstractmethod
    def sources(*args: Any, **settings: Any) -> Sequence[Source]:
        """Sources that a task with these settings reads. A concrete class takes those settings that they depend on."""

    def verify(self) -> None:
        for prepared in self.prepared:
            prepared.verified()


def task_from(kind: type[PreparedTask]) -> Callable[[Callable[..., Any]], Callable[..., TaskDistribution]]:
    """A decorator: of a function that names the data of a task, it makes the ``_target_`` of a YAML.

    ``kind`` and its ``sources`` take the call of that function as ``data``, beside their own settings. The result takes the
    settings of both, and shows them as its signature, by which a configuration is checked.
    """

    def decorate(data: Callable[..., Any]) -> Callable[..., TaskDistribution]:
        own = inspect.signature(data).parameters

        def with_data(make: Callable[..., Any]) -> Callable[..., Any]:
            shared = inspect.signature(make).parameters

            @wraps(data)
            def made(**settings: Any) -> Any:
                given = [name for name in own if name in settings]  # others have a default
                of_data = {name: settings[name] if name in shared else settings.pop(name) for name in given}
                return make(data=partial(data, **of_data), **settings)

            parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in {**own, **shared}.values() if p.name != "data"]
            made.__signature__ = inspect.Signature(parameters, return_annotation=kind)  # type: ignore[attr-defined]
            made.__annotations__ = {**{p.name: p.annotation for p in parameters}, "return": kind}
            return made

        task = with_data(kind)
        task.sources = with_data(kind.sources)  # type: ignore[attr-defined]
        return task

    return decorate
