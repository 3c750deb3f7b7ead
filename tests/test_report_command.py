"""``metarun report``: its numbers are those of the runs, and what is missing is said and never averaged away."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import t

from metarun.commands.report_parts import shots_needed
from metarun.commands.report_rows import Row
from metarun.output.ledger import run_at
from metarun.output.lines import Line
from metarun.output.scored import Scored
from metarun.output.tables import Score
from tests import browser
from tests.kept_runs import keep, made, mean, write
from tests.running import environment, metarun, read

SEEDS = 3
SHIFTS = {"maml": 0.80, "protonet": 0.85, "maml_plus_plus": 0.83}


class Page(HTMLParser):
    """What a page shows: the cells of its tables by their ids, texts of its lists, addresses and identifiers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text()
        self.tables: dict[str, list[list[dict[str, str]]]] = {}
        self.items: list[str] = []
        self.addresses: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.inside: str = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        told = dict(attrs)
        self.tags.append(tag)
        self.ids += [told["id"]] if "id" in told else []
        self.addresses += [(tag, told[key] or "") for key in ("src", "href", "xlink:href", "data") if key in told]
        if tag == "table":
            self.tables[told["id"]] = []
            self.current = self.tables[told["id"]]
        elif tag == "tr":
            self.current.append([])
        elif tag in ("td", "th"):
            self.current[-1].append({"text": "", "value": told.get("data-value", "")})
            self.inside = tag
        elif tag == "li":
            self.items.append("")
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside in ("td", "th"):
            self.current[-1][-1]["text"] += data
        elif self.inside == "li":
            self.items[-1] += data

    def rows(self, name: str, key: str = "text") -> list[dict[str, str]]:
        """A table's rows, each by the names of its columns."""
        heads, *rows = self.tables[name]
        return [{head["text"]: cell[key] for head, cell in zip(heads, row, strict=True)} for row in rows]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Three learners of three seeds, on the same episodes of each seed."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in range(SEEDS):
        difficulty = np.random.default_rng(seed).normal(0, 0.1, 40)
        for place, (learner, shift) in enumerate(SHIFTS.items()):
            noise = np.random.default_rng([seed, place]).normal(0.01 * seed, 0.02, 40)
            values = shift + difficulty + noise
            run = made(folder / f"{learner}{seed}", values, learner=learner, seed=seed, ago=1000 - 100 * place)
            results = read(run / "results.json")
            results["test/accuracy"] |= {
                "ci95": 0.01 * (1 + seed),
                "n": 40,
                "ci95_over_classes": 0.05,
                "num_classes": 20,
            }
            results["learning_speed"] = {
                "accuracy": {"area": mean(0.6), "change": mean(0.7), "steps_to_90_percent": seed}
            }
            write(run / "results.json", results)
    return folder


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    outcome = metarun("report", sweep, f"--out={folder}")
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report / "report.html")


def results(sweep: Path, learner: str) -> list[dict[str, Any]]:
    return [read(sweep / f"{learner}{seed}" / "results.json")["test/accuracy"] for seed in range(SEEDS)]


def half_width_over_episodes(sweep: Path, learner: str) -> float:
    """Of the mean over the seeds, each with episodes of its own: Welch's, from their scores."""
    files = [sweep / f"{learner}{seed}" / "episodes.jsonl" for seed in range(SEEDS)]
    values = [[json.loads(line)["scores"]["accuracy"] for line in file.read_text().splitlines()] for file in files]
    squares = [variance(each) / len(each) for each in values]
    freedom = sum(squares) ** 2 / sum(square**2 / (len(each) - 1) for square, each in zip(squares, values, strict=True))
    return float(t.ppf(0.975, int(freedom))) * math.sqrt(sum(squares)) / SEEDS


def reported(*words: object) -> Page:
    outcome = metarun("report", *words)
    assert outcome.code == 0, outcome.err
    out = next((str(word).partition("=")[2] for word in words if str(word).startswith("--out=")), None)
    return Page(Path(out or f"{words[0]}/report") / "report.html")


