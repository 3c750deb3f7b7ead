"""The loggers of the group ``logger`` say what metrics.jsonl says, once, also of runs that were killed and continued."""

import csv
import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.output.loggers.kept import kept_id
from metarun.output.sink import Sink
from tests.composing import compose, experiment, options, train
from tests.running import (
    OUTSIDE,
    ROOT,
    TINY,
    Outcome,
    apart,
    checkpoint,
    identical,
    killed,
    metarun,
    metrics,
    process,
    read,
    state,
)

OLD = Path(__file__).parent / "outside" / "runs" / "sinusoid"
Points = dict[tuple[str, int], float]


def logged(run: Path) -> Points:
    return {(name, row["step"]): value for row in metrics(run) for name, value in row.items() if name != "step"}


def once(points: list[tuple[str, int, float]]) -> Points:
    """The points by name and step; none may be there twice."""
    assert len({point[:2] for point in points}) == len(points)
    return {(name, step): value for name, step, value in points}


# ---- what each service has in its files, by the service's own code where it has some ----


def of_csv(run: Path) -> Points:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [(name, row["step"], value) for row in rows for name, value in row.items() if name != "step" and value]
    return once([(name, int(step), float(value)) for name, step, value in cells])


def records(content: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format, in which wandb writes: blocks of 32 KB, of pieces with a header."""
    found, parts, at = [], b"", 7  # after the file's own header
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts, at = parts + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(parts)
            parts = b""
    return found


def of_wandb(run: Path, kind: str = "history") -> Any:
    pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    messages = [pb2.Record.FromString(record) for record in records(path.read_bytes())]
    if kind != "history":
        return [getattr(message, kind) for message in messages if message.WhichOneof("record_type") == kind]
    items = [(m.history.step.num, item) for m in messages for item in m.history.item]
    values = [((item.key or "/".join(item.nested_key)), step, json.loads(item.value_json)) for step, item in items]
    return once([point for point in values if isinstance(point[2], float) and not point[0].startswith("_")])


def mlflow_run(run: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (one,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, one


def of_mlflow(run: Path) -> Points:
    client, one = mlflow_run(run)
    histories = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
    return once([(name, point.step, point.value) for name, points in histories.items() for point in points])


def of_trackio(run: Path) -> Points:
    with sqlite3.connect(run / "trackio" / "metarun.db") as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    values = [(name, step, value) for step, text in rows for name, value in json.loads(text).items()]
    return once([point for point in values if isinstance(point[2], float)])


READERS = {"csv": of_csv, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}
SERVICES = ("wandb", "mlflow", "trackio")
PICTURES = [*TINY, "task=prototypes", "base_learner=mlp"]


def need(name: str) -> None:
    if name in SERVICES:
        pytest.importorskip(name, reason=f"{name} is not installed")


def beside(name: str) -> Callable[..., Outcome]:
    """What runs a command in another process; services want one that nothing was forked from."""
    return process if name in SERVICES else apart


def assert_told(run: Path, name: str) -> None:
    """The service has the numbers of metrics.jsonl, each once; those of one step may be written together."""
    found, expected = READERS[name](run), logged(run)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", READERS)
def test_a_logger_says_what_metrics_jsonl_says(name, tmp_path):
    need(name)
    run = tmp_path / "a run #1"  # as no service would name it
    outcome = beside(name)(*TINY, f"logger={name}", f"run_dir='{run}'", cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert_told(run, name)
    assert "test/mse" in {key for key, _ in READERS[name](run)}
    assert not list(run.glob("events.*"))  # TensorBoard was not chosen
    assert "told no more" not in outcome.text


@pytest.mark.parametrize("name", READERS)
def test_a_killed_and_resumed_run_is_told_once_and_under_the_same_name(name, tmp_path):
    need(name)
    run = tmp_path / "run"
    killed("between two checkpoints", *TINY, f"logger={name}", f"run_dir={run}", cwd=tmp_path)
    before = read(run / "loggers.json") if name in ("wandb", "mlflow") else {}
    outcome = beside(name)(f"resume={run}", cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert_told(run, name)
    assert not before or read(run / "loggers.json") == before


def test_several_loggers_stand_side_by_side(tmp_path):
    train(tmp_path / "run", *TINY, "logger=[tensorboard,csv]")
    assert list((tmp_path / "run").glob("events.*")) and (tmp_path / "run" / "metrics.csv").is_file()
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert list(kept["logger"]) == ["tensorboard", "csv"]


def test_a_run_without_loggers_still_writes_its_metrics(tmp_path):
    train(tmp_path / "run", *TINY, "logger=none")
    assert logged(tmp_path / "run") and not list((tmp_path / "run").glob("events.*"))


def test_loggers_change_no_bit_of_theta(tmp_path):
    chosen = ["tensorboard", "csv"]
    for name in ("wandb", "mlflow"):
        try:
            __import__(name)
            chosen.append(name)
        except ImportError:
            continue
    train(tmp_path / "none", *TINY, "logger=none")
    train(tmp_path / "all", *TINY, f"logger=[{','.join(chosen)}]")
    for part in ("theta", "optimizer", "generators"):
        assert identical(checkpoint(tmp_path / "none", "last")[part], checkpoint(tmp_path / "all", "last")[part])
    assert metrics(tmp_path / "none") == metrics(tmp_path / "all")


# ---- what else the services get ----


def test_wandb_gets_the_configuration_and_the_pictures(tmp_path):
    need("wandb")
    run = tmp_path / "run"
    outcome = process(OUTSIDE, *PICTURES, "base_learner.hidden=[8]", "logger=wandb", f"run_dir={run}", cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    settings = {item.key: json.loads(item.value_json) for c in of_wandb(run, "config") for item in c.update if item.key}
    assert settings["steps"] == 12 and settings["meta_learner"]["inner_lr"] == 0.01
    assert {path.name.split("_")[0] for path in run.glob("wandb/*/files/media/images/*.png")} == {
        "episode",
        "adaptation",
    }


def test_mlflow_gets_the_configuration_the_pictures_and_the_state(tmp_path):
    need("mlflow")
    run = tmp_path / "run"
    train(run, *PICTURES, "base_learner.hidden=[8]", "logger=mlflow")
    client, one = mlflow_run(run)
    assert one.data.params["steps"] == "12" and one.data.params["meta_learner.inner_lr"] == "0.01"
    assert {file.path for file in client.list_artifacts(one.info.run_id)} == {
        "config.yaml",
        "episode.png",
        "adaptation.png",
    }
    assert one.info.status == "FINISHED"


def test_a_service_gets_the_same_name_from_a_damaged_file_as_from_none(tmp_path):
    assert kept_id(tmp_path, "wandb", lambda: "a") == "a"
    assert kept_id(tmp_path, "wandb", lambda: "b") == "a"
    (tmp_path / "loggers.json").write_text("{")
    assert kept_id(tmp_path, "wandb", lambda: "c") == "c"


# ---- what goes wrong ----


class Failing(Sink):
    """A service that fails when it is first told a number."""

    package = "json"

    def write(self, step: int, values: dict[str, float]) -> None:
        raise ConnectionError("the server is gone")


def test_a_service_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("metarun.output.loggers.csv.CSV", Failing)
    Failing.__module__ = "metarun.output.loggers.csv"
    train(tmp_path / "run", *TINY, "logger=csv")
    assert state(tmp_path / "run") == "completed"
    told = [line for line in capsys.readouterr().err.splitlines() if "told no more" in line]
    assert len(told) == 1 and "the server is gone" in told[0]


@pytest.mark.parametrize("name", SERVICES)
def test_a_package_that_is_not_installed_is_refused_before_the_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr("metarun.config.checks.find_spec", lambda package: None)
    outcome = metarun(*TINY, f"logger={name}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert f"logger.{name} needs the package {name}, which is not installed: pip install {name}" in outcome.err
    assert not (tmp_path / "run").exists()
    sweep = metarun("-m", *TINY, f"logger={name}", "seed=0,1", f"sweep_dir={tmp_path / 'sweep'}")
    assert sweep.code == 2 and f"pip install {name}" in sweep.err


@pytest.mark.parametrize("name", SERVICES)
def test_a_run_is_evaluated_where_its_loggers_are_not_installed(name, tmp_path, monkeypatch):
    train(tmp_path / "run", *TINY)
    path = tmp_path / "run" / "config.yaml"
    kept = yaml.safe_load(path.read_text())
    node = compose(f"logger={name}").logger[name]
    path.write_text(yaml.safe_dump({**kept, "logger": {name: dict(node)}}))
    monkeypatch.setattr("metarun.config.checks.find_spec", lambda package: None)
    assert metarun("evaluate", str(tmp_path / "run")).code == 0


def test_a_logger_that_cannot_begin_is_one_message_and_a_failed_run(tmp_path, monkeypatch):
    def refuse(self, folder):
        raise ValueError("no room for a table")

    monkeypatch.setattr("metarun.output.loggers.csv.CSV.__init__", refuse)
    outcome = metarun(*TINY, "logger=csv", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2 and "logger.csv: no room for a table" in outcome.err
    assert state(tmp_path / "run") == "failed"


def test_an_option_without_a_place_of_its_own_is_refused_with_the_line_it_needs(tmp_path):
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "mine.yaml").write_text("_target_: metarun.output.loggers.csv.CSV\n")
    outcome = metarun(f"--config-dir={tmp_path}", *TINY, "logger=mine")
    assert outcome.code == 2 and "# @package logger.mine" in outcome.err


@pytest.mark.parametrize(("value", "message"), [("csvv", "'csv'"), ("[csv,csv]", "twice")])
def test_a_wrong_choice_of_loggers_is_one_message(value, message):
    outcome = metarun(*TINY, f"logger={value}")
    assert outcome.code == 2 and message in outcome.err


# ---- the group ----


@pytest.mark.parametrize("name", [name for name in options("logger") if name != "none"])
def test_every_option_of_the_group_makes_a_sink(name):
    assert issubclass(experiment(f"logger={name}").loggers[f"logger.{name}"].func, Sink)


def test_help_and_cfg_list_the_loggers(tmp_path):
    assert "csv, mlflow, none, tensorboard, trackio, wandb" in metarun("--help").out
    shown = apart("--cfg", "job", "logger=[csv,wandb]", "logger.wandb.project=mine", cwd=tmp_path).out
    assert yaml.safe_load(shown)["logger"]["wandb"]["project"] == "mine"


def test_a_run_of_before_there_were_loggers_goes_on_with_tensorboard(tmp_path):
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    assert metarun(f"resume={run}", "steps=8").code == 0
    assert list(run.glob("events.*"))
    assert list(yaml.safe_load((run / "config.yaml").read_text())["logger"]) == ["tensorboard"]


def test_the_page_s_own_logger_is_told_of_a_run(tmp_path):
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", (ROOT / "docs" / "loggers.md").read_text(), re.DOTALL)
    (tmp_path / "logger").mkdir()
    for kind, text in blocks:
        path = tmp_path / "logger" / "printed.yaml" if kind == "yaml" else tmp_path / "printed.py"
        path.write_text(text)
    choice = ["logger=[tensorboard,printed]", f"run_dir={tmp_path / 'run'}"]
    outcome = metarun(f"--config-dir={tmp_path}", *TINY, *choice)
    assert outcome.code == 0, outcome.text
    lines = [line for line in outcome.out.splitlines() if line.startswith("> ")]
    assert len(lines) == len(metrics(tmp_path / "run"))
