"""``metarun --help``: groups, options and three examples, without importing torch or Hydra."""

import shutil
import textwrap
from pathlib import Path
from typing import Any

from metarun.paths import config_dir

COMMANDS = {
    "runs": "list the runs in a folder: state, age, learner, task, score; filters by KEY=VALUE",
    "show": "say what a run is: protocol, scores, adaptation curve, cost, and what differs from the defaults",
    "diff": "say in what two runs differ: settings, data, versions, commit, machine and scores",
    "compare": "compare runs, or groups of seeds, on the same test episodes: difference, interval, win rate, p",
    "report": "a page and tables of the runs in a folder: means over seeds, differences, curves, cost",
    "search": "search for the best values: metarun search DIR trials=50 'optimizer.lr=interval(1e-4,1e-2)'",
    "rerun": "run the same configuration again: are its numbers the same, bit by bit, or what differs?",
    "tensorboard": "start TensorBoard on a run or a folder of runs: metarun tensorboard DIR --port 6007",
    "reproduce": "a paper's figure beside ours: --list says which; NAME trains, tests by its protocol, writes a card",
    "evaluate": "score a finished run again, with other steps, shots, ways or data",
    "explain": "what adaptation does, in figures and a page: layers, losses, gradients, calibration, mistakes",
    "predict": "adapt a finished run's model to your labelled examples, and predict others",
    "export": "write a finished run's weights, and a program that adapts and predicts without metarun",
    "control": "let a finished run's model control unknown systems: return after K transitions seen",
    "data": "list the data there is; prepare NAME, verify NAME, show NAME (a picture of episodes)",
    "doctor": "what works on this machine, what is slow or missing, and the fix",
}
FLAGS = {"--version": "which metarun this is", "--hydra-help": "Hydra's own options"}
EXAMPLES = {
    "metarun": "second-order MAML on sine waves (about a minute)",
    "metarun experiment=protonet_omniglot_5w1s steps=500": "a paper's setting, with less budget",
    "metarun -m seed=0,1,2 meta_learner=maml,anil": "a sweep: one run for each combination",
}
NOTES = {
    "Values, changed by key (KEY=VALUE)": "seed, steps, meta_batch_size, device, devices, exact, dtype, tf32, data_root, "
    "run_dir, resume, log_every, checkpoint_minutes, profile, clip_norm, clip_value, and those of the groups: "
    "task.num_shots, meta_learner.inner_lr, optimizer.lr, ...",
    "All values of a run, without starting it": "metarun --cfg job [KEY=VALUE ...]",
    "Sweep": "metarun -m KEY=A,B ...; jobs=N runs N at a time; sweep_dir=DIR is where they lie: the same command with the "
    "same DIR keeps what is completed and continues the rest; --dry only lists the runs; retries=N tries again what a "
    "signal ended or what found no memory; timeout=12h is the time of an attempt; launcher=slurm, ray, submitit or joblib "
    "starts the runs elsewhere; evaluation=data_efficiency is a sweep "
    "over shares of the training classes, and draws the curve",
    "Search": "metarun search DIR trials=50 'KEY=interval(A,B)' 'KEY=choice(A,B)': trials are scored on validation tasks, "
    "bad ones are pruned, the winner is tested over fresh seeds; the same command goes on",
    "Continue": "metarun resume=runs/DATE/RUN",
    "Stop": "Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 writes a checkpoint first",
    "Your own": "--config-dir DIR adds a folder of YAML groups (and Python modules beside them); --allow PACKAGE lets a "
    "config name classes of an installed package",
}
WIDTH = 100  # columns at most, and where there is no terminal
SWEEP_KEYS = ("sweep_dir", "jobs", "retries", "timeout", "launcher")  # set beside -m
ORDER = (
    "task",
    "base_learner",
    "meta_learner",
    "optimizer",
    "scheduler",
    "execution",
    "evaluation",
    "logger",
    "experiment",
)
NESTED = ("task/augmentation", "task/features")  # choices within a choice


def options(group: str, root: Path | None = None) -> list[str]:
    """The names that can stand after ``group=``: metarun's own, or those of the config folder ``root``."""
    folder = (root or config_dir()) / group
    inside = [folder.parent / other for other in NESTED if other.startswith(f"{group}/")]
    paths = [path for path in folder.rglob("*.yaml") if path.parent not in inside]
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def help_text() -> str:
    """The text of ``metarun --help``, with the options that every group has now, as wide as the terminal."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    groups = _rows({group: ", ".join(options(group)) for group in (*ORDER, *NESTED)}, "", width)
    paragraphs = [
        "metarun: meta-learning experiments from the command line",
        _wrapped("usage: ", "metarun [KEY=VALUE | GROUP=NAME ...] [-m] [--config-dir DIR] [--allow PACKAGE]", width, 7),
        f"Groups, chosen by name (GROUP=NAME):\n{groups}",
        "Examples:\n" + "\n".join(_example(command, what, width) for command, what in EXAMPLES.items()),
        "\n".join(_wrapped(f"{what}: ", text, width, 2) for what, text in NOTES.items()),
        f"Commands:\n{_rows(COMMANDS | FLAGS, 'metarun ', width)}",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _rows(texts: dict[str, str], before: str, width: int) -> str:
    """A row for each name, with its text in a column beside it."""
    column = max(map(len, texts)) + len(before) + 4
    return "\n".join(_wrapped(f"  {before}{name}".ljust(column), text, width, column) for name, text in texts.items())


def _example(command: str, what: str, width: int) -> str:
    """A command and what it does: on one line if that fits, for a command is not broken."""
    line = f"  {command:<56}  {what}"
    return line if len(line) <= width else f"  {command}\n{_wrapped('      ', what, width, 6)}"


def _wrapped(start: str, text: str, width: int, indent: int) -> str:
    """``start`` and ``text`` in lines of at most ``width`` columns, the further ones indented; no word is broken."""
    unbroken: Any = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * indent, **unbroken)