# ---- numbers ----


def test_the_tables_numbers_are_those_of_results_json(page, sweep):
    full, shown = page.rows("scores", "value"), page.rows("scores")
    assert [row["group"] for row in shown] == list(SHIFTS)
    for row, text in zip(full, shown, strict=True):
        told = results(sweep, text["group"])
        means = [score["mean"] for score in told]
        for column in ("accuracy over seeds", "accuracy over episodes", "accuracy over classes"):
            assert float(row[column]) == pytest.approx(fmean(means), rel=1e-12)
        halves = {
            "accuracy over seeds": t.ppf(0.975, SEEDS - 1) * stdev(means) / math.sqrt(SEEDS),
            "accuracy over episodes": half_width_over_episodes(sweep, text["group"]),
            "accuracy over classes": 0.05,
        }
        for column, half in halves.items():
            first, second = (float(part) for part in text[column].split(" ± "))
            digits = len(text[column].split(" ± ")[1].partition(".")[2])
            assert (first, second) == pytest.approx((fmean(means), half), abs=0.51 * 10**-digits)
        assert text["seeds"] == "0, 1, 2" and "missing seeds" not in text


def test_the_intervals_of_means_are_those_of_compare(report, sweep):
    compared = json.loads(metarun("compare", sweep, "--by=meta_learner", "--format=json").out)["scores"]
    for row, other in zip(json.loads((report / "report.json").read_text())["scores"], compared, strict=True):
        for column in ("accuracy over seeds", "accuracy over episodes"):
            assert row[column] == other[column]


@pytest.mark.parametrize("lost", ["the file", "a line"])
def test_without_scores_of_episodes_an_interval_is_made_of_those_of_the_runs(lost, tmp_path):
    for seed, values in enumerate(([0.5, 0.7, 0.9], [0.1, 0.2, 0.6])):
        file = made(tmp_path / f"maml{seed}", values, seed=seed) / "episodes.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[1:] if lost == "a line" else []))
    (row,) = reported(tmp_path).rows("scores", "value")
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    assert float(row["accuracy over episodes"]) == pytest.approx(0.5)
    assert float(rows[0]["accuracy over episodes_ci95"]) == pytest.approx(0.0123 / math.sqrt(2))


def test_every_run_stands_in_the_page_with_its_score(page, sweep):
    names = [row["run"] for row in page.rows("runs")]
    assert sorted(names) == sorted(f"{learner}{seed}" for learner in SHIFTS for seed in range(SEEDS))
    assert sorted(map(float, (row["test accuracy"] for row in page.rows("runs", "value")))) == pytest.approx(
        sorted(score["mean"] for learner in SHIFTS for score in results(sweep, learner))
    )


def test_markdown_latex_and_csv_say_the_numbers_of_the_page(page, report):
    shown = page.rows("scores")
    markdown, latex = (report / "report.md").read_text(), (report / "report.tex").read_text()
    rows = list(csv.DictReader((report / "report.csv").open()))
    for row, full, plain in zip(shown, page.rows("scores", "value"), rows, strict=True):
        name, scores = row["group"], [row[column] for column in row if column.startswith("accuracy")]
        assert f"| {name} | 0, 1, 2 | {' | '.join(scores)} |" in markdown
        line = " & ".join([name.replace("_", r"\_"), "0, 1, 2", *("$" + score + "$" for score in scores)])
        assert line.replace("±", r"\pm") + r" \\" in latex
        assert float(plain["accuracy over seeds"]) == float(full["accuracy over seeds"])
        assert float(plain["accuracy over episodes_ci95"]) > 0 and plain["accuracy over episodes_n"] == "120"


