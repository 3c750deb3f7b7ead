"""A run stopped at any moment and continued is bit by bit the run that was never stopped."""

import os
import shutil
import signal

import pytest
import torch
import yaml

from metarun.training import measuring, runner
from tests.running import (
    DEATHS,
    TINY,
    assert_as_if_never_stopped,
    checkpoint,
    forked,
    identical,
    killed,
    metarun,
    metrics,
    on_call,
    read,
    scalars,
    state,
    wait_for,
)


def signals(monkeypatch, target: str, call: int, *numbers: int) -> None:
    """Let call ``call`` of ``target`` of the runner begin with these signals to this very process."""

    def send(*_) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    owner = runner.Runner if hasattr(runner.Runner, target) else runner
    monkeypatch.setattr(owner, target, on_call(call, send, getattr(owner, target)))


# ---- kill -9 ----


@pytest.mark.parametrize("point", DEATHS)
def test_a_run_killed_at_any_point_and_resumed_is_as_if_never_stopped(point, whole, tmp_path):
    run = tmp_path / "run"
    killed(point, *TINY, f"run_dir={run}", cwd=tmp_path)
    assert state(run) == "running"
    outcome = metarun(f"resume={run}")
    assert outcome.code == 0, outcome.text
    assert_as_if_never_stopped(run, whole)


def test_a_run_killed_before_its_folder_holds_one_leaves_nothing_to_the_next(tmp_path):
    run = tmp_path / "run"
    config_yaml = ["metarun.commands.train.write_atomically", "2"]  # after overrides.yaml
    job = forked("killed_at", *config_yaml, argv=[*TINY, f"run_dir={run}"], cwd=tmp_path)
    job.communicate(timeout=120)
    assert (run / "run.json").is_file() and not (run / "config.yaml").exists()
    (run / "fitted.json").write_text('{"mean": 3.0}')  # as another task would have left it
    assert metarun(f"resume={run}").code == 2
    assert metarun(*TINY, f"run_dir={run}", "seed=1").code == 0
    (part,) = read(run / "run.json")["history"]
    assert "seed=1" in part["overrides"] and "seed=1" in (run / "overrides.yaml").read_text()
    assert not (run / "fitted.json").exists()


def test_no_run_begins_over_the_checkpoints_of_one_whose_config_is_gone(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "config.yaml").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = metarun(*TINY, f"run_dir={run}", "resume=auto")
    assert outcome.code == 2 and "holds checkpoints/last.pt of a run whose config.yaml is gone" in outcome.err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_checkpoints_by_the_clock_lose_no_step_and_change_no_number(whole, tmp_path):
    run = tmp_path / "run"
    killed("between two checkpoints", *TINY, "checkpoint_minutes=1e-6", f"run_dir={run}", cwd=tmp_path)
    assert checkpoint(run, "last")["step"] == 8  # and not 5, of the last validation
    assert metarun(f"resume={run}", "checkpoint_minutes=null").code == 0
    assert_as_if_never_stopped(run, whole)


def test_a_run_killed_again_and_again_is_as_if_never_stopped(whole, tmp_path):
    run = tmp_path / "run"
    for point in ("while best.pt is written", "during a validation"):
        killed(point, *TINY, f"run_dir={run}", "resume=auto", cwd=tmp_path)
    assert metarun(*TINY, f"run_dir={run}", "resume=auto").code == 0
    assert_as_if_never_stopped(run, whole)


