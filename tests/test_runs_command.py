"""``metarun runs``: found, filtered, sorted, in every format, quickly, and without torch."""

import csv
import fcntl
import io
import json
import subprocess
import sys
import time

import pytest

from tests.kept_runs import keep
from tests.running import environment, metarun, process


@pytest.fixture
def some(tmp_path, monkeypatch):
    """Four runs in a folder runs."""
    monkeypatch.chdir(tmp_path)
    keep(tmp_path / "runs" / "2026-11-28" / "a", score=0.91, learner="maml", seed=0, ago=4000)
    keep(tmp_path / "runs" / "sweep" / "b", score=0.95, learner="protonet", seed=1, ago=300)
    keep(tmp_path / "runs" / "sweep" / "c", score=None, state="failed", learner="maml_plus_plus", seed=1, ago=200)
    keep(tmp_path / "runs" / "sweep" / "d", score=None, state="running", task="sinusoid", seed=2, ago=100)
    return tmp_path / "runs"


def rows(*words: str) -> list[dict]:
    outcome = metarun("runs", *words, "--format=json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def names(*words: str) -> list[str]:
    return [row["run"].rpartition("/")[2] for row in rows(*words)]


def test_every_run_has_a_row_with_its_state_names_score_and_step(some):
    first, *_, last = rows(str(some))
    assert first["score"] == {"mean": 0.91, "ci95": 0.0123, "n": 600}
    assert {key: first[key] for key in ("run", "state", "learner", "task", "seed", "metric", "step", "steps")} == {
        "run": "2026-11-28/a",
        "state": "completed",
        "learner": "maml",
        "task": "omniglot",
        "seed": 0,
        "metric": "test/accuracy",
        "step": 100,
        "steps": 100,
    }
    assert (last["run"], last["state"], last["score"], last["step"]) == ("sweep/d", "killed", None, "50/100")


def test_without_a_folder_the_runs_are_those_in_runs(some):
    assert names() == names("runs") == ["a", "b", "c", "d"]
    assert names("runs/sweep") == ["b", "c", "d"]
    assert names("runs/sweep/b") == ["b"]


@pytest.mark.parametrize(
    ("words", "passing"),
    [
        (["meta_learner=protonet"], ["b"]),
        (["meta_learner=MAMLPlusPlus"], ["c"]),
        (["learner=maml,protonet", "task=omniglot"], ["a", "b"]),
        (["seed=1"], ["b", "c"]),
        (["seed=0,2"], ["a", "d"]),
        (["state=failed"], ["c"]),
        (["state=killed"], ["d"]),
        (["optimizer=adam", "optimizer.lr=1e-3"], ["a", "b", "c", "d"]),
        (["base_learner.hidden=[40, 40]"], ["a", "b", "c", "d"]),
        (["run_dir=null", "meta_learner.inner_lr=0.01"], ["a", "d"]),
        (["task.num_shots=5"], ["d"]),
        (["seed=7"], []),
    ],
)
def test_a_filter_compares_columns_settings_and_options(words, passing, some):
    assert names(*words) == passing


@pytest.mark.parametrize(
    ("word", "passing"),
    [
        ("run_dir='a, b.csv'", True),
        ('run_dir="a, b.csv",x', True),
        ("run_dir=a,b", False),
        ("profile=[x,y z]", True),
        ("profile=[other],['x', \"y z\"]", True),
        ("profile=[x,yz2]", False),
        ("data_root=in_1", True),
        ("data_root=in1", False),
    ],
)
def test_a_filter_reads_quotes_and_lists_as_an_override_does(word, passing, tmp_path):
    keep(tmp_path / "a", run_dir="a, b.csv", profile=["x", "y z"], data_root="in_1")
    assert names(str(tmp_path), word) == ["a"] * passing


def test_a_filter_that_no_run_passes_is_told_with_the_values_there_are(some):
    assert "passes the filter; state is completed, failed, killed there" in metarun("runs", "state=complted").err


def test_a_running_run_shows_its_best_validation_so_far(some):
    path = some / "sweep" / "d"
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps({**status, "val/accuracy": 0.7, "best_val/accuracy": 0.8}))
    with (path / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (row,) = rows("state=running")
    assert (row["metric"], row["score"]["mean"]) == ("best val/accuracy", 0.8)


@pytest.mark.parametrize(
    ("key", "order"),
    [("score", "abcd"), ("-score", "bacd"), ("-seed", "dbca"), ("test/accuracy", "abcd"), ("age", "dcba")],
)
def test_sorting_puts_numbers_in_order_and_runs_without_one_last(key, order, some):
    assert "".join(names(f"--sort={key}")) == order


def test_a_setting_that_sorts_or_filters_is_a_column(some):
    assert [row["optimizer.lr"] for row in rows("optimizer.lr=0.001", "--sort", "evaluation.num_tasks")] == [0.001] * 4
    assert "evaluation.num_tasks" in metarun("runs", "--sort", "evaluation.num_tasks").out


def test_a_run_that_failed_says_why(some):
    path = some / "sweep" / "c" / "status.json"
    error = "Traceback (most recent call last):\n  File\nValueError: too many\n"
    path.write_text(json.dumps({**json.loads(path.read_text()), "error": error}))
    assert rows("state=failed")[0]["note"] == "ValueError: too many"


def test_damaged_runs_stand_in_the_table_with_what_is_damaged(some):
    (some / "sweep" / "b" / "results.json").write_text('{"test/')
    (some / "sweep" / "c" / "config.yaml").write_bytes(b"\xff: [")
    (some / "sweep" / "d" / "status.json").write_text("")
    outcome = metarun("runs")
    assert outcome.code == 0 and "Traceback" not in outcome.text
    assert all(f"{name}: cannot be read" in outcome.out for name in ("results.json", "config.yaml", "status.json"))


def test_csv_markdown_and_latex_have_a_row_for_each_run(some):
    assert [row["run"] for row in csv.DictReader(io.StringIO(metarun("runs", "--format=csv").out))][1] == "sweep/b"
    assert len(metarun("runs", "--format=md").out.splitlines()) == 6
    assert metarun("runs", "--format=latex").out.count(r" \\") == 5


def test_wrong_words_are_refused_with_the_fix(some):
    for words, said in (
        (["nowhere"], "there is no folder nowhere. Name the one that your runs lie in"),
        (["--format=tex"], "use table, json, csv, md or latex"),
        (["sed=1"], "sed: no run has this; did you mean 'seed'?"),
        (["--sort=scor"], "did you mean 'score'?"),
        (["state='failed,killed"], "state='failed,killed: it begins with ', and must end with '; or leave the ' out."),
        (['state=killed,"failed'], 'state="failed: it begins with ", and must end with "; or leave'),
        (['seed="0"1,2'], 'it begins with ", and must end with "; or leave the " out.'),
        (["base_learner.hidden=[40,40"], "=[40,40: it begins with [, and must end with ]"),
        (["runs/sweep", "here"], "one folder at a time: runs/sweep, here"),
    ):
        outcome = metarun("runs", *words)
        assert (outcome.code, outcome.out) == (2, "") and said in outcome.err


def test_the_answer_comes_without_torch_and_hydra(some):
    script = (
        "import sys\nfrom metarun.commands.main import main\ntry:\n    main(['runs', 'seed=1'])\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy or end.code else 0)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=some.parent, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_thousand_runs_are_listed_in_a_moment(tmp_path):
    for number in range(1000):
        keep(tmp_path / f"{number % 20}" / f"{number}", score=number / 1000, seed=number)
    start = time.monotonic()
    outcome = process("runs", ".", "--sort=-score", cwd=tmp_path)
    assert time.monotonic() - start < 20  # 1.4 s of processor time; others may share it
    assert outcome.code == 0 and len(outcome.out.splitlines()) == 1004
    assert "0.999" in outcome.out.splitlines()[3]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=0,1", "sweep_dir=a"],
        ["search", "a/b", "trials=1", "optimizer.lr=interval(1e-4,1e-2)"],
        ["reproduce", "maml/sinusoid/5s", "--to=a"],
        ["run_dir=a/b"],
        [],
    ],
)
def test_runs_do_not_begin_in_the_folder_of_a_run_where_nothing_lists_them(words, tmp_path, monkeypatch):
    held = sorted(path.name for path in keep(tmp_path / "a").iterdir())
    monkeypatch.chdir(tmp_path if words else tmp_path / "a")
    outcome = metarun(*words)
    assert (outcome.code, sorted(path.name for path in (tmp_path / "a").iterdir())) == (2, held), outcome.text
    assert f"{tmp_path / 'a'} is a run, and runs lie beside each other" in outcome.err
