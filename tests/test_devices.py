"""One run on several devices is bit by bit the run of one process; when a process dies the others end, and it goes on."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from metarun.commands import follow
from metarun.errors import ConfigError, MetarunError
from metarun.execution.devices import Devices
from metarun.execution.execution import Auto, Looped, Vmapped
from metarun.execution.sharded import divided
from metarun.training.processes import told
from metarun.trees import ravel
from tests.composing import last_of_each
from tests.forked import Forked
from tests.running import (
    OUTSIDE,
    TINY,
    Outcome,
    assert_as_if_never_stopped,
    checkpoint,
    environment,
    identical,
    killed,
    metarun,
    process,
    read,
    state,
    wait_for,
)

SHARED = [*TINY, "execution=vmapped", "execution.chunk=2", "meta_batch_size=8", "evaluation.num_val_tasks=60"]
LEARNERS = {
    "maml": [],
    "protonet": [OUTSIDE, "meta_learner=protonet", "task=prototypes"],
    "reptile": ["meta_learner=reptile", "clip_norm=1"],
    "maml_plus_plus": ["meta_learner=maml_plus_plus", "meta_learner.steps_per_epoch=2", "scheduler=cosine"],
    "es_maml": ["meta_learner=es_maml", "meta_learner.num_pairs=3"],
}


Point = tuple[int, str, int]  # rank, function, call


def together(*arguments: str, cwd: Path, point: Point | None = None, how: str = "killed_at") -> list[Outcome]:
    """``metarun ARGUMENTS`` in two processes, as torchrun begins them; at the ``point`` one of them is ``killed_at`` once,
    say (a function of tests.running)."""
    count = 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"}
    jobs = []
    for rank in range(count):
        chosen = point is not None and point[0] == rank
        function, given = (how, [point[1], str(point[2])]) if point and chosen else ("whole_command", [])
        env = environment(**place, RANK=str(rank), LOCAL_RANK=str(rank))
        printed = (cwd / f"out{rank}", cwd / f"err{rank}")
        command = ["metarun", *last_of_each(*arguments)]
        jobs.append(Forked(f"tests.running.{function}", given, command, cwd, env, printed))
    told = [job.communicate(timeout=120) for job in jobs]
    return [Outcome(int(job.returncode or 0), *text) for job, text in zip(jobs, told, strict=True)]


@pytest.mark.parametrize("learner", LEARNERS)
def test_two_processes_leave_bit_by_bit_what_one_leaves(learner, tmp_path):
    one, two, words = tmp_path / "one", tmp_path / "two", [*SHARED, *LEARNERS[learner]]
    assert metarun(*words, f"run_dir={one}").code == 0
    first, other = together(*words, f"run_dir={two}", cwd=tmp_path)
    assert (first.code, other.code, other.text) == (0, 0, ""), first.text + other.text
    assert_as_if_never_stopped(two, one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert metarun(*SHARED, f"run_dir={run}").code == 0
    return run


def test_all_processes_end_where_the_run_that_they_are_to_continue_is_complete(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    first, other = together(*SHARED, f"run_dir={run}", "resume=auto", cwd=tmp_path)
    assert (first.code, other.code, other.text) == (0, 0, ""), first.text + other.text
    assert "is complete: test score" in first.out


def test_all_processes_end_where_the_run_is_refused_and_the_first_says_why(tmp_path):
    first, other = together(*SHARED, "steps=-1", f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert (first.code, other.code, other.text) == (2, 0, ""), first.text + other.text
    assert "steps is -1" in first.err and not (tmp_path / "run").exists()


def alone(rank: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make this process the one of ``rank`` of two, without the other; the port where they are to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    return int(port)


def test_a_process_whose_first_never_comes_ends_and_says_where_it_looked(monkeypatch):
    port = alone(1, monkeypatch)
    monkeypatch.setattr(follow, "SIGN", timedelta(seconds=1))
    outcome = metarun(*SHARED)
    assert outcome.code == 1 and f"127.0.0.1:{port} is where the first process (RANK=0) must be reached" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_process_whose_first_ends_before_the_run_begins_says_so(monkeypatch):
    port = alone(1, monkeypatch)
    opened = f"store = TCPStore('127.0.0.1', {port}, is_master=True, wait_for_workers=False)"
    leader = subprocess.Popen([sys.executable, "-c", f"from torch.distributed import *; {opened}; input()"], stdin=-1)
    meet = follow._met

    def then_gone(first: bool) -> None:
        meet(first)
        leader.kill()
        leader.wait()

    monkeypatch.setattr(follow, "_met", then_gone)
    monkeypatch.setattr(follow, "SIGN", timedelta(seconds=20))
    monkeypatch.setattr(follow, "told", lambda within: told(timedelta(seconds=1)))
    outcome = metarun(*SHARED)
    assert outcome.code == 1 and "the first process (RANK=0) has ended before the run began" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_first_process_can_be_reached_while_it_prepares_the_run(monkeypatch):
    port = alone(0, monkeypatch)
    assert follow.led(lambda: socket.create_connection(("127.0.0.1", port), 1).close() or 7) == 7


def test_a_place_to_meet_that_is_taken_is_told_without_a_traceback(monkeypatch):
    port = alone(0, monkeypatch)
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        outcome = metarun(*SHARED)
    assert outcome.code == 1 and "it cannot open that" in outcome.err and "Traceback" not in outcome.err


# ---- processes that die ----


def test_a_run_ends_with_a_checkpoint_when_a_process_dies_and_one_finishes_it(whole, tmp_path):
    run, step = tmp_path / "run", "metarun.training.runner.Runner.train_step"
    first, other = together(*SHARED, f"run_dir={run}", cwd=tmp_path, point=(1, step, 9))
    assert (first.code, other.code, state(run)) == (1, -9, "failed")
    assert "another process of this run has ended" in first.err and f"resume={run}" in first.err
    assert checkpoint(run, "last")["step"] == 8
    outcome = metarun(f"resume={run}", "devices=1")
    assert outcome.code == 0, outcome.text
    assert_as_if_never_stopped(run, whole)


def test_two_processes_go_on_where_one_was_killed_also_when_the_first_of_them_dies(whole, tmp_path):
    run, scores = tmp_path / "run", "metarun.training.runner.evaluate_all"
    killed("between two checkpoints", *SHARED, f"run_dir={run}", cwd=tmp_path)
    first, other = together(f"resume={run}", cwd=tmp_path, point=(0, scores, 1))
    assert (first.code, other.code, other.text) == (-9, 1, "")
    assert checkpoint(run, "last")["step"] == 5
    first, _ = together(f"resume={run}", cwd=tmp_path)
    assert first.code == 0, first.text
    assert_as_if_never_stopped(run, whole)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc, which only Linux has")
def test_torchrun_starts_a_run_again_whose_process_was_killed(whole, tmp_path):
    run, file = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    starter = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "--max-restarts=2"]
    words = [*last_of_each(*SHARED, f"run_dir={run}", "resume=auto", "steps=300", "evaluation.every=20")]
    with (tmp_path / "output").open("w") as output:
        command = [sys.executable, "-m", *starter, "-m", "metarun", *words]
        job = subprocess.Popen(command, stdout=output, stderr=output, env=environment(), cwd=tmp_path)
        wait_for(lambda: file.is_file() and '"step": 20, "val/' in file.read_text(), 60, job)
        os.kill(other_of(job.pid), signal.SIGKILL)
        assert job.wait(120) == 0, (tmp_path / "output").read_text()
    assert len(read(run / "run.json")["history"]) == 2
    one = tmp_path / "one"
    assert metarun(*SHARED, "steps=300", "evaluation.every=20", f"run_dir={one}").code == 0
    assert_as_if_never_stopped(run, one)


def other_of(starter: int) -> int:
    """The process of rank 1 among those that torchrun has started."""
    children = [int(pid) for pid in Path(f"/proc/{starter}/task/{starter}/children").read_text().split()]
    return next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


def test_a_signal_to_any_of_the_processes_stops_all_of_them_at_one_step(whole, tmp_path):
    run, step = tmp_path / "run", "metarun.training.runner.Runner.train_step"
    first, other = together(*SHARED, f"run_dir={run}", cwd=tmp_path, point=(1, step, 9), how="stopped_at")
    assert (first.code, other.code, state(run)) == (143, 143, "interrupted"), first.text + other.text
    assert checkpoint(run, "last")["step"] == 9
    assert together(f"resume={run}", cwd=tmp_path)[0].code == 0
    assert_as_if_never_stopped(run, whole)


def test_all_processes_go_on_with_less_where_one_finds_no_memory(whole, tmp_path):
    run, share = tmp_path / "run", "metarun.execution.execution.Eager.share"
    first, other = together(*SHARED, f"run_dir={run}", cwd=tmp_path, point=(1, share, 9), how="exhausted_at")
    assert (first.code, other.code) == (0, 0), first.text + other.text
    kept = read(run / "execution.json")
    assert kept["execution"]["inner_memory"] == "recomputed" and "out of memory at step" in kept["notes"][0]
    mine, expected = (ravel(checkpoint(path, "last")["theta"])[0] for path in (run, whole))
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)  # float32 rounding


# ---- what is begun, and what is refused ----


def test_devices_starts_its_processes_itself_and_the_first_settles_the_execution(tmp_path):
    run = tmp_path / "run"
    words = [OUTSIDE, "task=prototypes", *SHARED, "execution=auto", "execution.compile=false", "devices=2"]
    done = process(*words, f"run_dir={run}", cwd=tmp_path)
    assert done.code == 0, done.text
    chosen = read(run / "execution.json")["execution"]
    words = [OUTSIDE, "task=prototypes", *SHARED, f"execution={chosen['kind'].lower()}"]
    if chosen["kind"] == "Looped":
        words = [word for word in words if not word.startswith("execution.chunk")]
    assert metarun(*words, f"run_dir={tmp_path / 'one'}").code == 0
    assert identical(checkpoint(run, "last")["theta"], checkpoint(tmp_path / "one", "last")["theta"])


def test_a_sum_that_need_not_be_exact_is_that_of_one_process_to_rounding(whole, tmp_path):
    run = tmp_path / "run"
    first, _ = together(*SHARED, "exact=false", f"run_dir={run}", cwd=tmp_path)
    assert first.code == 0, first.text
    mine, expected = (ravel(checkpoint(path, "last")["theta"])[0] for path in (run, whole))
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_processes_that_have_other_parameters_are_found_out(monkeypatch):
    devices = Devices(0, 2, exact=True, device=torch.device("cpu"))
    monkeypatch.setattr(devices, "gathered", lambda mine: [mine, hashlib.sha256(b"other").hexdigest()])
    with pytest.raises(MetarunError, match="different parameters at step 500"):
        devices.refuse_difference({"w": torch.ones(3)}, 500)
    monkeypatch.setattr(devices, "gathered", lambda mine: [mine, mine])
    devices.refuse_difference({"w": torch.ones(3), "scale": torch.tensor(1.0)}, 500)


def test_a_network_that_draws_from_torch_s_generator_is_refused(tmp_path):
    words = [OUTSIDE, *[word for word in SHARED if "hidden" not in word], "base_learner=noisy"]
    first, other = together(*words, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert (first.code, other.code) == (1, 1)
    assert "draws numbers from torch's generator" in first.err and "devices=1" in first.err


@pytest.mark.parametrize(("words", "message"), [
    (["devices=3"], "devices=3 does not divide the chunks of a step, which are 4 (8 tasks, 2 at a time)"),
    (["devices=3"], "Set execution.chunk=3 or devices=2"),
    (["devices=2", "execution.chunk=null"], "execution.chunk is null: all tasks in one). Set execution.chunk=4 or"),
    (["devices=0"], "devices is 0, but must be 1 or more"),
    (["devices=2", "device=mps"], "no such device here"),
    (["exact=false"], "exact=false has no effect with devices=1"),
])  # fmt: skip
def test_a_number_of_devices_that_does_not_fit_is_refused_with_the_fix(words, message, tmp_path):
    outcome = metarun(*SHARED, *words, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2 and message in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_choice_is_measured_among_executions_whose_chunks_the_processes_divide():
    given = {"threads": 1, "compile": False}
    assert divided(Auto(5, **given), 25, 5) == Auto(5, **given, cuda_graph=False)
    assert divided(Auto(13, **given), 25, 2) == Vmapped(13, **given, cuda_graph=False)  # and no loop over 25 tasks
    assert divided(Looped(**given), 25, 1) == Looped(**given)
    with pytest.raises(ConfigError, match=r"which are 25.*Set execution=vmapped execution\.chunk=13"):
        divided(Looped(**given), 25, 2)


def test_torchrun_goes_with_a_single_run_and_says_how_many_processes_there_are(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("metarun.commands.follow.PATIENCE", 0)
    for words in (["-m", "seed=1,2"], ["runs"]):
        outcome = metarun(*words)
        assert outcome.code == 2 and "torchrun shares out a single run" in outcome.err
    assert "torchrun has started 2 processes; leave out devices" in metarun("devices=4").err