# ---- SIGTERM and Ctrl-C ----


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("target", "call", "step"), [("train_step", 8, 8), ("evaluate_all", 3, 10), ("evaluate_all", 5, 12)]
)
def test_a_signal_checkpoints_and_the_resumed_run_is_as_if_never_stopped(
    number, code, target, call, step, whole, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signals(patch, target, call, number)
        outcome = metarun(*TINY, f"run_dir={run}")
    assert outcome.code == code
    assert f"metarun resume={run}" in outcome.err
    assert state(run) == "interrupted"
    assert checkpoint(run, "last")["step"] == step
    assert not (run / "results.json").exists()
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signals(patch, "train_step", 8, signal.SIGTERM, signal.SIGTERM)
        assert metarun(*TINY, f"run_dir={run}").code == 143
    assert state(run) == "interrupted"
    assert checkpoint(run, "last")["step"] == 5
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


def test_the_handlers_of_the_process_are_back_after_a_run(whole, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    from metarun.training.signals import StopRequest

    with StopRequest().listening():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_process_that_gets_sigterm_exits_with_143_and_can_be_continued(tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, "steps=1000000", "evaluation.every=1000000", f"run_dir={run}"]
    job = forked("whole_command", argv=arguments, cwd=tmp_path)
    wait_for(lambda: (run / "metrics.jsonl").is_file() and "train/" in (run / "metrics.jsonl").read_text(), 60, job)
    busy = metarun(f"resume={run}")
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 143
    assert f"metarun resume={run}" in err
    assert state(run) == "interrupted"
    step = checkpoint(run, "last")["step"]
    assert step > 0
    assert busy.code == 1 and f"is in progress (process {job.pid})" in busy.err
    assert metarun(f"resume={run}", f"steps={step + 3}").code == 0
    assert checkpoint(run, "last")["step"] == step + 3


NOISY = """
from dataclasses import dataclass

import torch
from metarun.core import FewShotLearner, parameters_of
from torch.func import functional_call


@dataclass(frozen=True)
class Noisy(FewShotLearner):
    def init(self):
        return parameters_of(self.base_learner)

    def adapt(self, theta, support):
        return {name: p + 0.1 * torch.randn(p.shape) for name, p in theta.items()}

    def predict(self, phi, x):
        return functional_call(self.base_learner, phi, (x,))
"""


@pytest.mark.parametrize("execution", ["looped", "vmapped"])
def test_a_learner_that_draws_random_numbers_is_continued_bit_by_bit_too(execution, tmp_path, monkeypatch):
    folder, whole, run = tmp_path / "mine", tmp_path / "whole", tmp_path / "run"
    (folder / "meta_learner").mkdir(parents=True)
    (folder / "noisy.py").write_text(NOISY)
    (folder / "meta_learner" / "noisy.yaml").write_text("_target_: noisy.Noisy")
    flag, words = f"--config-dir={folder}", [*TINY, f"execution={execution}", "meta_learner=noisy"]
    assert metarun(flag, *words, f"run_dir={whole}").code == 0
    with monkeypatch.context() as patch:
        signals(patch, "train_step", 8, signal.SIGTERM)
        assert metarun(flag, *words, f"run_dir={run}").code == 143
    torch.manual_seed(99)
    assert metarun(flag, f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


# ---- what is kept, and what may change ----


def test_a_resumed_run_keeps_the_execution_that_was_measured(tmp_path, monkeypatch):
    run, choice = tmp_path / "run", "execution=auto"
    with monkeypatch.context() as patch:
        signals(patch, "train_step", 3, signal.SIGTERM)
        assert metarun(*TINY, choice, f"run_dir={run}").code == 143
    kept = (run / "execution.json").read_bytes()
    assert read(run / "execution.json")["execution"]["kind"] in ("Vmapped", "Looped")
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "choose_execution", None)  # measuring again would fail
        assert metarun(f"resume={run}").code == 0
    assert (run / "execution.json").read_bytes() == kept


def test_resume_auto_begins_then_continues_then_leaves_a_completed_run_alone(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    command = [*TINY, f"run_dir={run}", "resume=auto"]
    with monkeypatch.context() as patch:
        signals(patch, "train_step", 7, signal.SIGTERM)
        assert metarun(*command).code == 143
    assert metarun(*command).code == 0
    assert_as_if_never_stopped(run, whole)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = metarun(*command)
    assert outcome.code == 0 and "is complete" in outcome.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_completed_run_without_results_says_how_to_score_it_again(whole, tmp_path, content):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "results.json").unlink()
    if content is not None:
        (run / "results.json").write_text(content)
    outcome = metarun(f"resume={run}")
    assert outcome.code == 1 and "Traceback" not in outcome.text
    assert f"results.json is gone or damaged. Score it again with: metarun evaluate {run}" in outcome.err


def test_a_completed_run_can_be_trained_longer(whole, tmp_path):
    longer, run = tmp_path / "longer", tmp_path / "run"
    assert metarun(*TINY, "steps=20", f"run_dir={longer}").code == 0
    shutil.copytree(whole, run)
    assert metarun(f"resume={run}", "steps=20").code == 0
    assert identical(checkpoint(run, "last")["theta"], checkpoint(longer, "last")["theta"])
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 20
    assert [row["step"] for row in metrics(run) if "test/mse" in row] == [20]
    for tag, points in scalars(run).items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag


def test_a_schedule_that_was_planned_to_the_end_cannot_be_trained_longer(tmp_path):
    run = tmp_path / "run"
    assert metarun(*TINY, "scheduler=cosine", f"run_dir={run}").code == 0
    outcome = metarun(f"resume={run}", "steps=20")
    assert outcome.code == 2
    assert "scheduler.T_max was planned for 12 steps" in outcome.err


def test_an_optimizer_that_remembers_float32_beside_float64_goes_on_exactly(tmp_path):
    words = [*TINY, "dtype=float64", "optimizer._target_=torch.optim.NAdam", "~optimizer.fused", "~optimizer.betas"]
    assert metarun(*words, f"run_dir={tmp_path / 'whole'}").code == 0
    killed("between two checkpoints", *words, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert metarun(f"resume={tmp_path / 'run'}").code == 0
    assert_as_if_never_stopped(tmp_path / "run", tmp_path / "whole")


def test_fewer_steps_than_were_made_are_refused(whole):
    outcome = metarun(f"resume={whole}", "steps=3")
    assert outcome.code == 2
    assert f"steps is 3, but the run has made 12 already ({whole / 'checkpoints' / 'last.pt'})" in outcome.err


def test_a_run_whose_step_size_happens_to_be_its_length_can_be_made_longer(tmp_path):
    folder = tmp_path / "run"
    assert metarun(*TINY, "scheduler=step", "steps=10", "scheduler.step_size=10", f"run_dir={folder}").code == 0
    assert metarun(f"resume={folder}", "steps=15").code == 0
    assert read(folder / "status.json")["step"] == 15
