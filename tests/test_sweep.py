"""Sweeps: one run for each combination, each in a process of its own; what fails is told and takes nothing along."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.sweep.grammar import combinations
from metarun.sweep.plan import planned
from metarun.sweep.slots import Slots, usable_cpus
from tests.composing import last_of_each
from tests.running import TINY, begun_sweep, environment, metarun, read, state, sweep, wait_for

LEARNER = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from metarun.inner.loops import descent
from metarun.core import FewShotLearner, parameters_of
from torch.func import functional_call


@dataclass(frozen=True)
class Faulty(FewShotLearner):
    fault: Literal["none", "crash", "kill", "refuse"]

    def __post_init__(self):
        if self.fault == "refuse" and self.sick and "resume=auto" in sys.argv:  # in the run alone, not when it is checked
            raise ValueError("meta_learner.fault is 'refuse', and so it does.")

    @property
    def sick(self):
        return not (Path(__file__).parent / "healed").exists()

    def init(self):
        return parameters_of(self.base_learner)

    def adapt(self, theta, support):
        if next(iter(theta.values())).dtype == torch.float64:  # in the trial before the run
            return theta
        if self.sick and self.fault == "crash":
            raise RuntimeError("a learner's own trouble")
        if self.sick and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return theta

    def predict(self, phi, x):
        return functional_call(self.base_learner, phi, (x,))
"""
YAML = "_target_: faulty.Faulty\nfault: none\n"
FAULTS = ("none", "crash", "kill", "refuse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An outsider's config folder with a learner that has faults."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "meta_learner").mkdir()
    (folder / "faulty.py").write_text(LEARNER)
    (folder / "meta_learner" / "faulty.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def sweeps(folder, tmp_path_factory):
    """The same sweep twice: with the faults, and after they are healed. Its folder and the two outcomes."""
    place = tmp_path_factory.mktemp("sweeps")
    command = [f"--config-dir={folder}", *TINY, "meta_learner=faulty", f"meta_learner.fault={','.join(FAULTS)}"]
    command += [f"sweep_dir={place / 'sweep'}", "jobs=2"]
    sick = sweep(*command)
    results = {path.parent: path.read_bytes() for path in (place / "sweep").glob("*/results.json")}
    (folder / "healed").touch()
    healed = sweep(*command)
    return place / "sweep", sick, results, healed


def runs_of(sweep: Path) -> list[Path]:
    """The run folders of a sweep."""
    return sorted(path for path in sweep.iterdir() if path.is_dir() and not path.name.startswith("."))


def job(sweep: Path, fault: str) -> Path:
    return next(path for path in runs_of(sweep) if f"fault-{fault}" in path.name)


def test_one_failing_run_stops_no_other_and_the_exit_code_says_that_some_failed(sweeps):
    sweep, sick, results, _ = sweeps
    assert sick.code == 1, sick.text
    assert list(results) == [job(sweep, "none")]
    assert "1 of 4 runs completed" in sick.out


def test_the_table_says_which_failed_and_why(sweeps):
    _, sick, _, _ = sweeps
    table = " ".join(sick.out.split())
    assert "a learner's own trouble" in table
    assert "killed by signal 9" in table
    assert "and so it does" in table
    assert "tensorboard --logdir" in table


def test_the_status_of_a_crash_names_the_error(sweeps):
    sweep, *_ = sweeps
    assert all(state(job(sweep, fault)) == "completed" for fault in FAULTS)  # healed by now
    assert "a learner's own trouble" in (job(sweep, "crash") / "log.txt").read_text()


def test_the_same_sweep_again_keeps_what_is_completed_and_continues_the_rest(sweeps):
    sweep, _, results, healed = sweeps
    assert healed.code == 0, healed.text
    assert "4 of 4 runs completed" in healed.out
    assert re.search(r"fault=none: completed before, kept", healed.err)
    assert (job(sweep, "none") / "results.json").read_bytes() == results[job(sweep, "none")]
    assert len(runs_of(sweep)) == 4


def named(*overrides: str) -> list[str]:
    return [job.folder.path.name for job in planned(list(overrides), [], Path("none"), build=False)]


def test_run_folders_have_readable_distinct_names():
    overrides = ["seed=0,1", "meta_learner=maml,anil", "base_learner.hidden=[8],[16,16]", "data_root='a b (c)#,d'"]
    names = named(*overrides)
    assert len(set(names)) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,90}", name) for name in names)
    assert all(f"seed-{seed}" in names[0] + names[-1] for seed in (0, 1)) and "meta_learner-maml" in names[0]


