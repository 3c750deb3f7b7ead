"""metrics.jsonl is the truth, TensorBoard shows the same, and what it shows can be read."""

import io
import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups, metadata
from tensorboard.plugins.hparams.backend_context import Context

from metarun.core import Batch, Episode
from metarun.drawing import GAP, MAX_ROWS
from metarun.errors import Diverged, Interrupted
from metarun.evaluation.estimates import Estimate
from metarun.output.figures import adaptation_curve, episode_grid
from metarun.output.folder import RunFolder
from metarun.output.loggers.tensorboard import TensorBoard
from metarun.output.metrics import Means, MetricsFile
from metarun.output.report import Reporter
from metarun.output.sink import Sink
from metarun.output.terminal import Ticker
from metarun.training.runner import Runner
from metarun.training.signals import StopRequest
from tests.composing import experiment, train

TEXTS = ["task=prototypes", "steps=6", "log_every=2", "meta_batch_size=2", "seed=3", "evaluation.every=3"]
TEXTS += ["evaluation.num_val_tasks=3", "evaluation.num_tasks=4", "evaluation.inner_steps=2", "logger=tensorboard"]


class Run:
    """A run's folder, with its events read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        self.events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
        self.events.Reload()

    @property
    def scalars(self) -> dict[tuple[str, int], float]:
        tags = self.events.Tags()["scalars"]
        return {(tag, event.step): event.value for tag in tags for event in self.events.Scalars(tag)}

    @property
    def logged(self) -> dict[tuple[str, int], float]:
        rows = ((line["step"], name, value) for line in self.lines for name, value in line.items() if name != "step")
        return {(name, step): value for step, name, value in rows}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Run:
    """A finished run on images."""
    path = tmp_path_factory.mktemp("images") / "run"
    train(path, *TEXTS)
    return Run(path)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory) -> Run:
    """A run that ended at a loss that is not finite."""
    path = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(Diverged):
        train(path, "task=sinusoid", *TEXTS[1:], "meta_learner.inner_lr=1e30")
    return Run(path)


# ---- metrics.jsonl ----


def test_every_line_of_the_metrics_is_an_object_of_finite_numbers(images):
    assert len(images.lines) == 8  # training at steps 2, 3, 4 and 6, validation at 0, 3 and 6, the test
    for line in images.lines:
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())


def test_the_steps_of_the_metrics_ascend(images):
    steps = [line["step"] for line in images.lines]
    assert steps == sorted(steps)


def test_each_kind_of_metric_appears_at_its_steps(images):
    def steps(name: str) -> list[int]:
        return [line["step"] for line in images.lines if name in line]

    assert steps("train/query_loss") == steps("train/accuracy") == steps("train/lr") == [2, 3, 4, 6]
    assert steps("val/accuracy") == steps("val/query_loss") == steps("val/accuracy_ci95") == [0, 3, 6]
    assert steps("test/accuracy") == steps("test/accuracy_step_2") == [6]


def test_a_resumed_file_keeps_the_lines_up_to_its_checkpoint_and_drops_the_cut_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1.0}\n{"step": 4, "a": 2.0}\n{"step": 6, "a": 3.0}\n{"step": 4, "a')
    file = MetricsFile(path, resume_step=4)
    file.write(5, {"a": 9.0})
    file.ended("completed")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "a": 1.0},
        {"step": 4, "a": 2.0},
        {"step": 5, "a": 9.0},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    file.write(1, {"a": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 0.5}\n'
    file.ended("completed")


# ---- TensorBoard ----


@pytest.mark.parametrize("which", ["images", "diverged"])
def test_tensorboard_has_the_names_steps_and_values_of_the_metrics(which, request):
    run = request.getfixturevalue(which)
    curves, tested = in_tensorboard(run)
    assert run.scalars.keys() == curves.keys()
    for key, value in run.scalars.items():
        assert value == np.float32(curves[key])  # TensorBoard stores float32
    assert {name: f"{value:.6g}" for (name, _), value in tested.items()} == scores_in_the_table(run)


def in_tensorboard(run: Run) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """What of the metrics TensorBoard shows as curves, and what in the table of the test, which has a single step."""
    tested = {key: value for key, value in run.logged.items() if key[0].startswith("test/")}
    return {key: value for key, value in run.logged.items() if key not in tested or key[0] == "test/accuracy"}, tested


def scores_in_the_table(run: Run) -> dict[str, str]:
    """The rows of the table of the test, by name."""
    if "test/text_summary" not in run.events.Tags()["tensors"]:
        return {}
    text = run.events.Tensors("test/text_summary")[0].tensor_proto.string_val[0].decode()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {f"test/{name}": value for name, value in rows}


def test_tensorboard_shows_the_config_of_the_run(images):
    assert images.events.Tags()["tensors"] == ["config/text_summary", "test/text_summary"]
    text = images.events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\n")
    shown = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))
    assert shown == yaml.safe_load((images.path / "config.yaml").read_text())


def test_the_events_lie_in_the_folder_of_the_run_and_nowhere_below(images):
    events = list(images.path.rglob("events.out.tfevents*"))
    assert [path.parent for path in events] == [images.path]


def hparams(run: Run) -> dict[str, object]:
    content = run.events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}


def status(run: Run) -> str:
    content = run.events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    return api_pb2.Status.Name(metadata.parse_session_end_info_plugin_data(content).status)


def test_the_hparams_page_has_the_settings_that_tell_runs_apart(images):
    shown = hparams(images)
    assert shown["seed"] == 3
    assert shown["task"] == "Prototypes"
    assert shown["meta_learner"] == "MAML"
    assert shown["meta_learner.inner_lr"] == 0.01
    assert shown["meta_learner.first_order"] == "false"
    assert shown["base_learner.hidden"] == "[40, 40]"


def test_the_hparams_page_has_settings_of_the_root_and_nested_ones_but_no_place():
    made = experiment(
        "task=pendulum", "meta_learner=r2d2", "clip_norm=2", "dtype=float64", "evaluation.every=7", "+rates.embedding=3"
    )
    shown = {
        "clip_norm": 2.0,
        "dtype": "float64",
        "evaluation.every": 7,
        "rates.embedding": 3,
        "task.system": "Pendulum",
    }
    assert shown.items() <= made.headline.items()
    nested, absent = "task.planner.horizon", {"clip_value", "run_dir", "data_root", "log_every"}
    assert isinstance(made.headline[nested], int) and not absent & made.headline.keys()


def shown_by_the_plugin(logdir: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The metrics of the HParams page in their order, and their values in each run, by TensorBoard's own code."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir))))
    asked = api_pb2.GetExperimentRequest(include_metrics=True)
    metrics = get_experiment.Handler(RequestContext(), context, "", asked).run().metric_infos
    every = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=list(api_pb2.Status.values()))
    groups = list_session_groups.Handler(RequestContext(), context, "", every).run().session_groups
    sessions = [session for group in groups for session in group.sessions]
    return [metric.name.tag for metric in metrics], {
        session.name: {value.name.tag: value.value for value in session.metric_values} for session in sessions
    }


def test_the_hparams_page_shows_the_score_first_with_the_logdir_of_the_run(images):
    columns, runs = shown_by_the_plugin(images.path)
    assert columns == ["test/accuracy", "val/accuracy", "val/query_loss", "train/query_loss"]
    assert list(runs) == ["."]
    assert runs["."] == {name: pytest.approx(images.logged[name, 6]) for name in columns}


def test_the_hparams_page_shows_the_scores_of_all_runs_in_their_parent_folder(images, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(images.path, tmp_path / name)
    columns, runs = shown_by_the_plugin(tmp_path)
    assert columns[0] == "test/accuracy"
    assert runs.keys() == {"a", "b"}
    assert runs["a"] == runs["b"] == {name: pytest.approx(images.logged[name, 6]) for name in columns}


def test_a_finished_run_is_a_success_on_the_hparams_page(images):
    assert status(images) == "STATUS_SUCCESS"


def test_a_diverged_run_is_a_failure_on_the_hparams_page(diverged):
    assert status(diverged) == "STATUS_FAILURE"
    assert hparams(diverged)["task"] == "Sinusoid"


def test_an_interrupted_run_continued_to_its_end_is_a_success_on_the_hparams_page(tmp_path, monkeypatch):
    path = tmp_path / "run"
    step = Runner.train_step

    def interrupted(self: Runner, episodes: object) -> None:
        step(self, episodes)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Runner, "train_step", interrupted)
    with pytest.raises(Interrupted):
        train(path, *TEXTS)
    assert "_hparams_/session_end_info" not in Run(path).events.summary_metadata
    monkeypatch.undo()
    train(path, *TEXTS, "resume=auto")
    run = Run(path)
    assert status(run) == "STATUS_SUCCESS"
    assert run.scalars.keys() == in_tensorboard(run)[0].keys()
    assert scores_in_the_table(run).keys() == {name for name, _ in run.logged if name.startswith("test/")}


def test_image_tasks_show_an_episode_and_the_adaptation_at_the_end(images):
    assert sorted(images.events.Tags()["images"]) == ["adaptation", "episode"]
    assert [event.step for event in images.events.Images("adaptation")] == [6]
    for tag in ("adaptation", "episode"):
        picture = Image.open(io.BytesIO(images.events.Images(tag)[0].encoded_image_string))
        assert np.asarray(picture).std() > 10  # it shows something


def test_other_tasks_show_no_episode(diverged):
    assert diverged.events.Tags()["images"] == []


def test_a_resumed_board_hides_what_lies_beyond_its_checkpoint(tmp_path):
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, resume_step)
        for step in steps:
            board.write(step, {"a": float(10 * resume_step + step)})
        board.ended("interrupted")
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("a")] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def test_what_a_board_was_told_before_a_checkpoint_outlives_a_killed_run(tmp_path):
    board = TensorBoard(tmp_path, 0)
    for step in range(3):
        board.write(step, {"a": float(step)})
    board.saving()
    assert [e.step for e in EventAccumulator(str(tmp_path)).Reload().Scalars("a")] == [0, 1, 2]
    board.ended("interrupted")


# ---- another sink ----


class Heard(Sink):
    """What a logger hears that does not tell training, validation and test apart."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def execution(self, choice):
        self.events.append(("execution", choice.execution.describe()))

    def write(self, step, values):
        self.events.append(("numbers", {"step": step, **values}))

    def figure(self, name, figure, step):
        self.events.append(("figure", name))

    def say(self, line):
        self.events.append(("said", line))

    def ended(self, state):
        self.events.append(("ended", state))