def test_differences_and_p_values_are_those_of_compare(page, sweep):
    outcome = metarun("compare", sweep, "--by=meta_learner", "--format=json")
    expected = json.loads(outcome.out)["differences"]
    for row, other in zip(page.rows("differences", "value"), expected, strict=True):
        for column in ("difference over seeds", "difference over episodes"):
            assert float(row[column]) == pytest.approx(other[column]["mean"])
        for column in ("win rate", "p over seeds", "Holm's p over seeds", "Holm's p over episodes"):
            assert float(row[column]) == pytest.approx(other[column])


def test_curves_have_their_numbers_beside_them(page, sweep):
    steps = page.rows("adaptation-numbers", "value")
    for step, row in enumerate(steps):
        told = [
            read(sweep / f"maml{seed}" / "results.json")[f"test/accuracy_step_{step}"]["mean"] for seed in range(SEEDS)
        ]
        assert float(row["adaptation steps on the support"]) == step
        assert float(row["maml"]) == pytest.approx(fmean(told))
    (training,) = page.rows("training-numbers")
    assert training["training steps"] == "50" and training["protonet"].startswith("0.8")
    assert [row["steps to 90% of it, by seed"] for row in page.rows("speed")] == ["0, 1, 2"] * 3
    assert page.rows("cost", "value")[0]["parameters of theta"] == "1761"


def test_the_interval_of_one_seed_is_over_its_episodes_alone(tmp_path):
    made(tmp_path / "one", [0.5, 0.7, 0.9])
    (row,) = reported(tmp_path).rows("scores")
    assert row.keys() == {"group", "seeds", "accuracy over episodes"}
    alone = Row("", {0: Scored(run_at(tmp_path / "one"), "one")})
    assert alone.over_seeds("test/accuracy") == (pytest.approx(0.7), None, 1)


def test_score_against_shots_is_of_evaluations_that_change_the_shots_alone(tmp_path):
    for seed in range(2):
        run = keep(tmp_path / f"maml{seed}", score=0.6 + 0.1 * seed, seed=seed)
        (run / "evaluations").mkdir()
        for shots, overrides in ((5, []), (10, ["execution=looped"]), (20, ["meta_learner.inner_lr=1"])):
            protocol = {"checkpoint": "best", "split": "test", "task": {"num_shots": shots}}
            content = {"test/accuracy": mean(0.7 + 0.01 * shots), "protocol": protocol}
            content["overrides"] = [f"task.num_shots={shots}", *overrides]
            write(run / "evaluations" / f"{shots}.json", content)
    page = reported(tmp_path)
    rows = page.rows("shots-numbers", "value")
    found = {row["labelled examples of each class or task (shots)"]: float(row["maml"]) for row in rows}
    assert found == pytest.approx({"1": 0.65, "5": 0.75, "10": 0.8})
    (needed,) = page.rows("shots-needed")
    assert needed == {"group": "maml", "shots measured": "1, 5, 10", "shots to 90% of the gain": "10"}


def test_score_against_shots_is_of_the_curve_of_the_final_test_where_there_is_one(tmp_path):
    for seed in range(2):
        run = keep(tmp_path / f"maml{seed}", score=0.6, seed=seed)
        results = json.loads((run / "results.json").read_text())
        curve = {f"test/accuracy_shots_{k}": mean(0.1 * k + 0.2 * seed) for k in (1, 5)}
        write(run / "results.json", {**results, **curve})
    page = reported(tmp_path)
    rows = page.rows("shots-numbers", "value")
    found = {row["labelled examples of each class or task (shots)"]: float(row["maml"]) for row in rows}
    assert found == pytest.approx({"1": 0.2, "5": 0.6})  # and not 0.6 of its own test, whose tasks are others


def test_a_point_of_a_curve_that_is_no_finite_number_is_told(tmp_path):
    run = keep(tmp_path / "maml", score=0.6)
    results = json.loads((run / "results.json").read_text())
    curve = {f"test/accuracy_shots_{k}": mean(0.1 * k) for k in (5, 10)}
    write(run / "results.json", {**results, **curve, "test/accuracy_shots_1": {"mean": None, "ci95": None, "n": 600}})
    assert "maml: test/accuracy_shots_1 is not finite, and not drawn" in reported(tmp_path).items
    shown = metarun("show", str(run)).out
    assert re.search(r"test/accuracy_shots_1 +not finite", shown) and re.search(r"test/accuracy_shots_5 +0.5", shown)


