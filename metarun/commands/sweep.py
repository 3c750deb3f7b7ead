"""``metarun -m``: one run for each combination, each in a process of its own, so that none can take another down."""

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarun.commands.data_efficiency import leave_curves, refuse_without_shares, spread
from metarun.config.compose import (
    composed,
    hydra_arguments,
    override_key,
    readable,
    register_schema,
    with_evaluation_tasks,
)
from metarun.config.elsewhere import with_training_settings
from metarun.config.help import SWEEP_KEYS
from metarun.config.overrides import MOST_RUNS, given_twice
from metarun.errors import ConfigError, shortened
from metarun.output.folder import new_name, place_of_runs
from metarun.paths import as_shown, config_dir
from metarun.process import prepare
from metarun.sweep.chosen import chosen, in_our_words, is_of_the_launcher
from metarun.sweep.drain import Limits
from metarun.sweep.grammar import combinations
from metarun.sweep.launcher import Launcher, Separate
from metarun.sweep.slots import Slots
from metarun.sweep.times import FORMS, seconds_in
from metarun.sweep.way import Sweep, Way

NOT_IN_A_SWEEP = ("run_dir", "resume")  # every run has a folder of its own, and continues it
MEANS = {
    "jobs": "the runs at a time",
    "retries": "the attempts after the first",
    "trials": "all trials of the search, those of earlier calls too",
    "seeds": "the fresh seeds over which the winner runs",
    "sampler_seed": "the seed of what is proposed",
}
DIGITS = 19  # of the longest number of 64 bits
MOST = {"jobs": MOST_RUNS, "retries": MOST_RUNS, "seeds": MOST_RUNS, "trials": 100 * MOST_RUNS, "sampler_seed": 10**18}
Main = Callable[[list[str]], None]  # of a command line; ends in SystemExit


def sweep(arguments: list[str], config_dirs: list[Path], flags: list[str], dry: bool, main: Main) -> int:
    """Run every combination that ``arguments`` span; exit code 0 if all completed or wait in a cluster's queue, 1 if some
    did not.

    ``flags`` stand before the overrides of each run; ``dry``: only list the runs; ``main``: what a run's process does.
    """
    if "hydra/sweeper=optuna" in arguments:
        raise ConfigError([f"hydra/sweeper=optuna: write metarun search instead: {as_search(arguments)}"])
    if any(text.startswith("hydra/sweeper=") for text in arguments):
        if dry:
            raise ConfigError(["--dry lists the runs of metarun's own sweeps; leave out hydra/sweeper."])
        return _by_hydra(arguments, config_dirs)
    own, way, rest = _divided(in_our_words(arguments), config_dirs)
    slots, limits = Slots(whole("jobs", own.get("jobs", "1"), 1)), limits_of(own)
    folder = place_of_runs(own.get("sweep_dir", str(Path("runs", new_name("sweep")))), "sweep_dir")
    spanned = spread(rest, config_dirs)
    texts = combinations(spanned, config_dirs)  # its mistakes are told before anything is loaded
    if spanned != rest:
        refuse_without_shares(texts[0], config_dirs)
    with _launcher(slots, main if way.forks and not dry else None) as launcher:
        from metarun.sweep.plan import planned
        from metarun.sweep.record import recorded
        from metarun.sweep.view import dry_table, final_table

        jobs = planned(spanned, config_dirs, folder)
        if dry:
            dry_table(jobs, folder)
            return 0
        for warning in recorded(folder, jobs, config_dirs):
            print(f"metarun: {warning}", file=sys.stderr)
        print(f"sweep of {len(jobs)} runs: {as_shown(folder)}", file=sys.stderr)
        most = slots.jobs if "jobs" in own else None
        if (code := way.run(Sweep(jobs, folder, flags, slots, limits, most), launcher)) is not None:
            return code
        completed = final_table(jobs, folder)
        if spanned != rest:
            print("\n".join(leave_curves([(job.overrides, job.folder) for job in jobs], folder)))
    return 0 if completed == len(jobs) else 1


def as_search(arguments: list[str]) -> str:
    """The command that searches as Hydra's Optuna sweeper was asked to; its plugin pins an Optuna of 2021."""
    trials = {"hydra.sweeper.n_trials": "trials", "hydra.sweeper.n_jobs": "jobs"}
    words = {"trials": "50"} | {trials[key]: value for key, value in _pairs(arguments) if key in trials}
    rest = [text for text in arguments if not text.startswith(("hydra.", "hydra/", "sweep_dir=", "--", *words))]
    folder = dict(_pairs(arguments)).get("sweep_dir", "DIR")
    return shlex.join(["metarun", "search", folder, *(f"{key}={value}" for key, value in words.items()), *rest])


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (text.partition("=") for text in arguments)]


def _why_not(text: str) -> str:
    if text.startswith(("--c", "-c", "--i", "-i", "--r", "--p", "-p")):
        return "it shows a single run; --dry lists the runs of a sweep"
    if text.startswith("-"):
        return "see metarun --help"
    return "each run of a sweep has its own folder in sweep_dir=DIR, and goes on there"


