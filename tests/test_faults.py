"""What goes wrong around a run: a clear error, and everything from before intact."""

import errno
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from metarun.commands.main import guarded
from metarun.output import checkpoint as checkpoint_module
from metarun.output import folder as folder_module
from metarun.output import metrics as metrics_module
from metarun.training import runner
from tests.running import (
    TINY,
    assert_as_if_never_stopped,
    checkpoint,
    identical,
    metarun,
    metrics,
    on_call,
    read,
    state,
)


def contents(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def failed(outcome, *messages: str) -> None:
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    for message in messages:
        assert message in outcome.err


# ---- damaged checkpoints ----


class Code:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def plant_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"format": 1, "theta": Code(path.with_name("executed"))}, protocol=2))


def plant_torch_file(path: Path) -> None:
    torch.save({"format": 1, "theta": Code(path.with_name("executed"))}, path)


def belong_to_another_program(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def come_from_the_future(path: Path) -> None:
    torch.save({"format": 2}, path)


DAMAGES = [truncate, overwrite, empty, plant_pickle, plant_torch_file, belong_to_another_program, come_from_the_future]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_an_error_that_leaves_everything_as_it_was(damage, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run / "checkpoints" / "last.pt")
    before = contents(run)
    outcome = metarun(f"resume={run}")
    failed(outcome, f"the checkpoint {run / 'checkpoints' / 'last.pt'} cannot be read")
    assert len(outcome.err) < 1000
    assert contents(run) == before, "in particular no file named executed"


def test_the_advice_of_the_message_works(whole, tmp_path):
    """It says to copy best.pt over last.pt: the run goes on from there and becomes the same run."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    truncate(run / "checkpoints" / "last.pt")
    best, last = run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt"
    failed(metarun(f"resume={run}"), f"copy {best} over it")
    shutil.copy(best, last)
    assert metarun(f"resume={run}").code == 0
    assert identical(checkpoint(run, "last")["theta"], checkpoint(whole, "last")["theta"])
    assert metrics(run) == metrics(whole)


def test_a_damaged_best_checkpoint_is_an_error_of_evaluate(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    truncate(run / "checkpoints" / "best.pt")
    before = contents(run)
    failed(metarun("evaluate", str(run)), "best.pt cannot be read")
    assert contents(run) == before


@pytest.mark.parametrize("also", [(), ("results.json",)], ids=["with_results", "without_results"])
def test_a_run_whose_last_checkpoint_is_gone_does_not_begin_again_over_itself(also, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoints/last.pt", *also):
        (run / name).unlink()
    before = contents(run)
    for command in ([f"resume={run}"], [f"resume={run}", "steps=20"], [*TINY, f"run_dir={run}", "resume=auto"]):
        failed(metarun(*command), "last.pt is gone", "another run_dir, or delete the folder")
    assert contents(run) == before


def test_a_run_killed_in_its_first_validation_begins_again(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        write = checkpoint_module.write_atomically
        patch.setattr(checkpoint_module, "write_atomically", on_call(1, no_space, write, match="last.pt"))
        failed(metarun(*TINY, f"run_dir={run}"), "No space left on device")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best.pt"]
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


def test_a_run_that_fails_before_its_first_step_is_marked_as_failed(tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise ValueError("no such optimizer")

    monkeypatch.setattr(runner, "optimizer_of", refuse)
    outcome = metarun(*TINY, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 1 and "no such optimizer" in outcome.err
    assert state(tmp_path / "run") == "failed"


@pytest.mark.parametrize("content", ["", '{"seed": 0, "da', "[1]"])
def test_a_damaged_run_json_is_an_error_whose_advice_works(content, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "run.json").write_text(content)
    before = contents(run)
    failed(metarun(f"resume={run}", "steps=14"), f"{run / 'run.json'} is damaged. Remove it")
    assert contents(run) == before
    (run / "run.json").unlink()
    assert metarun(f"resume={run}", "steps=14").code == 0


# ---- folders that cannot be written ----


def test_a_run_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    outcome = metarun(*TINY, f"run_dir={tmp_path / 'file' / 'run'}")
    assert outcome.code == 2, outcome.text
    assert f"{tmp_path / 'file'} is a file; name a folder." in outcome.err
    assert (tmp_path / "file").read_text() == "mine"


def mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=1m"):
        pytest.skip("mounting a small disk needs to be root on Linux; the same error is simulated above")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_run_folder_is_an_error_that_leaves_everything_as_it_was(whole, small_disk):
    run = small_disk / "run"
    shutil.copytree(whole, run)
    before = contents(run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    failed(metarun(f"resume={run}", "steps=20"), "cannot write to the run folder", "Read-only file system")
    failed(metarun(*TINY, f"run_dir={small_disk / 'other'}"), "cannot write to the run folder")
    failed(
        metarun("rerun", str(run)),
        "cannot write to the run folder",
        "metarun rerun: --run-dir PATH; metarun reproduce: --to DIR",
    )
    failed(metarun("evaluate", str(run)), "Read-only file system")
    explained = metarun("explain", str(run))
    assert explained.code == 2 and "Read-only file system" in explained.err and "--to DIR" in explained.err
    assert contents(run) == before


# ---- full disks ----


def no_space(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_refuses_any_command_is_told_without_a_traceback(whole, tmp_path, monkeypatch, capsys):
    assert guarded(no_space) == 1  # type: ignore[func-returns-value]
    err = capsys.readouterr().err
    assert f"the disk refused: [Errno {errno.ENOSPC}]" in err and "give the same command again" in err
    assert "Traceback" not in err
    monkeypatch.setattr("metarun.commands.rerun.write_atomically", no_space)
    again = tmp_path / "again"
    failed(metarun("rerun", str(whole), f"--run-dir={again}"), "the disk refused", "give the same command again")
    monkeypatch.undo()
    assert metarun("rerun", str(whole), f"--run-dir={again}").code == 0


def test_a_run_without_its_configuration_is_not_said_to_be_continuable(tmp_path, monkeypatch):
    monkeypatch.setattr("metarun.commands.train.write_atomically", no_space)
    outcome = metarun(*TINY, f"run_dir={tmp_path / 'run'}")
    failed(outcome, "the disk refused", "give the same command again")
    assert "resume=" not in outcome.err


def test_a_run_that_cannot_note_that_it_is_completed_does_not_end_as_if_it_had(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        write = folder_module.write_json
        patch.setattr(folder_module, "write_json", on_call(1, no_space, write, match="completed"))
        failed(metarun(*TINY, f"run_dir={run}"), "No space left on device", f"continue with resume={run}")
    assert state(run) == "running"
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
def test_a_run_whose_folder_is_moved_meanwhile_says_so_and_goes_on_there(whole, tmp_path, monkeypatch):
    run, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        write = checkpoint_module.write_atomically
        patch.setattr(
            checkpoint_module, "write_atomically", on_call(2, lambda *_: run.rename(moved), write, match="last.pt")
        )
        failed(metarun(*TINY, f"run_dir={run}"), f"the run folder {run} is gone", "metarun resume=PLACE")
    assert not run.exists()
    assert metarun(f"resume={moved}").code == 0
    assert_as_if_never_stopped(moved, whole)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux, which names an open file")
def test_the_disk_has_the_metrics_before_the_checkpoint_that_goes_on_after_them(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        metrics_module, "flush", lambda descriptor: order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    write = checkpoint_module.write_atomically
    monkeypatch.setattr(
        checkpoint_module, "write_atomically", lambda path, content: (order.append(str(path)), write(path, content))
    )
    assert metarun(*TINY, f"run_dir={tmp_path / 'run'}").code == 0
    assert order[0].endswith("metrics.jsonl") and order[1].endswith("best.pt")
    assert len(order) > 4 and all(path.endswith("metrics.jsonl") for path in order[::2])


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_full_disk_at_a_checkpoint_is_an_error_and_the_run_resumes_from_the_last(name, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        write = checkpoint_module.write_atomically
        patch.setattr(checkpoint_module, "write_atomically", on_call(3, no_space, write, match=name))
        outcome = metarun(*TINY, f"run_dir={run}")
    failed(outcome, "No space left on device", "Free some space", f"resume={run}")
    assert state(run) == "failed"
    assert checkpoint(run, "last")["step"] == 5
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


def test_a_disk_that_fills_up_is_an_error_and_the_run_goes_on_once_there_is_space(whole, small_disk, monkeypatch):
    run, filler = small_disk / "run", small_disk / "filler"

    def fill(*_) -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    with monkeypatch.context() as patch:
        patch.setattr(runner.Runner, "train_step", on_call(8, fill, runner.Runner.train_step))
        outcome = metarun(*TINY, f"run_dir={run}")
    failed(outcome, "No space left on device", f"resume={run}")
    assert checkpoint(run, "last")["step"] == 5
    filler.unlink()
    assert metarun(f"resume={run}").code == 0
    assert_as_if_never_stopped(run, whole)


# ---- losses that are no longer finite ----


def test_a_loss_that_overflows_stops_the_run_with_step_metric_and_seed(tmp_path):
    run = tmp_path / "run"
    outcome = metarun(*TINY, "meta_learner.inner_lr=1e30", "seed=4", f"run_dir={run}")
    assert outcome.code == 3
    assert "train/query_loss is" in outcome.err and "at step 3 (seed 4)" in outcome.err and "clip_norm" in outcome.err
    assert state(run) == "diverged"
    assert "at step 3 (seed 4)" in read(run / "status.json")["error"]
    assert "diverged at step 3" in (run / "log.txt").read_text()


def test_divergence_leaves_the_checkpoints_of_before(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def spoil(self, *_) -> None:
        for leaf in self.leaves:
            leaf.data.fill_(float("nan"))

    monkeypatch.setattr(runner.Runner, "train_step", on_call(8, spoil, runner.Runner.train_step))
    assert metarun(*TINY, f"run_dir={run}").code == 3
    for name in ("best", "last"):
        assert checkpoint(run, name)["step"] == 5
        assert all(torch.isfinite(leaf).all() for leaf in checkpoint(run, name)["theta"].values())


def test_a_step_that_overflows_after_a_finite_loss_leaves_the_checkpoint_of_before(tmp_path):
    run = tmp_path / "run"
    words = ["optimizer=sgd", "optimizer.lr=3e38", "checkpoint_minutes=1e-6", "seed=4"]
    outcome = metarun(*TINY, *words, f"run_dir={run}")
    assert outcome.code == 3 and "an entry of theta is" in outcome.err and "at step 1 (seed 4)" in outcome.err
    assert all(torch.isfinite(leaf).all() for leaf in checkpoint(run, "last")["theta"].values())


def test_a_theta_spoilt_by_the_last_step_before_a_validation_never_becomes_the_best(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def spoil(self, *_) -> None:
        for leaf in self.leaves:
            leaf.data.fill_(float("nan"))

    monkeypatch.setattr(runner.Runner, "validate", on_call(2, spoil, runner.Runner.validate))
    outcome = metarun(*TINY, f"run_dir={run}")
    assert outcome.code == 3
    assert "val/" in outcome.err
    assert {name: checkpoint(run, name)["step"] for name in ("best", "last")} == {"best": 0, "last": 0}


# ---- other data than a run began with ----


def test_a_run_whose_data_have_changed_is_neither_continued_nor_scored(tmp_path):
    table = tmp_path / "requests.jsonl"
    lines = (Path(__file__).parent / "outside" / "requests.jsonl").read_text().splitlines(keepends=True)
    table.write_text("".join(lines))
    run = tmp_path / "run"
    small = ("steps=2", "evaluation.num_tasks=2", "evaluation.num_val_tasks=2", "execution=looped")
    first = metarun("experiment=protonet_text", f"task.path={table}", f"data_root={tmp_path}", f"run_dir={run}", *small)
    assert first.code == 0, first.text
    before = contents(run)
    table.write_text("".join(lines[:-1]))
    for command in (["evaluate", str(run)], [f"resume={run}", "steps=4"]):
        outcome = metarun(*command)
        assert outcome.code == 2, outcome.text
        assert f"the data have changed since {run} began" in outcome.err
    assert contents(run)[Path("results.json")] == before[Path("results.json")]
    assert contents(run)[Path("run.json")] == before[Path("run.json")]
