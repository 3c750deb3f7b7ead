"""``metarun data``: what it says of each task, what it writes, and what a mistake is answered with."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from metarun.commands import data, doctor
from metarun.commands.data import entries, show
from metarun.commands.data_efficiency import figure as efficiency
from metarun.config.help import options
from metarun.core import Batch, Episode
from metarun.drawing import as_written, class_figure, numbers_figure
from metarun.errors import ConfigError
from metarun.evaluation.estimates import Estimate
from metarun.output.figures import adaptation_curve, shots_curve
from metarun.output.lines import Axes, Line, drawn
from metarun.output.tables import Score
from metarun.tasks.sinusoid import Sinusoid
from metarun.tasks.store import ClassRows, Source
from tests.composing import composed
from tests.running import OUTSIDE, metarun
from tests.tasks.pictures_of import colour, picture

GENERATED = {"quadratics", "sinusoid"}
NAMES = "abcdefghij"
POINTS = [{"train_fraction": share, "mean": 0.5, "ci95": 0.1} for share in (0.5, 1.0)]
ROOT = Path(__file__).parents[1]
CONFIGS, REQUESTS = ROOT / "configs", ROOT / "tests" / "outside" / "requests.jsonl"
WITHOUT_DOWNLOAD = {"mini_imagenet": "mini-imagenet", "tiered_imagenet": "tiered-imagenet"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands begin in an empty folder, and find no data but what the test puts into ``data``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(data, "composed", composed)  # each task once for all tests


@pytest.fixture
def photos(tmp_path):
    for name in NAMES:
        for i in range(10):
            picture(tmp_path / "photos" / name / f"{i}.png", colour(name, i))
    return f"task.path={tmp_path / 'photos'}"


def test_names_of_columns_are_no_formulas(tmp_path):
    (x, y), table = (r"x$_{", r"y$\frac$<b>"), tmp_path / "table.csv"
    table.write_text("\n".join([f"subject,{x},{y}", *(f"s{i % 9},{i % 7}.5,{i}" for i in range(108))]))
    words = [f"path={table}", "task_column=subject", f'input_columns=["{x}"]', f"output_columns=['{y}']"]
    show("csv_regression", [f"task.{word}" for word in words], [], "train", [0], tmp_path / "shown.png")
    assert (tmp_path / "shown.png").stat().st_size > 0


def test_names_in_other_figures_are_no_formulas():
    name, score = r"a$_{\frac$", {k: Estimate(0.5, 0.1, 3) for k in (1, 2)}
    figures = [
        shots_curve({name: score}, {}),
        adaptation_curve({f"{name}_step_{k}": score[1] for k in range(3)}, name, 1),
    ]
    with as_written():  # as where a sweep leaves its curves
        figures.append(
            efficiency({"score": name, "curves": [{"name": name, "points": POINTS}, {"name": "b", "points": POINTS}]})
        )
    for figure in figures:
        figure.savefig(io.BytesIO(), format="png")
    assert name in drawn([Line(name, {1: Score(0.5), 2: Score(0.6)})], Axes(name, name, name, [name]), "figure")


def states(*folders: Path) -> dict[str, str]:
    return {entry.name: entry.state for entry in entries([], [*folders])}


def test_the_list_names_every_task_and_the_state_of_its_data_and_prepares_nothing(tmp_path):
    found = states()
    assert {*found} == {name for name in options("task") if "/" not in name}
    assert {found[name] for name in GENERATED} == {"generated"}
    assert found["image_folder"] == "needs task.path"
    assert {found[name] for name in ("omniglot", "cifar_fs", "cub", *WITHOUT_DOWNLOAD)} == {"absent"}
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    assert states()["cifar_fs"] == states()["fc100"] == "raw files found"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-100-python"]


def test_a_task_is_ready_only_where_all_the_arrays_that_it_reads_are(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "options", lambda group, root: ["omniglot", "omniglot_lake"])
    Source(tmp_path / "data/prepared/omniglot-28", (28, 28), drawings).prepared()
    found = states()
    assert (found["omniglot"], found["omniglot_lake"]) == ("ready", "absent")
    (tmp_path / "data/omniglot-py/one_shot").mkdir(parents=True)
    (tmp_path / "data/omniglot-py/one_shot/all_runs.zip").write_text("")
    assert states()["omniglot_lake"] == "raw files found"
    Source(tmp_path / "data/prepared/omniglot-runs-28", (28, 28), drawings).prepared()
    assert states()["omniglot_lake"] == "ready"


def drawings() -> ClassRows:
    yield "run01/class01", np.zeros((2, 28, 28), dtype=np.uint8)


def test_sentences_are_ready_only_where_their_features_are_too(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "options", lambda group, root: ["requests"])
    (tmp_path / "mine" / "task").mkdir(parents=True)
    option = (CONFIGS / "task" / "text_jsonl.yaml").read_text().replace("path: ???", f"path: {REQUESTS}")
    (tmp_path / "mine" / "task" / "requests.yaml").write_text(option)
    assert states(tmp_path / "mine")["requests"] == "raw files found"
    assert metarun("data", "prepare", "requests", f"--config-dir={tmp_path / 'mine'}").code == 0
    assert states(tmp_path / "mine")["requests"] == "ready"
    (features,) = (tmp_path / "data" / "prepared").glob("hashed-*")
    shutil.rmtree(features)
    (entry,) = entries([], [tmp_path / "mine"])
    assert (entry.state, entry.where) == ("raw files found", str(features))


def test_list_prints_a_table_that_says_what_to_do():
    outcome = metarun("data", "list")
    assert outcome.code == 0, outcome.err
    assert all(word in outcome.out for word in ("data prepare mini_imagenet", "absent", "generated", "Sine waves"))


def test_prepare_verify_and_show_of_the_user_s_own_images(tmp_path, photos):
    outcome = metarun("data", "prepare", "image_folder", photos, "task.size=20")
    assert outcome.code == 0, outcome.err
    assert "image_folder is ready: image_folder: sha256" in outcome.out
    (prepared,) = (path for path in (tmp_path / "data" / "prepared").iterdir() if path.is_dir())
    assert metarun("data", "verify", "image_folder", photos, "task.size=20").code == 0
    content = bytearray((prepared / "images.npy").read_bytes())
    content[-1] ^= 1
    (prepared / "images.npy").write_bytes(content)
    refused = metarun("data", "verify", "image_folder", photos, "task.size=20")
    assert refused.code == 2
    assert "has changed since it was prepared" in refused.err


def test_show_writes_a_picture_with_the_colours_of_the_images(tmp_path, photos):
    assert metarun("data", "show", "image_folder", photos).out == "wrote image_folder-train-0.png\n"
    pixels = np.asarray(Image.open(tmp_path / "image_folder-train-0.png").convert("RGB")).reshape(-1, 3)
    shown = {tuple(map(int, pixel)) for pixel in pixels[::7]}
    assert len(shown & {colour(name, i) for name in NAMES for i in range(10)}) == 20  # 2 ways of 5 + 5
    outcome = metarun("data", "show", "sinusoid", "--split", "test", "--episode", "3", "--out", "pictures/waves.png")
    assert outcome.code == 0, outcome.err
    assert Image.open(tmp_path / "pictures" / "waves.png").width > 300


def test_a_task_of_an_outsider_is_listed_and_shown(tmp_path):
    flag, folder = OUTSIDE.split("=")
    assert "prototypes" in metarun("data", "list", flag, folder).out
    outcome = metarun("data", "show", "prototypes", flag, folder, "--out", "outside.png")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", [*WITHOUT_DOWNLOAD, "cub", "cifar_fs", "fc100", "omniglot", "omniglot_lake"])
def test_absent_data_ends_a_run_and_a_preparation_with_code_2_and_what_to_do(name, tmp_path):
    commands = [["data", "prepare", name]]
    commands += [[f"task={name}", "base_learner=conv4"]] if name in ("cub", *WITHOUT_DOWNLOAD) else []
    for words in commands:
        outcome = metarun(*words)
        assert outcome.code == 2
        assert "METARUN_DATA" in outcome.err and str(tmp_path / "data") in outcome.err
        assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare"], "Missing argument"),
        (["prepare", "omniglott"], "there is no task called 'omniglott'; did you mean 'omniglot'"),
        (["prepare", "task.download=true"], "the name of a task comes first"),
        (["prepare", "sinusoid", "task.num_shotz=1"], "did you mean task.num_shots"),
        (["prepare", "image_folder"], "task.path has no value; add task.path=..."),
        (["prepare", "image_folder", "task.path=typo"], "task.path typo does not exist"),
        (["show", "sinusoid", "--split", "tset"], "--split is 'tset', but must be one of train, val, test"),
        (["show", "sinusoid", "--episode", "-1"], "--episode is -1, but must be 0 or more"),
        (["show", "sinusoid", "--out", "a.xyz"], "--out a.xyz: cannot be written: Format 'xyz' is not supported"),
    ],
)
def test_a_mistake_is_answered_with_code_2_and_the_fix(words, message):
    outcome = metarun("data", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_an_episode_beyond_a_fixed_test_set_is_answered_with_the_last_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Sinusoid, "spec", replace(Sinusoid.spec, num_test_tasks=3))
    with pytest.raises(ConfigError, match="--episode is 3, but the last test episode of sinusoid is 2; use 0 to 2"):
        show("sinusoid", [], [], "test", [0, 3], None)
    assert list(tmp_path.iterdir()) == []
    for split, episode in (("test", 2), ("val", 3)):
        show("sinusoid", [], [], split, [episode], None)
    assert {path.name for path in tmp_path.iterdir()} == {"sinusoid-test-2.png", "sinusoid-val-3.png"}


def test_pictures_have_a_panel_for_support_and_query_of_each_episode():
    x = torch.rand(2, 6, 3, 8, 8)
    batch = Batch(x, torch.arange(3).repeat_interleave(2).repeat(2, 1))
    figure = class_figure(Episode(batch, batch), ["one", "two"], [["a", "b", "c"]] * 2)
    assert len(figure.axes) == 4
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0: a", "1: b", "2: c"]
    numbers = Batch(torch.rand(2, 5, 3), torch.rand(2, 5, 1))
    assert len(numbers_figure(Episode(numbers, numbers), ["one", "two"]).axes) == 8  # a heat map and its scale each


@pytest.mark.parametrize("name", ["data(1)", "a,b", "a=b", "it's a [folder]"])
def test_the_doctor_reads_a_data_root_of_any_name(name, tmp_path):
    (tmp_path / name).mkdir()
    states = {what: state for what, state, *_ in doctor.findings(tmp_path / name)}
    assert states["data root"] == "ok" and states["omniglot"] == "info"


def test_the_doctor_says_of_every_data_set_whether_it_is_there():
    outcome = metarun("doctor")
    assert outcome.code == 0, outcome.err
    assert all(f"metarun data prepare {name}" in outcome.out for name in ("omniglot", "cifar_fs", "clinc150", "cub"))
    assert "sinusoid" not in outcome.out  # nothing to fetch


def test_no_terminal_breaks_a_name_in_the_list_or_elides_the_data_root(tmp_path, monkeypatch):
    found = list(entries([], []))
    for module in (data, doctor):
        monkeypatch.setattr(module, "entries", lambda overrides, folders: iter(found))
    for columns in (60, 80, 120):
        for module in (data, doctor):
            console = Console(width=columns, markup=False, emoji=False)
            monkeypatch.setattr(module, "table_console", lambda width, console=console: console)
        listed, examined = metarun("data", "list").out, metarun("doctor").out
        shown = listed.splitlines()[:-1]
        assert {name for name in options("task") if "/" not in name} <= {line.split()[0] for line in shown}
        assert max(map(len, shown)) <= columns
        assert listed.endswith(f"data root: {tmp_path / 'data'}\n")
        assert "\u2026" not in listed + examined
        assert column_of(examined, "data root") == str(tmp_path / "data")


def column_of(table: str, name: str) -> str:
    """What stands in the column "here" of a row, which may take several lines."""
    head, *rows = table.splitlines()
    first = next(i for i, row in enumerate(rows) if row.startswith(name))
    more = next(i for i, row in enumerate(rows[first + 1 :], first + 1) if row[:1].strip())
    return "".join(row[head.index("here") : head.index("fix")].strip() for row in rows[first:more])
