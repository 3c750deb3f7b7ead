"""The command line: a sub-command, Hydra's own options, a sweep, or one run. Imports torch only to run."""

import argparse
import os
import shlex
import sys
import traceback
from pathlib import Path

from metarun import __version__
from metarun.config.help import COMMANDS, SWEEP_KEYS, help_text
from metarun.config.trust import trust
from metarun.errors import ConfigError, Interrupted, MetarunError

HYDRA_SHOWS = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--resolve",
    "--info",
    "-i",
    "--hydra-help",
    "--shell-completion",
    "-sc",
)
OPTIONS = ("--help", "--version", "--multirun", "--config-dir", "--allow", *HYDRA_SHOWS)


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``metarun`` and ``python -m metarun``; always ends in SystemExit."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        from metarun.commands.app import app

        code = guarded(lambda: app(arguments))
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
    except BrokenPipeError:  # whoever read the output has gone, as in ``metarun ... | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("metarun: stopped", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("metarun: the run failed with the error above, which metarun did not expect.", file=sys.stderr)
        return 1


def hydra_style(arguments: list[str]) -> int:
    """Do what a command line without a sub-command asks for: help, Hydra's options, a sweep or a run; its exit code."""
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
    refuse_misplaced(rest)
    if any(text.startswith("-") for text in rest):
        return hydra_only(rest, folders)
    flags = [*(f"--config-dir={name}" for name in options.config_dir), *(f"--allow={name}" for name in options.allow)]
    return single(rest, folders, flags)


def refuse_misplaced(rest: list[str]) -> None:
    """Words that mean something elsewhere on the command line."""
    problems = [
        f"{text}: goes with a sweep: metarun -m {text} ..." for text in rest if text.split("=")[0] in SWEEP_KEYS
    ]
    problems += [f"{text}: the command comes first: metarun {text} ..." for text in rest if text in COMMANDS]
    if problems:
        raise ConfigError(problems)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what is left for Hydra."""
    parser = argparse.ArgumentParser("metarun", add_help=False, allow_abbrev=False, usage="metarun --help")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--allow", action="append", default=[])
    return parser.parse_known_args(arguments)


def single(overrides: list[str], folders: list[Path], flags: list[str]) -> int:
    """One run."""
    from metarun.config.compose import assigned, composed
    from metarun.process import prepare

    prepare()
    cfg = composed(overrides, folders)
    from metarun.commands.train import plan, run  # torch is imported here, after the command line has been understood

    job = plan(cfg, overrides)
    try:
        run(job)
    except Interrupted as error:
        print(
            f"\nstopped; continue with: {shlex.join(['metarun', *flags, assigned('resume', job.folder.path)])}",
            file=sys.stderr,
        )
        return error.exit_code
    return 0


def hydra_only(arguments: list[str], folders: list[Path]) -> int:
    """Hydra's own options: --cfg, --info, --hydra-help, shell completion."""
    import hydra

    from metarun.config.compose import composed, hydra_arguments, register_schema, with_evaluation_tasks
    from metarun.errors import did_you_mean
    from metarun.paths import config_dir

    flags = [text for text in arguments if text.startswith("-")]
    unknown = [flag for flag in flags if flag.split("=")[0] not in HYDRA_SHOWS]
    if unknown:
        raise ConfigError(
            [f"{flag} is no option{did_you_mean(flag, OPTIONS)}; see metarun --help." for flag in unknown]
        )
    if any(flag.split("=")[0] in ("--cfg", "-c") for flag in flags):
        composed([text for text in arguments if "=" in text and not text.startswith("-")], folders)  # our messages
    register_schema()
    sys.argv = ["metarun", *hydra_arguments(folders), *with_evaluation_tasks(arguments, folders)[0]]

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def nothing(cfg: object) -> None:
        """Hydra shows what was asked for instead of calling this."""

    nothing()
    return 0


if __name__ == "__main__":
    main()
