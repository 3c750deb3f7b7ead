"""Sweeps whose runs joblib, submitit or Ray starts: what an engine is handed, what comes of a run, and who is chosen."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metarun.errors import ConfigError
from metarun.output.lock import claim
from metarun.sweep.chosen import HYDRAS, SETTINGS, chosen, in_our_words, options
from metarun.sweep.drain import Limits
from metarun.sweep.launchers.engine import Engine, Submit
from metarun.sweep.launchers.joblib import Joblib
from metarun.sweep.launchers.local import Local
from metarun.sweep.launchers.ray import Ray
from metarun.sweep.launchers.submitit import Submitit
from metarun.sweep.plan import planned
from metarun.sweep.slots import Slots
from metarun.sweep.way import Sweep
from tests.running import TINY, environment, metarun, read, state, wait_for

pytestmark = pytest.mark.usefixtures("statuses_alone")
ENGINES = ("joblib", "submitit", "ray")


# ---- the real engines, where they are installed ----


@pytest.mark.parametrize("name", ENGINES)
def test_a_launcher_gives_the_results_of_the_local_one(name, tmp_path):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text("defaults: [sinusoid]\n")
    words = [f"--config-dir={tmp_path / 'own'}", *TINY, "task=mine", "meta_learner=maml,reptile", "jobs=2"]
    for place, more in (("local", []), (name, [f"launcher={name}"])):
        outcome = metarun("-m", *words, f"sweep_dir={tmp_path / place}", *more)
        assert outcome.code == 0 and "2 of 2 runs completed" in outcome.out, outcome.text
    assert scores(tmp_path / name) == scores(tmp_path / "local")
    output = next((tmp_path / name).glob("*/output.txt")).read_text()
    assert output.startswith(f"$ python -m metarun --config-dir={tmp_path / 'own'} ") and "resume=auto" in output


def scores(sweep: Path) -> dict[str, Any]:
    """The test scores of each run, by its folder."""
    found = {path.parent.name: read(path) for path in sweep.glob("*/results.json")}
    assert len(found) == 2
    return {name: {k: v for k, v in content.items() if k.startswith("test/")} for name, content in found.items()}


@pytest.mark.parametrize("name", ENGINES)
def test_a_mistake_in_a_run_is_told_before_a_launcher_starts_anything(name, tmp_path, monkeypatch):
    monkeypatch.setattr("metarun.sweep.launchers.engine.find_spec", lambda package: object())
    outcome = metarun("-m", "seed=0,1", "stepz=3", f"launcher={name}", f"sweep_dir={tmp_path / 'sweep'}")
    assert outcome.code == 2 and "stepz" in outcome.err
    assert not (tmp_path / "sweep").exists()


def test_a_launcher_whose_engine_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("metarun.sweep.launchers.engine.find_spec", lambda package: None)
    outcome = metarun("-m", "seed=0,1", "launcher=ray", f"sweep_dir={tmp_path / 'sweep'}")
    assert outcome.code == 2 and "pip install ray" in outcome.err


def test_joblib_goes_on_with_a_new_pool_when_one_of_its_processes_was_killed(tmp_path):
    if find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    parent = ["import os, signal; os.kill(os.getppid(), signal.SIGKILL)"]
    with Joblib().submitting(2, tmp_path) as submit:
        lost = submit([sys.executable, "-c", *parent])
        assert lost.exception(60) is not None
        assert submit([sys.executable, "-c", "print('here')"]).result(60).stdout == "here\n"


# ---- what every engine shares, with one that runs threads ----


class Threads(Engine):
    """An engine that runs ``act`` of each command in a thread; what it was handed stands in ``handed``."""

    package: ClassVar[str] = "threads"

    def __init__(self, act: Callable[[dict[str, Any], Path], Any]) -> None:
        object.__setattr__(self, "act", act)
        object.__setattr__(self, "handed", [])

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        def submit(command: list[str]) -> Future[Any]:
            self.handed.append(command)
            future: Future[Any] = Future()

            def act() -> None:
                try:
                    future.set_result(self.act(json.loads(Path(command[-1]).read_text()), Path(command[-1])))
                except Exception as error:
                    future.set_exception(error)

            threading.Thread(target=act).start()
            return future

        yield submit

    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        return {**wanted, "OURS": "1"}


def printed(pid: int, code: int) -> "subprocess.CompletedProcess[str]":
    """What is left of a worker whose run ended so."""
    return subprocess.CompletedProcess([], 0, json.dumps({"pid": pid, "code": code}), "")


def marks(job: dict[str, Any], state_: str, pid: int) -> None:
    from metarun.output.folder import RunFolder

    RunFolder(Path(job["output"]).parent).mark(state_, pid=pid)


def run_by(engine: Engine, folder: Path, limits: Limits) -> list[Any]:
    """The jobs seed=0 and seed=1 after ``engine`` has run them, two at a time."""
    jobs = planned(["seed=0,1"], [], folder, build=False)
    sweep = Sweep(jobs, folder, ["--config-dir=x"], Slots(2, gpus=[]), limits, None)
    folder.mkdir(exist_ok=True)
    assert engine.run(sweep, lambda: pytest.fail("nothing is forked")) is None
    return jobs


def test_an_engine_is_handed_strings_and_the_run_is_a_command_that_can_be_typed(tmp_path):
    described = []

    def act(job: dict[str, Any], path: Path) -> Any:
        described.append(job)
        marks(job, "completed", 7)
        return printed(7, 0)

    engine = Threads(act)
    jobs = run_by(engine, tmp_path, Limits())
    assert [job.completed for job in jobs] == [True, True]
    assert all(command[:3] == [sys.executable, "-m", "metarun.sweep.worker"] for command in engine.handed)
    assert all(isinstance(word, str) for command in engine.handed for word in command)
    described.sort(key=lambda job: str(job["arguments"]))  # which of two threads comes first is anybody's guess
    assert described[0]["arguments"] == jobs[0].command(["--config-dir=x"])
    assert described[0]["environment"]["OURS"] == "1" and described[0]["folder"] == os.getcwd()
    assert not list((tmp_path / ".parents").iterdir())  # nothing is left of the parent


def test_a_run_whose_worker_the_engine_lost_is_tried_again_and_says_why(tmp_path, capsys):
    lost = []

    def act(job: dict[str, Any], path: Path) -> Any:
        if not lost:
            lost.append(job)
            raise RuntimeError("the node died")
        marks(job, "completed", 8)
        return printed(8, 0)

    jobs = run_by(Threads(act), tmp_path, Limits(retries=1))
    assert all(job.completed for job in jobs)
    assert "to be tried again" in capsys.readouterr().err
    assert "metarun: threads has lost the run: RuntimeError: the node died" in Path(lost[0]["output"]).read_text()


def test_a_worker_that_cannot_start_says_so_in_the_output_of_its_run(tmp_path):
    (first, _) = run_by(
        Threads(lambda job, path: subprocess.CompletedProcess([], 1, "", "No module named metarun")), tmp_path, Limits()
    )
    assert "No module named metarun" in (first.folder.path / "output.txt").read_text()
    assert not first.completed


def test_a_run_that_fails_under_an_engine_is_not_begun_for_ever(tmp_path):
    def act(job: dict[str, Any], path: Path) -> Any:
        path.with_suffix(".pid").write_text("9")
        marks(job, "failed", 9)
        return printed(9, 1)

    engine = Threads(act)
    jobs = run_by(engine, tmp_path, Limits(retries=3))
    assert [job.outcome.split(" after")[0] for job in jobs] == ["failed, exit code 1"] * 2
    assert len(engine.handed) == 2


def test_a_run_whose_time_is_over_is_told_through_the_folder_that_all_share(tmp_path):
    told = []

    def act(job: dict[str, Any], path: Path) -> Any:
        file = path.with_suffix(".told")
        path.with_suffix(".pid").write_text("10")
        wait_for(lambda: file.exists() and file.read_text(), 20)
        told.append(file.read_text())
        marks(job, "interrupted", 10)
        return printed(10, 143)

    jobs = run_by(Threads(act), tmp_path, Limits(retries=3, timeout=0.3))
    assert told == [f"{int(signal.SIGTERM)}\n"] * 2
    assert all("its time of 0.3 s is over" in job.outcome for job in jobs)


def test_time_in_the_queue_of_an_engine_is_no_time_of_the_run(tmp_path):
    def act(job: dict[str, Any], path: Path) -> Any:
        time.sleep(0.6)
        path.with_suffix(".pid").write_text("11")
        marks(job, "completed", 11)
        return printed(11, 0)

    jobs = run_by(Threads(act), tmp_path, Limits(timeout=0.3))
    assert all(job.completed for job in jobs)


class Full(Threads):
    """An engine whose queue never moves."""

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        def submit(command: list[str]) -> Future[Any]:
            self.handed.append(Future())
            return self.handed[-1]

        yield submit


def test_a_signal_ends_a_sweep_whose_runs_wait_in_the_queue_of_an_engine(tmp_path):
    engine, jobs = Full(print), planned(["seed=0,1"], [], tmp_path, build=False)
    stop = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM])
    stop.start()
    code = engine.run(Sweep(jobs, tmp_path, [], Slots(2, gpus=[]), Limits(), None), lambda: pytest.fail("forked"))
    assert code == 143 and len(engine.handed) == 2 and all(future.cancelled() for future in engine.handed)


# ---- the worker ----


def test_a_worker_starts_no_run_that_was_stopped_while_it_waited(tmp_path):
    description = tmp_path / "1.json"
    description.write_text("{}")
    description.with_suffix(".told").write_text(f"{int(signal.SIGTERM)}\n")
    words = [sys.executable, "-m", "metarun.sweep.worker", str(description)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True)
    assert json.loads(done.stdout) == {"pid": 0, "code": 143}


@contextmanager
def working(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Path, Path]]:
    """A worker with a run that goes on for ever, once it trains; the description and the run's folder."""
    run, parent = tmp_path / "run", tmp_path / "parent"
    parent.mkdir()
    texts = [*TINY, "steps=1000000", "evaluation.every=1000000", f"run_dir={run}", "resume=auto"]
    arguments = list({text.partition("=")[0]: text for text in texts}.values())
    content = {"arguments": arguments, "environment": {}, "folder": str(tmp_path), "output": str(tmp_path / "out")}
    description = parent / "1.json"
    description.write_text(json.dumps(content))
    with claim(parent):
        words = [sys.executable, "-m", "metarun.sweep.worker", str(description)]
        worker = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment())
        wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text(), 120, worker)
        yield worker, description, run
    out, _ = worker.communicate(timeout=60)
    assert state(run) == "interrupted" and (run / "checkpoints" / "last.pt").is_file()
    if worker.returncode == 0:
        assert json.loads(out) == {"pid": int(description.with_suffix(".pid").read_text()), "code": 143}