def test_names_are_distinct_even_where_the_readable_part_is_not():
    long = "8," * 60
    assert len(set(named(f"base_learner.hidden=[{long}8],[{long}9]", "data_root=a-b,'a b'"))) == 4


def test_a_name_shows_what_differs_and_not_what_all_runs_share():
    assert [name.rpartition("-")[0] for name in named("steps=5", "seed=0,1", "log_every=1")] == ["seed-0", "seed-1"]


def test_a_combination_given_twice_is_one_run():
    assert combinations(["seed=0,1,0", "steps=5"]) == [["seed=0", "steps=5"], ["seed=1", "steps=5"]]
    assert named("seed=0,0") == named("seed=0")


def test_a_sweep_with_more_values_finds_the_folders_that_it_has(tmp_path):
    (first,) = planned(["seed=0", "steps=5"], [], tmp_path, build=False)
    first.folder.create()
    more = planned(["steps=5", "seed=0,1"], [], tmp_path, build=False)
    assert more[0].folder.path == first.folder.path != more[1].folder.path


def test_a_mistake_in_the_command_is_told_before_the_first_run_starts(tmp_path):
    outcome = metarun("-m", "seed=0,1", "stepz=3", "meta_learner.inner_lr=0.1,abc", f"sweep_dir={tmp_path / 'sweep'}")
    assert outcome.code == 2
    assert "stepz" in outcome.err and "'abc'" in outcome.err
    assert "sweep of" not in outcome.text
    assert not (tmp_path / "sweep").exists()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_sigterm_stops_every_run_of_the_sweep_which_can_be_continued(tmp_path):
    sweep = tmp_path / "sweep"
    texts = ["steps=1000000", "evaluation.every=1000000", "seed=0,1,2", "jobs=2", f"sweep_dir={sweep}"]
    command = ["-m", *last_of_each(*TINY, *texts)]
    parent = subprocess.Popen(
        [sys.executable, "-m", "metarun", *command], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: sum(bool(path.read_text()) for path in sweep.glob("*/metrics.jsonl")) >= 2, 90, parent)
    pids = [read(path)["pid"] for path in sweep.glob("*/status.json")]
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 143
    assert "same sweep_dir continues it" in err
    assert len(pids) == 2 and not any(map(alive, pids))
    assert [state(path.parent) for path in sweep.glob("*/status.json")] == ["interrupted"] * 2
    assert all((path / "checkpoints" / "last.pt").is_file() for path in runs_of(sweep))


def test_a_parent_that_is_killed_leaves_no_orphan_and_its_jobs_a_checkpoint(tmp_path):
    sweep = tmp_path / "sweep"
    texts = [*TINY, "steps=1000000", "evaluation.every=1000000", "seed=0,1", "jobs=2", f"sweep_dir={sweep}"]
    parent = begun_sweep(*texts)
    wait_for(lambda: sum(bool(path.read_text()) for path in sweep.glob("*/metrics.jsonl")) >= 2, 90, parent)
    pids = [read(path)["pid"] for path in sweep.glob("*/status.json")]
    parent.kill()
    wait_for(lambda: not any(map(alive, pids)), 90)
    assert [state(run) for run in runs_of(sweep)] == ["interrupted"] * 2
    assert all((run / "checkpoints" / "last.pt").is_file() for run in runs_of(sweep))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the trial looks at /proc")
def test_a_sweep_killed_at_random_with_several_parents_ends_as_one_left_alone(tmp_path):
    script = Path(__file__).resolve().parents[1] / "scripts" / "sweep_trial.py"
    short = ["--runs", "4", "--parents", "2", "--disturbances", "3", "--steps", "40"]
    words = [sys.executable, str(script), str(tmp_path / "trial"), *short]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs_at_the_same_time_get_different_gpus_and_an_equal_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = Slots(2)
    assert [slots.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4", "7"]
    assert slots.environment(0)["OMP_NUM_THREADS"] == str(max(1, usable_cpus() // 2))
    assert Slots(1).environment(0)["CUDA_VISIBLE_DEVICES"] == "4,7"  # a run alone sees what the user sees


def test_jobs_of_several_devices_get_as_many_gpus_which_no_other_job_has():
    slots = Slots(2, gpus=["0", "1", "2", "3"])
    assert [slots.environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,1", "2,3"]
    assert Slots(2, gpus=["5"]).environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"  # and the run says that it needs two
