"""``metarun reproduce``: the verdict by rule, what is refused, and runs that are killed, stopped and continued."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from metarun.commands.evaluate import name_of
from metarun.commands.reproduce import Wanted, evaluated, reproduce
from metarun.config.compose import composed
from metarun.errors import ConfigError, Diverged, Interrupted, MetarunError
from metarun.output.ledger import read
from metarun.paths import cards_dir
from metarun.reproduce import dependence, registry, running
from metarun.reproduce.card import of_run, score_at, seconds_of
from metarun.reproduce.registry import Figure, printed, task_of
from metarun.reproduce.verdict import Measured, measured, of_all, verdict
from metarun.sweep.times import seconds_in
from tests.running import metarun, wait_for

TINY = [
    "execution=looped",
    "execution.threads=1",
    "steps=40",
    "meta_batch_size=2",
    "evaluation.every=20",
    "evaluation.num_val_tasks=2",
    "evaluation.num_tasks=4",
]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A function that puts one paper's targets in the place of the registry."""

    def put(**targets: dict) -> None:
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        told = {"cited_as": "A et al.", "title": "T", "source": "https://x", "code": None, "targets": targets}
        (folder / "paper.yaml").write_text(yaml.safe_dump(told))
        monkeypatch.setattr(registry, "PUBLISHED", folder)
        registry.targets.cache_clear()

    yield put
    registry.targets.cache_clear()


def told(command: list[str] | None = None, **others) -> dict:
    """A target of a paper that prints 1.0 of sine waves after one step."""
    figure = {"name": "1 step", "value": 1.0, "interval": None, "interval_is": "not printed", "where": "Table 1"}
    target = {
        "title": "Sine waves",
        "benchmark": "sinusoid",
        "command": TINY if command is None else command,
        "score": "mse",
        "protocol": {"shots": 10},
        "differs": [],
        "figures": [{**figure, "read": "paper", "step": 1}],
        "reruns": [],
        "cause": None,
    }
    return target | others


def wanted(to: Path, **others) -> Wanted:
    return Wanted(
        **{
            "listed": False,
            "all_of_them": False,
            "paper": "",
            "within": "",
            "seeds": 1,
            "budget": "",
            "to": to,
            "chosen": "table",
        }
        | others
    )


# ---- the rule ----


def target(score: str) -> registry.Target:
    return registry.Target(None, "k", "t", "b", (), None, score, {}, (), (), (), None)  # type: ignore[arg-type]


def figure(value: float | None, interval: float | None = None, read: str = "paper") -> Figure:
    return Figure("f", value, interval, "95% over tasks", "Table 1", read)


@pytest.mark.parametrize(("score", "ours", "ci95", "paper", "verdict_"), [
    ("accuracy", 98.4, 0.5, figure(98.7), "reproduced"),            # inside our interval
    ("accuracy", 98.1, 0.2, figure(98.7, 0.7), "reproduced"),       # within the paper's
    ("accuracy", 97.8, 0.2, figure(98.7, 0.4), "close"),            # within a point
    ("accuracy", 97.6, 0.2, figure(98.7, 0.4), "missed"),
    ("accuracy", 99.9, 0.1, figure(98.7), "better"),
    ("accuracy", 91.2, 1.2, figure(89.7, 1.1), "better"),           # outside both intervals, on the good side
    ("accuracy", 88.2, 1.2, figure(89.7, 1.1), "missed"),           # worse by as much
    ("mse", 0.72, 0.03, figure(0.67), "close"),                     # within a tenth
    ("mse", 0.75, 0.03, figure(0.67), "missed"),
    ("mse", 0.50, 0.03, figure(0.67), "better"),                    # of errors the low ones are good
    ("accuracy", 98.7, 0.4, figure(98.7, read="unread"), "not judged"),
    ("accuracy", 98.7, 0.4, figure(98.7, read="quoted"), "not judged"),
    ("accuracy", 98.7, 0.4, figure(None), "not judged"),
])  # fmt: skip
def test_a_verdict_follows_the_rule(score, ours, ci95, paper, verdict_):
    assert verdict(target(score), paper, Measured(ours, ci95, 600, None)) == verdict_


