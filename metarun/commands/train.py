"""Run one configuration: choose the folder, train, test, and say what became of it."""

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from metarun.build import Experiment, build
from metarun.checkpoint import load, write_atomically
from metarun.compose import override_key
from metarun.errors import ConfigError, Diverged, Interrupted, MetarunError
from metarun.report import Reporter
from metarun.runfolder import RunFolder, new_name
from metarun.runner import Runner

KEPT_ON_RESUME = {"resume", "run_dir", "steps", "device", "data_root", "log_every"}
STATE_OF = {Diverged: "diverged", Interrupted: "interrupted"}


@dataclass
class Job:
    """What to run and where; ``continues`` says that the folder already holds the beginning."""

    cfg: DictConfig
    overrides: list[str]
    folder: RunFolder
    continues: bool


def plan(cfg: DictConfig, overrides: list[str]) -> Job:
    """Find out whether the run is new or continued, and where it lives."""
    if cfg.resume not in (None, "auto"):
        return _continued(RunFolder(Path(cfg.resume).expanduser().resolve()), overrides)
    if cfg.run_dir is None:
        if cfg.resume == "auto":
            raise ConfigError(["resume=auto continues what lies in run_dir; add run_dir=PATH, or write resume=RUN."])
        return Job(cfg, overrides, RunFolder(Path("runs", new_name(_label(cfg))).resolve()), continues=False)
    folder = RunFolder(Path(cfg.run_dir).expanduser().resolve())
    if not folder.holds_a_run:
        return Job(cfg, overrides, folder, continues=False)
    if cfg.resume is None:
        raise ConfigError(
            [f"run_dir {folder.path} already holds a run. Continue it with resume=auto, or choose another folder."]
        )
    _refuse_changes(cfg, folder)
    return Job(cfg, overrides, folder, continues=True)


def _label(cfg: DictConfig) -> str:
    names = [str(cfg[group].get("_target_", "")).rpartition(".")[2].lower() for group in ("meta_learner", "task")]
    return "-".join(names)


def _continued(folder: RunFolder, overrides: list[str]) -> Job:
    """``resume=RUN``: the run's own configuration, with nothing changed that would make it another run."""
    if not folder.holds_a_run:
        raise ConfigError([f"resume={folder.path}: there is no run (no config.yaml). List runs with: ls runs/*"])
    changed = [text for text in overrides if override_key(text) not in KEPT_ON_RESUME]
    if changed:
        allowed = ", ".join(sorted(KEPT_ON_RESUME - {"resume", "run_dir"}))
        raise ConfigError(
            [f"{text}: a resumed run keeps its configuration; only {allowed} may change." for text in changed]
        )
    cfg = OmegaConf.load(folder.path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    kept = [text for text in overrides if override_key(text) not in ("resume", "run_dir")]
    return Job(OmegaConf.merge(cfg, OmegaConf.from_dotlist(kept)), overrides, folder, continues=True)  # type: ignore[arg-type]


def _refuse_changes(cfg: DictConfig, folder: RunFolder) -> None:
    """``resume=auto`` with a configuration that is not the run's."""
    old = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"), resolve=True)
    new = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(old, dict) and isinstance(new, dict)
    rows = [
        f"{key} was {old.get(key)!r} in {folder.path} and is {new.get(key)!r} now; a resumed run keeps its configuration."
        for key in sorted({*old, *new} - KEPT_ON_RESUME, key=str)
        if old.get(key) != new.get(key)
    ]
    if rows:
        raise ConfigError(rows)


def run(job: Job) -> float:
    """Run the job to its end; returns the mean test score. Raises MetarunError, after noting it in status.json."""
    experiment = build(job.cfg)
    folder = job.folder
    last = folder.checkpoints / "last.pt"
    resume_step = load(last, experiment.device)["step"] if job.continues and last.is_file() else 0
    folder.create()
    text = OmegaConf.to_yaml(job.cfg, resolve=True)
    if not job.continues:
        write_atomically(folder.path / "config.yaml", text.encode())
        write_atomically(folder.path / "overrides.yaml", OmegaConf.to_yaml(job.overrides).encode())
    folder.describe(overrides=job.overrides, seed=experiment.seed, data=experiment.task.fingerprint())
    folder.mark("running", step=resume_step, steps=experiment.steps)
    report = Reporter(folder, experiment, text, resume_step)
    report.ticker.say(f"run folder: {folder.path}" + (f"  (continued at step {resume_step})" if resume_step else ""))
    return _guarded(Runner(experiment, report), report, resume_step, experiment)


def _guarded(runner: Runner, report: Reporter, resume_step: int, experiment: Experiment) -> float:
    """Run, and whatever happens close the logs and write down how it ended."""
    state, error_text = "failed", ""
    try:
        if resume_step:
            runner.restore("last")
        scores = runner.run()
        state = "completed"
        report.finished(scores)
        return scores[experiment.task.objective.score_name].mean
    except MetarunError as error:
        state, error_text = STATE_OF.get(type(error), "failed"), str(error)
        raise
    except OSError as error:
        error_text = str(error)
        raise MetarunError(
            f"the disk refused: {error}.\nWhat was written before is intact. Free some space, then continue with "
            f"resume={report.folder.path}"
        ) from error
    except BaseException as error:
        error_text = "".join(traceback.format_exception(error))
        raise
    finally:
        _close(report, state, runner.step, error_text)


def _close(report: Reporter, state: str, step: int, error_text: str) -> None:
    details = {"step": step, "steps": report.x.steps, **report.latest} | ({"error": error_text} if error_text else {})
    for action in (lambda: report.folder.mark(state, **details), lambda: report.close(state)):
        try:
            action()
        except OSError as error:  # a full disk must not hide the first error
            print(f"metarun: could not note the end of the run: {error}", file=sys.stderr)
