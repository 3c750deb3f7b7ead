"""The command line: a sub-command, Hydra's own options, a sweep, or one run. Imports torch only to run."""

import argparse
import os
import shlex
import sys
import traceback
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from metarun import __version__
from metarun.commands.streams import lasting, told
from metarun.config.help import COMMANDS, SWEEP_KEYS, help_text
from metarun.config.trust import as_flags, trust
from metarun.errors import TO_NEED_LESS, ConfigError, Interrupted, MetarunError, did_you_mean, memory_refusal, place_of
from metarun.files import refused_by_disk
from metarun.paths import refuse_lost_folder
from metarun.process import LED, bounded_memory, forget_empty_data_root, prepare, started_rank, started_together

if TYPE_CHECKING:
    from omegaconf import DictConfig

UNEXPECTED = "the run failed with the error above, which metarun did not expect."
CONFIGS, INFOS = ("job", "hydra", "all"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHELLS, COMPLETIONS = ("bash", "fish", "zsh"), ("install", "uninstall", "query")
OPTIONS = ["--help", "--version", "--multirun", "--dry", "--config-dir", "--allow", "--cfg", "--package", "--resolve"]
OPTIONS += ["--info", "--hydra-help", "--shell-completion"]


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are metarun's."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with the message."""
        raise ConfigError([f"{message}; see metarun --help."])


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``metarun`` and ``python -m metarun``; always ends in SystemExit."""
    forget_empty_data_root()
    arguments = sys.argv[1:] if argv is None else argv
    action = command if arguments and arguments[0] in COMMANDS else hydra_style
    with lasting("stdout") as refusal, lasting("stderr"):
        code = guarded(lambda: action(arguments)) or told(refusal())
    sys.exit(code)


def command(arguments: list[str]) -> int:
    """Do what a sub-command asks for; its exit code."""
    refuse_torchrun(arguments[0])
    refuse_empty(arguments)
    from metarun.commands.app import app

    return app(arguments)


def refuse_torchrun(word: str) -> None:
    """Raise ConfigError where torchrun has started several processes for what is no single run."""
    if started_together() > 1:
        raise ConfigError([f"torchrun shares out a single run; start metarun {word} without it."])


def refuse_empty(arguments: list[str]) -> None:
    """Raise ConfigError for an option with nothing as its value, which as a path would be the current folder."""
    given = [word.partition("=") for word in arguments]
    empty = [name for name, sign, value in given if sign and not value.strip()]
    empty += [name for name, value in pairwise(arguments) if not value.strip()]
    if problems := [f"{name} is empty; give it a value, or leave it out." for name in empty if name.startswith("--")]:
        raise ConfigError(problems, where="the command line")


def guarded(action) -> int:  # type: ignore[no-untyped-def]
    """Run ``action``; say what went wrong in the user's terms, and give the exit code."""
    try:
        refuse_lost_folder()
        return action() or 0
    except MetarunError as error:
        print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # by which typer ends a command
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        print("metarun: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        told_memory = f"out of memory: {said}.\n{TO_NEED_LESS}" if (said := memory_refusal(error)) else ""
        if not (known := refused_by_disk(error, "give the same command again") or told_memory):
            traceback.print_exc()
        place = place_of(error)
        print(f"metarun: {known or UNEXPECTED + f' The last line of yours: {place}.' * bool(place)}", file=sys.stderr)
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
        refuse_torchrun("-m")
        from metarun.commands.sweep import sweep

        return sweep(rest, folders, as_flags(folders, options.allow), options.dry, main)
    refuse_misplaced([*rest, *["--dry"] * options.dry])
    if any(text.startswith("-") for text in rest):
        return hydra_only(rest, folders)
    return single(rest, folders, as_flags(options.config_dir, options.allow))


def refuse_misplaced(rest: list[str]) -> None:
    """Words that mean something elsewhere on the command line."""
    problems = [
        f"{text}: goes with a sweep: metarun -m {text} ..."
        for text in rest
        if text.split("=")[0].split(".")[0] in (*SWEEP_KEYS, "--dry")
    ]
    problems += [f"{text}: the command comes first: metarun {text} ..." for text in rest if text in COMMANDS]
    if problems:
        raise ConfigError(problems)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what is left for Hydra."""
    parser = Parser("metarun", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--allow", action="append", default=[])
    return parser.parse_known_args(arguments)


def single(overrides: list[str], folders: list[Path], flags: list[str]) -> int:
    """One run, or this process's part in one."""
    prepare()
    if started_together() == 1:
        return begun(overrides, folders, flags)
    from metarun.commands.follow import follow, led

    return follow() if started_rank() > 0 else led(lambda: begun(overrides, folders, flags))


def begun(overrides: list[str], folders: list[Path], flags: list[str]) -> int:
    """One run, in its first process."""
    from metarun.config.compose import assigned, composed
    from metarun.config.overrides import with_devices

    overrides = with_devices(overrides)
    cfg = composed(overrides, folders)
    from metarun.commands.job import plan  # torch is imported here, after the command line has been understood
    from metarun.commands.train import run

    job = plan(cfg, overrides)
    try:
        with bounded_memory(str(job.cfg.device)):
            run(job)
    except Interrupted as error:
        if LED not in os.environ:  # whoever started it says how to go on
            again = shlex.join(["metarun", *flags, assigned("resume", job.folder.path)])
            print(f"\nstopped; continue with: {again}", file=sys.stderr)
        return error.exit_code
    return 0


def hydra_only(arguments: list[str], folders: list[Path]) -> int:
    """Hydra's own options: --cfg, --info, --hydra-help, shell completion."""
    import hydra

    from metarun.config.compose import composed, hydra_arguments, readable, register_schema, show, with_evaluation_tasks
    from metarun.config.overrides import of_hydra, written
    from metarun.paths import config_dir

    options, overrides = parse_hydra(arguments)
    if options.cfg or options.info:
        hydras = [written(override) for override in readable(overrides) if of_hydra(override)]
        cfg = composed([text for text in overrides if text not in hydras], folders)  # our messages
        refuse_what_hydra_cannot_show(cfg, options)
    if options.cfg == "job":  # with what evaluation tasks take over, which Hydra does not know
        show(cfg, options.package, options.resolve)
        return 0
    register_schema()
    sys.argv = ["metarun", *hydra_arguments(folders), *with_evaluation_tasks(arguments, folders)[0]]

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def nothing(cfg: object) -> None:
        """Hydra shows what was asked for instead of calling this."""

    nothing()
    return 0


def parse_hydra(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's own options, and the overrides beside them; raises ConfigError for what it would answer with a traceback."""
    parser = Parser("metarun", add_help=False, allow_abbrev=False)
    parser.add_argument("--cfg", "-c", choices=CONFIGS)
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFOS)
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    problems = [
        f"{text} is no option{did_you_mean(text, OPTIONS)}; see metarun --help."
        + f" A setting has no dashes: {text.lstrip('-')}" * ("=" in text)
        for text in rest
        if text[0:1] == "-"
    ]
    shows = [name for name in ("cfg", "info", "hydra_help", "shell_completion") if getattr(options, name)]
    if (options.resolve or options.package) and not options.cfg:
        problems.append("--resolve and --package go with --cfg: metarun --cfg job --resolve ...")
    elif len(shows) > 1:
        problems.append("--cfg, --info, --hydra-help and --shell-completion exclude each other; keep one of them.")
    elif options.hydra_help and rest:
        problems.append(f"--hydra-help stands alone; leave out {' '.join(rest)}.")
    elif options.shell_completion and not (len(rest) == 1 and _is_completion(rest[0])):
        problems.append("--shell-completion takes install=SHELL or uninstall=SHELL; SHELL is bash, fish or zsh.")
    if problems:
        raise ConfigError(problems)
    return options, rest


def _is_completion(text: str) -> bool:
    action, _, shell = text.partition("=")
    return action in COMPLETIONS and shell in SHELLS


def refuse_what_hydra_cannot_show(cfg: "DictConfig", options: argparse.Namespace) -> None:
    """Raise ConfigError for a package that the configuration does not have, and for interpolations that lead nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if options.cfg == "job" and options.package and OmegaConf.select(cfg, options.package, default=cfg) is cfg:
            raise ConfigError([f"--package {options.package}: the configuration has no such part."])
        if options.resolve:
            OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key}: {str(error).splitlines()[0]}."]) from None


if __name__ == "__main__":
    main()
