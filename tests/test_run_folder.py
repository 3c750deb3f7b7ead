"""What a run leaves behind, and that its episodes do not depend on how it was run."""

import math
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from metarun.config.compose import read_config
from metarun.errors import ConfigError
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.whole import Evaluation, evaluate_all
from metarun.execution.execution import Looped
from metarun.output.folder import RunFolder, tensorboard_line
from metarun.training import runner
from tests.composing import experiment
from tests.running import TINY, apart, checkpoint, identical, metarun, metrics, read, scalars


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert metarun(*TINY, "evaluation.inner_steps=3", f"run_dir={run}").code == 0
    return run


def test_the_folder_holds_the_files_of_the_design(run):
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {"config.yaml", "overrides.yaml", "run.json", "status.json", "metrics.jsonl", "results.json", "log.txt"}
    expected |= {"episodes.jsonl"}
    expected |= {"execution.json", "freeze.txt", "checkpoints/last.pt", "checkpoints/best.pt"}
    assert expected <= files
    others = {name for name in files - expected if "tfevents" not in name}
    assert others <= {"git.diff", ".lock"}


def test_a_run_that_has_not_seen_groups_takes_its_data_and_no_others(tmp_path):
    with_groups = "talks: sha256 ab, splits cd, groups 0123456789abcdef, hashed"
    for known, refused in ((with_groups.replace("0", "1"), True), ("talks: sha256 ab, splits cd, hashed", False)):
        (tmp_path / "run.json").write_text(f'{{"data": "{known}", "evaluation_data": {{"x": "{known}"}}}}')
        for facts in ({"data": with_groups}, {"evaluation_data": {"x": with_groups}}):
            if refused:
                with pytest.raises(ConfigError, match="the data have changed"):
                    RunFolder(tmp_path).refuse_other_data(facts, "")
            else:
                RunFolder(tmp_path).refuse_other_data(facts, "")


def test_config_and_overrides_are_what_was_asked_for(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["steps"], config["base_learner"]["hidden"]) == (12, [8])
    assert "${" not in (run / "config.yaml").read_text()
    assert "steps=12" in yaml.safe_load((run / "overrides.yaml").read_text())


