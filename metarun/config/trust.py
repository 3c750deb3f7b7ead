"""What the user trusts: packages, and modules beside their own configs."""

import os
import sys
from pathlib import Path

from metarun.errors import ConfigError


def trust(config_dirs: list[str], packages: list[str]) -> list[Path]:
    """Let configs name the allowed packages, and the modules that lie in the given config folders."""
    folders = []
    allowed = [*os.environ.get("METARUN_ALLOW", "").split(":"), *packages]
    for name in [*config_dirs, *filter(None, os.environ.get("METARUN_CONFIG_PATH", "").split(os.pathsep))]:
        folder = Path(name).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError([f"--config-dir {name}: there is no such folder."])
        folders.append(folder)
        sys.path.insert(0, str(folder))
        allowed += [path.stem for path in folder.glob("*.py")] + [
            path.parent.name for path in folder.glob("*/__init__.py")
        ]
    os.environ["METARUN_ALLOW"] = ":".join(filter(None, dict.fromkeys(allowed)))
    return folders
