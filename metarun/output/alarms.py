"""Alarms: signs of a run that goes wrong, each told once, in one line: what is seen, its likely cause, what to set."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metarun.evaluation.signs import Effect, Gradient, Signs
from metarun.files import write_atomically
from metarun.output.kept import read_alarms
from metarun.output.sink import Sink

EARLY_STEPS, EARLY_SHARE = 100, 0.2  # of a run, in which it need not have learned anything yet
SURE = 3.0  # intervals: a best of many validations is above its true value by one or two
GAP, TIMES = 0.2, 3.0  # of an accuracy, and of an error, between training and validation or validation and test
FEW_EPISODES = 100  # of training, too few for a mean to compare with
NOTHING = 1e-4  # relative change of a loss
VANISHED, EXPLODED = 1e-9, 1e4  # norm of the meta-gradient, where theta's is one
FEW_EXAMPLES = 2


@dataclass(frozen=True)
class Facts:
    """What the rules must know of a run."""

    score: str
    higher_is_better: bool
    chance: float | None  # what guessing has at validation, where the score is an accuracy
    steps: int
    episodes_a_line: int  # of metrics.jsonl
    alike: Callable[[int], bool]  # whether training episodes of that step are as validation's, and scored alike


class Alarms(Sink):
    """What hears the numbers of a run and may ``announce`` an alarm; alarms.jsonl at ``path`` keeps those that it did.

    A resumed run hears its numbers from the beginning, and no alarm twice.
    """

    anew = True

    def __init__(self, path: Path, resume_step: int, facts: Facts, announce: Callable[[str], None]) -> None:
        self.path, self.facts, self.announce = path, facts, announce
        self.told = [alarm for alarm in read_alarms(path) if alarm["step"] <= resume_step]
        if path.is_file():
            self._keep()
        self.training_scores: list[float] = []  # since the last validation, of step ``since``
        self.since = 0
        self.best: tuple[float, float] | None = None  # of the validations, with its interval

    def begins(self, seen: str | None) -> None:
        """The run begins, and is scored on classes that it is trained on, where ``seen`` says which."""
        self._raise(0, "seen_in_training", seen)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Look at the scores among these numbers."""
        score = self.facts.score
        if f"train/{score}" in values:
            self.training_scores.append(values[f"train/{score}"])
        if f"val/{score}" in values:
            value, ci95 = values[f"val/{score}"], values.get(f"val/{score}_ci95", math.inf)
            sign = 1 if self.facts.higher_is_better else -1
            if self.best is None or sign * value > sign * self.best[0]:
                self.best = value, ci95
            self._raise(step, "at_chance", at_chance(self.facts, step, value, ci95))
            better = overfitting(self.facts, self.training_scores, value, ci95)
            self._raise(step, "overfitting", better and better * self.facts.alike(self.since))
            self.training_scores, self.since = [], step
        if f"test/{score}" in values and self.best:
            self._raise(step, "validation_above_test", above_test(self.facts, self.best, values[f"test/{score}"]))

    def examined(self, step: int, signs: Signs) -> None:
        """Look at what a few tasks say after a validation."""
        if signs.effect:
            self._raise(step, "adaptation_changes_nothing", changes_nothing(signs.effect))
            if not early(self.facts, step):
                self._raise(step, "inner_loss_rises", inner_loss_rises(signs.effect))
        self._raise(step, "meta_gradient", broken_gradient(signs.gradient))
        self._raise(step, "norm_statistics", poor_statistics(signs.norm_examples))

    def _raise(self, step: int, name: str, text: str | None) -> None:
        if text and name not in {alarm["alarm"] for alarm in self.told}:
            self.told.append({"step": step, "alarm": name, "text": text})
            self._keep()
            self.announce(f"alarm at step {step}: {text}")

    def _keep(self) -> None:
        write_atomically(self.path, "".join(json.dumps(alarm) + "\n" for alarm in self.told).encode())


def early(facts: Facts, step: int) -> bool:
    """Whether a run need not have learned anything yet."""
    return step < max(EARLY_STEPS, EARLY_SHARE * facts.steps)


def at_chance(facts: Facts, step: int, value: float, ci95: float) -> str | None:
    """Of a validation that guessing would have reached."""
    chance = facts.chance
    if chance is None or early(facts, step):
        return None
    if value - ci95 > chance or ci95 > (1 - chance) / 2:  # an interval that wide says nothing
        return None
    if value + ci95 < chance:
        return (
            f"val/{facts.score} {value:.4g} +- {ci95:.2g} is below that of guessing, {chance:.4g}. Are the "
            "labels of queries those of the support? Look at the data (metarun data show NAME)."
        )
    return (
        f"val/{facts.score} {value:.4g} +- {ci95:.2g} is that of guessing, {chance:.4g}, after {step} of "
        f"{facts.steps} steps. Labels that do not belong to the inputs, or steps too small or too large: look at the data "
        "(metarun data show NAME), optimizer.lr and meta_learner.inner_lr."
    )