def test_status_has_a_heartbeat_and_the_outcome(run):
    status = read(run / "status.json")
    assert status["state"] == "completed" and status["step"] == status["steps"] == 12
    assert isinstance(status["pid"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", status["updated"])
    assert status["test/mse"] == read(run / "results.json")["test/mse"]["mean"]


def test_results_map_metrics_to_mean_interval_and_number_by_protocol_and_complexity(run):
    results = read(run / "results.json")
    protocol, complexity, speed = (results.pop(name) for name in ("protocol", "complexity", "learning_speed"))
    assert (results.pop("version"), results.pop("episodes")) == (1, "episodes.jsonl")
    assert set(speed) == {"mse", "query_loss"}
    assert {"test/mse", "test/query_loss", *(f"test/mse_step_{k}" for k in range(4))} <= set(results)
    assert all(set(value) == {"mean", "ci95", "n"} and value["n"] == 6 for value in results.values())
    assert re.fullmatch(r"[0-9a-f]{64}", protocol["manifest"])
    assert (protocol["inner_steps"], protocol["seed"], protocol["num_tasks"], protocol["split"]) == (3, 0, 6, "test")
    assert complexity["parameters"] == 1 * 8 + 8 + 8 + 1 and complexity["adaptation_ms"] > 0
    assert complexity["step_ms"] > 0 and complexity["peak_memory_mb"] > 100  # torch alone takes that much


def test_run_json_says_what_produced_the_run(run):
    facts = read(run / "run.json")
    assert facts["seed"] == 0 and facts["data"].startswith("sinusoid")
    assert {"torch", "python", "cpus", "gpu"} <= set(facts["hardware"])
    assert "argv" in facts["history"][0] and "started" in facts["history"][0]
    assert facts["history"][0]["git"] == facts["git"]  # of each part its own, for the next may run other code
    assert "git" in facts and facts["metarun"]


def test_metrics_have_one_object_a_line_with_the_same_names_everywhere(run):
    rows = metrics(run)
    assert [row["step"] for row in rows] == [0, 3, 5, 5, 6, 9, 10, 10, 12, 12, 12]
    names = {name for row in rows for name in row} - {"step"}
    assert {"train/query_loss", "train/lr", "val/mse", "val/mse_ci95", "test/mse", "test/mse_step_1"} <= names
    assert {name.partition("/")[0] for name in names} == {"train", "val", "test"}


def test_the_log_says_where_how_and_with_what_result(run):
    log = (run / "log.txt").read_text()
    assert f"run folder: {run}" in log
    assert re.search(r"test/mse = [\d.]+ \+- [\d.]+ \(95% CI, 6 tasks\)", log)
    assert "completed at step 12" in log


def test_without_run_dir_a_run_lies_under_its_date_with_a_plain_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = metarun(*TINY)
    (path,) = tmp_path.glob("runs/*/*")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d/\d{6}-maml-sinusoid-[0-9a-f]{6}", path.relative_to(tmp_path / "runs").as_posix()
    )
    assert f"tensorboard --logdir {path.relative_to(tmp_path)}\n" in outcome.out
    assert f"results:     {path.relative_to(tmp_path)}/results.json\n" in outcome.out
    assert f"run folder: {path.relative_to(tmp_path)}\n" in outcome.err


def test_a_shell_reads_the_printed_tensorboard_command_as_one_folder(tmp_path):
    folder = tmp_path / "my runs" / "it's $HOME"
    assert tensorboard_line(folder) == ""  # there is nothing to look at, as with logger=none
    (folder / "a run").mkdir(parents=True)
    for place in ("a run", "."):
        events = folder / place / "events.out.tfevents.1.host.2.0"
        events.touch()
        assert shlex.split(tensorboard_line(folder).removeprefix("tensorboard: "))[1:] == ["--logdir", str(folder)]
        events.unlink()


def test_output_to_a_pipe_has_no_control_characters(tmp_path):
    outcome = apart(*TINY, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert outcome.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", outcome.text)


def manifest(run: Path) -> str:
    return read(run / "results.json")["protocol"]["manifest"]


@pytest.mark.parametrize("execution", ["vmapped", "looped", "auto"])
def test_the_episodes_are_the_same_however_tasks_are_run(execution, run, tmp_path):
    other = tmp_path / "run"
    assert metarun(*TINY, f"execution={execution}", f"run_dir={other}").code == 0
    assert manifest(other) == manifest(run)


def test_the_episodes_are_the_same_in_one_process_and_in_two_at_once(run, tmp_path):
    def other(name: str) -> Path:
        assert apart(*TINY, f"run_dir={tmp_path / name}", cwd=tmp_path).code == 0
        return tmp_path / name

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(other, ("first", "second"))
    assert manifest(first) == manifest(second) == manifest(run)
    assert metrics(first) == metrics(second)


def test_another_seed_has_other_episodes(run, tmp_path):
    assert metarun(*TINY, "seed=1", f"run_dir={tmp_path / 'run'}").code == 0
    assert manifest(tmp_path / "run") != manifest(run)


# ---- the start ----


def test_a_run_whose_training_hurts_ends_with_its_start_and_says_so(tmp_path):
    run = tmp_path / "run"
    outcome = metarun(*TINY, "optimizer=sgd", "optimizer.lr=1", "clip_norm=3", f"run_dir={run}")
    assert outcome.code == 0, outcome.text
    curve = {row["step"]: row["val/mse"] for row in metrics(run) if "val/mse" in row}
    assert list(curve) == [0, 5, 10, 12] and min(curve, key=curve.__getitem__) == 0
    assert identical(checkpoint(run, "best")["theta"], experiment(*TINY, "dtype=float32").theta_0)
    assert read(run / "results.json")["protocol"]["checkpoint_step"] == 0
    assert "the best checkpoint, of step 0, the start" in outcome.err
    assert "training did not help: the best checkpoint is the start" in outcome.out
    evaluated = metarun("evaluate", str(run))
    assert "training did not help: the best checkpoint is the start" in evaluated.out


def test_the_start_is_validated_as_any_other_step_is(run):
    x = experiment(*TINY, "dtype=float32", "evaluation.inner_steps=3")
    start = evaluate_all(x.suite, x.subject(x.theta_0, "val", 4, Looped()), [], final=False).scores
    assert metrics(run)[0]["val/mse"] == pytest.approx(start["mse"].mean, rel=1e-6)
    assert scalars(run)["val/mse"][0] == (0, pytest.approx(start["mse"].mean, rel=1e-6))


@pytest.mark.parametrize(
    ("lost", "best", "others"),
    [
        ((0,), None, ()),
        ((10,), None, ()),
        ((10,), None, ("optimizer.lr=0.5",)),
        ((5,), "diverged", ()),
        ((0, 5), "diverged", ()),
    ],
    ids=["the start", "one", "one, and the start is the best", "the first", "all until then"],
)
def test_a_theta_without_a_finite_score_is_no_candidate_for_the_best(tmp_path, monkeypatch, lost, best, others):
    """A learner of one step, validated after ten, may lose them to rounding at one step of training and not at others."""
    run, scored, steps = tmp_path / "run", runner.evaluate_all, iter([0, 5, 10, 12])
    nothing = Evaluation({"mse": Estimate(math.nan, math.nan, 4)})
    monkeypatch.setattr(runner, "evaluate_all", lambda *args: nothing if next(steps, -1) in lost else scored(*args))
    outcome = metarun(
        *(text for text in TINY if text.partition("=")[0] not in " ".join(others)), *others, f"run_dir={run}"
    )
    if best:  # training has led to nothing that has a score
        assert outcome.code == 3 and f"val/mse is nan at step {lost[-1]}" in outcome.err
        return
    assert outcome.code == 0, outcome.text
    assert f"no finite number at step {lost[0]}: val/mse; such a theta is no candidate" in outcome.err
    assert [row["step"] for row in metrics(run) if "val/mse" in row] == [
        step for step in (0, 5, 10, 12) if step not in lost
    ]
    assert read(run / "results.json")["protocol"]["checkpoint_step"] not in lost


def test_a_further_score_that_is_no_number_is_told_and_ends_nothing(tmp_path, monkeypatch):
    run, scored = tmp_path / "run", runner.evaluate_all

    def spoilt(*args):
        found = scored(*args)
        return replace(found, scores={**found.scores, "query_loss": Estimate(math.nan, math.nan, 4)})

    monkeypatch.setattr(runner, "evaluate_all", spoilt)
    outcome = metarun(*TINY, "evaluation.num_tasks=0", f"run_dir={run}")
    assert outcome.code == 0, outcome.text
    assert "no finite number at step 5: val/query_loss\n" in outcome.err
    assert {step for step, _ in scalars(run)["val/mse"]} == {0, 5, 10, 12} and "val/query_loss" not in scalars(run)


def test_a_run_in_a_folder_with_the_letters_of_an_interpolation_is_read_again(tmp_path):
    place = "/a\\${nowhere}"  # as Hydra's grammar escapes it
    words = [f"run_dir={tmp_path}{place}", f"data_root={tmp_path}{place}", *TINY]
    assert metarun(*words).code == 0
    folder = tmp_path / "a${nowhere}"
    kept = read_config(folder / "config.yaml")
    assert kept.run_dir == kept.data_root == str(folder)
    for again in (["evaluate", str(folder)], [*words, "resume=auto"]):
        outcome = metarun(*again)
        assert outcome.code == 0, outcome.text