def test_the_verdict_on_a_target_is_the_worst_of_its_figures():
    assert of_all(["reproduced", "close", "better"]) == "close"
    assert of_all([]) == "not judged"


def test_intervals_over_episodes_and_over_seeds_are_kept_apart():
    apart = measured([(1.0, 0.3, 600, "a"), (2.0, 0.4, 600, "b")])
    assert apart.mean == 1.5 and apart.ci95 == pytest.approx(0.25)  # sqrt(0.3 ** 2 + 0.4 ** 2) / 2
    assert apart.over_seeds == pytest.approx(12.7062 * 0.5, rel=1e-4)  # t of one degree of freedom, deviation 2 ** -0.5
    assert measured([(1.0, 0.3, 600, "a"), (2.0, 0.4, 600, "a")]).ci95 == pytest.approx(0.35)  # the same episodes
    assert measured([(1.0, 0.3, 600, "a")]).over_seeds is None


def test_errors_in_percent_are_what_accuracies_leave():
    assert target("error").in_its_units(0.895) == pytest.approx(10.5)
    assert target("accuracy").in_its_units(0.895) == pytest.approx(89.5)
    assert target("mse").in_its_units(0.895) == 0.895


# ---- what is refused ----


@pytest.mark.parametrize(("words", "said"), [
    ([], "name what to reproduce"),
    (["maml/sinusoid/5"], "did you mean 'maml/sinusoid/5s'? See: metarun"),
    (["maml"], "--list --all --paper maml"),
    (["reptile/omniglot/50w1s"], "--list --all --paper reptile"),
    (["2024"], "2024 is no published result that metarun knows. See: metarun"),
    (["maml/sinusoid/5s", "steps=10"], "steps=10 would reproduce something else"),
    (["maml/sinusoid/5s", "--seeds=0"], "--seeds is 0"),
    (["maml/sinusoid/5s", "--budget=soon"], "must be a time: 90, 90s, 30m, 1h30m or 2d"),
    (["maml/sinusoid/5s", "--within=2h"], "--paper, --within, --all and --format go with --list"),
    (["maml/sinusoid/5s", "--format=json"], "--paper, --within, --all and --format go with --list"),
    (["--list", "steps=3"], "steps=3 has no effect on the list"),
    (["--list", "--seeds=3"], "--seeds and --budget go with a name"),
    (["maml/omniglot/context_5w1s", "steps=4"], "metarun experiment=NAME steps=4"),
    (["maml/sinusoid/5s", "device=cuda:99"], "device is 'cuda:99'"),
    (["--list", "--paper=mml"], "--paper is 'mml'"),
    (["--list", "maml"], "--list stands without names"),
])  # fmt: skip
def test_a_wrong_command_is_refused_with_the_fix_before_anything_runs(words, said, tmp_path):
    outcome = metarun("reproduce", *words, f"--to={tmp_path / 'runs'}")
    assert outcome.code == 2 and said in " ".join(outcome.err.split())
    assert not (tmp_path / "runs").exists()


def test_a_target_without_a_preset_is_listed_alone(published, tmp_path):
    published(only=told() | {"command": None})
    with pytest.raises(ConfigError, match="can be listed, not run"):
        reproduce(["paper/only"], wanted(tmp_path))


def test_missing_data_are_named_with_what_fetches_them_before_anything_is_trained(published, tmp_path):
    published(sine=told(), images=told(["task=omniglot", "base_learner=conv4", *TINY]))
    with pytest.raises(MetarunError, match=r"task\.download=true") as failure:
        reproduce(["paper/sine", "paper/images", f"data_root={tmp_path / 'none'}"], wanted(tmp_path / "runs"))
    assert failure.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_missing_data_name_the_command_that_was_typed_to_be_typed_again(published, tmp_path, monkeypatch):
    published(images=told(["task=omniglot", "base_learner=conv4", *TINY]))
    monkeypatch.setattr(sys, "argv", ["metarun", "reproduce", "paper/images", "--to", "a b"])
    again = "metarun reproduce paper/images --to 'a b'"
    with pytest.raises(ConfigError) as failure:
        reproduce(["paper/images", f"data_root={tmp_path / 'none'}"], wanted(tmp_path / "runs"))
    (problem,) = failure.value.problems
    assert f"To download there: {again} task.download=true." in problem
    assert problem.endswith(f"Then type again: {again}")