def test_a_further_sink_hears_the_events_of_a_run_and_the_numbers_of_its_file(tmp_path):
    x, folder, heard = experiment(*TEXTS), RunFolder(tmp_path), Heard()
    folder.create()
    report = Reporter(folder, x, "config", 0)
    report.sinks.append(heard)
    Runner(x, report, StopRequest()).run()
    report.close("completed")
    kinds = [kind for kind, _ in heard.events]
    assert kinds == ["execution", *["numbers"] * 7, "said", "numbers", "figure", "ended"]
    assert [values for kind, values in heard.events if kind == "numbers"] == Run(tmp_path).lines
    assert heard.events[0] == ("execution", "looped") and heard.events[-1] == ("ended", "completed")


# ---- pictures ----


def striped_episode(ways: int, shots: int, queries: int) -> Episode:
    """Images of 4 x 4 pixels whose brightness is their class, in a mixed order."""

    def batch(each: int) -> Batch:
        y = torch.arange(ways).repeat(each)
        return Batch(y.double().view(-1, 1, 1, 1).expand(-1, 1, 4, 4), y)

    return Episode(batch(shots), batch(queries))


def test_an_episode_grid_has_a_row_for_each_class_and_a_white_gap_after_the_support():
    grid = episode_grid(striped_episode(3, 1, 2), 3)
    frame = 4 + 2
    assert grid.shape == (3, 3 * frame, 3 * frame + GAP)
    for row in range(3):
        centre = grid[0, row * frame + 3]
        columns = [3, frame + GAP + 3, 2 * frame + GAP + 3]
        assert [float(centre[c]) for c in columns] == pytest.approx([row / 2] * 3)  # dark to bright over the grid
        assert torch.equal(centre[frame : frame + GAP], torch.ones(GAP))


