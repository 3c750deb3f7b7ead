"""``metarun show`` and ``metarun diff``: what a run is, and in what two differ, whatever state their folders are in."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from metarun.output.tables import Score
from tests.kept_runs import config, keep, write
from tests.running import environment, metarun


def shown(path, *words: str) -> dict:
    outcome = metarun("show", path, "--format=json", *words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def change(path, **values: object) -> None:
    write(path, {**json.loads(path.read_text()), **values})


@pytest.fixture
def run(tmp_path):
    return keep(tmp_path / "a", score=0.9, seed=3)


def test_all_parts_of_a_run_are_shown(run):
    parts = shown(run)
    assert parts["run"]["state"] == "completed" and parts["run"]["meta_learner"] == "maml"
    assert parts["protocol"]["manifest"].startswith("1d92b3") and parts["protocol"]["checkpoint_step"] == 90
    assert parts["scores"]["test/accuracy"] == {"mean": 0.9, "ci95": 0.0123, "n": 600}
    assert [score["mean"] for score in parts["curve"].values()] == pytest.approx([0.2, 0.55, 0.9])
    assert parts["cost"] == {"parameters": 1761, "adaptation_ms": 0.5}
    assert parts["made with"]["torch"] == "2.9.0" and parts["made with"]["metarun"] == "0.1.0"
    assert "warnings" not in parts and "damaged" not in parts


def test_what_differs_from_the_defaults_of_its_own_options_is_shown(run):
    differs = shown(run)["differs"]
    assert differs["seed"] == {"value": 3, "default": 0}
    assert differs["steps"] == {"value": 100, "default": 30000}
    assert not [key for key in differs if key.startswith(("base_learner", "meta_learner", "run_dir"))]
    assert "  seed   3  (default 0)" in metarun("show", run).out.splitlines()


def test_a_run_without_loggers_says_so(tmp_path):
    run = keep(tmp_path / "a", score=0.9)
    path = run / "config.yaml"
    path.write_text(
        re.sub(r"^logger:.*?(?=^\w|\Z)", "", path.read_text(), flags=re.DOTALL | re.MULTILINE) + "logger: {}\n"
    )
    assert any(re.match(r"  logger +none", line) for line in metarun("show", run).out.splitlines())
    assert re.search(r"logger .* none ", metarun("diff", run, keep(tmp_path / "b", score=0.9)).out)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.9, 0.0123), "0.900 +- 0.012"),
        (Score(1.0, 2.3e-16), "1 +- 2.3e-16"),
        (Score(3.14159265e-7, 1e-9), "3.141593e-07 +- 1e-09"),
        (Score(12345.6, 120.0), "12346 +- 120"),
        (Score(0.25, 0.0), "0.25"),
    ],
)
def test_a_score_has_no_more_digits_than_its_interval_and_numbers_have(score, text):
    assert score.text() == text


def test_the_adaptation_curve_is_drawn(run):
    lines = metarun("show", run).out.splitlines()
    start = lines.index("accuracy after each adaptation step")
    assert lines[start + 1 : start + 4] == [
        "  0  0.200 +- 0.012  #######",
        "  1  0.550 +- 0.012  ##################",
        "  2  0.900 +- 0.012  ##############################",
    ]


def test_the_validations_of_training_are_drawn_at_no_more_than_a_dozen_steps(run):
    rows = [{"step": 10 * k, "val/accuracy": k / 100, "val/accuracy_ci95": 0.01} for k in range(1, 101)]
    rows.append({"step": 1000, "test/accuracy": 0.9})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(shown(run)["validation"]) == 100
    lines = metarun("show", run).out.splitlines()
    start, end = lines.index("accuracy on validation tasks by training step"), lines.index("cost")
    assert 8 <= end - start - 1 <= 12 and lines[end - 1] == "  1000  1.000 +- 0.010  " + 30 * "#"


def test_lines_of_metrics_that_were_cut_short_are_counted(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/acc')
    assert shown(run)["damaged"]["metrics.jsonl"].startswith("1 of its lines cannot be read")


def test_a_curve_of_negative_scores_is_drawn_from_the_lowest(run):
    scores = {
        f"test/accuracy_step_{k}": {"mean": value, "ci95": 1, "n": 6} for k, value in enumerate([-40.0, -10.0, 0.0])
    }
    change(run / "results.json", **scores)
    lines = metarun("show", run).out.splitlines()
    assert [line.count("#") for line in lines[lines.index("accuracy after each adaptation step") + 1 :][:3]] == [
        0,
        22,
        30,
    ]


def test_a_loss_that_is_the_score_is_told_once_and_kept_for_scripts(run):
    score = {"mean": 0.9, "ci95": 0.0123, "n": 600}
    for loss, times in (({**score, "mean": 0.4}, 1), (score, 0)):
        change(run / "results.json", **{"test/accuracy": score, "test/query_loss": loss})
        assert metarun("show", run).out.count("test/query_loss") == times
    assert shown(run)["scores"]["test/query_loss"] == score


def test_evaluations_made_later_are_shown_with_their_score(run):
    (run / "evaluations").mkdir()
    write(
        run / "evaluations" / "test_best_task.num_shots-5-a1.json",
        {"test/accuracy": {"mean": 0.97, "ci95": 0.01, "n": 600}},
    )
    assert shown(run)["evaluations"]["test_best_task.num_shots-5-a1"]["mean"] == 0.97


def test_what_the_log_warns_of_is_shown_once(run):
    said = "training did not help: frozen features would be better by 0.1 +- 0.01"
    line = f"2026-11-28 21:30:56  {said}\n"
    (run / "log.txt").write_text(
        f"2026-11-28 21:30:55  step 50/100\n{line}{said}\n2026-11-28 21:30:56  warning: at chance\n"
    )
    assert list(shown(run)["warnings"].values()) == [said, "warning: at chance"]


def test_an_alarm_that_the_run_kept_is_shown_once(run):
    (run / "alarms.jsonl").write_text(
        '{"step": 50, "alarm": "chance", "text": "accuracy is at chance"}\n{"step": 60}\n'
    )
    (run / "log.txt").write_text("2026-11-28 21:30:56  alarm at step 50: accuracy is at chance\n")
    assert list(shown(run)["warnings"].values()) == ["alarm at step 50: accuracy is at chance"]


def test_a_run_under_way_or_killed_is_shown_as_far_as_it_got(tmp_path):
    path = keep(tmp_path / "a", state="running", score=None)
    change(path / "status.json", **{"val/accuracy": 0.7, "best_val/accuracy": 0.8})
    parts = shown(path)
    assert parts["run"]["state"] == "killed" and parts["run"]["step"] == "50 of 100"
    assert parts["run"]["best validation"] == 0.8 and "scores" not in parts


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "results.json", "run.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_run_is_shown_without_what_is_damaged(name, damage, run):
    (run / name).write_bytes(damage)
    parts = shown(run)
    assert list(parts["damaged"]) == [name]
    assert metarun("diff", run, f"{run}/").code == 0


@pytest.mark.parametrize("odd", [{}, {"a": 1}, [], ["x"], None, 5, "text", True, {"mean": None}])
def test_no_value_of_another_kind_breaks_a_command(odd, run, tmp_path):
    for name in ("config.yaml", "status.json", "results.json", "run.json", "execution.json"):
        path = keep(tmp_path / "odd")
        content = (
            json.loads((path / name).read_text()) if name.endswith("json") and (path / name).exists() else config()
        )
        write(path / name, dict.fromkeys(content, odd))
        shows = [["show", path, "--format=md"]] if odd == {"a": 1} else []  # it takes a moment
        for words in (["runs", path], ["diff", run, path], ["compare", run, path], *shows):
            outcome = metarun(*words)
            assert outcome.code in (0, 2) and "Traceback" not in outcome.text, (name, words, outcome.text)


def test_results_of_other_kinds_and_of_later_versions_are_passed_over(run):
    odd = {"version": 1, "protocol": [1], "complexity": {"flops": {"mean": 5.0, "ci95": None, "n": 1}, "note": "text"}}
    change(run / "results.json", **odd)
    parts = shown(run)
    assert "protocol" not in parts and parts["cost"] == {"flops": {"mean": 5.0, "ci95": None, "n": 1}}


def test_intervals_over_other_classes_stand_apart_from_those_over_episodes(run):
    told = {"mean": 0.9, "ci95": 0.01, "n": 600, "ci95_over_classes": 0.04, "num_classes": 7}
    change(run / "results.json", **{"test/accuracy": told}, learning_speed={"accuracy": {"area": 0.6, "steps": 2}})
    parts = shown(run)
    assert parts["scores"]["test/accuracy"] == {"mean": 0.9, "ci95": 0.01, "n": 600}
    assert parts["over other classes"] == {"test/accuracy": {"mean": 0.9, "ci95": 0.04, "n": 7}}
    assert parts["learning speed"] == {"accuracy.area": 0.6, "accuracy.steps": 2} and "over other tasks" not in parts


def test_other_formats_have_a_row_for_each_value(run):
    rows = list(csv.DictReader(io.StringIO(metarun("show", run, "--format=csv").out)))
    assert {"part": "run", "name": "state", "value": "completed", "value_ci95": "", "value_n": ""} in rows
    assert "| scores | test/accuracy | 0.900 ± 0.012 |" in metarun("show", run, "--format=md").out
    assert r"scores & test/accuracy & $0.900 \pm 0.012$ \\" in metarun("show", run, "--format=latex").out


# ---- diff ----


def test_only_what_differs_between_two_runs_is_said(tmp_path):
    one = keep(tmp_path / "one", score=0.9, seed=0)
    other = keep(tmp_path / "other", score=0.95, seed=1, learner="protonet")
    change(other / "run.json", metarun="0.2.0", git={"commit": "abc", "dirty": False}, data="omniglot: 5 images")
    for path, version in ((one, "2.9.0"), (other, "2.9.1")):
        (path / "freeze.txt").write_text(f"numpy==2.1\ntorch=={version}\n")
        write(path / "execution.json", {"chosen": "looped" if path == one else "vmapped", "threads": 1})
    rows = json.loads(metarun("diff", one, other, "--format=json").out)
    found = {(row["part"], row["name"]): (row["one"], row["other"]) for row in rows}
    assert found["setting", "seed"] == (0, 1)
    assert found["setting", "meta_learner.inner_lr"] == (0.01, "(not there)")
    assert found["data", "data"] == ("omniglot: 32460 images", "omniglot: 5 images")
    assert found["code", "metarun"] == ("0.1.0", "0.2.0") and found["code", "commit"] == ("(not there)", "abc")
    assert found["machine", "execution"] == ("looped", "vmapped")
    assert found["package", "torch"] == ("2.9.0", "2.9.1") and ("package", "numpy") not in found
    assert found["score", "test/accuracy"][1]["mean"] == 0.95
    assert ("setting", "steps") not in found and ("setting", "run_dir") not in found


def test_equal_runs_do_not_differ(run):
    assert metarun("diff", run, f"{run}/") == (0, "the two runs do not differ\n", "")
    assert json.loads(metarun("diff", run, f"{run}/", "--format=json").out) == []


def test_changes_that_were_not_committed_tell_runs_apart(tmp_path):
    one, other = (keep(tmp_path / name) for name in ("one", "other"))
    for path in (one, other):
        change(path / "run.json", git={"commit": "abc", "dirty": True})
        (path / "git.diff").write_text(f"+{path.name}\n")
    assert [row["name"] for row in json.loads(metarun("diff", one, other, "--format=json").out)] == ["git.diff"]


@pytest.mark.parametrize(
    "words", [["show", "nowhere"], ["diff", "RUN", "nowhere"], ["show", "RUN/.."], ["show", "RUN", "--format=x"]]
)
def test_wrong_words_end_with_code_2_and_the_fix(words, run):
    outcome = metarun(*(word.replace("RUN", str(run)) for word in words))
    assert (outcome.code, outcome.out) == (2, "")
    assert "metarun runs" in outcome.err or "use table" in outcome.err


def test_looking_at_runs_loads_no_torch(run):
    script = (
        "import sys\nfrom metarun.commands.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy or end.code else 0)\n"
    )
    for words in (["show", run], ["diff", run, run]):
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
