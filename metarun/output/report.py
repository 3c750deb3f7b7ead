"""Everything a run writes, behind one object: the runner says what happened, the reporter knows where it goes."""

import statistics
import time
from collections import deque
from itertools import pairwise
from typing import Any

from metarun.config.experiment import Experiment
from metarun.core import Batch
from metarun.evaluation.episodes import manifest
from metarun.evaluation.estimates import Estimate
from metarun.execution.choice import Choice
from metarun.files import write_json
from metarun.output.figures import adaptation_curve, episode_grid
from metarun.output.folder import RunFolder, tensorboard_command
from metarun.output.metrics import Board, MetricsFile
from metarun.output.profiling import StepProfiler
from metarun.output.terminal import Ticker, plain
from metarun.process import peak_memory_mb
from metarun.trees import slice_tasks

STEPS_SHOWN = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200)  # of the adaptation curve


def step_of(name: str) -> int:
    """k of ``<score>_step_k``; 0 of other names."""
    _, separator, step = name.rpartition("_step_")
    return int(step) if separator else 0


def condensed(scores: dict[str, Estimate]) -> dict[str, Estimate]:
    """``scores`` with an adaptation curve of about ten steps, for the eye; results.json has them all."""
    last = max(map(step_of, scores))
    return {name: score for name, score in scores.items() if step_of(name) in (*STEPS_SHOWN, last)}


def results(x: Experiment, scores: dict[str, Estimate], split: str, source: dict[str, Any]) -> dict[str, Any]:
    """Every metric of a split as {mean, ci95, n}, beside the protocol; ``source`` says which checkpoint was scored."""
    protocol = {**x.protocol, **source, "split": split, "num_tasks": x.num_test_tasks}
    hashes = {name: manifest(s.task, split, x.num_test_tasks) for name, s in x.scored.items()}
    if list(hashes) == [""]:
        protocol["manifest"] = hashes[""]
    else:
        protocol["tasks"] = {
            name: {"task": s.node, "data": s.task.fingerprint(), "manifest": hashes[name]}
            for name, s in x.scored.items()
        }
    return {f"{split}/{name}": score._asdict() for name, score in scores.items()} | {"protocol": protocol}