def test_of_many_classes_the_first_are_shown():
    assert episode_grid(striped_episode(60, 2, 1), 60).shape[1] == MAX_ROWS * 6


def test_images_in_colour_stay_so():
    red = torch.zeros(2, 3, 4, 4)
    red[:, 0] = 1
    grid = episode_grid(Episode(Batch(red, torch.tensor([0, 1])), Batch(red, torch.tensor([0, 1]))), 2)
    assert grid[:, 3, 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_the_adaptation_curve_has_a_point_a_step_and_whole_numbers_on_its_axis(steps):
    scores = {f"mse_step_{k}": Estimate(1 / (k + 1), 0.1, 600) for k in range(steps + 1)}
    axes = adaptation_curve({"mse": scores["mse_step_1"], **scores}, "mse", trained_steps=1).axes[0]
    x, y = axes.lines[0].get_data()
    assert list(x) == list(range(steps + 1))
    assert list(y) == [1 / (k + 1) for k in range(steps + 1)]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert axes.get_ylabel() == "mse"
    assert "600" in axes.get_title()


# ---- means ----


def test_means_are_over_the_values_since_they_were_last_taken():
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value), "b": torch.tensor(-value)})
    assert means.take()() == {"a": 3.0, "b": -3.0}
    means.add({"a": torch.tensor(5.0)})
    assert means.take()() == {"a": 5.0}
    assert means.take()() == {}