def test_the_list_and_the_pages_print_a_papers_figure_with_the_digits_that_it_has(published, capsys):
    figure = {
        "name": "error",
        "value": 96.06,
        "interval": 1.0,
        "interval_is": "not said",
        "where": "",
        "read": "quoted",
    }
    assert printed(figure["value"], figure["interval"], figure["read"]) == "96.06 +- 1 (quoted)"
    published(only=told() | {"figures": [figure]})
    reproduce([], wanted(Path("none"), listed=True, chosen="md"))
    assert "96.06 +- 1 (quoted)" in capsys.readouterr().out


def test_a_time_is_a_number_of_seconds_or_parts_with_their_units():
    assert [seconds_in(text) for text in ("90", "30s", "90m", "1h30m", "0.5h")] == [90, 30, 5400, 5400, 1800]
    assert [seconds_in(text) for text in ("0", "0s", "1h30", "h", "-1m", "")] == [None] * 6


def test_a_folder_that_holds_a_run_of_other_settings_is_refused(published, tmp_path):
    published(sine=told())
    path = tmp_path / "paper" / "sine" / "seed0"
    assert metarun(*TINY, "steps=2", "seed=0", "optimizer.lr=0.5", f"run_dir={path}").code == 0
    with pytest.raises(
        ConfigError, match=r"holds a run with optimizer\.lr=0\.5, but .* has optimizer\.lr=0\.001 now\. Move"
    ):
        reproduce(["paper/sine"], wanted(tmp_path))


def test_a_test_that_diverged_in_an_episode_makes_no_card():
    results = {"test/mse": {"mean": None, "ci95": None, "n": 600}, "protocol": {"seed": 1}}
    with pytest.raises(Diverged, match=r"test/mse of seed 1 is no finite number"):
        score_at(registry.targets()["maml/sinusoid/5s"], results, None)


# ---- the list ----


def test_the_list_says_figures_time_data_and_our_card_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = metarun("reproduce", "--list", "--paper=maml", "--format=json")
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row for row in json.loads(outcome.out)}
    assert rows["maml/sinusoid/5s"]["data"] == "generated"
    assert "1 step: 0.67" in rows["maml/sinusoid/5s"]["paper's figures"]
    assert not list(tmp_path.iterdir())


def test_the_list_is_read_in_80_columns_a_figure_a_line():
    outcome = metarun("reproduce", "--list")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in lines if "data absent: " not in line)
    place = next(i for i, line in enumerate(lines) if line.startswith("maml/sinusoid/5s: "))
    assert lines[place].endswith(" a seed, data generated")
    assert [line.split()[:3] for line in lines[place + 1 : place + 4]] == [
        ["1", "step", "0.67"],
        ["5", "steps", "0.38"],
        ["10", "steps", "0.35"],
    ]
    ours = json.loads((cards_dir() / "maml" / "sinusoid_5s.json").read_text())["figures"][0]
    assert f"{ours['ours']['mean']:.3f} +- " in lines[place + 1] and ours["verdict"] in lines[place + 1]


def test_the_task_of_a_command_is_its_experiments_or_what_that_begins_with():
    assert task_of(("experiment=fomaml_omniglot_5w1s",)) == "omniglot"
    assert task_of(("experiment=maml_sinusoid", "task=quadratics")) == "quadratics"
    assert task_of(("steps=3",)) == "sinusoid"


# ---- whole, killed, stopped ----


