"""What to run, and where: a new run in its own folder, or one that goes on, with nothing changed that makes it another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.checks import changed_settings, flat
from metarun.config.compose import override_key, read_config, with_value
from metarun.config.explain import unresolved
from metarun.errors import ConfigError
from metarun.output.folder import RunFolder, new_name, place, place_of_runs

# what a resumed run may have other than it began
CHANGEABLE = ("steps", "device", "devices", "data_root", "task.download", "log_every", "checkpoint_minutes")
PLACE = ("resume", "run_dir")
PLANNED = ("T_max", "total_iters", "total_steps")  # lengths of schedules; a step_size can equal steps by chance


@dataclass
class Job:
    """What to run and where; ``continues`` says that the folder already holds the beginning."""

    cfg: DictConfig
    overrides: list[str]
    folder: RunFolder
    continues: bool


def plan(cfg: DictConfig, overrides: list[str]) -> Job:
    """Find out whether the run is new or continued, and where it lives."""
    try:
        run_dir, resume = cfg.run_dir, cfg.resume
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None
    if resume not in (None, "auto"):
        return _continued(RunFolder(place(resume, "resume")), overrides)
    if run_dir is None:
        if resume == "auto":
            raise ConfigError(["resume=auto continues what lies in run_dir; add run_dir=PATH, or write resume=RUN."])
        path = str(Path("runs", new_name(_label(cfg))))
        return Job(cfg, overrides, RunFolder(place_of_runs(path, "run_dir")), continues=False)
    folder = RunFolder(place(run_dir, "run_dir"))
    if not folder.holds_a_run:
        _refuse_what_is_left(folder)
        return Job(cfg, overrides, RunFolder(place_of_runs(run_dir, "run_dir")), continues=False)
    if resume is None:
        raise ConfigError(
            [f"run_dir {folder.path} already holds a run. Continue it with resume=auto, or choose another folder."]
        )
    _refuse_changes(cfg, folder, set(map(override_key, overrides)))
    return Job(cfg, overrides, folder, continues=True)


def _refuse_what_is_left(folder: RunFolder) -> None:
    """Raise ConfigError where a folder without config.yaml has what a run has learned: a new one would write over it."""
    left = [
        name for name in ("checkpoints/last.pt", "checkpoints/best.pt", "results.json") if (folder.path / name).exists()
    ]
    if left:
        rule = f"holds {left[0]} of a run whose config.yaml is gone. Restore that file, or choose another folder."
        raise ConfigError([f"run_dir {folder.path} {rule}"])


def _label(cfg: DictConfig) -> str:
    names = [OmegaConf.select(cfg, f"{group}._target_") for group in ("meta_learner", "task")]
    return "-".join(str(name).rpartition(".")[2].lower() for name in names)


def _continued(folder: RunFolder, overrides: list[str]) -> Job:
    """``resume=RUN``: the run's own configuration, with nothing changed that would make it another run."""
    if not folder.holds_a_run:
        raise ConfigError([f"resume={folder.path}: there is no run (no config.yaml). List runs with: metarun runs"])
    cfg, problems = read_config(folder.path / "config.yaml"), []
    trained_for = cfg.steps
    for text in overrides:
        key = override_key(text)
        if key == "run_dir":
            problems.append(f"{text}: resume={folder.path} says already where the run is; leave out run_dir.")
        elif may_change(key):
            cfg = with_value(cfg, text)
        elif key not in PLACE:
            allowed = ", ".join(CHANGEABLE)
            problems.append(f"{text}: a resumed run keeps its configuration; only {allowed} may change.")
    if cfg.steps != trained_for:
        problems += [
            f"steps={cfg.steps}: scheduler.{name} was planned for {value} steps, so a longer or shorter run is another "
            "run; start it with another run_dir, or begin with scheduler=constant."
            for name, value in (cfg.scheduler or {}).items()
            if name in PLANNED and value == trained_for > 1
        ]
    if problems:
        raise ConfigError(problems)
    return Job(cfg, overrides, folder, continues=True)


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of ``key``: tasks that it is evaluated on may be fetched, too."""
    return key in CHANGEABLE or (key.startswith("evaluation.task.") and key.endswith(".download"))


def _refuse_changes(cfg: DictConfig, folder: RunFolder, said: set[str]) -> None:
    """``resume=auto`` with a configuration that is not the run's."""
    both: Any = [OmegaConf.to_container(c, resolve=True) for c in (read_config(folder.path / "config.yaml"), cfg)]
    old, new = map(flat, both)
    rows = [
        f"{key} was {old.get(key)!r} in {folder.path} and is {new.get(key)!r} now; a resumed run keeps its configuration."
        for key in changed_settings(old, new, said)
        if not may_change(key) and key not in PLACE
    ]
    if rows:
        raise ConfigError(rows)
