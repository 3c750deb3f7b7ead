"""The machine that a run is on, and what is installed there."""

import os
import platform
from functools import cache
from importlib import metadata
from typing import Any


@cache
def installed() -> str:
    """The installed packages and their versions, a line each. Reading them takes most of a second."""
    named = ((d.name, d.version) for d in metadata.distributions())
    return "".join(f"{name}=={version}\n" for name, version in sorted(named))


def hardware() -> dict[str, Any]:
    """The machine, and the Python and torch on it, as run.json keeps them."""
    import torch  # kept out of the import of this module: listing runs must not cost seconds

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
