"""Run folders are read as they lie there: running, killed, damaged, copied from elsewhere."""

import fcntl
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from metarun.config.choices import option_of
from metarun.config.help import options
from metarun.errors import ConfigError
from metarun.output.folder import RunFolder
from metarun.output.ledger import folders, read, run_at, runs_in
from metarun.output.tables import Score
from metarun.paths import config_dir
from tests.kept_runs import config, keep, made, told, write
from tests.running import metarun

OLD = Path(__file__).parent / "outside" / "runs" / "sinusoid"


def change(path: Path, **values: object) -> None:
    write(path, {**json.loads(path.read_text()), **values})


def test_a_run_tells_its_state_names_and_score(tmp_path):
    run = read(keep(tmp_path / "a", score=0.9, learner="maml_plus_plus", seed=3))
    assert (run.state, run.learner, run.task, run.option("base_learner")) == (
        "completed",
        "maml_plus_plus",
        "omniglot",
        "mlp",
    )
    assert (run.score_name, run.score, run.damaged) == ("accuracy", Score(0.9, 0.0123, 600), ())
    assert (run.settings["seed"], run.settings["optimizer.lr"]) == (3, 0.001)
    assert [score.mean for score in run.curve("test/accuracy")] == pytest.approx([0.2, 0.55, 0.9])
    assert run.overrides == ["seed=3"]
    assert run.updated - run.started == pytest.approx(30, abs=1.5)


def test_a_run_of_an_earlier_version_is_read(tmp_path):
    run = read(OLD)
    assert (run.learner, run.task, run.score_name, run.score.n) == ("maml", "sinusoid", "mse", 6)
    assert (run.state, run.damaged, run.history) == ("completed", (), [])


@pytest.mark.parametrize("group", ["task", "meta_learner", "base_learner", "optimizer"])
def test_every_option_of_a_group_is_known_by_its_configuration(group):
    for name in options(group):
        if "/" not in name and "_target_" in (
            node := yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text())
        ):
            assert option_of(group, node) == name


def test_the_class_of_somebody_else_is_called_by_its_name():
    assert option_of("task", {"_target_": "prototypes.Prototypes"}) == "prototypes"
    assert option_of("task", None) == option_of("task", {"_target_": 5}) == ""


def test_an_option_of_the_user_s_own_is_called_as_the_override_calls_it(tmp_path):
    own, maml = {"_target_": "layers.LayerMAML"}, {"_target_": "metarun.meta_learners.maml.MAML", "inner_lr": 0.05}
    assert option_of("meta_learner", own, ["seed=1", "meta_learner=layer_maml"]) == "layer_maml"
    assert option_of("meta_learner", maml, ["meta_learner=maml_fast"]) == "maml_fast"
    assert option_of("meta_learner", maml, ["meta_learner.inner_lr=0.05"]) == "maml"
    assert option_of("meta_learner", maml, ["meta_learner=protonet"]) == "maml"  # changed by a target


def test_a_run_whose_lock_is_held_is_running_and_else_it_was_killed(tmp_path):
    run = keep(tmp_path / "a", state="running", score=None)
    assert read(run).state == "killed"
    with (run / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read(run).state == "running"
    assert read(run).state == "killed"


def test_a_run_of_another_machine_is_running_as_long_as_it_tells_of_itself(tmp_path):
    run = keep(tmp_path / "a", state="running", score=None)
    change(run / "run.json", hardware={"host": "elsewhere"})
    assert read(run).state == "running"
    change(run / "status.json", updated=told(3600))
    assert read(run).state == "killed"
    (run / ".lease").touch()  # renewed also during a test of an hour
    assert read(run).state == "running"
    (run / ".lease").unlink()
    (run / ".lock").unlink()
    assert read(run).state == "killed"


def test_runs_are_found_at_every_depth_and_not_within_runs(tmp_path):
    made = {keep(tmp_path / name) for name in ("2026-01-01/a", "sweep/x/b", "c")}
    keep(tmp_path / "c" / "evaluations" / "copy")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").touch()  # of a checkout
    assert set(folders(tmp_path)) == made
    assert {run.path for run in runs_in(tmp_path)} == made


@pytest.mark.parametrize("files", [
    {"config.yaml": "model: resnet\nlr: 0.1\n", "checkpoints/last.pt": ""},
    {"config.yaml": "model: resnet\n", "checkpoints/last.pt": "", "status.json": '{"state": "completed"}'},
    {"status.json": '{"percent": 40}'},
    {"status.json": '{"state": "queued"}', "output.txt": "epoch 1"},
    {"output.txt": "epoch 1", "checkpoints/last.pt": ""},
    {"config.yaml": "model: resnet\n", "results.json": "{}", "run.json": "{}"},
])  # fmt: skip
def test_a_folder_of_another_program_is_no_run(files, tmp_path):
    for name, content in files.items():
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text(content)
    keep(tmp_path / "theirs" / "ours")
    assert [*folders(tmp_path)] == [tmp_path / "theirs" / "ours"]
    with pytest.raises(ConfigError, match="holds no run"):
        run_at(tmp_path / "theirs")


def test_the_oldest_run_is_first(tmp_path):
    for name, ago in (("a", 10), ("b", 1000), ("c", 100)):
        keep(tmp_path / name, ago=ago)
    assert [run.path.name for run in runs_in(tmp_path)] == ["b", "c", "a"]


DAMAGES = {
    "cut": b'{"state": "comp',
    "binary": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "nothing": b"",
    "deep": b"[" * 5000,
    "null": b"null",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "status.json", "results.json", "run.json"])