def _divided(arguments: list[str], config_dirs: list[Path]) -> tuple[dict[str, str], Way, list[str]]:
    """What is the sweep's own, by its keys, its launcher, and the overrides of its runs. Raises ConfigError for what has no
    place, and for a launcher that cannot run here."""
    if wrong := [text for text in arguments if text.startswith("-") or text.split("=")[0] in NOT_IN_A_SWEEP]:
        raise ConfigError([f"{text} cannot stand beside -m; {_why_not(text)}." for text in wrong])
    if problems := given_twice(readable(arguments)):
        raise ConfigError(problems)
    way = chosen(list(filter(is_of_the_launcher, arguments)), config_dirs)
    own = dict(text.split("=", 1) for text in arguments if text.startswith(tuple(f"{name}=" for name in SWEEP_KEYS)))
    way.refuse(own)
    rest = [text for text in arguments if text.partition("=")[0] not in own and not is_of_the_launcher(text)]
    return own, way, rest


def whole(key: str, text: str, least: int) -> int:
    """The number that a setting of the sweep has. Raises ConfigError where it is none, below ``least`` or senseless."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= DIGITS else -1
    if not least <= number <= MOST[key]:
        rule = f"must be a whole number of {least} or more and {MOST[key]} or less, {MEANS[key]}"
        raise ConfigError([f"{key}={shortened(text)}: {rule}."])
    return number


def limits_of(own: dict[str, str]) -> Limits:
    """What limits a run's attempts, by the sweep's own settings. Raises ConfigError."""
    retries, text = whole("retries", own.get("retries", "0"), 0), own.get("timeout")
    if text is None:
        return Limits(retries)
    if (seconds := seconds_in(text)) is None:
        raise ConfigError([f"timeout={text}: must be the time that an attempt may take: {FORMS}."])
    return Limits(retries, seconds)


@contextmanager
def _launcher(slots: Slots, main: Main | None) -> Iterator[Callable[[], Launcher]]:
    """A function that gives what starts the runs. Where it can be, that is forked now, before anything is computed here."""
    prepare()
    made: list[Launcher] = []
    if can_fork():
        if main:
            os.environ.update(slots.threads())  # before torch is imported; who else starts runs gives them their own
        gc.disable()  # nothing that is imported is ever freed
        import torch._dynamo  # noqa: F401 (as checking a configuration does, and every run)

        import metarun.commands.train  # noqa: F401 (what every run imports)

        composed([], [])  # Hydra reads its grammar
        gc.freeze()
        gc.enable()
        if main:
            from metarun.sweep.preloaded import Preloaded

            made.append(Preloaded.forked(main))

    def launcher() -> Launcher:
        if not made:
            made.append(fresh(slots))
        return made[0]

    try:
        yield launcher
    finally:
        for it in made:
            it.close()


def can_fork() -> bool:
    """Whether jobs may be forked from this very process: nobody has loaded torch, whose threads do not survive a fork."""
    return sys.platform.startswith("linux") and "torch" not in sys.modules


def fresh(slots: Slots) -> Launcher:
    """What starts runs, where it cannot be forked from this process: one that this begins, or each run for itself."""
    if not sys.platform.startswith("linux"):
        return Separate()
    from metarun.sweep.preloaded import Preloaded

    return Preloaded.fresh("metarun.commands.workers", {**os.environ, **slots.threads()})


def _by_hydra(arguments: list[str], config_dirs: list[Path]) -> int:
    """Another sweeper: Hydra runs the show, with ``hydra_job`` as its task."""
    import hydra

    register_schema()
    arguments = with_evaluation_tasks(arguments, config_dirs)[0]
    sys.argv = [sys.argv[0], *hydra_arguments(config_dirs), "--multirun", *arguments]
    if not any(text.startswith("hydra.sweep.dir=") for text in arguments):
        sys.argv.append(f"hydra.sweep.dir={Path('runs', new_name('sweep'))}")
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(hydra_job)()
    return 0


def hydra_job(cfg):  # type: ignore[no-untyped-def]
    """One job under a Hydra launcher; returns the best validation score, which a Hydra sweeper may optimise."""
    import torch
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from metarun.commands.job import Job as Training
    from metarun.commands.train import run
    from metarun.output.checkpoint import load
    from metarun.sweep.identity import identity
    from metarun.sweep.job import Folders

    hydra_config = HydraConfig.get()
    overrides = [text for text in hydra_config.overrides.task if override_key(text) not in ("run_dir", "resume")]
    cfg = with_training_settings(cfg, readable(overrides))
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    folder = Folders(Path(hydra_config.sweep.dir).resolve()).of(identity(config), overrides)
    run(Training(cfg, overrides, folder, continues=folder.holds_a_run))
    return load(folder.checkpoints / "best.pt", torch.device("cpu"))["best"]["value"]
