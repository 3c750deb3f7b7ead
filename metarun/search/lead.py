"""The leader of a search's jobs: each is a trial of the study, and one that looks bad among the others is given up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from metarun.errors import ConfigError
from metarun.output.kept import json_lines, json_object, number
from metarun.output.lock import busy
from metarun.search.kept import Kept
from metarun.search.space import Parameter
from metarun.search.study import Study
from metarun.sweep.job import Job
from metarun.sweep.plan import Planner
from metarun.sweep.record import added
from metarun.sweep.view import View

NO_TEST = "evaluation.num_tasks=0"  # of every trial: test episodes are for the winner
SETTLED = ("completed", "pruned", "diverged")  # states after which nothing is run again


@dataclass(frozen=True)
class Plan:
    """What is searched: the parameters, the overrides of all trials, their number, and the score that decides."""

    space: Sequence[Parameter]
    shared: list[str]
    total: int
    score: str
    higher: bool
    data: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}  # that a run of ``config`` should read

    def best(self, scores: dict[int, float]) -> float:
        """The best of scores by step."""
        return (max if self.higher else min)(scores.values())


@dataclass
class Followed:
    """A job, the trials that wait for it (whose values are the same), and how much of its log has been read."""

    job: Job
    trials: list[Any] = field(default_factory=list)
    size: int = -1


class Lead:
    """Adds the jobs of trials, and tells the study what becomes of them."""

    def __init__(self, study: Study, planner: Planner, plan: Plan, kept: Kept, view: View) -> None:
        self.study, self.planner, self.plan, self.kept, self.view = study, planner, plan, kept, view
        self.jobs: dict[str, Followed] = {}  # by their identities
        self.unfinished = study.unfinished()
        self._mark_pruned()
        self._tell()

    def more(self) -> Job | None:
        """The job of the next trial that has to be run; the outcome of one that was run before is told at once."""
        while (trial := self._next()) is not None:
            if (job := self._job(trial)) is None:
                continue
            followed = self.jobs.get(job.identity)
            if followed and followed.job.state != "ended":
                followed.trials.append(trial)
                continue
            job = followed.job if followed else job
            damaged = _damaged(job)
            if followed or (job.folder.read_status()["state"] in SETTLED and not damaged):
                self._settle(trial, job, damaged)
            else:
                self.jobs[job.identity] = Followed(job, [trial])
                job.number = trial.number + 1
                added(self.kept.path.parent, job)
                self._tell()
                return job
        return None

    def gives_up(self, job: Job) -> str:
        """Why the study gives up the trial of a job that runs; empty where it goes on, or nothing new is known."""
        followed, log = self.jobs[job.identity], job.folder.path / "metrics.jsonl"
        size = log.stat().st_size if log.is_file() else 0
        if size == followed.size:
            return ""
        followed.size = size
        scores = self._validations(job)
        step = self.study.hears(followed.trials[0], scores)
        if step is None:
            return ""
        self.study.given_up(followed.trials[0], "pruned")
        for trial in followed.trials[1:]:
            self.study.hears(trial, {at: score for at, score in scores.items() if at <= step}, judge=False)
            self.study.given_up(trial, "pruned")
        return f"pruned at step {step}"

    def over(self, job: Job) -> None:
        """Tell the study how the trials of a job ended."""
        damaged = _damaged(job)
        for trial in self.jobs[job.identity].trials:
            self._settle(trial, job, damaged)

    def _next(self) -> Any | None:
        if self.unfinished:
            return self.unfinished.pop(0)
        return self.study.ask() if len(self.study.trials) < self.plan.total else None

    def _job(self, trial: Any) -> Job | None:
        """The job of a trial; None for values that a run refuses, which is told."""
        values = self.study.values_of(trial, self.plan.space)
        try:
            job = self.planner.job([*self.plan.shared, *values], values)
        except ConfigError as error:
            self.study.failed(trial, f"refused: {'; '.join(error.problems)}")
            self._tell()
            return None
        for name, fact in (("overrides", values), ("folder", job.folder.path.name)):
            if name not in trial.user_attrs:
                trial.set_user_attr(name, fact)
        return job

    def _validations(self, job: Job) -> dict[int, float]:
        """The validation scores of a job by step; that of the start, at 0, is the same for many trials."""
        rows = json_lines(job.folder.path / "metrics.jsonl")
        scores = {row.get("step"): number(row.get(f"val/{self.plan.score}")) for row in rows}
        return {step: score for step, score in scores.items() if isinstance(step, int) and score is not None}

    def _settle(self, trial: Any, job: Job, damaged: bool) -> None:
        """Tell the study what a job's folder says. A trial that a signal ended, or whose folder is ``damaged``, not what its
        run left, stays open, for the same command."""
        state, scores = job.folder.read_status()["state"], self._validations(job)
        if damaged:
            pass  # as was told
        elif self.study.is_finished(trial):
            if state != "completed":
                job.folder.mark_pruned()
            else:
                self.view.tell(job, "counts as pruned, though it ended before it was stopped")
        elif (state in SETTLED or job.why_stopped) and (changed := self._other_data(job)):
            self.study.failed(trial, changed)
        elif state in SETTLED or job.why_stopped:
            step = self.study.hears(trial, scores)  # judged as if it had been followed: quick runs are pruned alike
            if step is None and state == "completed" and scores:
                self._completed(trial, job, self.plan.best(scores))
            elif step is None:
                self.study.given_up(trial, state if state in SETTLED else job.why_stopped)
            else:
                self.study.given_up(trial, "pruned")
                self.view.tell(job, f"counts as pruned at step {step}")
        elif state == "failed" or job.unusable or job.code in (1, 2):
            self.study.failed(trial, "; ".join(job.why()) or job.outcome)
        self._tell()

    def _other_data(self, job: Job) -> str:
        """What has changed where a run read other data than the search began with; its scores tell nothing."""
        begun, read = self.plan.data(job.config), json_object(job.folder.path / "run.json", [])
        changed = [name for name in begun if read.get(name, begun[name]) != begun[name]]
        return "".join(f"it read {read[name]}, but the search began with {begun[name]}" for name in changed[:1])

    def _completed(self, trial: Any, job: Job, score: float) -> None:
        self.study.completed(trial, score)
        best = self.study.best() or trial
        place = ", the best so far" if best.number == trial.number else f"; the best is {best.value:.4g}"
        self.view.tell(job, f"val/{self.plan.score} {score:.4g}{place}")

    def _mark_pruned(self) -> None:
        """Mark the runs of trials that were given up just before the process of the search died."""
        for trial in self.study.trials:
            folder = trial.user_attrs.get("folder")
            if trial.user_attrs.get("outcome") == "pruned" and folder:
                run = self.planner.folders.at(folder)
                if run.read_status()["state"] in ("interrupted", "running") and not busy(run.path):
                    run.mark_pruned()

    def _tell(self) -> None:
        self.kept.write(trials=[self._row(trial) for trial in self.study.trials])

    def _row(self, trial: Any) -> dict[str, Any]:
        """What ``search.json`` has of a trial."""
        facts, reported = trial.user_attrs, trial.intermediate_values
        status = self.planner.folders.at(facts["folder"]).read_status() if "folder" in facts else {}
        score = trial.value if trial.value is not None else self.plan.best(reported) if reported else None
        states = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
        return {
            "trial": trial.number,
            "state": states.get(trial.state.name, "unfinished"),
            "outcome": facts.get("outcome", ""),
            "score": score,
            "step": status.get("step"),
            "steps": status.get("steps"),
            "values": dict(text.split("=", 1) for text in facts.get("overrides", [])),
            "folder": facts.get("folder"),
        }


def _damaged(job: Job) -> bool:
    """Whether a completed job's folder is not what its run left, so that its scores tell nothing of its values."""
    return job.says_completed and bool(job.damage)