def test_the_likelihood_stands_beside_the_score_of_learners_that_have_one(tmp_path):
    for learner, more in (("maml", {}), ("protonet", {"test/negative_log_likelihood": mean(-0.3)})):
        run = keep(tmp_path / learner, score=0.6, learner=learner)
        results = json.loads((run / "results.json").read_text())
        write(run / "results.json", {**results, **more})
    rows = reported(tmp_path).rows("scores", "value")
    assert [row["negative_log_likelihood over episodes"] for row in rows] == ["", "-0.3"]


def test_shots_needed_are_the_fewest_with_90_percent_of_the_gain():
    better = Line("accuracy", {1.0: Score(0.4), 2.0: Score(0.55), 5.0: Score(0.77), 10.0: Score(0.8)})
    lower = Line("mse", {1.0: Score(4.0), 2.0: Score(1.1), 5.0: Score(1.0)})
    level = Line("level", {1.0: Score(0.5), 5.0: Score(0.5)})
    assert [row[-1] for row in shots_needed([better, lower, level]).rows] == [5.0, 2.0, None]


def test_runs_trained_with_several_shots_make_a_curve(tmp_path):
    for shots in (1, 5):
        run = keep(tmp_path / f"{shots}", score=0.5 + 0.05 * shots)
        text = (run / "config.yaml").read_text().replace("num_shots: 1", f"num_shots: {shots}")
        (run / "config.yaml").write_text(text)
    page = reported(tmp_path)
    assert [row["group"] for row in page.rows("scores")] == ["maml num_shots=1", "maml num_shots=5"]
    (name,) = set(page.rows("shots-numbers")[0]) - {"labelled examples of each class or task (shots)"}
    assert name == "maml, trained with these"


# ---- what is missing ----


def test_runs_without_a_score_are_named_and_never_averaged(tmp_path):
    for seed in range(3):
        keep(tmp_path / f"protonet{seed}", score=0.9, learner="protonet", seed=seed)
    keep(tmp_path / "maml0", score=0.8, seed=0)
    failed = keep(tmp_path / "maml1", score=None, state="failed", seed=1)
    write(failed / "status.json", {**read(failed / "status.json"), "error": "RuntimeError: out of memory"})
    killed = keep(tmp_path / "maml3", score=None, state="running", seed=3)
    page = reported(tmp_path)
    protonet, maml = sorted(page.rows("scores"), key=lambda row: row["group"], reverse=True)
    assert maml["seeds"] == "0" and maml["missing seeds"] == "1 (failed), 2 (no run), 3 (killed)"
    assert protonet["seeds"] == "0, 1, 2" and protonet["missing seeds"] == "3 (no run)"
    value = next(row for row in page.rows("scores", "value") if row["accuracy over seeds"] == "0.8")
    assert float(value["accuracy over episodes"]) == 0.8
    told = "\n".join(page.items)
    assert "maml1 (maml) does not count: failed at step 50 of 100: RuntimeError: out of memory" in told
    assert f"{killed.name} (maml) does not count: killed at step 50 of 100" in told
    assert "maml has no run of seed 2, which others have" in told
    assert "the groups' means are over different seeds" in told
    for ending in ("md", "tex"):
        assert "maml1 (maml) does not count: failed" in (tmp_path / "report" / f"report.{ending}").read_text()


def test_runs_in_progress_show_their_curve_and_best_validation(tmp_path):
    run = keep(tmp_path / "maml0", score=None, state="running")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "val/accura')  # cut short
    write(run / "status.json", {**read(run / "status.json"), "val/accuracy": 0.8, "best_val/accuracy": 0.8})
    page = reported(tmp_path)
    assert page.rows("runs", "value")[0]["best validation accuracy"] == "0.8"
    assert page.rows("scores")[0]["accuracy over episodes"] == "" and "Validation by training step" in page.text


