"""metarun search: what is proposed and pruned, that trials see no test episode, and that a killed search goes on."""

import math
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest

from metarun.commands.search import refuse_another
from metarun.commands.search_words import understood
from metarun.config.compose import composed
from metarun.errors import ConfigError, MetarunError
from metarun.output.folder import RunFolder
from metarun.output.ledger import run_at
from metarun.output.lock import claim
from metarun.output.searched import axis_of
from metarun.search.kept import Kept, found
from metarun.search.lead import NO_TEST, Lead, Plan
from metarun.search.space import Choice, Numbers, divided, first_options, parameters
from metarun.search.study import JOURNAL, Rules, Study
from metarun.sweep.drain import Drain, Launching, Limits
from metarun.sweep.plan import Planner
from metarun.sweep.record import recorded
from metarun.sweep.slots import Slots
from metarun.sweep.view import View
from tests.running import OUTSIDE, TINY, forked, metarun, read, state, wait_for
from tests.test_sweep_drain import Stage

pytest.importorskip("optuna")
TOLD_TASK = """
import sys
from dataclasses import dataclass
from pathlib import Path

from metarun.tasks.sinusoid import Sinusoid


class Told(Sinusoid):
    def draw(self, split, indices):
        run = [word.partition("=")[2] for word in sys.argv if word.startswith("run_dir=")]
        for folder in run:
            with (Path(folder) / "read.txt").open("a") as file:
                print(split, file=file)
        return super().draw(split, indices)
"""
LR = "optimizer.lr=interval(1e-4,1e-1)"
SMALL = [*TINY, "steps=10", "evaluation.every=5", "logger=none"]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """A config folder with sine waves that write down of which split episodes are drawn."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "task").mkdir()
    (folder / "told.py").write_text(TOLD_TASK)
    (folder / "task" / "told.yaml").write_text("defaults: [sinusoid]\n_target_: told.Told\n")
    return folder


@pytest.fixture(scope="module")
def searched(told, tmp_path_factory) -> tuple[Path, Any]:
    """The folder of a search that ran undisturbed, and its outcome."""
    folder = tmp_path_factory.mktemp("searched") / "search"
    return folder, metarun("search", folder, *words(told))


def words(told: Path) -> list[str]:
    """Those of the search, after its folder."""
    searched = ["trials=4", "seeds=2", LR, "meta_learner.inner_steps=choice(1,2)", "pruner=none"]
    return [f"--config-dir={told}", *searched, "task=told", *SMALL]


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return read(folder / "search.json").get("trials", []) if (folder / "search.json").is_file() else []


# ---- whole searches ----


def test_a_search_minimises_the_mean_squared_error(searched):
    folder, outcome = searched
    assert outcome.code == 0, outcome.text
    kept = read(folder / "search.json")
    assert kept["direction"] == "minimize" and "4 trials for the lowest val/mse" in outcome.err
    scores = [row["score"] for row in kept["trials"]]
    assert kept["winner"] == scores.index(min(scores)) and len(set(scores)) > 1


def test_a_search_maximises_accuracy(tmp_path):
    wanted = [OUTSIDE, "trials=3", "seeds=1", "task=prototypes", "meta_learner=protonet", *SMALL]
    wanted = [word for word in wanted if not word.startswith("task.num_queries")]
    outcome = metarun("search", tmp_path / "s", "optimizer.lr=interval(1e-5,1)", *wanted)
    assert outcome.code == 0, outcome.text
    kept = read(tmp_path / "s" / "search.json")
    assert kept["direction"] == "maximize" and kept["score"] == "accuracy"
    scores = [row["score"] for row in kept["trials"]]
    assert kept["winner"] == scores.index(max(scores))


def test_no_trial_reads_a_test_episode_and_the_winner_does(searched):
    folder, _ = searched
    for row in trials_of(folder):
        run = folder / row["folder"]
        assert set((run / "read.txt").read_text().split()) == {"train", "val"}
        assert not (run / "results.json").exists() and state(run) == "completed" and not run_at(run).damaged
    winners = list((folder / "winner").glob("seed-*"))
    assert len(winners) == 2
    for run in winners:
        assert "test" in (run / "read.txt").read_text().split()


def test_the_winner_runs_over_fresh_seeds_with_the_values_of_the_best_trial(searched):
    folder, outcome = searched
    kept = read(folder / "search.json")
    values = kept["trials"][kept["winner"]]["values"]
    runs = [run_at(path) for path in sorted((folder / "winner").glob("seed-*"))]
    assert [run.seed for run in runs] == [1, 2]
    assert all(run.settings["optimizer.lr"] == float(values["optimizer.lr"]) and run.score for run in runs)
    assert "over 2 fresh seeds" in outcome.out


def test_a_finished_search_keeps_all_of_it(searched, told):
    folder, _ = searched
    before = {path: path.stat().st_mtime_ns for path in folder.glob("**/metrics.jsonl")}
    again = metarun("search", folder, *words(told))
    assert again.code == 0, again.text
    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/metrics.jsonl")} == before and len(before) == 6


def test_a_killed_search_goes_on_to_as_many_trials_as_asked_for(searched, told, tmp_path):
    whole, folder = searched[0], tmp_path / "search"
    job = forked("whole_search", argv=["search", folder, *words(told)], cwd=tmp_path)

    def second_has_begun() -> bool:
        rows = trials_of(folder)
        return len(rows) >= 2 and (folder / str(rows[1]["folder"]) / "metrics.jsonl").exists()

    wait_for(second_has_begun, 100, job)
    os.kill(job.pid, signal.SIGKILL)
    again = metarun("search", folder, *words(told))
    assert again.code == 0, again.text
    rows, expected = trials_of(folder), trials_of(whole)
    assert [row["state"] for row in rows] == ["completed"] * 4
    assert [(row["values"], row["score"]) for row in rows] == [(row["values"], row["score"]) for row in expected]


def test_another_search_in_the_same_folder_is_refused(searched, told):
    folder, _ = searched
    other = metarun("search", folder, *words(told), "meta_learner.inner_steps=choice(1,2,3)", as_given=False)
    assert other.code == 2
    assert "holds another search: meta_learner.inner_steps was one of 1, 2 and is one of 1, 2, 3" in other.err
    other = metarun("search", folder, *words(told), "meta_batch_size=3", "--dry")
    assert other.code == 2 and "holds another search: meta_batch_size was 2 and is 3" in other.err


def test_a_search_whose_options_were_edited_is_another_search():
    then = {"space": {"a": "one of x, y"}, "settings": {"b": 1}, "options": "hash"}
    with pytest.raises(ConfigError, match="a YAML file of its options was edited"):
        refuse_another(then, {**then, "options": "another"}, Path("s"))
    for damaged in ({}, {"space": 3, "settings": []}):
        refuse_another(damaged, then, Path("s"))


TABLE = ["experiment=table", "task.task_column=task", "task.input_columns=[x]", "task.output_columns=[y]"]


@pytest.mark.parametrize("varied", [
    "task.num_shots=interval(1,10)", "task.frequency=[1.0,1.0],[0.5,1.0]", "task=sinusoid,gp_rbf",
    "+task@evaluation.task.other=gp_rbf,gp_periodic",
])  # fmt: skip
def test_a_search_of_what_changes_the_validation_episodes_is_refused(varied, tmp_path):
    outcome = metarun("search", tmp_path / "s", "trials=2", varied, *SMALL, "--dry")
    assert outcome.code == 2 and "so all are scored alike. Give one value to what changes" in outcome.err, outcome.text


@pytest.mark.parametrize("lr", ["0.3", "interval(0.1,0.3)"])
def test_a_search_over_options_that_lack_a_setting_names_them(lr, tmp_path):
    both = "meta_learner=protonet,maml"
    outcome = metarun("search", tmp_path / "search", "trials=2", both, "seeds=1", f"meta_learner.inner_lr={lr}", *SMALL)
    assert outcome.code == 2 and "1 problem" in outcome.err
    assert "meta_learner.inner_lr is a setting of meta_learner=maml, but not of meta_learner=protonet." in outcome.err


def test_a_winner_that_shall_be_tested_on_no_task_is_refused(tmp_path):
    asked = ["search", tmp_path / "s", "trials=2", LR, *SMALL, NO_TEST]
    outcome = metarun(*asked, "seeds=2", "--dry")
    assert outcome.code == 2 and "evaluation.num_tasks is 0, but the winner is tested over 2 fresh seeds" in outcome.err
    assert metarun(*asked, "seeds=0", "--dry").code == 0


def test_a_search_of_the_share_of_a_table_that_trains_is_refused_for_its_units(tmp_path):
    lines = [f"t{n % 10},{n},{n * n % 17}" for n in range(100)]
    (tmp_path / "table.csv").write_text("\n".join(["task,x,y", *lines]))
    words = [*SMALL, *TABLE, f"task.path={tmp_path / 'table.csv'}", "task.num_shots=4", "--dry"]
    outcome = metarun("search", tmp_path / "s", "trials=2", "task.train_fraction=0.5,1", *words)
    assert outcome.code == 2 and "validation episodes are not those" in outcome.err, outcome.text


@pytest.mark.parametrize("varied", [
    ["task.train_num_shots=interval(1,10)", "meta_batch_size=interval(1,3)", "dtype=float32,float64"],
    ["task.num_shots=1,2", "evaluation.task=gp_rbf"], ["task=linear_regression", "task.grow_dims=null,[1,1,2]"],
    ["evaluation.inner_steps=1,2", "steps=5,10"],
])  # fmt: skip
def test_what_leaves_the_validation_episodes_as_they_are_may_be_searched(varied, tmp_path):
    outcome = metarun("search", tmp_path / "s", "trials=2", *SMALL, *varied, "--dry")
    assert outcome.code == 0, outcome.text


def test_a_search_does_not_go_on_with_data_that_were_edited(tmp_path):
    table = tmp_path / "table.csv"
    lines = [f"t{n % 10},{n},{n * n % 17}" for n in range(100)]
    table.write_text("\n".join(["task,x,y", *lines]))
    command = ["search", tmp_path / "s", LR, "seeds=0", *SMALL, "steps=2", *TABLE, f"task.path={table}"]
    assert metarun(*command, "trials=1").code == 0
    table.write_text("\n".join(["task,x,y", *lines[:-1], "t9,99,3"]))
    outcome = metarun(*command, "trials=2")
    assert outcome.code == 2 and "the data have changed since the search" in outcome.err, outcome.text
    assert len(trials_of(tmp_path / "s")) == 1


def test_a_trial_that_read_other_data_than_the_search_began_with_fails(tmp_path):
    def reads(folder: RunFolder, pid: int) -> int | None:
        (folder.path / "run.json").write_text('{"data": "another table"}')
        return Lines(*GOOD)(folder, pid)

    rows = led(tmp_path / "s", Trials(reads, Lines(*GOOD)), total=2, data={"data": "a table"})
    assert [row["state"] for row in rows] == ["failed", "completed"]
    assert rows[0]["outcome"] == "it read another table, but the search began with a table"


def test_a_search_killed_at_random_ends_with_exactly_as_many_trials_as_asked_for(told, tmp_path):
    chance, folder, seen = Random(0), tmp_path / "search", set[int]()
    command = ["search", folder, *words(told), "seeds=0", "jobs=2", "steps=40", "evaluation.every=10"]

    def workers() -> set[int]:
        found = [read(path) for path in folder.glob("*/status.json")]
        return {status["pid"] for status in found if status["state"] == "running"} - seen

    for kills_worker in (False, True, False):
        job = forked("whole_search", argv=command, cwd=tmp_path)
        wait_for(lambda job=job: job.poll() is not None or workers(), 100)
        time.sleep(chance.uniform(0, 0.6))
        for pid in list(workers())[: int(kills_worker)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.6))
        seen |= workers()
        with suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGKILL)
        assert len(trials_of(folder)) <= 4
    again = metarun(*command)
    assert again.code == 0, again.text
    rows = trials_of(folder)
    assert [(row["trial"], row["state"]) for row in rows] == [(number, "completed") for number in range(4)]
    assert {path.parent.name for path in folder.glob("*/config.yaml")} == {row["folder"] for row in rows}


def test_a_run_without_a_final_test_is_completed_and_can_be_scored_later(tmp_path):
    run = tmp_path / "run"
    assert metarun(*SMALL, NO_TEST, f"run_dir={run}").code == 0
    assert state(run) == "completed" and "best_val/mse" in read(run / "status.json")
    again = metarun(*SMALL, NO_TEST, f"run_dir={run}", "resume=auto")
    assert again.code == 0 and "no final test" in again.out
    refused = metarun("evaluate", run)
    assert refused.code == 2 and "say how many episodes" in refused.err
    assert metarun("evaluate", run, "evaluation.num_tasks=4").code == 0
    assert metarun(*SMALL, "evaluation.num_tasks=1").code == 2


def test_a_search_that_another_process_leads_is_refused(searched, told):
    folder, _ = searched
    with claim(folder / ".search"):
        outcome = metarun("search", folder, *words(told))
    assert outcome.code == 1 and "is led by another process" in outcome.err


def test_a_trial_whose_folder_was_edited_tells_nothing_and_is_named(searched, told, tmp_path):
    folder = tmp_path / "search"
    shutil.copytree(searched[0], folder)
    (folder / JOURNAL).unlink()  # whose loss lets a search take over the runs in its folder
    edited = folder / trials_of(folder)[1]["folder"] / "config.yaml"
    edited.write_text(edited.read_text().replace("num_shots: ", "num_shots: 1"))
    again = metarun("search", folder, *words(told))
    assert again.code == 1 and "its config.yaml is another run's: task.num_shots is" in again.err, again.text
    assert [row["state"] for row in trials_of(folder)] == ["completed", "unfinished", "completed", "completed"]
    assert "1 of 4 trials are not done, so there is no winner yet" in again.out


# ---- the report ----


def test_the_report_of_a_search_shows_its_trials_and_the_scores_of_the_winner(searched, tmp_path):
    folder, _ = searched
    kept = read(folder / "search.json")
    outcome = metarun("report", folder, "--out", tmp_path)
    assert outcome.code == 0, outcome.text
    page = (tmp_path / "report.html").read_text()
    assert "4 trials (4 completed) for the lowest val/mse" in page and "Parallel coordinates of the trials" in page
    assert ("Importance of parameters" in page) == bool(kept["importance"])
    assert "2 of 2 runs count" in page, "trials are no runs of the means"
    assert all(row["values"]["optimizer.lr"] in page for row in kept["trials"])


def qmc(folder: Path, total: int, first: str) -> list[list[str]]:
    """What a quasi-random search proposes, by a new process for each trial, where its first trial becomes ``first``."""
    found = []
    for number in range(total):
        study = Study(folder, Rules("qmc", "none", 0, False, 1, 10))
        trial = study.ask()
        found.append(study.values_of(trial, [Numbers("a", 0, 1), Choice("b", ("x", "y", "z"))]))
        study.failed(trial, "why") if number == 0 and first == "failed" else study.completed(trial, 1.0)
    return found


def test_a_quasi_random_search_goes_on_elsewhere_after_a_first_trial_that_failed(tmp_path):
    proposed = qmc(tmp_path, 3, first="failed")
    assert len({*map(tuple, proposed)}) == 3


def test_a_quasi_random_search_skips_no_point_where_a_process_died_while_it_asked(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = qmc(tmp_path / "whole", 4, first="completed")
    killed = qmc(tmp_path / "killed", 2, first="completed")
    Study(tmp_path / "killed", Rules("qmc", "none", 0, False, 1, 10)).ask()  # and dies before it has the values
    study = Study(tmp_path / "killed", Rules("qmc", "none", 0, False, 1, 10))
    (trial,) = study.unfinished()
    killed.append(study.values_of(trial, [Numbers("a", 0, 1), Choice("b", ("x", "y", "z"))]))
    assert killed == whole[:3]


def test_the_axes_of_parallel_coordinates_are_in_the_order_of_their_values():
    by_log = axis_of("lr", ["0.001", "0.1", "0.01"], log=True)
    assert by_log.places == pytest.approx([0, 1, 0.5]) and set(by_log.ticks.values()) == {"0.001", "0.01", "0.1"}
    names = axis_of("learner", ["maml", "anil", "maml"])
    assert names.places == [1, 0, 1] and names.ticks == {0: "anil", 1: "maml"}
    assert len(axis_of("score", list(range(20))).ticks) == 5
    assert axis_of("score", [3.0, 3.0]).places == [0, 0]


def test_the_importance_of_a_parameter_that_decides_is_near_one(tmp_path):
    space = [Numbers("a", 0, 1), Numbers("b", 0, 1)]
    study = Study(tmp_path, Rules("random", "none", 0, False, 1, 10))
    for _ in range(60):
        trial = study.ask()
        study.completed(trial, float(study.values_of(trial, space)[0].partition("=")[2]))
    assert study.importance()["a"] > 0.9


def test_of_a_winner_of_earlier_trials_the_report_says_nothing(searched, tmp_path):
    folder = tmp_path / "search"
    shutil.copytree(searched[0], folder)
    (earlier, kept) = sorted(path.name for path in (folder / "winner").glob("seed-*"))
    Kept(folder).write(winner_runs=[kept])
    metarun("report", folder, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert kept in page and earlier not in page and "1 of 1 runs count" in page


def test_the_report_of_a_search_without_a_winner_is_of_its_trials(searched, tmp_path):
    folder = tmp_path / "search"
    shutil.copytree(searched[0], folder, ignore=shutil.ignore_patterns("winner"))
    Kept(folder).write(winner_runs=[])
    outcome = metarun("report", folder, "--format", "csv")
    assert outcome.code == 0 and outcome.out.startswith("trial,state,val/mse"), outcome.text
    page = (folder / "report" / "report.html").read_text()
    assert "the search has no winner" in page and "Parallel coordinates" in page and "does not count" not in page
    assert "fresh seeds" not in page and "the search has no winner" in (folder / "report" / "report.md").read_text()


def test_the_best_of_the_drawing_is_a_completed_trial_and_shared_runs_count_once(tmp_path):
    rows = [{"state": "pruned", "score": 1.0, "folder": "a", "step": 2, "steps": 9}]
    rows += [{"state": "completed", "score": 2.0, "folder": "b", "step": 9, "steps": 9}] * 2
    Kept(tmp_path).write(direction="minimize", trials=[{**row, "values": {"lr": "1"}} for row in rows])
    search = found(tmp_path)
    assert search is not None and search.best == 1 and search.steps == (11, 18)


# ---- pruning, by jobs that act by a script ----


class Lines:
    """A job that has written these validation scores at steps 0, 10, 20 ..., and goes on or completes."""

    def __init__(self, *scores: float, goes_on: bool = False) -> None:
        self.scores, self.goes_on = scores, goes_on

    def __call__(self, folder: RunFolder, pid: int) -> int | None:
        rows = [f'{{"step": {10 * n}, "val/mse": {score}}}\n' for n, score in enumerate(self.scores)]
        (folder.path / "metrics.jsonl").write_text("".join(rows))
        last = 10 * (len(self.scores) - 1)
        folder.mark("interrupted" if self.goes_on else "completed", pid=pid, step=last, steps=40)
        return None if self.goes_on else 0


class Trials(Stage):
    """Jobs that act one after the other, whatever their values are."""

    def __init__(self, *acts: Any) -> None:
        super().__init__({"resume=auto": list(acts)})


UNDAMAGED = mock.patch("metarun.sweep.job.Job.damage", "")  # jobs that act leave no config.yaml


def led(
    folder: Path, stage: Stage, total: int, data: dict[str, str] | None = None, **rules: Any
) -> list[dict[str, Any]]:
    """The trials of a search whose jobs act by ``stage``."""
    told = Rules(
        **{"sampler": "random", "pruner": "median", "seed": 0, "higher": False, "every": 10, "steps": 40, **rules}
    )
    space = [Numbers("optimizer.lr", 1e-4, 1e-1, log=True)]
    shared = ["steps=40", "evaluation.every=10", NO_TEST]
    folder.mkdir(exist_ok=True)
    recorded(folder, [], [])
    with UNDAMAGED, View(total) as view:
        plan = Plan(space, shared, total, "mse", told.higher, lambda config: data or {})
        lead = Lead(Study(folder, told), Planner([], folder, {*shared}, build=False), plan, Kept(folder), view)
        Drain([], folder, Launching(Slots(1, gpus=[]), stage, []), Limits(), view, lead).run()
    return trials_of(folder)


GOOD, BAD = (5, 4, 3, 2, 1), (5, 9, 9)


def test_a_trial_below_the_median_of_the_others_is_pruned_by_sigterm_and_can_go_on(tmp_path):
    stage = Trials(*[Lines(*GOOD)] * 5, Lines(*BAD, goes_on=True), Lines(*GOOD))
    rows = led(tmp_path / "s", stage, total=7)
    assert [row["state"] for row in rows] == ["completed"] * 5 + ["pruned", "completed"]
    assert stage.signals == [signal.SIGTERM]
    run = tmp_path / "s" / rows[5]["folder"]
    assert state(run) == "pruned" and (rows[5]["step"], rows[5]["steps"]) == (20, 40)


def test_the_median_judges_nobody_in_the_first_quarter_of_the_steps(tmp_path):
    rows = led(tmp_path / "s", Trials(*[Lines(*GOOD)] * 5, Lines(5, 9, 1, 1, 1)), total=6, every=5, steps=80)
    assert [row["state"] for row in rows] == ["completed"] * 6


def test_a_trial_is_pruned_by_its_scores_however_soon_it_ends(tmp_path):
    rows = led(tmp_path / "s", Trials(*[Lines(*GOOD)] * 5, Lines(5, 1, 9, 9, 0), Lines(*GOOD)), total=7)
    assert [row["state"] for row in rows] == ["completed"] * 7, "its best so far is not worse than the median"
    rows = led(tmp_path / "t", Trials(*[Lines(*GOOD)] * 5, Lines(*BAD, 9, 0), Lines(*GOOD)), total=7)
    assert rows[5]["state"] == "pruned" and rows[5]["score"] == 9


def test_a_search_goes_on_after_a_trial_that_another_process_completed(tmp_path):
    def completed(sweep: Path, job: Any) -> None:
        job.folder.create()
        Lines(*GOOD)(job.folder, 1)

    with mock.patch("metarun.search.lead.added", completed):
        rows = led(tmp_path / "s", Trials(), total=3)
    assert [row["state"] for row in rows] == ["completed"] * 3


def test_the_folder_of_a_trial_that_ended_before_is_looked_through_once(tmp_path):
    led(tmp_path / "s", Trials(*[Lines(*GOOD)] * 3), total=3)
    (tmp_path / "s" / JOURNAL).unlink()  # whose loss lets a search take over the runs in its folder
    with mock.patch("metarun.search.lead._damaged", return_value=False) as looked:
        rows = led(tmp_path / "s", Trials(), total=3)
    assert [row["state"] for row in rows] == ["completed"] * 3 and looked.call_count == 3


def test_hyperband_prunes_and_no_pruner_does_not(tmp_path):
    for pruner, most in (("hyperband", 8), ("none", 0)):
        acts = [Lines(5, *[score] * 4) for score in range(8)]
        pruned = [row["state"] for row in led(tmp_path / pruner, Trials(*acts), 8, pruner=pruner)].count("pruned")
        assert (0 < pruned <= most) if most else pruned == 0


def test_a_trial_that_diverged_counts_as_bad_and_one_that_failed_tells_nothing(tmp_path):
    def diverges(folder: RunFolder, pid: int) -> int:
        folder.mark("diverged", pid=pid, step=3, steps=40)
        return 3

    def fails(folder: RunFolder, pid: int) -> int:
        folder.mark("failed", pid=pid)
        return 1

    rows = led(tmp_path / "s", Trials(diverges, fails, Lines(*GOOD)), total=3)
    assert rows[0]["outcome"] == "diverged"
    assert [row["state"] for row in rows] == ["pruned", "failed", "completed"]


def test_a_trial_that_was_killed_is_run_again_by_the_same_command(tmp_path):
    def killed(folder: RunFolder, pid: int) -> int:
        folder.mark("running", pid=pid)
        return -9

    (row, *_) = led(tmp_path / "s", Trials(killed, Lines(*GOOD)), total=2)
    assert row["state"] == "unfinished"
    rows = led(tmp_path / "s", Trials(Lines(*GOOD)), total=2)
    assert [row["state"] for row in rows] == ["completed"] * 2


def test_a_trial_that_the_search_stopped_with_it_goes_on_by_the_same_command(tmp_path):
    def stops(folder: RunFolder, pid: int) -> None:
        Lines(*BAD, goes_on=True)(folder, pid)
        os.kill(os.getpid(), signal.SIGTERM)

    stage = Trials(stops)
    (row,) = led(tmp_path / "s", stage, total=2)
    assert row["state"] == "unfinished" and stage.signals == [signal.SIGTERM]
    rows = led(tmp_path / "s", Trials(Lines(*GOOD), Lines(*GOOD)), total=2)
    assert [row["state"] for row in rows] == ["completed"] * 2 and rows[0]["values"] == row["values"]


def test_a_trial_pruned_just_before_the_search_died_is_marked_by_the_next_call(tmp_path):
    stage = Trials(*[Lines(*GOOD)] * 5, Lines(*BAD, goes_on=True))
    with mock.patch.object(RunFolder, "mark_pruned"):
        rows = led(tmp_path / "s", stage, total=6)
    run = tmp_path / "s" / rows[5]["folder"]
    assert state(run) == "interrupted"
    led(tmp_path / "s", Trials(), total=6)
    assert state(run) == "pruned"


def test_the_same_values_again_are_not_run_again(tmp_path):
    folder, told = tmp_path / "s", Rules("random", "none", 0, False, 10, 40)
    folder.mkdir()
    recorded(folder, [], [])
    plan = Plan([Choice("seed", ("1", "2"))], ["steps=40", NO_TEST], 8, "mse", False)
    with UNDAMAGED, View(8) as view:
        lead = Lead(
            Study(folder, told), Planner([], folder, {"steps=40", NO_TEST}, build=False), plan, Kept(folder), view
        )
        stage = Trials(*[Lines(*GOOD)] * 2)
        Drain([], folder, Launching(Slots(1, gpus=[]), stage, []), Limits(), view, lead).run()
    assert [row["state"] for row in trials_of(folder)] == ["completed"] * 8
    assert len(stage.codes) == 2


# ---- what is proposed ----


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "gp", "qmc"])
def test_what_is_proposed_depends_on_seed_and_history_alone(sampler, tmp_path):
    space = [Numbers("a", 1e-4, 1e-1, log=True), Numbers("b", 1, 9, whole=True)]

    def proposals(folder: Path, number: int, seed: int = 0) -> list[list[str]]:
        study = Study(folder, Rules(sampler, "none", seed, False, 1, 10))
        for _ in range(number):
            trial = study.ask()
            study.completed(trial, float(study.values_of(trial, space)[0].partition("=")[2]))
        return [[f"{key}={value}" for key, value in trial.params.items()] for trial in study.trials]

    for name in ("whole", "broken", "other"):
        (tmp_path / name).mkdir()
    whole = proposals(tmp_path / "whole", 14)
    proposals(tmp_path / "broken", 5)
    assert proposals(tmp_path / "broken", 9) == whole
    assert len({tuple(each) for each in whole}) > 10
    assert proposals(tmp_path / "other", 3, seed=1) != whole[:3]


@pytest.mark.parametrize(("sampler", "trials", "most"), [("gp", 26, 3), ("cmaes", 50, 8)])
def test_trials_that_diverged_keep_a_search_away_from_where_they_are(sampler, trials, most, tmp_path):
    space, rules = [Numbers("lr", 1e-4, 1, log=True), Numbers("b", 0, 1)], Rules(sampler, "none", 1, False, 1, 10)
    diverged = []
    for _ in range(trials):
        study = Study(tmp_path, rules)  # each by another call
        trial = study.ask()
        lr = float(study.values_of(trial, space)[0].partition("=")[2])
        diverged.append(lr > 0.01)
        if diverged[-1]:
            study.given_up(trial, "diverged")
        else:
            study.completed(trial, math.log10(lr) ** 2)  # as if it were the better the nearer to 1
    assert sum(diverged[:-16]) and sum(diverged[20:]) <= most


def test_a_journal_that_was_cut_short_and_left_locked_is_mended(tmp_path):
    space, rules = [Choice("a", ("1", "2"))], Rules("random", "none", 0, False, 1, 10)
    study = Study(tmp_path, rules)
    study.values_of(study.ask(), space)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (tmp_path / f"{JOURNAL}.lock").touch()
    again = Study(tmp_path, rules)
    (trial,) = again.unfinished()
    again.completed(trial, 1.0)
    assert again.best().value == 1.0 and not Study(tmp_path, rules).unfinished()


def test_half_a_line_of_a_journal_goes_without_the_rest_being_written_again(tmp_path, monkeypatch):
    """On a full disk what is written again would be lost."""
    study = Study(tmp_path, Rules("random", "none", 0, False, 1, 10))
    study.ask()
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code": 4, "wor')
    monkeypatch.setattr(Path, "write_bytes", lambda *_: pytest.fail("the journal was emptied"))
    assert len(Study(tmp_path, Rules("random", "none", 0, False, 1, 10)).unfinished()) == 1
    assert (tmp_path / JOURNAL).read_bytes().startswith(whole)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_a_search_killed_between_two_writes_proposes_what_an_undisturbed_one_does(sampler, tmp_path):
    space, rules = (
        [Numbers("a", 0, 1), Numbers("b", 0, 1), Choice("c", ("1", "2"))],
        Rules(sampler, "none", 0, False, 1, 9),
    )

    def proposals(folder: Path) -> list[dict[str, Any]]:
        study = Study(folder, rules)
        for trial in [*study.unfinished(), *(study.ask() for _ in range(3 - len(study.trials)))]:
            study.completed(trial, float(study.values_of(trial, space)[0].partition("=")[2]))
        return [trial.params for trial in study.trials]

    (tmp_path / "whole").mkdir()
    whole = proposals(tmp_path / "whole")
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    for number in range(2, len(lines), 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / JOURNAL).write_bytes(b"".join(lines[:number]))
        assert proposals(tmp_path / str(number)) == whole, lines[number - 1]


def test_a_score_that_was_told_but_not_judged_is_judged_by_the_next_call(tmp_path):
    rules = Rules("random", "median", 0, False, 10, 40)
    study = Study(tmp_path, rules)
    for score in (1, 1, 1, 1, 1):
        trial = study.ask()
        study.hears(trial, {20: score, 40: score})
        study.completed(trial, score)
    study.hears(study.ask(), {20: 9}, judge=False)
    again = Study(tmp_path, rules)
    (trial,) = again.unfinished()
    assert again.hears(trial, {20: 9, 30: 0}) == 20 and again.hears(trial, {20: 9}) is None


def test_a_damaged_journal_is_told_with_what_to_do(tmp_path):
    rules = Rules("random", "none", 0, False, 1, 10)
    Study(tmp_path, rules).ask()
    journal = tmp_path / JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    for damaged in (["garbage\n", *lines], [*lines, "{}\n"], ["\x00\x01\n"]):
        journal.write_text("".join(damaged))
        with pytest.raises(MetarunError, match=r"study\.journal is damaged.*Delete it and give the same"):
            Study(tmp_path, rules)
    journal.unlink()
    assert not Study(tmp_path, rules).trials


@pytest.mark.parametrize(("text", "expected"), [
    ("optimizer.lr=interval(1e-4,1e-2)", Numbers("optimizer.lr", 1e-4, 1e-2, log=True)),
    ("optimizer.lr=interval(0.1,0.5)", Numbers("optimizer.lr", 0.1, 0.5)),
    ("optimizer.lr=tag(linear,interval(1e-4,1e-2))", Numbers("optimizer.lr", 1e-4, 1e-2)),
    ("optimizer.lr=tag(log,interval(0.1,0.5))", Numbers("optimizer.lr", 0.1, 0.5, log=True)),
    ("meta_learner.inner_steps=interval(1,8)", Numbers("meta_learner.inner_steps", 1, 8, whole=True)),
    ("clip_norm=interval(1,8)", Numbers("clip_norm", 1, 8)),
    ("evaluation.inner_steps=interval(1,8)", Numbers("evaluation.inner_steps", 1, 8, whole=True)),
    ("execution.chunk=interval(1,8)", Numbers("execution.chunk", 1, 8, whole=True)),
    ("meta_learner.inner_steps=range(1,8,3)", Numbers("meta_learner.inner_steps", 1, 7, 3, whole=True)),
    ("meta_learner=maml,anil", Choice("meta_learner", ("maml", "anil"))),
    ("base_learner.hidden=[8],[4,4]", Choice("base_learner.hidden", ("[8]", "[4,4]"))),
])  # fmt: skip
def test_the_space_is_what_hydras_grammar_says(text, expected):
    varied, shared = divided([text, "steps=5"], [])
    (parameter,) = parameters(varied, composed([*shared, *first_options(varied)], []))
    assert parameter == expected and shared == ["steps=5"]


def test_a_fraction_that_a_file_writes_as_a_whole_number_is_searched_as_a_fraction():
    varied, _ = divided(["meta_learner.inner_lr=interval(1,8)"], [])
    (parameter,) = parameters(varied, composed(["meta_learner.inner_lr=5"], []))
    assert parameter == Numbers("meta_learner.inner_lr", 1, 8)


def test_a_search_may_span_more_values_than_a_sweep_has_runs():
    varied, _ = divided(["steps=range(1,5000)", "meta_batch_size=range(1,5000)"], [])
    assert len(varied) == 2


# ---- wrong input ----


@pytest.mark.parametrize(("words", "expected"), [
    (["trials=3"], "nothing varies"),
    ([LR], "trials=50"),
    (["trials=3", "optimizer.lr=choice(0.1,0.10)"], "nothing varies: optimizer.lr=choice(0.1,0.10) has one value"),
    (["trials=0", LR], "must be a whole number of 1 or more"),
    (["trials=3", LR, "sampler=tpee"], "did you mean 'tpe'"),
    (["trials=3", LR, "pruner=best"], "median, hyperband, none"),
    (["trials=3", "seed=1,2"], "luck"),
    (["trials=3", "evaluation.every=1,2"], "scored alike"),
    (["trials=3", "optimizer.lr=interval(1,0.1)"], "the lower one first"),
    (["trials=3", "optimizer.lr=interval(0.1)"], "interval(LOW,HIGH)"),
    (["trials=3", "optimizer.lr=tag(log,interval(0,1))"], "above 0"),
    (["trials=3", "optimizer.lr=interval(-1,1)"], "optimizer.lr is -1"),
    (["trials=3", "optimizer.lr=tag(lgo,interval(0.1,1))"], "no tag 'lgo'; write tag(log,...) or tag(linear,...); did"),
    (["trials=3", "optimizer.lr=tag(log,linear,interval(0.1,1))"], "an interval has one scale. Leave out one of the tags"),
    (["trials=3", "optimizer.lr=tag(log,choice(0.1,1))"], "scales are of intervals"),
    (["trials=3", "meta_learner.inner_steps=shuffle(choice(1,2))"], "Leave out shuffle(...)"),
    (["trials=3", "meta_learner.inner_steps=range(1,8,1.5)"], "inner_steps is 2.5 (float), but must be int"),
    (["trials=3", LR, "sweep_dir=x"], "the folder stands first"),
    (["trials=3", "meta_learner=maml,nothing"], "nothing"),
])  # fmt: skip
def test_what_a_search_does_not_take_is_told_before_anything_starts(words, expected, tmp_path):
    outcome = metarun("search", tmp_path / "s", *words)
    assert outcome.code == 2 and expected in outcome.err, outcome.text
    assert not (tmp_path / "s").exists()


def test_the_folder_of_a_search_comes_first():
    with pytest.raises(ConfigError, match="name the folder"):
        understood(["trials=3", LR])


def test_dry_says_what_would_be_searched_and_touches_nothing(tmp_path):
    outcome = metarun("search", tmp_path / "s", "trials=3", LR, "--dry")
    assert outcome.code == 0 and "from 0.0001 to 0.1, by its logarithm" in outcome.err
    assert not (tmp_path / "s").exists()


def test_hydras_optuna_sweeper_is_answered_with_the_command_that_searches():
    outcome = metarun("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=7", LR, "steps=5")
    assert outcome.code == 2
    assert f"metarun search DIR trials=7 '{LR}' steps=5" in outcome.err
    assert "metarun search DIR trials=50" in metarun("hydra/sweeper=optuna", "steps=5").err


def test_without_optuna_a_search_says_what_to_install(tmp_path):
    with mock.patch.dict("sys.modules", {"optuna": None}):
        outcome = metarun("search", tmp_path / "s", "trials=3", LR, *SMALL)
    assert outcome.code == 2 and "needs optuna" in outcome.err and "pip install 'metarun[search]'" in outcome.err
    with mock.patch.dict("sys.modules", {"cmaes": None}):
        outcome = metarun("search", tmp_path / "s", "trials=3", LR, *SMALL, "sampler=cmaes")
    assert outcome.code == 2 and "sampler=cmaes needs cmaes" in outcome.err
    assert not (tmp_path / "s").exists()


def test_a_damaged_search_file_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "search.json").write_text('{"trials": [3, {"score": "x"}], "importance": []}')
    search = found(tmp_path)
    assert search is not None and search.scored == [] and search.steps == (0, 0)
