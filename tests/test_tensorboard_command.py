"""``metarun tensorboard``: the HParams page has the scores and settings of all runs, whichever it reads first."""

import json
import time
import urllib.request
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment
from tensorboard.plugins.hparams.backend_context import Context

from metarun.commands import tensorboard
from metarun.output.hparams import MergedColumns
from metarun.output.loggers.tensorboard import TensorBoard
from tests.kept_runs import keep
from tests.running import metarun

RUNS = {
    "maml": ("accuracy", {"meta_learner": "MAML", "meta_learner.inner_lr": 0.1, "seed": 0, "steps": 10, "size": 3}),
    "protonet": ("accuracy", {"meta_learner": "ProtoNet", "meta_learner.distance": "cosine", "seed": 1, "steps": 10}),
    "sines": ("mse", {"meta_learner": "MAML", "meta_learner.inner_lr": 0.1, "seed": 0, "steps": 10, "size": "large"}),
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Path:
    """Three finished runs with events, of two kinds of scores and settings."""
    root = tmp_path_factory.mktemp("runs")
    for name, (score, settings) in RUNS.items():
        board = TensorBoard(keep(root / name), 0, score)
        board.begun("seed: 0", settings)
        board.validation(5, {f"val/{score}": 0.5, "val/query_loss": 1.0})
        board.test(10, {f"test/{score}": 0.75, "test/query_loss": 1.0})
        board.ended("completed")
    return root


def columns(root: Path) -> tuple[list[str], dict[str, object]]:
    """The page's scores in their order, and its settings."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MergedColumns(MultiplexerDataProvider(multiplexer, str(root)))))
    asked = api_pb2.GetExperimentRequest(include_metrics=True)
    shown = get_experiment.Handler(RequestContext(), context, "", asked).run()
    return [metric.name.tag for metric in shown.metric_infos], {info.name: info for info in shown.hparam_infos}


def test_the_scores_of_every_run_are_columns_with_the_tests_first(logged):
    scores, _ = columns(logged)
    assert sorted(scores[:2]) == ["test/accuracy", "test/mse"] and sorted(scores[2:4]) == ["val/accuracy", "val/mse"]
    assert scores[4:] == ["val/query_loss", "train/query_loss"]


def test_the_settings_of_every_run_are_columns_which_say_whether_they_differ(logged):
    _, settings = columns(logged)
    assert settings.keys() == {name for _, own in RUNS.values() for name in own}
    assert {name for name, info in settings.items() if not info.differs} == {"steps"}
    kinds = {name: api_pb2.DataType.Name(settings[name].type) for name in ("seed", "meta_learner", "size")}
    assert kinds == {"seed": "DATA_TYPE_FLOAT64", "meta_learner": "DATA_TYPE_STRING", "size": "DATA_TYPE_STRING"}


def test_settings_that_are_no_numbers_can_be_chosen_by_the_values_that_runs_have(logged):
    _, settings = columns(logged)
    learners = [value.string_value for value in settings["meta_learner"].domain_discrete.values]
    assert learners == ["MAML", "ProtoNet"]
    assert len(settings["size"].domain_discrete.values) == 2 and not settings["seed"].domain_discrete.values


def test_a_single_run_keeps_the_columns_that_it_told(logged):
    scores, settings = columns(logged / "sines")
    assert scores == ["test/mse", "val/mse", "val/query_loss", "train/query_loss"]
    assert settings.keys() == RUNS["sines"][1].keys()


def test_the_page_that_is_served_has_every_run_with_its_score(logged):
    board = tensorboard.server()
    board.configure(["tensorboard", f"--logdir={logged}", "--port=0", "--load_fast=false"])
    url = board.launch()
    every = {"sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_UNKNOWN"]}
    request = urllib.request.Request(f"{url}data/plugin/hparams/session_groups", json.dumps(every).encode())
    request.add_header("Content-Type", "application/json")
    groups, until = [], time.monotonic() + 60
    while len(groups) < 3 and time.monotonic() < until:  # until the events are read
        with urllib.request.urlopen(request, timeout=30) as answer:
            groups = json.load(answer)["sessionGroups"]
        time.sleep(0.1)
    shown = {group["name"]: {m["name"]["tag"]: m["value"] for m in group["metricValues"]} for group in groups}
    assert shown["sines"] == {"test/mse": 0.75, "val/mse": 0.5, "val/query_loss": 1.0}
    assert shown["maml"] == shown["protonet"] == {"test/accuracy": 0.75, "val/accuracy": 0.5, "val/query_loss": 1.0}


@pytest.mark.parametrize(
    ("words", "passed"), [(["DIR", "--port", "6007"], ["--port", "6007"]), (["DIR"], []), ([], [])]
)
def test_the_folder_and_the_options_of_tensorboard_are_passed_on(words, passed, logged, monkeypatch):
    given = []
    monkeypatch.setattr("absl.app.run", lambda main, flags_parser, argv: given.extend(argv[1:]))
    monkeypatch.chdir(logged.parent)
    logged.rename(logged.parent / "runs")
    try:
        words = [word.replace("DIR", str(logged.parent / "runs")) for word in words]
        assert metarun("tensorboard", *words).code == 0
        assert given == [f"--logdir={words[0] if words else 'runs'}", *passed]
    finally:
        (logged.parent / "runs").rename(logged)


def test_a_folder_without_runs_is_refused_with_the_fix(tmp_path):
    for folder, said in ((tmp_path, "holds no run"), (tmp_path / "nowhere", "there is no folder")):
        outcome = metarun("tensorboard", folder)
        assert outcome.code == 2 and said in outcome.err and "Name a run, or the folder" in outcome.err