def test_a_run_without_configuration_is_said_to_be_in_no_group(tmp_path):
    keep(tmp_path / "maml0")
    (keep(tmp_path / "maml1", seed=1) / "config.yaml").unlink()
    assert any(item.startswith("maml1 is in no group") for item in reported(tmp_path).items)


def test_runs_that_differ_in_a_setting_are_groups_of_their_own(tmp_path):
    for seed in range(2):
        keep(tmp_path / f"short{seed}", seed=seed, steps=100)
        keep(tmp_path / f"long{seed}", seed=seed, steps=200)
    assert {row["group"] for row in reported(tmp_path).rows("scores")} == {"maml steps=100", "maml steps=200"}
    refused = metarun("report", tmp_path, "--by=meta_learner")
    assert refused.code == 2 and "are both of seed 0 and differ in steps" in refused.err


def test_folds_that_test_on_other_tasks_have_a_mean_over_them_with_its_interval(tmp_path):
    for fold in range(3):
        for seed, learner in ((0, "maml"), (1, "maml"), (0, "protonet")):
            score = 0.5 + 0.1 * fold + 0.02 * seed + 0.1 * (learner == "protonet")
            run = keep(tmp_path / f"{learner}{fold}{seed}", score=score, learner=learner, seed=seed)
            cfg = yaml.safe_load((run / "config.yaml").read_text())
            cfg["task"] |= {"test_tasks": [f"s{fold}"], "val_tasks": ["s9" if fold else "s8"]}
            (run / "config.yaml").write_text(yaml.safe_dump(cfg))
    found = {row["group"]: row for row in reported(tmp_path).rows("folds")}
    half = t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert {name: row["folds"] for name, row in found.items()} == {"maml": "3", "protonet": "3"}
    told = {name: row["accuracy over folds"] for name, row in found.items()}
    assert told == {"maml": Score(0.61, half).text(" ± "), "protonet": Score(0.7, half).text(" ± ")}
    printed = metarun("report", tmp_path).out
    assert "accuracy over folds" in printed and Score(0.61, half).text() in printed
    report = tmp_path / "report"
    assert all("accuracy over folds" in (report / f"report.{ending}").read_text() for ending in ("md", "tex"))
    told = json.loads((report / "report.json").read_text())
    assert told == json.loads(metarun("report", tmp_path, "--format=json").out)
    assert [told[name] for name in ("score", "trials")] == ["accuracy", []]
    of_folds = {row["group"]: row["accuracy over folds"]["mean"] for row in told["folds"]}
    assert of_folds == pytest.approx({"maml": 0.61, "protonet": 0.7})
    rows = list(csv.DictReader((report / "report.folds.csv").open()))
    assert {row["group"]: float(row["accuracy over folds"]) for row in rows} == pytest.approx(of_folds)
    for run in (*tmp_path.glob("*1?"), *tmp_path.glob("*2?")):
        shutil.rmtree(run)
    assert metarun("report", tmp_path).code == 0
    assert not (report / "report.folds.csv").exists(), "one fold has no mean over folds"


def test_a_group_that_mixes_settings_says_so(tmp_path):
    for seed in range(2):
        keep(tmp_path / f"maml{seed}", seed=seed, steps=100 + seed)
        keep(tmp_path / f"protonet{seed}", seed=seed, learner="protonet", steps=100)
    page = reported(tmp_path, "--by=meta_learner")
    assert "maml mixes runs of different steps: its mean is over these too" in page.items
    assert any(item.startswith("runs differ in more than meta_learner: steps") for item in page.items)
    assert {row["setting"]: row["maml"] for row in page.rows("differs")}["steps"] == "100, 101"


def test_the_same_run_again_counts_once_and_is_named(tmp_path):
    keep(tmp_path / "first", score=0.5, ago=600)
    keep(tmp_path / "second", score=0.6, ago=60)
    page = reported(tmp_path)
    assert page.rows("scores", "value")[0]["accuracy over episodes"] == "0.6"
    assert "first is left out: second is the same again, and later" in page.items


