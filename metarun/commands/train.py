"""Run one configuration: choose the folder, train, test, and say what became of it."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

from metarun.commands.job import Job
from metarun.config.compose import assigned, kept_text, nobody_chose
from metarun.config.experiment import Experiment
from metarun.config.ready import ready
from metarun.errors import CheckpointError, ConfigError, Diverged, Interrupted, MetarunError
from metarun.evaluation.whole import Evaluation
from metarun.files import read_json, refused_by_disk, write_atomically
from metarun.output.checkpoint import load, restoring
from metarun.output.folder import FITTED, TRAINED_ON, RunFolder
from metarun.output.report import Reporter
from metarun.tasks.misread import notes_on_file
from metarun.training.processes import leading, nothing_to_begin, refuse_devices
from metarun.training.runner import Runner
from metarun.training.signals import StopRequest

STATE_OF = {Diverged: "diverged", Interrupted: "interrupted"}


def run(job: Job) -> float:
    """Run the job to its end; returns its test score, or else its best validation. Raises MetarunError, once noted."""
    try:
        experiment = ready(job.cfg, job.folder.fitted() if job.continues else None, begun=job.continues)
    except ConfigError as error:
        if job.continues:
            raise ConfigError(error.problems, where=str(job.folder.path / "config.yaml")) from error
        raise
    refuse_devices(job.cfg.device, experiment.devices, experiment.exact, begins=not job.continues)
    try:
        with job.folder.claimed():
            resume_step = _steps_made(job.folder, experiment) if job.continues else 0
            if resume_step > experiment.steps:
                made = f"{resume_step} already ({job.folder.checkpoints / 'last.pt'})"
                raise ConfigError([f"steps is {experiment.steps}, but the run has made {made}."])
            if resume_step == experiment.steps and job.folder.read_status()["state"] == "completed":
                nothing_to_begin()
                return _nothing_to_do(job.folder, experiment)
            return _run(job, experiment, resume_step)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not job.folder.checkpoints.is_dir():
            raise MetarunError(
                f"the run folder {job.folder.path} is gone: it was moved or deleted while the run was in progress. "
                "What was moved goes on from its last checkpoint: metarun resume=PLACE"
            ) from error
        goes_on = job.folder.holds_a_run
        then = f"continue with {assigned('resume', job.folder.path)}" if goes_on else "give the same command again"
        if not (said := refused_by_disk(error, then)):
            raise
        raise MetarunError(said) from error


def _steps_made(folder: RunFolder, experiment: Experiment) -> int:
    """The step of last.pt; 0 where the run ended before its first one. Raises CheckpointError where it has gone since."""
    last, best = (folder.checkpoints / f"{name}.pt" for name in ("last", "best"))
    if last.exists():
        return load(last, experiment.device)["step"]
    steps = [folder.read_status().get("step", 0)] + ([load(best, experiment.device)["step"]] if best.is_file() else [])
    # best.pt alone, of step 0, is what a run leaves that is killed in its first validation: it begins again
    if (folder.path / "results.json").is_file() or (best.is_file() and max(steps) > 0):
        raise CheckpointError(
            f"the checkpoint {last} is gone, and without it the run would begin again at step 0 over what it has. "
            f"Start anew with another run_dir, or delete the folder {folder.path}."
        )
    return 0


def _nothing_to_do(folder: RunFolder, experiment: Experiment) -> float:
    own = experiment.task.spec.objective.score_name
    if not experiment.num_test_tasks:
        print(f"the run {folder.path} is complete; it has no final test (evaluation.num_tasks=0)")
        return folder.read_status().get(f"best_val/{own}", float("nan"))
    try:
        score = read_json(folder.path / "results.json")[f"test/{own}"]
        mean, ci95 = (float("nan") if score[key] is None else float(score[key]) for key in ("mean", "ci95"))
    except (ValueError, KeyError, TypeError) as error:
        raise MetarunError(
            f"the run {folder.path} is complete, but its results.json is gone or damaged. Score it again with: metarun "
            f"evaluate {folder.path}"
        ) from error
    print(f"the run {folder.path} is complete: test score {mean:.4f} +- {ci95:.4f}")
    print("train it longer with resume=RUN steps=N, or score it again with: metarun evaluate RUN")
    return mean


def _run(job: Job, experiment: Experiment, resume_step: int) -> float:
    folder, text = job.folder, kept_text(job.cfg)
    facts = experiment.suite.fingerprints()
    if not job.continues:
        _forget_what_never_began(folder)
    folder.refuse_other_data(facts, "Restore them, or start a new run with another run_dir.")
    folder.keep_training(experiment.task.fitted(), experiment.task.class_names("train"))
    if not job.continues:
        write_atomically(folder.path / "overrides.yaml", OmegaConf.to_yaml(job.overrides).encode())
    folder.describe(job.overrides, seed=experiment.seed, **facts)
    write_atomically(folder.path / "config.yaml", text.encode())  # last: with it the folder holds a run
    stop = StopRequest()
    with stop.listening():
        folder.mark("running", step=resume_step, steps=experiment.steps)
        report = Reporter(folder, experiment, text, resume_step)
        report.say(f"run folder: {folder.shown}" + f"  (continued at step {resume_step})" * bool(resume_step))
        unchosen = [] if job.continues else nobody_chose(job.overrides, experiment.task.spec.input_shape)
        misread = [] if job.continues else notes_on_file(str(job.cfg.task.get("path") or ""))
        for note in [*experiment.notes, *unchosen, *misread]:
            report.say(note)
        begin = {"text": text, "fitted": experiment.task.fitted(), "step": resume_step, "folder": folder.path}
        evaluation = _guarded(experiment, report, begin, stop)
    report.finished()
    return evaluation.scores[report.score].mean if evaluation else report.latest[f"best_val/{report.score}"]


def _forget_what_never_began(folder: RunFolder) -> None:
    """Remove the facts of a run that ended before its config.yaml was there: the one that begins may be another."""
    for name in ("run.json", "git.diff", "overrides.yaml", FITTED, TRAINED_ON):
        (folder.path / name).unlink(missing_ok=True)


def _guarded(experiment: Experiment, report: Reporter, begin: dict[str, Any], stop: StopRequest) -> Evaluation | None:
    """Run, and whatever happens close the logs and write down how it ended."""
    state, error_text, runner, resume_step = "failed", "", None, begin["step"]

    def last_words(signum: int) -> None:
        """Save what there is of a run that is stopped while torch computes and Python does not come to its turn."""
        text = str(Interrupted(signum))
        try:
            if runner is not None:
                runner.interrupted()
        except Exception as error:
            text = f"{text}, without a checkpoint: {error}"
        _close(report, "interrupted", runner.step if runner else resume_step, text)

    stop.last_words = last_words
    try:
        with leading(experiment, begin, stop) as devices:
            with stop.breakable():
                runner = Runner(experiment, report, stop, devices)
            if resume_step:
                with restoring(report.folder.checkpoints / "last.pt"):
                    runner.restore("last")
            if (evaluation := runner.run()) is None:
                report.untested(runner.best)
            state = "completed"
            return evaluation
    except MetarunError as error:
        state, error_text = STATE_OF.get(type(error), "failed"), str(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        state, error_text = "interrupted", "stopped at once, without a checkpoint"
        raise
    except BaseException as error:
        error_text = "".join(traceback.format_exception(error))
        raise
    finally:
        _close(report, state, runner.step if runner else resume_step, error_text)


def _close(report: Reporter, state: str, step: int, error_text: str) -> None:
    details: dict[str, Any] = {"step": step, "steps": report.experiment.steps, **report.latest}
    details |= {"error": error_text} if error_text else {}
    refused = _refused(lambda: report.folder.mark(state, **details))
    lost = refused if state == "completed" else None  # there is no first error, and its folder does not say it is done
    ended = "interrupted" if lost else state
    note = f"{ended} at step {step}" + (f": {error_text}" if error_text else "")
    _refused(lambda: report.tell(lambda sink: sink.note(note)))
    _refused(lambda: report.close(ended))
    if lost:
        raise lost


def _refused(action: Callable[[], None]) -> OSError | None:
    """The error with which the disk refused an action, which is told; a full one must not hide the first error."""
    try:
        action()
    except OSError as error:
        print(f"metarun: could not note the end of the run: {error}", file=sys.stderr)
        return error
    return None