def overfitting(facts: Facts, training: list[float], value: float, ci95: float) -> str | None:
    """Of training scores far better than those of the validation."""
    if len(training) * facts.episodes_a_line < FEW_EPISODES:
        return None
    trained = sum(training) / len(training)
    if not far_better(facts, trained, value, ci95):
        return None
    return (
        f"train/{facts.score} is {trained:.4g}, but val/{facts.score} {value:.4g}: the training tasks are learned by heart. "
        "More training classes or tasks, task/augmentation=standard for images, a smaller base_learner, or fewer steps help."
    )


def above_test(facts: Facts, best: tuple[float, float], test: float) -> str | None:
    """Of a test far below the best validation."""
    value, ci95 = best
    if not far_better(facts, value, test, ci95):
        return None
    return (
        f"val/{facts.score} was {value:.4g} at best, but test/{facts.score} is {test:.4g}: the test tasks are others than "
        "the validation tasks, or these are too few to choose by. Look at task.split and evaluation.num_val_tasks."
    )


def far_better(facts: Facts, one: float, other: float, ci95: float) -> bool:
    """Whether the score ``one`` is so much better than ``other`` that neither chance nor other tasks explain it."""
    if facts.higher_is_better:
        return one - other > max(GAP, SURE * ci95)
    return other > TIMES * one and other - one > SURE * ci95


def changes_nothing(effect: Effect) -> str | None:
    """Of inner steps after which every loss is what it was."""
    pairs = [effect.query] + ([effect.support] if effect.support else [])
    if any(((after - before).abs() > NOTHING * before.abs()).any() for before, after in pairs):
        return None
    before, after = (float(losses.mean()) for losses in effect.query)
    return (
        f"adaptation changes nothing: the query loss is {before:.6g} before it and {after:.6g} after. The inner steps are "
        "too small, or move what the output does not depend on: look at meta_learner.inner_lr and what is adapted."
    )


def inner_loss_rises(effect: Effect) -> str | None:
    """Of inner steps that make the loss on the support larger, in most tasks and on the whole."""
    if effect.support is None:
        return None
    before, after = effect.support
    if not (float(after.mean()) > 1.05 * float(before.mean()) and float((after > before).double().mean()) > 0.5):
        return None
    return (
        f"the inner steps raise the support's loss, from {before.mean():.4g} to {after.mean():.4g} on validation tasks: "
        "they are too long. Lower meta_learner.inner_lr, meta_learner.inner_steps or evaluation.inner_steps."
    )


def broken_gradient(gradient: Gradient) -> str | None:
    """Of a meta-gradient that is not finite, huge, (almost) zero, or exactly zero in most of theta."""
    norm, theta, zero, parts = gradient
    if not math.isfinite(norm) or norm > EXPLODED * max(1.0, theta):
        return (
            f"the norm of the meta-gradient is {norm:.4g}, where theta's is {theta:.4g}: it explodes through the inner "
            "steps. Set clip_norm=10, or lower meta_learner.inner_lr."
        )
    if norm < VANISHED * max(1.0, theta):
        return (
            f"the norm of the meta-gradient is {norm:.4g}: nothing is learned any more. The loss is flat here: look at "
            "optimizer.lr (too large?), base_learner.activation and meta_learner.inner_lr."
        )
    if len(zero) > parts / 2:
        names = ", ".join(zero[:3]) + (" ..." if len(zero) > 3 else "")
        return (
            f"the meta-gradient is exactly zero in {len(zero)} of {parts} parts of theta ({names}): dead units, or layers "
            "that the output does not depend on. Lower optimizer.lr, or look at the base_learner."
        )
    return None


def poor_statistics(examples: int | None) -> str | None:
    """Of batch norms whose statistics stand on no example, or on one."""
    if examples is None or examples >= FEW_EXAMPLES:
        return None
    what = "were never trained" if examples == 0 else "are of a single example, whose deviation is 0"
    return (
        f"statistics of a batch norm {what}: its outputs do not depend on the inputs as they should. Choose "
        "base_learner.batch_norm=running, task.num_shots or task.num_queries of 2 or more, or a network without batch norms."
    )