@pytest.mark.parametrize("odd", [{}, {"a": 1}, [], ["x"], None, 5, "text", True, {"mean": None}])
def test_no_value_of_another_kind_breaks_a_report(odd, tmp_path):
    keep(tmp_path / "runs" / "whole", seed=1)
    path = keep(tmp_path / "runs" / "odd")
    (path / "evaluations").mkdir()
    speed = {"area": mean(0.6), "change": mean(0.5), "steps_to_90_percent": 1}
    later = {"test/accuracy": mean(0.9), "overrides": ["task.num_shots=5"], "protocol": {"task": {"num_shots": 5}}}
    write(path / "evaluations" / "later.json", later)
    write(path / "alarms.jsonl", {"step": 1, "text": "x"})
    write(path / "results.json", {**read(path / "results.json"), "learning_speed": {"accuracy": speed}})
    outer, inner = (lambda content: dict.fromkeys(content, odd)), (lambda content: inside(content, odd))
    small = ("status.json", "run.json", "alarms.jsonl")
    for names, damage in (
        (small, outer),
        (["results.json"], outer),
        (["results.json", "evaluations/later.json"], inner),
    ):
        kept = {name: (path / name).read_bytes() for name in names}
        for name, content in kept.items():
            write(path / name, damage(json.loads(content)))
        outcome = metarun("report", tmp_path / "runs", f"--out={tmp_path / 'report'}")
        assert outcome.code in (0, 2) and "Traceback" not in outcome.text, (names, outcome.text)
        for name, content in kept.items():
            (path / name).write_bytes(content)


def inside(content: dict[str, Any], odd: Any) -> dict[str, Any]:
    """The values within the values replaced."""
    return {key: dict.fromkeys(value, odd) if isinstance(value, dict) else odd for key, value in content.items()}


def test_alarms_stand_in_the_report(tmp_path):
    run = keep(tmp_path / "maml0")
    (run / "alarms.jsonl").write_text('{"step": 50, "alarm": "at_chance", "text": "as guessing"}\n{"step": 6')
    assert page_alarms(reported(tmp_path)) == [("maml0", "50", "as guessing")]


def page_alarms(page: Page) -> list[tuple[str, str, str]]:
    return [(row["run"], row["step"], row["alarm"]) for row in page.rows("alarms")]


# ---- the page ----


def test_the_page_fetches_nothing(page):
    assert page.addresses and all(address.startswith(("#", "data:")) for _, address in page.addresses)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.text)
    assert not re.search(r"https?:|@import|url\((?!#)", without_names)
    assert not {"iframe", "object", "embed", "img"} & set(page.tags)


