"""The meta-training loop: sample, mean meta-gradient, step; validate at the start and now and then; test at the end."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from metarun.config.compose import assigned
from metarun.config.experiment import Experiment, optimizer_of
from metarun.core import Metrics
from metarun.errors import Interrupted, refuse_divergence
from metarun.evaluation.calibration import calibrated
from metarun.evaluation.scoring import Subject
from metarun.evaluation.whole import Evaluation, evaluate_all
from metarun.execution.choice import Choice
from metarun.execution.decorated import GraphFailed
from metarun.execution.devices import ALONE, Devices, PeerLost
from metarun.execution.execution import Execution
from metarun.execution.failures import memory_errors, out_of_memory
from metarun.execution.sharded import around
from metarun.execution.update import Update, dense
from metarun.output import checkpoint
from metarun.output.metrics import Log, Means
from metarun.output.profiling import profile_span
from metarun.output.report import Reporter
from metarun.process import return_freed_memory
from metarun.training.measuring import fitted, measured
from metarun.training.signals import StopRequest
from metarun.training.stream import meta_batches
from metarun.trees import leaf_names, tree_flatten, tree_map, tree_unflatten


class Runner:
    """One run: its loop, and all the state that a checkpoint keeps. On several ``devices`` each process has one."""

    def __init__(self, experiment: Experiment, report: Reporter, stop: StopRequest, devices: Devices = ALONE) -> None:
        self.experiment, self.report, self.stop, self.devices = experiment, report, stop, devices
        theta = tree_map(lambda p: dense(p).detach().clone().requires_grad_(), experiment.theta_0)
        self.leaves, self.structure = tree_flatten(theta)
        self.optimizer = optimizer_of(experiment, self.leaves, leaf_names(self.theta))
        self.update = Update(self.leaves, self.optimizer, experiment.clip, begins=self.begin_update)
        self.scheduler = experiment.scheduler(self.optimizer)
        self.execution: Execution = experiment.execution
        self.step = self.validated = 0
        self.best: dict[str, float] = {}
        self.keep_at = experiment.next_checkpoint()
        self.means, self.lr = Means(), 0.0  # since the last log; of the last step, as scheduled
        self.unwritten: Log | None = None
        self.generator_before: torch.Tensor | None = None  # what is computed now

    @property
    def theta(self) -> Any:
        """The meta-parameters as the learner knows them, made of the leaves that the optimizer moves."""
        return tree_unflatten(self.leaves, self.structure)

    def run(self) -> Evaluation | None:
        """Train to the last step, then test the best theta, if a test is asked for. Raises Interrupted, Diverged."""
        try:
            with memory_errors():
                self.train()
                return self.test() if self.experiment.num_test_tasks else None
        except (Interrupted, PeerLost) as error:
            if isinstance(error, Interrupted) or not self.leaves[0].is_cuda:  # a GPU may wait for who has gone
                self.interrupted()
            raise
        except torch.OutOfMemoryError as error:
            told = out_of_memory(error, self.execution.eager.settings(), assigned("resume", self.report.folder.path))
        except Exception:
            with suppress(RuntimeError, OSError):  # what a broken device holds cannot be read
                self.write_log()  # it may say why
            raise
        self.save("last")
        raise told

    def interrupted(self) -> None:
        """Undo the draws of what was broken off, and keep the rest."""
        if self.generator_before is not None:
            torch.set_rng_state(self.generator_before)
        self.keep_step()

    def keep_step(self) -> None:
        """Write what is not written yet, and a checkpoint from which the run goes on as if never stopped."""
        self.write_log()
        refuse_divergence(self.means.read(), self.step, self.experiment.seed)
        self.save("last")

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A context whose computation a signal may break off. A resumed run does it again, with the same draws of a CPU;
        reading a GPU's generator would take longer than a step may."""
        self.generator_before = torch.get_rng_state()
        with self.stop.breakable():
            yield
        self.generator_before = None

    def begin_update(self) -> None:
        """End what may be broken off: theta is about to change."""
        self.stop.hold()
        self.generator_before = None

    def train(self) -> None:
        """Train to the last step, with the validations that are due. Raises Interrupted, Diverged."""
        self.choose_execution()
        experiment, size = self.experiment, self.experiment.meta_batch_size
        own = self.devices.own(self.execution.parts(size))
        with closing(meta_batches(experiment.task, size, self.step, experiment.steps, own)) as batches:
            while True:  # closed whatever happens, or the thread that draws would live as long as an error's traceback
                due = self.step % experiment.every == 0 or self.step == experiment.steps
                if due and (self.step == 0 or self.validated < self.step):
                    self.validate()
                if self.step >= experiment.steps:
                    return
                self.stop.obey(self.devices.agreed)
                with profile_span("episodes", experiment.profile), self.breakable():
                    episodes = next(batches)
                self.train_step(episodes)
                if time.monotonic() > self.keep_at:
                    self.keep_step()

    def train_step(self, episodes: Any) -> None:
        """Take one step on these episodes, and log it where that is due."""
        with profile_span("step", self.experiment.profile):
            metrics, self.lr = self.update_theta(episodes), float(self.scheduler.get_last_lr()[0])
            self.scheduler.step()
        self.step += 1
        with profile_span("log", self.experiment.profile):
            self.means.add(metrics)
            self.write_log()  # of the step before, while a GPU computes this one
            if self.step % self.experiment.log_every == 0:
                self.unwritten = self.log()
                if self.experiment.device.type != "cuda":  # nothing computes meanwhile
                    self.write_log()
        self.report.stepped()

    def update_theta(self, episodes: Any) -> Metrics:
        """A step along the mean meta-gradient; out of memory, with a smaller execution from then on."""
        loss_fn, not_made, too_large = self.experiment.learner_of(self.step).meta_loss, [], ""
        while True:
            try:
                batch = fitted(self.experiment, self.execution, self.step, episodes)
                with self.breakable(), self.experiment.dropping(self.step), memory_errors():
                    metrics = self.execution.train_step(loss_fn, self.theta, batch, self.update)
                break
            except torch.OutOfMemoryError:
                other = self.execution.smaller(self.experiment.meta_batch_size)
                if other is None:
                    raise
            except GraphFailed as error:  # of a resumed run on another machine, say
                not_made.append(str(error))
                self.execution = around(self.devices, self.execution.eager, self.experiment.meta_batch_size)
                continue
            self.execution = other
            too_large = f"out of memory at step {self.step}; a run begins like this with {other.eager.settings()}"
            return_freed_memory()
        if notes := not_made + [too_large] * bool(too_large):
            self.report.execution(Choice(self.execution, notes=notes))
        return metrics

    def log(self) -> Log:
        """The line for this step, not yet written; the means begin anew."""
        return Log(self.step, self.lr, self.means.take())

    def write_log(self) -> None:
        """Write the log that is due, if one is."""
        if self.unwritten:
            (step, lr, means), self.unwritten = self.unwritten, None
            values = {f"train/{name}": value for name, value in means().items()}
            refuse_divergence(values, step, self.experiment.seed)
            self.report.training(step, values, lr)

    def validate(self) -> None:
        """Score the validation tasks, keep the best theta so far, which may be the start, and checkpoint."""
        self.report.busy("validating")
        self.devices.refuse_difference(self.theta, self.step)
        self.write_log()
        self.unwritten = self.log()
        self.write_log()
        experiment, objective = self.experiment, self.experiment.task.spec.objective
        subject = experiment.subject(self.theta, "val", experiment.num_val_tasks, self.execution)
        scores = self.scores(subject, final=False).scores
        score, sign = scores[objective.score_name], 1 if objective.higher_is_better else -1
        if self.step and not self.best.get("scored"):  # training has led to nothing that has a score
            refuse_divergence({f"val/{objective.score_name}": score.mean}, self.step, experiment.seed)
        self.validated = self.step
        if math.isfinite(score.mean):
            better = not self.best or sign * score.mean > sign * self.best["value"]
            self.best = ({"value": score.mean, "step": self.step} if better else self.best) | {"scored": self.step}
            if better:
                self.save("best")
        self.report.validation(self.step, scores, self.best)
        self.save("last")  # after the report: a run killed in between does both again

    def test(self) -> Evaluation:
        """The final test: the theta that was best on validation tasks, on fixed held-out episodes."""
        path = self.report.folder.checkpoints / "best.pt"
        best = self.devices.from_first(lambda: checkpoint.load(path, self.experiment.device))
        self.report.testing(best["step"])
        subject = self.experiment.subject(best["theta"], "test", self.experiment.num_test_tasks, self.execution)
        evaluation = self.scores(subject, final=True)
        self.report.test(best["step"], evaluation, subject)
        return evaluation

    def scores(self, subject: Subject, final: bool) -> Evaluation:
        """The scores of ``subject`` on the suite; ``final``: with all that a test tells."""
        experiment, subject = self.experiment, replace(subject, between=partial(self.stop.obey, self.devices.agreed))
        with self.breakable(), calibrated(experiment.learner, subject.theta, experiment.task, self.execution):
            if not final:
                self.report.examine(subject, self.step)
            return evaluate_all(experiment.suite, subject, experiment.evaluators, final)

    def choose_execution(self) -> None:
        """Let ``execution=auto`` measure once; a resumed run keeps the choice of its beginning."""
        experiment, path = self.experiment, self.report.folder.path / "execution.json"
        kept = path.is_file()
        measure = partial(measured, experiment, self.theta, self.update, self.stop.obey, self.report.busy)
        with self.breakable(), experiment.dropping(self.step):
            choice = self.devices.from_first(lambda: Choice.read(path, experiment.execution) if kept else measure())
        torch.set_num_threads(choice.threads)
        self.execution = around(self.devices, choice.execution, experiment.meta_batch_size)
        if kept:
            self.report.busy("" if choice.execution is choice.execution.eager else "compiling")  # by the first step
        else:
            self.report.execution(choice)
            return_freed_memory()  # of what was measured and takes more: 2 GB beside 0.5 for a mini-ImageNet meta-gradient

    def save(self, name: str) -> None:
        """Write the checkpoint ``name`` (last or best), from which ``restore`` goes on; the first process alone does."""
        checkpoint.refuse_infinite(self.leaves, self.step, self.experiment.seed)
        state = {"format": 1, "theta": self.theta, "step": self.step, "validated": self.validated, "best": self.best}
        state |= {"means": self.means.state(), "lr": self.lr, "optimizer": self.optimizer.state_dict()}
        state |= {"scheduler": self.scheduler.state_dict(), "generators": checkpoint.generators()}
        if self.devices.rank == 0:
            self.report.save(name, state)
        self.keep_at = self.experiment.next_checkpoint()

    def restore(self, name: str) -> None:
        """Take everything from a checkpoint: a run continued from here is bit-identical to one never stopped."""
        path = self.report.folder.checkpoints / f"{name}.pt"
        state = self.devices.from_first(lambda: checkpoint.load(path, self.experiment.device))
        checkpoint.copy(state["theta"], self.leaves)
        checkpoint.load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.validated, self.best = state["step"], state["validated"], state["best"]
        self.means, self.lr = Means(**state["means"]), float(state.get("lr", self.scheduler.get_last_lr()[0]))
        checkpoint.set_generators(state["generators"])
