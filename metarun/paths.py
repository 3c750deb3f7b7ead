"""Where the files that come with metarun are."""

from pathlib import Path

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


def as_shown(path: Path) -> str:
    """A path as it is shown: relative to the current folder where it lies in it, for absolute ones wrap in a terminal."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)
