"""Everything a run tells, behind one object: the runner says what happened, the reporter tells it to every sink."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from metarun.config.calls import attempt
from metarun.config.experiment import Experiment
from metarun.config.targets import raised
from metarun.core import Batch
from metarun.errors import ConfigError
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.scoring import Subject
from metarun.evaluation.signs import Signs, signs_of
from metarun.evaluation.whole import Evaluation
from metarun.execution.choice import Choice
from metarun.execution.failures import memory_errors
from metarun.output import checkpoint
from metarun.output.alarms import Alarms
from metarun.output.cost import cost_of_run
from metarun.output.facts import facts_of
from metarun.output.figures import adaptation_curve, episode_grid, shots_curve
from metarun.output.folder import RunFolder, tensorboard_line
from metarun.output.metrics import MetricsFile, written
from metarun.output.profiling import StepProfiler, too_few
from metarun.output.results import results, write_results
from metarun.output.seen import kept, seen_ahead, seen_in_training
from metarun.output.sink import Sink
from metarun.output.summary import curves_over_shots, summary
from metarun.output.terminal import Ticker
from metarun.paths import as_shown
from metarun.process import peak_memory_mb
from metarun.trees import slice_tasks


class Reporter:
    """What is told of one run, and to whom: the files of its folder, and its sinks.

    ``resume_step``: where the run goes on; 0 for a new one.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, config_text: str, resume_step: int) -> None:
        self.folder, self.experiment = folder, experiment
        self.score = experiment.task.spec.objective.score_name
        loggers = self._loggers(resume_step)
        self.sinks: list[Sink] = [
            Ticker(experiment.steps, resume_step, f"val/{self.score}", folder.path / "log.txt"),
            MetricsFile(folder.path / "metrics.jsonl", resume_step),
            *loggers,
        ]
        self.signs: Signs | None = None  # of the validation that is not told yet
        self.alarms = Alarms(folder.path / "alarms.jsonl", resume_step, facts_of(experiment), self.say)
        self.sinks.append(self.alarms)
        ahead = too_few(experiment.steps - resume_step) if experiment.profile else ""
        self.profiler = StepProfiler(folder.path / "profile") if experiment.profile and not ahead else None
        self.step_ends: deque[float] = deque(maxlen=1000)  # when the latest steps ended, in seconds
        self.latest: dict[str, float] = {}
        self.summary = ""  # of the final test
        if ahead:
            self.say(ahead)
        self.alarms.begins(seen_ahead(experiment.suite, experiment.task))
        self._begin(config_text, self.sinks if not resume_step else [sink for sink in self.sinks if sink.anew])

    def _loggers(self, resume_step: int) -> list[Sink]:
        """The loggers of the configuration. Raises ConfigError where one cannot begin."""
        problems: list[str] = []
        given = {"folder": self.folder.path, "resume_step": resume_step, "score": self.score}
        made = [attempt(problems, key, call, **given) for key, call in self.experiment.loggers.items()]
        if problems:
            error = ConfigError(problems)
            self.folder.mark("failed", step=resume_step, steps=self.experiment.steps, error=str(error))
            raise error
        return made

    def _begin(self, config_text: str, sinks: list[Sink]) -> None:
        """Tell ``sinks`` of the run from its beginning to where it stands."""
        grid = self._an_episode() if sinks else None
        for sink in sinks:
            sink.begun(config_text, self.experiment.headline)
            if grid is not None:
                sink.image("episode", grid, 0)
            if sink.anew:
                for step, values in written(self.folder.path / "metrics.jsonl"):
                    sink.write(step, values)

    def _an_episode(self) -> Tensor | None:
        """A picture of the first training episode, where it is one of images."""
        task = self.experiment.task
        episode, ways = slice_tasks(task.sample("train", [0]), 0), task.spec.train_num_ways
        if not ways or not isinstance(episode.support, Batch) or len(task.spec.input_shape) != 3:
            return None
        return episode_grid(episode, ways) if all(len(batch.y) % ways == 0 for batch in episode[:2]) else None

    def tell(self, event: Callable[[Sink], None]) -> None:
        """Let every sink know of an event."""
        for sink in list(self.sinks):
            try:
                event(sink)
            except Exception as error:
                if not sink.package:
                    raise
                self.sinks.remove(sink)  # a service that fails ends no run
                self.say(f"{sink.package} is told no more: {raised(error)}. metrics.jsonl has every number.")

    def say(self, line: str) -> None:
        """Tell a line to whoever looks on."""
        self.tell(lambda sink: sink.say(line))

    def busy(self, what: str) -> None:
        """Tell what is done instead of steps."""
        self.tell(lambda sink: sink.busy(what))

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write the checkpoint ``name`` with ``state``, once no sink can lose what it was told before."""
        self.tell(lambda sink: sink.saving())
        checkpoint.save(self.folder.checkpoints / f"{name}.pt", state)

    def execution(self, choice: Choice) -> None:
        """Remember which execution the run uses from here on, and tell it."""
        choice.write(self.folder.path / "execution.json")
        self.tell(lambda sink: sink.execution(choice))

    def stepped(self) -> None:
        """A training step is over."""
        self.step_ends.append(time.perf_counter())
        if self.profiler and self.profiler.step():
            table, trace = self.profiler.folder / "table.txt", self.profiler.trace
            self.say(f"profile: {table}, and {trace} for https://ui.perfetto.dev")
            self.profiler = None

    def training(self, step: int, values: dict[str, float], lr: float) -> None:
        """Tell training metrics, unless there are none; then the heartbeat, if it is due."""
        if values:
            self.tell(lambda sink: sink.training(step, {**values, "train/lr": lr}))
        self.folder.beat(step=step, steps=self.experiment.steps, **self.latest)

    def validation(self, step: int, scores: dict[str, Estimate], best: dict[str, float]) -> None:
        """Tell the validation scores, with the interval of the one that decides; ``best`` has the best, as "value"."""
        values, name = {f"val/{name}": estimate.mean for name, estimate in scores.items()}, f"val/{self.score}"
        if lost := [key for key, value in values.items() if not math.isfinite(value)]:
            rule = "; such a theta is no candidate for the best" if name in lost else ""
            self.say(f"no finite number at step {step}: {', '.join(lost)}{rule}")
        if name in lost:
            self.busy("")
        else:
            finite = {key: value for key, value in values.items() if key not in lost}
            finite |= {f"{name}_ci95": scores[self.score].ci95}
            self.latest = {name: values[name], "best_" + name: best["value"]}
            self.tell(lambda sink: sink.validation(step, finite))
        if self.signs:
            self.alarms.examined(step, self.signs)

    def examine(self, subject: Subject, step: int) -> None:
        """Look, on a few tasks, for what alarms are about; they are told with the validation."""
        experiment = self.experiment
        loss, batch = experiment.learner.at(step).meta_loss, experiment.meta_batch_size
        self.signs = None
        with (
            suppress(torch.OutOfMemoryError),
            memory_errors(),
            experiment.dropping(step),
        ):  # no memory to spare: no signs
            self.signs = signs_of(subject.on(experiment.suite.first), loss, experiment.task, batch)

    def testing(self, step: int) -> None:
        """The final test begins, on the checkpoint of ``step``."""
        episodes, start = self.experiment.num_test_tasks, "" if step else ", the start"
        self.say(f"final test: {episodes} episodes with the best checkpoint, of step {step}{start}")

    def test(self, step: int, evaluation: Evaluation, subject: Subject) -> None:
        """Write results.json, every test metric beside the protocol that produced it, and the episodes; tell the test
        of the checkpoint of ``step``.

        ``subject`` is what was tested.
        """
        source: dict[str, Any] = {"checkpoint": "best on validation tasks", "checkpoint_step": step, "split": "test"}
        experiment, scores = self.experiment, evaluation.scores
        source |= kept(seen_in_training(experiment.suite, "test", experiment.task.class_names("train")))
        content = results(experiment, evaluation, cost_of_run(experiment, subject) | self._cost(), source)
        write_results(self.folder.path / "results.json", content, evaluation)
        self.latest = {f"test/{self.score}": scores[self.score].mean}
        values = {f"test/{name}": estimate.mean for name, estimate in scores.items()}
        self.summary = summary(experiment, evaluation, step)
        self.tell(lambda sink: sink.note(self.summary))
        self.tell(lambda sink: sink.test(experiment.steps, values))
        if f"{self.score}_step_1" in scores:
            figure = adaptation_curve(scores, self.score, experiment.trained_steps)
            self.tell(lambda sink: sink.figure("adaptation", figure, experiment.steps))
        if curves := curves_over_shots(experiment, scores):
            over_shots = shots_curve(curves, scores)
            over_shots.savefig(self.folder.path / "shots.png", dpi=130)
            self.tell(lambda sink: sink.figure("shots", over_shots, experiment.steps))

    def untested(self, best: dict[str, float]) -> None:
        """The run ends without a final test; ``best`` has the best validation, as "value" and "step"."""
        self.latest |= {f"best_val/{self.score}": best["value"]} if best else {}
        told = f"best val/{self.score} = {best['value']:.4f} at step {best['step']}; " if best else ""
        self.summary = f"{told}no final test (evaluation.num_tasks=0)"

    def _cost(self) -> dict[str, float]:
        """The median milliseconds of a training step, and the most memory that the process has held."""
        ends = list(self.step_ends)
        # a GPU's steps end when something of theirs is read, which is when they are logged
        on_gpu = self.experiment.device.type == "cuda"
        stride = max(1, min(self.experiment.log_every, len(ends) - 1)) if on_gpu else 1
        steps = [1e3 * (b - a) / stride for a, b in pairwise(ends[::stride])]
        memory = peak_memory_mb()
        cost = {"step_ms": statistics.median(steps)} if steps else {}
        return cost if memory is None else cost | {"peak_memory_mb": memory}

    def finished(self) -> None:
        """Say what was reached, where it lies and how to look at it."""
        print(self.summary)
        if self.experiment.num_test_tasks:
            print(f"results:     {as_shown(self.folder.path / 'results.json')}")
        if line := tensorboard_line(self.folder.path):
            print(line)

    def close(self, state: str) -> None:
        """End the logs of a run that is now in ``state`` (see ``RunFolder.mark``)."""
        if self.profiler:
            self.say(self.profiler.abandon())
        self.sinks.reverse()
        self.tell(lambda sink: sink.ended(state))