def test_a_worker_whose_parent_has_died_stops_its_run_with_a_checkpoint(tmp_path):
    with working(tmp_path):
        pass  # and the parent's claim ends


def test_a_worker_passes_on_the_signals_that_are_left_for_it(tmp_path):
    with working(tmp_path) as (worker, description, _):
        description.with_suffix(".told").write_text(f"{int(signal.SIGTERM)}\n")
        assert worker.wait(60) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the run ends by itself")
def test_a_run_ends_with_a_checkpoint_when_its_worker_is_killed(tmp_path):
    with working(tmp_path) as (worker, _, run):
        worker.kill()
        wait_for(lambda: state(run) != "running", 60)


# ---- which launcher ----


def test_the_launchers_are_the_files_of_their_group():
    assert options([]) == ["joblib", "local", "ray", "slurm", "submitit"]
    assert chosen([], []) == chosen(["launcher=local"], []) == Local()
    assert chosen(["launcher=joblib"], []) == Joblib()
    assert chosen(["launcher=ray", "launcher.gpus=0.5"], []) == Ray(address=None, cpus=1, gpus=0.5)
    more = ["launcher=submitit", "launcher.cluster=slurm", "+launcher.options.slurm_partition=gpu"]
    assert chosen(more, []) == Submitit("slurm", {"timeout_min": 4320, "slurm_partition": "gpu"})


