"""metarun: the experiment runner for meta-learning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.applied.model import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # not before it is asked for: it brings torch
        from metarun.applied.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