def test_every_part_of_the_page_can_be_referred_to_once(page):
    assert len(page.ids) == len(set(page.ids))
    targets = {address.removeprefix("#") for _, address in page.addresses if address.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", page.text)) | set(re.findall(r'aria-labelledby="([^"]*)"', page.text))
    assert targets <= set(page.ids)
    assert page.text.count("<svg") == page.text.count('role="img"') == 2


def test_names_from_run_folders_are_text_and_never_markup(tmp_path):
    run = keep(tmp_path / "<script>alert(1)<" / "img src=x>", score=None, state="failed")
    write(run / "status.json", {**read(run / "status.json"), "error": "</script><b>bad</b>"})
    page = reported(tmp_path)
    assert page.tags.count("script") == 1 and not {"img", "b"} & set(page.tags)
    assert page.rows("runs")[0]["run"] == "<script>alert(1)</img src=x>"


def test_a_browser_shows_the_page_and_its_numbers_without_complaint(page, report, sweep):
    with browser.opened(report / "report.html") as chromium:
        assert browser.complaints(chromium) == []
        assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0
        shown = browser.table(chromium, "scores")
        assert shown == [list(row.values()) for row in page.rows("scores")]
        expected = {learner: fmean(score["mean"] for score in results(sweep, learner)) for learner in SHIFTS}
        row = "row => [row.cells[0].innerText, Number(row.cells[2].dataset.value)]"
        values = chromium.execute_script(f"return [...document.querySelectorAll('#scores tbody tr')].map({row})")
        assert dict(values) == pytest.approx(expected, rel=1e-12)
        sizes = chromium.execute_script(
            "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(sizes) == 2 and min(sizes) > 200


def test_a_click_on_a_heading_sorts_the_table_both_ways(report):
    with browser.opened(report / "report.html") as chromium:
        button = chromium.find_element("css selector", "#scores th:nth-child(3) button")
        button.click()
        assert [row[0] for row in browser.table(chromium, "scores")] == sorted(SHIFTS, key=SHIFTS.__getitem__)
        button.click()
        assert [row[0] for row in browser.table(chromium, "scores")] == sorted(SHIFTS, key=lambda name: -SHIFTS[name])
        assert browser.complaints(chromium) == []


def test_on_a_narrow_screen_the_page_is_not_wider_than_it(report):
    with browser.opened(report / "report.html", width=360) as chromium:
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= 360


# ---- the command ----


def test_a_report_is_made_without_importing_torch(sweep, tmp_path):
    script = (
        "import sys\nfrom metarun.commands.main import main\ntry:\n    main(['report', *sys.argv[1:]])\n"
        "except SystemExit as end:\n    heavy = {'torch', 'hydra'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy or end.code else 0)\n"
    )
    command = [sys.executable, "-c", script, str(sweep), f"--out={tmp_path}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    endings = ("html", "md", "tex", "json", "csv", "differences.csv")
    assert {path.name for path in tmp_path.iterdir()} == {f"report.{ending}" for ending in endings}


def test_the_runs_of_a_folder_stay_as_they_are(tmp_path):
    run = made(tmp_path / "maml0", [0.5, 0.7])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    reported(tmp_path)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert len(reported(tmp_path).rows("runs")) == 1  # the report's own folder is no run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"),
        (["nowhere"], "there is no folder nowhere"),
        (["runs", "seed=7"], "none of the 1 runs in runs passes the filter; seed is 0 there"),
        (["runs", "sed=7"], "sed: no run has this; did you mean 'seed'?"),
        (["runs", "--by=meta_lerner"], "--by meta_lerner: no run has this"),
        (["runs", "--score=acuracy"], "--score acuracy: no run has it; they have accuracy"),
        (["runs", "--out=runs/maml0/status.json"], "Name a folder that can be written: --out DIR"),
        (["runs", "--format=pdf"], "--format is 'pdf'"),
    ],
)
def test_wrong_words_end_with_code_2_and_the_fix(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep(tmp_path / "runs" / "maml0")
    outcome = metarun("report", *words)
    assert outcome.code == 2 and said in outcome.err


def test_what_is_printed_in_a_format_is_the_file_of_it(sweep, tmp_path):
    for name, ending in (("json", "json"), ("csv", "csv"), ("md", "md"), ("latex", "tex")):
        outcome = metarun("report", sweep, f"--out={tmp_path}", f"--format={name}")
        assert outcome.out == (tmp_path / f"report.{ending}").read_text()
        assert f"report: {tmp_path}" in outcome.err


def test_the_json_has_every_table_of_scores_by_its_name_on_the_page(page, report):
    told = json.loads((report / "report.json").read_text())
    assert [row["group"] for row in told["scores"]] == list(SHIFTS) and told["folds"] == []
    couples = [[row["first"], row["second"]] for row in page.rows("differences")]
    assert [[row["first"], row["second"]] for row in told["differences"]] == couples
    rows = list(csv.DictReader((report / "report.differences.csv").open()))
    assert [float(row["difference over seeds"]) for row in rows] == pytest.approx(
        [row["difference over seeds"]["mean"] for row in told["differences"]]
    )