@pytest.mark.parametrize(("words", "said"), [
    (["launcher=slrum"], "did you mean 'slurm'"),
    (["launcher=../x"], "there is no such launcher"),
    (["launcher=ray", "launcher.cpu=2"], "launcher.cpu"),
    (["launcher=ray", "launcher.cpus=many"], "launcher.cpus is 'many'"),
    (["launcher=submitit", "launcher.cluster=pbs"], "launcher.cluster is 'pbs'"),
    (["launcher.partition=gpu"], "launcher.partition"),
])  # fmt: skip
def test_a_wrong_launcher_is_refused_with_the_value_and_the_fix(words, said):
    with pytest.raises(ConfigError) as caught:
        chosen(words, [])
    assert said in str(caught.value)


def test_hydras_launchers_are_understood_as_metaruns():
    words = ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    assert in_our_words(words) == ["seed=0,1", "launcher=joblib", "jobs=4"]
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "+hydra.launcher.timeout_min=60"]
    assert chosen(in_our_words(words), []) == Submitit("slurm", {"timeout_min": 60, "slurm_partition": "gpu"})
    words = ["hydra/launcher=ray", "hydra.launcher.ray.init.address=auto", "hydra.launcher.ray.remote.num_gpus=1"]
    assert chosen(in_our_words(words), []) == Ray("auto", 1, 1)


@pytest.mark.parametrize("name", [*HYDRAS, "foo"])
def test_every_launcher_of_hydras_is_one_of_metaruns_or_answered_with_those(name):
    try:
        chosen(in_our_words([f"hydra/launcher={name}"]), [])
    except ConfigError as error:
        assert name == "foo" and "write launcher=NAME: joblib, local" in str(error)


def test_a_setting_of_hydras_launchers_without_counterpart_is_refused():
    with pytest.raises(ConfigError, match=r"hydra.launcher.pre_dispatch=2: .* no such setting"):
        in_our_words(["hydra/launcher=joblib", "hydra.launcher.pre_dispatch=2"])
    assert set(SETTINGS.values()) >= {"jobs", "launcher.address"}


def test_a_dry_run_lists_the_runs_whichever_launcher_would_start_them():
    outcome = metarun("-m", "--dry", "seed=0,1", "hydra/launcher=basic")
    assert outcome.code == 0 and "2 would begin" in outcome.out


def test_a_launcher_without_a_sweep_is_refused():
    for word in ("launcher=slurm", "launcher.partition=gpu"):
        outcome = metarun(word)
        assert outcome.code == 2 and f"metarun -m {word}" in outcome.err