# ---- the terminal ----


def test_without_a_terminal_progress_is_whole_lines_now_and_then(capsys, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("metarun.output.terminal.time.monotonic", lambda: clock.now)
    ticker = Ticker(total=100, start=0)
    assert not ticker.live
    for step in range(10, 101, 10):
        clock.now += 4.0
        ticker.training(step, {"train/query_loss": 0.123456})
    ticker.ended("completed")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split()[1] for line in lines] == ["30/100", "60/100", "90/100"]  # every 10 s of 4 s steps
    assert "query_loss 0.1235" in lines[0]
    assert "\x1b" not in err  # no colours, no cursor
    assert "\r" not in err


def test_a_progress_line_tells_the_rate_the_time_left_and_the_validation(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("metarun.output.terminal.time.monotonic", lambda: clock.now)
    ticker = Ticker(total=100, start=40, score="val/accuracy")  # resumed: the 40 steps before are not this part's
    ticker.validation(40, {"val/accuracy": 0.875, "val/query_loss": 1.0})
    clock.now = 20.0
    ticker.training(80, {"train/query_loss": 1.0})
    assert capsys.readouterr().err.split("  ") == [
        "step 80/100",
        "2/s",
        "10 s left",
        "query_loss 1",
        "val/accuracy 0.875\n",
    ]


def test_reading_the_means_does_not_start_them_anew():
    means = Means()
    means.add({"loss": torch.tensor(1.0)})
    means.add({"loss": torch.tensor(3.0)})
    assert means.read() == means.read() == {"loss": 2.0}
    assert means.take()() == {"loss": 2.0}
    assert means.take()() == {}
