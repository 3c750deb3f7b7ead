"""What the user trusts: packages, and modules beside their own configs."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from metarun.errors import ConfigError, shortened

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def trust(config_dirs: list[str], packages: list[str]) -> list[Path]:
    """Let configs name the allowed packages, and the modules that lie in the given config folders."""
    if wrong := [name for name in packages if not NAME.fullmatch(name)]:
        raise ConfigError([f"--allow {shortened(name)}: that is no name of a package." for name in wrong])
    folders = []
    allowed = [*os.environ.get("METARUN_ALLOW", "").split(":"), *packages]
    for name in [*config_dirs, *filter(None, os.environ.get("METARUN_CONFIG_PATH", "").split(os.pathsep))]:
        if not name.strip() or not os.path.isdir(os.path.expanduser(name)):  # Path raises where a name is too long
            raise ConfigError([f"--config-dir {shortened(name)}: there is no such folder."])
        folder = Path(name).expanduser().resolve()
        folders.append(folder)
        sys.path.insert(0, str(folder))
        allowed += [path.stem for path in folder.glob("*.py")] + [
            path.parent.name for path in folder.glob("*/__init__.py")
        ]
    if folders:
        from metarun.config.yaml_files import folder_problems  # and with it a parser, which --help does without

        if problems := [problem for folder in folders for problem in folder_problems(folder)]:
            raise ConfigError(problems)
    os.environ["METARUN_ALLOW"] = ":".join(filter(None, dict.fromkeys(allowed)))
    return folders


def as_flags(config_dirs: Sequence[str | Path], allowed: Sequence[str]) -> list[str]:
    """These folders and packages as they stand on a command line."""
    return [*(f"--config-dir={folder}" for folder in config_dirs), *(f"--allow={name}" for name in allowed)]
