"""``metarun explain RUN [overrides]``: what a finished run's adaptation does, as numbers, figures and a page."""

import io
import sys
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.applied.trained import Trained, trained
from metarun.commands.evaluate import for_split, name_of
from metarun.config.compose import override_key
from metarun.drawing import picture
from metarun.errors import ConfigError, MetarunError
from metarun.evaluation.eval_mode import modules_of
from metarun.evaluation.explaining.explanation import ALIGNED, Explanation, explain, tasks_alignment
from metarun.evaluation.scoring import Subject
from metarun.evaluation.shots import too_large
from metarun.files import write_atomically, write_json
from metarun.models.dropout import dropping
from metarun.output.explained.figures import drawn
from metarun.output.explained.findings import findings
from metarun.output.explained.page import page
from metarun.output.folder import place
from metarun.output.loggers.tensorboard import add_figures
from metarun.output.tables import Table, plain, show
from metarun.paths import as_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = 100  # where --tasks does not say, and where there are as many
LEAST = 2  # tasks: a mean of one has no interval
DPI = 110
Figures = list[tuple[str, Any]]  # figures of matplotlib, and their names


def explain_run(
    path: Path,
    overrides: list[str],
    split: str,
    tasks: int | None,
    checkpoint: str,
    to: Path | None,
    config_dirs: list[Path],
) -> None:
    """Print the main findings, and write all of them, with figures and a page, into the run's folder or ``to``."""
    _refuse(overrides, split, tasks)
    run = trained(path, overrides, checkpoint, config_dirs)
    subject = _subject(run, split, tasks)
    words = [*overrides, *([f"tasks={tasks}"] if tasks else [])]
    name = name_of(words, split, checkpoint)
    folder = _folder(to, run.folder.path / "explanations" / name)
    found = _found(run, subject)
    score = subject.task.spec.objective.score_name
    figures = {part: [(part, figure)] for part, figure in drawn(found.parts, score).items()}
    figures.setdefault("episodes", []).extend(_pictures(subject, found.parts["episodes"]))
    facts = {"overrides": overrides, "checkpoint": checkpoint, "argv": sys.argv}
    content = _content(run, subject, found) | facts
    table = findings(content["parts"], score)
    show(replace(table, title=f"{content['learner']} on {content['task']}: {subject.num_tasks} {split} tasks"))
    for part, reason in found.left_out.items():
        print(f"left out: {part.replace('_', ' ')}, for {reason}.")
    _write(folder, content, table, figures)
    # a run that goes on writes events, of which TensorBoard reads none once there is a newer file
    apart = to is not None or run.folder.read_status()["state"] == "running"
    shown = {f"explain/{name}/{which}": figure for part in figures.values() for which, figure in part}
    add_figures(folder if apart else run.folder.path, shown, run.step)
    print(f"page: {as_shown(folder / 'explanation.html')}")


def _refuse(overrides: list[str], split: str, tasks: int | None) -> None:
    """Raise ConfigError with all that is wrong with the words of the command."""
    problems = []
    if split not in ("train", "val", "test"):
        problems.append(f"--split is {split!r}; use train, val or test.")
    if tasks is not None and tasks < LEAST:
        problems.append(f"--tasks is {tasks}, but must be {LEAST} or more: a single task has no interval.")
    counts = [text for text in overrides if override_key(text) == "evaluation.num_tasks"]
    problems += [f"{text}: the number of tasks is given by --tasks." for text in counts]
    if problems:
        raise ConfigError(problems)


def _subject(run: Trained, split: str, tasks: int | None) -> Subject:
    """The learner on the first ``tasks`` of the split: of the run's task, or of the first that it is evaluated on."""
    experiment = for_split(run.experiment, split)
    experiment.suite.require(split)
    if problems := too_large(experiment.suite, split):
        raise ConfigError(problems)
    scored, names = experiment.suite.first, list(experiment.suite.elsewhere)
    if len(names) > 1:
        print(f"explained on {names[0]}, the first task of {', '.join(names)}; for another: evaluation.task={names[1]}")
    most = scored.task.spec.num_test_tasks if split == "test" else None
    if most is not None and (tasks or 0) > most:
        raise ConfigError([f"--tasks is {tasks}, but the test set has {most} episodes; use at most {most}."])
    number = tasks or min(TASKS, most or TASKS)
    return experiment.subject(run.theta, split, number, run.execution).on(scored)


def _folder(to: Path | None, usual: Path) -> Path:
    """The folder for the files, made and tried now, for what follows takes a while. Raises ConfigError."""
    folder = place(str(to), "--to") if to else usual
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"cannot write to {folder} ({error.strerror}). Name a folder for the explanation by --to DIR."
        raise ConfigError([problem], where="the command line") from error
    return folder


def _found(run: Trained, subject: Subject) -> Explanation:
    """All that is found out, the meta-gradients of training tasks, too."""
    learner, task = run.training_learner, run.training_task
    with run.calibrated():
        found = explain(subject, run.step, run.experiment.seed)
    if "train" not in task.splits:
        found.add("tasks_alignment", "the data has no training tasks")
        return found
    training = learner.at(run.step)
    with dropping(modules_of(training), run.experiment.seed, run.step):
        episodes = task.sample("train", range(ALIGNED))
        found.add("tasks_alignment", tasks_alignment(training.meta_loss, run.theta, episodes, run.execution))
    return found


def _content(run: Trained, subject: Subject, found: Explanation) -> dict[str, Any]:
    """What explain.json has."""
    objective = subject.task.spec.objective
    elsewhere = list(run.experiment.suite.elsewhere) if subject.split != "train" else []
    content = {
        "version": 1,
        "run": run.folder.shown,
        "learner": type(subject.learner).__name__,
        "task": elsewhere[0] if elsewhere else type(subject.task).__name__,
        "score": objective.score_name,
        "higher_is_better": objective.higher_is_better,
        "checkpoint_step": run.step,
        "split": subject.split,
        "num_tasks": subject.num_tasks,
    }
    content |= {"parts": found.parts, "left_out": found.left_out}
    return {key: plain(value) for key, value in content.items()}


def _pictures(subject: Subject, part: dict[str, Any]) -> Figures:
    """Pictures of the best and the worst episode, as their task shows them; none where curves with predictions do."""
    if part["best"]["curve"]:
        return []
    return [(end, picture(subject.task, subject.split, [part[end]["episode"]])) for end in ("best", "worst")]


def _write(folder: Path, content: dict[str, Any], table: Table, figures: dict[str, Figures]) -> None:
    """Write explain.json, a PNG file of each figure, and the page with all of them."""
    pictures = {part: [(name, _png(figure)) for name, figure in named] for part, named in figures.items()}
    try:
        write_json(folder / "explain.json", content)
        for name, png in chain.from_iterable(pictures.values()):
            write_atomically(folder / f"{name}.png", png)
        write_atomically(folder / "explanation.html", page(content, table, pictures).encode())
    except OSError as error:
        raise MetarunError(f"the findings above could not be written to {folder}: {error.strerror}.") from error


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
