"""The command line: a sub-command, Hydra's own options, a sweep, or one run. Imports torch only to run."""

import argparse
import os
import sys
import traceback
from pathlib import Path

from metarun import __version__
from metarun.errors import ConfigError, Interrupted, MetarunError
from metarun.help import COMMANDS, help_text

EXIT_CONFIG = 2


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``metarun`` and ``python -m metarun``; always ends in SystemExit."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        from metarun.commands.app import app

        code = guarded(lambda: app(arguments, standalone_mode=False))
    else:
        code = guarded(lambda: hydra_style(arguments))
    sys.exit(code)


def guarded(action) -> int:  # type: ignore[no-untyped-def]
    """Run ``action``; say what went wrong in the user's terms, and give the exit code."""
    try:
        return action() or 0
    except MetarunError as error:
        print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("metarun: stopped", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("metarun: the run failed with the error above, which metarun did not expect.", file=sys.stderr)
        return 1


def hydra_style(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    if options.help:
        print(help_text(), end="")
        return 0
    if options.version:
        print(f"metarun {__version__}")
        return 0
    folders = trust(options.config_dir, options.allow)
    if options.multirun:
        from metarun.commands.sweep import sweep

        return sweep(rest, folders)
    if any(text.startswith("-") for text in rest):
        return hydra_only(rest, folders)
    return single(rest, folders)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what is left for Hydra."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--allow", action="append", default=[])
    return parser.parse_known_args(arguments)


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


def single(overrides: list[str], folders: list[Path]) -> int:
    """One run."""
    from metarun.compose import composed
    from metarun.process import prepare

    prepare()
    cfg = composed(overrides, folders)
    from metarun.commands.train import plan, run  # torch is imported here, after the command line has been understood

    job = plan(cfg, overrides)
    try:
        run(job)
    except Interrupted as error:
        print(f"\nstopped; continue with: metarun resume={job.folder.path}", file=sys.stderr)
        return error.exit_code
    return 0


def hydra_only(arguments: list[str], folders: list[Path]) -> int:
    """Hydra's own options: --cfg, --info, --hydra-help, shell completion."""
    import hydra

    from metarun.compose import hydra_arguments, register_schema
    from metarun.paths import config_dir

    register_schema()
    sys.argv = [sys.argv[0], *hydra_arguments(folders), *arguments]

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def show(cfg: object) -> None:
        raise ConfigError(
            [f"unknown option: {' '.join(text for text in arguments if text.startswith('-'))}; see --help"]
        )

    show()
    return 0


if __name__ == "__main__":
    main()
