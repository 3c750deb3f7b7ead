"""The study of a search: Optuna proposes values, hears the scores, and judges which trials are not worth their time.

Its journal in the search's folder is all that it remembers, so it goes on after any death. What it proposes depends on the
seed, the number of the trial and the journal, so a search with one job at a time that was killed proposes what an
undisturbed one does.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metarun.errors import ConfigError, MetarunError, listed, shortened
from metarun.search.space import Parameter

JOURNAL = "study.journal"
NAME = "search"
SAMPLERS = ("tpe", "random", "cmaes", "gp", "qmc")
WARM_UP = 0.25  # of the steps of a trial, in which the median judges nobody: early curves of meta-learning cross
PRUNERS = ("median", "hyperband", "none")
NEEDS = {"cmaes": ("cmaes",), "gp": ("scipy", "torch"), "qmc": ("scipy",)}  # samplers, beside Optuna itself


@dataclass(frozen=True)
class Rules:
    """How values are proposed and trials given up, by the names of Optuna's classes, and what is optimised."""

    sampler: str
    pruner: str
    seed: int
    higher: bool  # whether a higher score is better
    every: int  # training steps between two validations
    steps: int  # of the longest trial


def refuse_missing(sampler: str) -> None:
    """Raise ConfigError where a package that the search needs is not installed."""
    missing = [name for name in ("optuna", *NEEDS.get(sampler, ())) if find_spec(name) is None]
    if missing:
        what = f"a search with sampler={sampler} needs {listed(missing)}, which is not installed"
        raise ConfigError([f"{what}: pip install 'metarun[search]'."])


