"""``metarun --help``: groups, options and three examples, without importing torch or Hydra."""

import textwrap
from pathlib import Path

from metarun.paths import config_dir

COMMANDS = {
    "evaluate": "score a finished run again, with other steps, shots, ways or data",
    "predict": "adapt a finished run's model to your labelled examples, and predict others",
    "export": "write a finished run's weights, and a program that adapts and predicts without metarun",
    "control": "let a finished run's model control unknown systems: return after K transitions seen",
    "data": "list the data there is; prepare NAME, verify NAME, show NAME (a picture of episodes)",
    "doctor": "what works on this machine, what is slow or missing, and the fix",
}
SWEEP_KEYS = ("sweep_dir", "jobs")  # set beside -m
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
    """The text of ``metarun --help``, with the options that every group has now."""
    width = max(map(len, (*ORDER, *NESTED))) + 2
    indent = "\n" + " " * (width + 2)
    shown = (*ORDER, *NESTED)
    rows = {group: textwrap.wrap("  ".join(options(group)), 100 - width, break_on_hyphens=False) for group in shown}
    groups = "\n".join(f"  {group:<{width}}{indent.join(lines)}" for group, lines in rows.items())
    commands = "\n".join(f"  metarun {name:<10}{text}" for name, text in COMMANDS.items())
    return f"""metarun: meta-learning experiments from the command line

usage: metarun [KEY=VALUE | GROUP=NAME ...] [-m] [--config-dir DIR] [--allow PACKAGE]

Groups, chosen by name (GROUP=NAME):
{groups}

Examples:
  metarun                                                    second-order MAML on sine waves (about a minute)
  metarun experiment=protonet_omniglot_5w1s steps=500        a paper's setting, with less budget
  metarun -m seed=0,1,2 meta_learner=maml,anil task.num_shots=10    a sweep: one run for each combination

Values, changed by key (KEY=VALUE): seed steps meta_batch_size device dtype tf32 data_root run_dir resume log_every
  profile clip_norm clip_value, and those of the groups: task.num_shots meta_learner.inner_lr optimizer.lr ...
  metarun --cfg job [overrides]    shows every value of a run without starting it

Sweeps:    metarun -m KEY=A,B ...   jobs=N runs N at a time; sweep_dir=DIR is where they lie: the same command with
           the same DIR keeps what is completed and continues the rest
Continue:  metarun resume=runs/DATE/RUN        Stop: Ctrl-C, SIGTERM or SIGHUP writes a checkpoint first
Your own:  --config-dir DIR adds a folder of YAML groups (and Python modules beside them); --allow PACKAGE lets
           a config name classes of an installed package

Commands:
{commands}
  metarun --version
  metarun --hydra-help    Hydra's own options
"""
