"""Where the files that come with metarun are, and the paths that a user names."""

from contextlib import suppress
from pathlib import Path

from metarun.errors import ConfigError, shortened

DATA_ROOT = "data_root (METARUN_DATA)"  # as messages name it
PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The folder of the configuration tree: ``configs`` of the checkout, or the copy inside an installed wheel.

    The checkout wins: an editable install can leave an old copy in the package. It is known by its pyproject.toml,
    because ``site-packages/configs`` may be another project's.
    """
    checkout = PACKAGE.parent
    candidates = [PACKAGE / "configs"]
    if (checkout / "pyproject.toml").is_file():
        candidates.insert(0, checkout / "configs")
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    places = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"metarun's config.yaml is not in {places}: the install is incomplete. Install metarun again."
    )


def cards_dir() -> Path:
    """The folder of the cards that come with metarun: ``docs/results`` of the checkout, or the copy in the package."""
    checkout = PACKAGE.parent
    return checkout / "docs" / "results" if (checkout / "pyproject.toml").is_file() else PACKAGE / "results"


def usable(path: str | Path, setting: str) -> Path:
    """The path that ``setting`` names, with ~ and ~user as home folders; whether anything is there is not asked.

    Raises ConfigError where nothing can be there: no such user, a name too long for the system, links in a circle.
    """
    if not str(path).strip():
        raise ConfigError([f"{setting} is empty; name a folder, or leave it out."])
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
    except RuntimeError:
        user = Path(path).parts[0]
        reason = f"{user[1:]} is no user of this machine; write ./{user} for a name that begins so"
    else:
        return expanded
    said = f"{setting}={shortened(str(path))}: no file or folder can have this name ({reason})."
    raise ConfigError(
        [said], where="the command line" if setting.startswith("-") or setting.isupper() else "the configuration"
    )


def refuse_no_text(path: Path, setting: str) -> None:
    """Raise ConfigError for a path that is no text in UTF-8, as most files of a run are: none can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        said = f"{setting}: the path {path} has letters that are no UTF-8; rename its folder, or choose another."
        raise ConfigError([said]) from None


def refuse_lost_folder() -> None:
    """Raise ConfigError where the current folder is deleted: torch cannot be loaded there, nor anything be written."""
    try:
        Path.cwd()
    except FileNotFoundError:
        said = "the current folder was deleted; go to one that is there: cd DIR."
        raise ConfigError([said], where="the command line") from None


def as_shown(path: Path) -> str:
    """A path as it is shown: relative to the current folder where it lies in it, for absolute ones wrap in a terminal."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)