class Study:
    """The trials of a search. Use it from one process at a time."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.optuna, self.rules = optuna, rules
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = folder / JOURNAL
        _mend(journal)
        lock = JournalFileOpenLock(str(journal))
        try:
            self.storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=NAME,
                direction="maximize" if rules.higher else "minimize",
                load_if_exists=True,
                pruner=self._pruner(),
            )
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # as Optuna reads it
            raise MetarunError(
                f"{journal} is damaged ({type(error).__name__}: {shortened(str(error))}). Delete it and give the same "
                "command again: the search begins anew, and takes over the runs of the same values in its folder."
            ) from error
        self.reopened: set[int] = set()  # trials of an earlier process, whose last score may not have been judged

    @property
    def trials(self) -> list[Any]:
        """All of them, as they stand."""
        return self.study.get_trials(deepcopy=False)

    def remembered(self, **facts: Any) -> dict[str, Any]:
        """What was remembered first under these names; ``facts`` where nothing was."""
        known = self.study.user_attrs
        for name, value in facts.items():
            if name not in known:
                self.study.set_user_attr(name, value)
        return {name: known.get(name, value) for name, value in facts.items()}

    def ask(self) -> Any:
        """A new trial; its values are proposed by ``values_of``."""
        self.study.sampler = self._sampler(len(self.trials))
        return self.study.ask()

    def unfinished(self) -> list[Any]:
        """The trials that an earlier process began and did not end."""
        running = [trial.number for trial in self.trials if not trial.state.is_finished()]
        number_of = self.storage.get_study_id_from_name(NAME)
        found = []
        for number in running:
            self.study.sampler = self._sampler(number)
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(number_of, number)
            found.append(self.optuna.trial.Trial(self.study, trial_id))
        self.reopened = {*running}
        return found

    def values_of(self, trial: Any, space: Sequence[Parameter]) -> list[str]:
        """The overrides of a trial: those that it has, or else that are proposed now."""
        self.study.sampler = sampler = self._sampler(trial.number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a sampler leaves some kinds of parameters to another one
            if 0 < len(trial.params) < len(space):  # a process died in between: draw again what was drawn before
                known, frozen = trial.distributions.items(), self.trials[trial.number]
                for name, distribution in known:
                    if name not in trial.relative_params:
                        sampler.sample_independent(self.study, frozen, name, distribution)
            return [f"{parameter.key}={parameter.sampled(trial)}" for parameter in space]

    def hears(self, trial: Any, scores: dict[int, float], judge: bool = True) -> int | None:
        """Report the validation ``scores`` by step, up to that at which the trial should be given up, which is returned.

        Each is judged in its turn, so that what a trial tells depends on its scores and not on how soon they are heard.
        Without ``judge`` all are reported.
        """
        last = max(self.trials[trial.number].intermediate_values, default=0)
        first = last if trial.number in self.reopened and last else last + 1
        self.reopened.discard(trial.number)
        for step, score in sorted(scores.items()):
            if step >= first:
                if step > last:
                    trial.report(score, step)
                if judge and step < self.rules.steps and trial.should_prune():
                    return step
        return None

    def completed(self, trial: Any, score: float) -> None:
        """The trial ended with this score."""
        self.study.tell(trial, score)

    def given_up(self, trial: Any, why: str) -> None:
        """The trial was stopped, or its loss was not finite: what it reported counts as bad."""
        trial.set_user_attr("outcome", why)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def failed(self, trial: Any, why: str) -> None:
        """The trial tells nothing about its values."""
        trial.set_user_attr("outcome", why)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def is_finished(self, trial: Any) -> bool:
        """Whether it was told how the trial ended."""
        return self.trials[trial.number].state.is_finished()

    def best(self) -> Any | None:
        """The completed trial with the best score, the first of several; None where none is completed."""
        done = [trial for trial in self.trials if trial.state == self.optuna.trial.TrialState.COMPLETE]
        return (max if self.rules.higher else min)(done, key=lambda trial: trial.value, default=None)

    def importance(self) -> dict[str, float]:
        """The share of each parameter in what tells good trials from others, by PED-ANOVA; empty where that is unknown."""
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all alike
            return {}
        return {name: float(share) for name, share in found.items()}

    def _sampler(self, number: int) -> Any:
        """The sampler for the trial of this number."""
        samplers, name = self.optuna.samplers, self.rules.sampler
        seed = _seed(self.rules.seed, number)
        made = {"random": samplers.RandomSampler, "cmaes": _judging(samplers.CmaEsSampler)}
        made |= {"gp": _judging(samplers.GPSampler), "qmc": _in_place(samplers.QMCSampler, number)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Optuna calls experimental
            return made[name](seed=seed) if name in made else samplers.TPESampler(seed=seed, constant_liar=True)

    def _pruner(self) -> Any:
        pruners, steps = self.optuna.pruners, self.rules.steps
        if self.rules.pruner == "hyperband":
            return pruners.HyperbandPruner(min_resource=min(self.rules.every, steps), max_resource=steps)
        if self.rules.pruner == "none":
            return pruners.NopPruner()
        return pruners.MedianPruner(n_warmup_steps=int(steps * WARM_UP))


def _judging(sampler: Any) -> Any:
    """A class of samplers to which trials that were given up are bad ones; Optuna's own leaves them out."""

    class Judging(sampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return super().infer_relative_search_space(_Judged(study), trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return super().sample_relative(_Judged(study), trial, search_space)

    return Judging


def _in_place(sampler: Any, number: int) -> Any:
    """A class of samplers whose point of the sequence follows from a trial's number; Optuna counts the calls, also those
    of a process that died. The first trial has none: it says what the space is."""

    class InPlace(sampler):
        def _find_sample_id(self, *_: Any) -> int:
            return max(0, number - 1)

    return InPlace


class _Judged:
    """A study of Optuna's, whose trials that were given up look completed, with no better score than they deserve."""

    def __init__(self, study: Any) -> None:
        self.study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[Any]:
        """What samplers ask for."""
        trials = self.study.get_trials(deepcopy=deepcopy)
        scores = [trial.value for trial in trials if trial.value is not None]
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        worst = sign * min((sign * score for score in scores), default=0.0)
        judged = [self._judged(trial, sign, worst) if trial.state.name == "PRUNED" else trial for trial in trials]
        return [trial for trial in judged if states is None or trial.state in states]

    def _judged(self, trial: Any, sign: int, worst: float) -> Any:
        """A trial that was pruned has the best it reported, but none below the ``worst``, which all others have."""
        pruned = trial.user_attrs.get("outcome") == "pruned"
        told = [sign * score for score in trial.intermediate_values.values()] if pruned else []
        other = copy(trial)
        other.state, other.value = type(trial.state).COMPLETE, sign * max([sign * worst, *told])
        return other


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def _mend(journal: Path) -> None:
    """Remove what a process left that was killed while it wrote: a lock, and half a line."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)  # written anew it would be lost where the disk is full