def card_in(folder: Path) -> dict:
    return json.loads((folder / "paper" / "sine.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The card of two seeds that nothing disturbed, and what was printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    put = pytest.MonkeyPatch()
    place = folder / "published"
    place.mkdir()
    content = {"cited_as": "A et al.", "title": "T", "source": "https://x", "code": None, "targets": {"sine": told()}}
    (place / "paper.yaml").write_text(yaml.safe_dump(content))
    put.setattr(registry, "PUBLISHED", place)
    registry.targets.cache_clear()
    assert reproduce(["paper/sine"], wanted(folder, seeds=2)) == 0
    put.undo()
    registry.targets.cache_clear()
    return card_in(folder), read(folder / "paper" / "sine" / "seed0")


def test_a_card_holds_both_protocols_the_curve_and_the_commands(undisturbed):
    card, run = undisturbed
    assert card["command"] == "metarun reproduce paper/sine --seeds 2"
    assert [one["command"] for one in card["runs"]] == [f"metarun {' '.join(TINY)} seed={seed}" for seed in (0, 1)]
    (shown,) = card["figures"]
    assert shown["ours"]["seeds"][0]["mean"] == run.scores["test/mse_step_1"].mean
    assert shown["ours"]["mean"] == pytest.approx(sum(one["mean"] for one in shown["ours"]["seeds"]) / 2)
    assert shown["difference"]["mean"] == shown["ours"]["mean"] - 1.0
    assert [(row["seed"], row["queries"]) for row in card["common"]] == [(0, 5), (0, 15), (1, 5), (1, 15)]
    assert all(len(row["steps"]) == 2 and row["tasks"] == 600 for row in card["common"])  # after 0 and 1 inner steps
    assert [step for step, _ in card["runs"][0]["curve"]] == [0, 20, 40]
    assert card["runs"][0]["tested_step"] == run.results["protocol"]["checkpoint_step"]


def numbers(card: dict) -> list:
    """All that two cards of the same settings share of seed 0, bit by bit."""
    seeds = [figure["ours"]["seeds"][0] for figure in card["figures"]]
    return [seeds, [row for row in card["common"] if row["seed"] == 0], card["runs"][0]["curve"]]


def test_a_paper_that_tests_its_last_model_is_met_by_our_last_one(published, tmp_path, monkeypatch):
    words = [*(w for w in TINY if not w.startswith("optimizer")), "optimizer.lr=0.5"]  # so the start is the best
    published(sine=told(words, tested="last"))
    assert reproduce(["paper/sine"], wanted(tmp_path)) == 0
    card, run = card_in(tmp_path), tmp_path / "paper" / "sine" / "seed0"
    assert json.loads((run / "results.json").read_text())["protocol"]["checkpoint_step"] == 0
    made = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")]
    assert {results["protocol"]["checkpoint_step"] for results in made} == {40}
    (shown,) = card["figures"]
    assert shown["ours"]["evaluated_by"] == "metarun evaluate RUN --checkpoint last"
    assert shown["ours"]["mean"] in [results["test/mse_step_1"]["mean"] for results in made]
    assert all(row["evaluated_by"].startswith("metarun evaluate RUN --checkpoint last ") for row in card["common"])
    monkeypatch.setattr("metarun.commands.reproduce.evaluate_run", None)
    assert reproduce(["paper/sine"], wanted(tmp_path)) == 0  # all is there


@pytest.mark.parametrize(("name", "content", "said"), [
    ("results.json", "{", "results.json is absent or damaged"),
    ("results.json", "{}", "results.json is damaged .test/mse, test/mse_step_1 is gone."),
    ("run.json", "{}", "run.json does not say how the run was begun"),
    ("run.json", '{"history": [{}]}', "run.json does not say how the run was begun"),
    ("metrics.jsonl", "", "metrics.jsonl has no validation"),
])  # fmt: skip
def test_a_run_without_what_its_card_is_made_of_makes_no_card(name, content, said, undisturbed, published, tmp_path):
    published(sine=told())
    run = tmp_path / "paper" / "sine" / "seed0"
    shutil.copytree(undisturbed[1].path, run)
    (run / name).write_text(content)
    with pytest.raises(MetarunError, match=f"{said}.* and with it the proof of the run. Delete .*/seed0; the same"):
        reproduce(["paper/sine"], wanted(tmp_path))
    assert not (tmp_path / "paper" / "sine.json").exists()


def test_a_checkpoint_put_in_the_place_of_the_tested_one_makes_no_card(tmp_path, published, monkeypatch):
    published(sine=told())
    (seed,) = running.seeds_of(registry.target("paper/sine"), tmp_path, 1)
    for folder in ("evaluations", "checkpoints"):
        (seed.path / folder).mkdir(parents=True)
    (seed.path / "checkpoints" / "best.pt").touch()
    (seed.path / "results.json").write_text(json.dumps({"protocol": {"checkpoint_step": 40}}))
    made = {"protocol": {"checkpoint_step": 20}}

    def evaluate(run: Path, overrides: list, split: str, model: str, words: list) -> None:
        (run / "evaluations" / f"{name_of(overrides, split, model)}.json").write_text(json.dumps(made))

    monkeypatch.setattr("metarun.commands.reproduce.evaluate_run", evaluate)
    with pytest.raises(MetarunError, match=r"best.pt is of step 20, but the .* that of 40.*trains it again"):
        evaluated(seed, (), tmp_path / "log.txt")
    made["protocol"]["checkpoint_step"] = 40
    assert evaluated(seed, (), tmp_path / "log.txt") == made


def test_an_evaluation_that_lost_its_scores_is_made_again(undisturbed, published, tmp_path):
    run = undisturbed[1]
    published(sine=told())
    (seed,) = running.seeds_of(registry.target("paper/sine"), tmp_path, 1)
    shutil.copytree(run.path, seed.path)
    overrides = running.protocols(seed)[0]
    kept = seed.path / "evaluations" / f"{name_of(list(overrides), 'test', 'best')}.json"
    whole = json.loads(kept.read_text())
    for lost in ({"test/mse": None}, {"test/mse_step_1": None}, {"test/mse": {"mean": "0.5"}}):
        kept.write_text(json.dumps({**whole, **lost}))
        assert evaluated(seed, overrides, tmp_path / "log.txt")["test/mse_step_1"] == whole["test/mse_step_1"]
        assert json.loads(kept.read_text())["test/mse"] == whole["test/mse"]
    kept.unlink()
    (seed.path / "checkpoints" / "best.pt").unlink()
    with pytest.raises(MetarunError, match=r"best.pt is gone, and with it the proof of the run. Delete .*/seed0; the"):
        evaluated(seed, overrides, tmp_path / "log.txt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_one_killed_half_way_is_continued_by_the_same_command(published, undisturbed, tmp_path):
    published(sine=told())
    run = tmp_path / "paper" / "sine" / "seed0"
    pid = os.fork()
    if pid == 0:
        try:
            reproduce(["paper/sine"], wanted(tmp_path))
        finally:
            os._exit(0)
    wait_for((run / "checkpoints" / "best.pt").is_file, 60)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: running.RunFolder(run).read_status()["state"] != "running", 60)
    assert reproduce(["paper/sine"], wanted(tmp_path)) == 0
    assert numbers(card_in(tmp_path)) == numbers(undisturbed[0])


def test_a_budget_stops_the_training_and_the_same_command_goes_on(published, undisturbed, tmp_path, capfd):
    published(sine=told())
    assert reproduce(["paper/sine"], wanted(tmp_path, budget="0.1s")) == 128 + signal.SIGTERM
    said = capfd.readouterr().err
    assert "the budget is used up; the same command goes on" in said
    assert "continue with" not in said  # of the run itself
    assert not (tmp_path / "paper" / "sine.json").exists()
    assert reproduce(["paper/sine"], wanted(tmp_path)) == 0
    assert numbers(card_in(tmp_path)) == numbers(undisturbed[0])
    began = time.monotonic()
    assert reproduce(["paper/sine"], wanted(tmp_path)) == 0  # all is there
    assert time.monotonic() - began < 20


def test_where_it_runs_may_change_between_two_times(published, tmp_path, monkeypatch):
    """Whether data may be fetched makes no other run; an execution told once is kept."""
    words = ["task=omniglot", "base_learner=conv4", *(word for word in TINY if not word.startswith("execution"))]
    published(images=told(words))
    (seed,) = running.seeds_of(registry.target("paper/images"), tmp_path, 1)
    began = [*seed.words, "task.download=true", "execution.threads=1"]
    seed.path.mkdir(parents=True)
    (seed.path / "config.yaml").write_text(OmegaConf.to_yaml(composed(began, []), resolve=True))
    (seed.path / "run.json").write_text(json.dumps({"history": [{"overrides": began}]}))
    running.refuse_another(seed, [])
    asked = []
    monkeypatch.setattr(running.subprocess, "Popen", lambda words, **_: asked.extend(words) or sys.exit())
    for place, told_to_the_run in (([], "execution.threads=1"), (["execution.threads=2"], "execution.threads=2")):
        with pytest.raises(SystemExit):
            running.train(seed, place, None)
        assert [word for word in asked if word.startswith("execution")] == [told_to_the_run]
        asked.clear()


def test_a_card_of_a_run_that_fetched_its_data_is_of_the_targets_command():
    fetched, plain = (composed(["task=omniglot", f"task.download={value}"], []) for value in ("true", "false"))
    assert dependence.of_numbers(dependence.plain(fetched)) == dependence.of_numbers(dependence.plain(plain))
    assert dependence.digests(dependence.plain(fetched), None) == dependence.digests(dependence.plain(plain), None)


def test_a_run_continued_by_code_that_computes_otherwise_is_of_no_commit(undisturbed, tmp_path, monkeypatch):
    run, seed = undisturbed[1], running.seeds_of(registry.targets()["maml/sinusoid/5s"], tmp_path, 1)[0]
    shutil.copytree(run.path, seed.path)
    facts = json.loads((seed.path / "run.json").read_text())
    first = facts["history"][0]
    facts["git"] = {"commit": "b", "dirty": False}
    facts["history"] = [{**first, "git": {"commit": one, "dirty": False}} for one in ("a", "b")]
    (seed.path / "run.json").write_text(json.dumps(facts))
    for digests, kept in (({"a": "1", "b": "1"}, {"code": "1"}), ({"a": "0", "b": "1"}, None)):
        monkeypatch.setattr(dependence, "digests", lambda config, commit, its=digests: {"code": its[commit]})
        assert of_run(seed)["depends_on"] == kept


def test_a_card_has_the_seconds_that_a_run_counted_though_its_clock_was_set_back(undisturbed):
    run = undisturbed[1]
    parts = [
        {**run.history[0], "started": "2031-01-01T00:00:00+0000", "ended": "2030-01-01T00:00:00+0000"},
        *run.history,
    ]
    set_back = replace(run, facts={**run.facts, "history": parts})
    assert seconds_of(set_back) == seconds_of(run) == run.status["seconds"] > 0


def test_a_run_that_was_killed_says_by_what_and_what_to_do(published, tmp_path, monkeypatch):
    published(sine=told())
    (seed,) = running.seeds_of(registry.target("paper/sine"), tmp_path, 1)
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    begin = running.subprocess.Popen
    monkeypatch.setattr(running.subprocess, "Popen", lambda words, **more: begin(killed, **more))
    with pytest.raises(MetarunError, match=r"signal 9 .*no memory.*; the same command goes on") as failure:
        running.train(seed, [], None)
    assert failure.value.exit_code == 1


def test_an_interrupt_that_no_terminal_sends_reaches_the_run(published, tmp_path, monkeypatch):
    published(sine=told())
    (seed,) = running.seeds_of(registry.target("paper/sine"), tmp_path, 1)
    ends_by_it = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(0.3); "
    ends_by_it += "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    begin = running.subprocess.Popen
    monkeypatch.setattr(running.subprocess, "Popen", lambda words, **more: begin([sys.executable, "-c", ends_by_it]))
    monkeypatch.setattr(running, "_in_the_foreground", lambda: False)
    with pytest.raises(Interrupted) as stopped:
        running.train(seed, [], None)
    assert stopped.value.exit_code == 130