def test_a_damaged_file_is_named_and_the_rest_is_read(name, damage, tmp_path):
    path = keep(tmp_path / "a")
    (path / name).write_bytes(DAMAGES[damage])
    run = read(path)
    assert len(run.damaged) == 1 and run.damaged[0].startswith(f"{name}: cannot be read: ")
    assert (run.state == "completed") == (name != "status.json")
    assert (run.learner == "maml") == (name != "config.yaml")
    assert (run.score is None) == (name == "results.json")


def test_parts_of_other_kinds_are_passed_over(tmp_path):
    path = keep(tmp_path / "a")
    change(path / "run.json", history=[5], hardware=7)
    change(path / "status.json", step="many", updated=["now"])
    change(path / "results.json", **{"test/accuracy": {"mean": "high"}, "test/mse": 3, "complexity": []})
    run = read(path)
    assert (run.history, run.started, run.score) == ([], None, None)
    change(path / "status.json", state={"a": 1})
    assert read(path).damaged == ("status.json: it names no state but {'a': 1}",)


@pytest.mark.parametrize("value", ["9" * 400, "-" + "9" * 400, "NaN", "Infinity", "-5"])
def test_numbers_that_no_float_holds_make_no_run_unreadable(value, tmp_path):
    for name in ("a", "b"):
        run = made(tmp_path / name, [0.5, 0.6, 0.7], seed=0)
        for file in ("results.json", "status.json", "episodes.jsonl", "metrics.jsonl"):
            text = re.sub(
                r'("(mean|ci95|n|seconds|step|steps|accuracy|val/accuracy)": )[\d.]+',
                rf"\g<1>{value}",
                (run / file).read_text(),
            )
            (run / file).write_text(text)
    change_text = (tmp_path / "a" / "status.json").read_text().replace('"pid"', f'"seconds": {value}, "pid"')
    (tmp_path / "a" / "status.json").write_text(change_text)
    for words in (["runs", "DIR"], ["show", "RUN"], ["report", "DIR", f"--out={tmp_path / 'out'}"], ["compare", "DIR"]):
        outcome = metarun(*(word.replace("DIR", str(tmp_path)).replace("RUN", str(tmp_path / "a")) for word in words))
        assert outcome.code in (0, 1, 2) and "Traceback" not in outcome.text, outcome.text
    with RunFolder(tmp_path / "a").claimed():  # it goes on from the seconds that it says
        pass


def test_yaml_that_unfolds_without_end_is_not_followed(tmp_path):
    path = keep(tmp_path / "a")
    lines = ["a0: &a0 {x: 1, y: 2}", *(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60))]
    (path / "config.yaml").write_text("\n".join(lines))
    assert read(path).damaged[0].startswith("config.yaml: cannot be read: its aliases unfold")


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "run.json", "results.json"])
def test_a_missing_file_is_named(name, tmp_path):
    path = keep(tmp_path / "a")
    (path / name).unlink()
    assert f"{name}: is missing" in runs_in(tmp_path)[0].damaged


def test_a_job_of_a_sweep_that_never_began_is_a_run_of_unknown_state(tmp_path):
    (tmp_path / "job" / "checkpoints").mkdir(parents=True)
    (tmp_path / "job" / "output.txt").write_text("metarun: 1 problem\n")
    assert [run.state for run in runs_in(tmp_path)] == ["unknown"]


def test_lines_of_metrics_that_were_cut_short_are_left_out(tmp_path):
    path = keep(tmp_path / "a")
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"step": 60, "train/acc')
    assert [row["step"] for row in read(path).metrics()] == [50, 50]
    (path / "metrics.jsonl").unlink()
    assert read(path).metrics() == []


def test_later_evaluations_are_found(tmp_path):
    path = keep(tmp_path / "a")
    assert read(path).evaluations() == {}
    (path / "evaluations").mkdir()
    write(path / "evaluations" / "test_best-1.json", {"test/accuracy": {"mean": 0.5}})
    (path / "evaluations" / "test_best-2.json").write_text("{")
    assert read(path).evaluations() == {"test_best-1": {"test/accuracy": {"mean": 0.5}}, "test_best-2": {}}


def test_reading_writes_nothing(tmp_path):
    path = keep(tmp_path / "a", state="running")
    before = {file: file.stat().st_mtime_ns for file in (path, *path.rglob("*"))}
    for file in before:
        os.chmod(file, 0o555 if file.is_dir() else 0o444)
    run = run_at(path)
    assert (run.state, run.score.mean) == ("killed", 0.9)
    assert {file: file.stat().st_mtime_ns for file in (path, *path.rglob("*"))} == before
    os.chmod(path, 0o755)


def test_a_folder_that_is_not_there_or_holds_no_run_is_refused_with_the_fix(tmp_path):
    keep(tmp_path / "runs" / "a")
    for look, path, said in (
        (run_at, tmp_path / "nowhere", "there is no folder .*metarun runs DIR"),
        (run_at, tmp_path / "runs", "holds no run .*metarun runs "),
        (runs_in, tmp_path / "nowhere", "there is no folder .*Name the one that your runs lie in"),
        (runs_in, Path(__file__).parent / "tasks", "holds no run.*Name the folder that your runs lie in"),
    ):
        with pytest.raises(ConfigError, match=said):
            look(path)


def test_the_configuration_written_by_hand_is_like_a_run_s():
    assert {"seed", "task", "meta_learner"} <= config().keys() & yaml.safe_load(
        (OLD / "config.yaml").read_text()
    ).keys()