class Reporter:
    """The files, TensorBoard and terminal of one run. ``resume_step``: where it goes on; 0 for a new one."""

    def __init__(self, folder: RunFolder, experiment: Experiment, config_text: str, resume_step: int) -> None:
        self.folder, self.x, self.resumed = folder, experiment, resume_step > 0
        self.metrics = MetricsFile(folder.path / "metrics.jsonl", resume_step)
        self.board = Board(folder.path, resume_step)
        self.ticker = Ticker(experiment.steps, resume_step, folder.path / "log.txt")
        self.profiler = StepProfiler(folder.path / "profile") if experiment.profile else None
        self.ended: deque[float] = deque(maxlen=1000)  # when the latest steps ended, in seconds
        self.latest: dict[str, float] = {}
        self.tested: dict[str, Estimate] = {}
        if not self.resumed:
            self.board.config(config_text, experiment.headline)
            self._show_an_episode()

    def _show_an_episode(self) -> None:
        episode = slice_tasks(self.x.task.sample("train", [0]), 0)
        ways = self.x.task.spec.train_num_ways
        if not ways or not isinstance(episode.support, Batch) or len(self.x.task.spec.input_shape) != 3:
            return
        if all(len(batch.y) % ways == 0 for batch in episode[:2]):
            self.board.images("episode", episode_grid(episode, ways), 0)

    def execution(self, choice: Choice) -> None:
        """Remember which execution the run uses from here on; say what was measured to choose it, and why."""
        name, timings = choice.execution.describe(), choice.milliseconds
        choice.write(self.folder.path / "execution.json")
        rows = [f"{other} {ms:.3g} ms" for other, ms in timings.items()]
        if len(timings) > 1 and (gain := max(timings.values()) / timings[name]) > 1.05:
            rows.insert(0, f"{gain:{'.1f' if gain < 10 else '.0f'}}x faster than the slowest")
        if rows or choice.notes:
            self.ticker.say(f"execution: {name} ({'; '.join([', '.join(rows)] * bool(rows) + choice.notes)})")

    def stepped(self) -> None:
        """A training step is over."""
        self.ended.append(time.perf_counter())
        if self.profiler and self.profiler.step():
            table, trace = self.profiler.folder / "table.txt", self.profiler.trace
            self.ticker.say(f"profile: {table}, and {trace} for https://ui.perfetto.dev")
            self.profiler = None

    def training(self, step: int, values: dict[str, float], lr: float) -> None:
        """Write and show training metrics, unless there are none; then the heartbeat, if it is due."""
        if values:
            self._write(step, {**values, "train/lr": lr})
            self.ticker.tick(step, values)
        self.folder.beat(step=step, steps=self.x.steps, **self.latest)

    def validation(self, step: int, scores: dict[str, Estimate], best: dict[str, float]) -> None:
        """Write the validation scores, and show the one that decides; ``best`` is the best so far, under "value"."""
        values = {f"val/{name}": estimate.mean for name, estimate in scores.items()}
        name = f"val/{self.x.task.spec.objective.score_name}"
        self.latest = {name: values[name], "best_" + name: best["value"]}
        self._write(step, values | {f"{name}_ci95": scores[name.removeprefix("val/")].ci95})
        self.ticker.validated({name: values[name]})
        self.board.flush()

    def testing(self, step: int) -> None:
        """The final test begins, on the checkpoint of ``step``."""
        self.ticker.say(f"final test: {self.x.num_test_tasks} episodes with the best checkpoint, of step {step}")

    def test(self, step: int, scores: dict[str, Estimate], complexity: dict[str, float]) -> None:
        """Write results.json: every test metric as {mean, ci95, n}, beside the protocol that produced it."""
        x, source = self.x, {"checkpoint": "best on validation tasks", "checkpoint_step": step}
        complexity = {**complexity, **self._cost()}
        write_json(self.folder.path / "results.json", results(x, scores, "test", source) | {"complexity": complexity})
        self.metrics.write(x.steps, {f"test/{name}": estimate.mean for name, estimate in scores.items()})
        self.tested, score = scores, x.task.spec.objective.score_name
        self.latest = {f"test/{score}": scores[score].mean}

    def _cost(self) -> dict[str, float]:
        """Of training: the median milliseconds of a step, and the most memory that the process has held."""
        ended = list(self.ended)
        # a GPU's steps end when something of theirs is read, which is when they are logged
        stride = max(1, min(self.x.log_every, len(ended) - 1)) if self.x.device.type == "cuda" else 1
        steps = [1e3 * (b - a) / stride for a, b in pairwise(ended[::stride])]
        memory = peak_memory_mb()
        cost = {"step_ms": statistics.median(steps)} if steps else {}
        return cost if memory is None else cost | {"peak_memory_mb": memory}

    def _show_the_test(self) -> None:
        x, score = self.x, self.x.task.spec.objective.score_name
        self.board.scalars(x.steps, {f"test/{name}": estimate.mean for name, estimate in self.tested.items()})
        if f"{score}_step_1" in self.tested:
            self.board.figure("adaptation", adaptation_curve(self.tested, score, x.trained_steps), x.steps)

    def finished(self, scores: dict[str, Estimate]) -> None:
        """Say what was reached, where it lies and how to look at it."""
        print(self.summary(scores))
        print(f"results:     {self.folder.path / 'results.json'}")
        print(f"tensorboard: {tensorboard_command(self.folder.path)}")

    def summary(self, scores: dict[str, Estimate]) -> str:
        """The final scores in a few lines, beside those without training and of other tasks."""
        name = self.x.task.spec.objective.score_name
        final = scores[name]
        lines = [f"test/{name} = {final.mean:.4f} +- {final.ci95:.4f} (95% CI, {final.n} tasks)"]
        for other in filter(None, self.x.scored):
            mean, ci95, n = scores[f"{other}/{name}"]
            lines.append(f"test/{other}/{name} = {mean:.4f} +- {ci95:.4f} ({n} tasks)")
        if frozen := scores.get(f"frozen_{name}"):
            gain = (final.mean - frozen.mean) * (1 if self.x.task.spec.objective.higher_is_better else -1)
            verdict = "; training made it worse" if gain < 0 else ""
            verdict += ", by less than the intervals" if -final.ci95 - frozen.ci95 < gain < 0 else ""
            lines.append(f"without any training (frozen features): {frozen.mean:.4f} +- {frozen.ci95:.4f}{verdict}")
        steps = f"{name}_step_"
        curve = {step_of(key): score.mean for key, score in condensed(scores).items() if key.startswith(steps)}
        if curve:
            lines.append(f"after adaptation step {plain({f'{k}:': value for k, value in curve.items()})}")
        return "\n".join(lines)

    def close(self, state: str) -> None:
        """End the logs of a run that is now in ``state`` (see ``RunFolder.mark``)."""
        if self.profiler:
            self.ticker.say(self.profiler.abandon())
        self.ticker.close()
        self.metrics.close()
        if state == "completed":  # and no earlier: events of a test that is run again could not be taken back
            self._show_the_test()
        if state != "interrupted":  # TensorBoard keeps the first end it reads, and this run will be continued
            self.board.ended(state == "completed")
        self.board.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.metrics.write(step, values)
        self.board.scalars(step, values)
