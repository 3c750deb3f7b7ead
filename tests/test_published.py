"""The registry of published results: every file has one form, and every command trains at the paper's length."""

import re
from functools import cache
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from metarun.applied.trained import changed
from metarun.errors import ConfigError
from metarun.output.kept import Loader
from metarun.paths import PACKAGE, config_dir
from metarun.reproduce.registry import MARKS, targets, targets_in
from tests.composing import composed

FILES = sorted((PACKAGE / "published").glob("*.yaml"))
PAPERS: dict[str, dict[str, Any]] = {path.stem: yaml.load(path.read_bytes(), Loader) for path in FILES}
TARGETS = {f"{name}/{key}": target for name, paper in PAPERS.items() for key, target in paper["targets"].items()}

PAPER = ("cited_as", "title", "source", "code", "targets")
TARGET = ("title", "benchmark", "command", "score", "protocol", "differs", "figures", "reruns", "cause")
PROTOCOL = ("ways", "shots", "queries", "tasks", "inner_steps", "transductive", "split", "backbone", "training")
FIGURE, OPTIONAL = ("name", "value", "interval", "interval_is", "where", "read"), ("step", "evaluate")
RERUN = ("who", "figure", "value", "interval", "source", "read")
READ = ("paper", "code", "quoted", "unread")
SCORES = ("mse", "accuracy", "error", "query_loss")
NAME = r"[a-z0-9]+(?:_[a-z0-9]+)*"


def paper_of(name: str) -> str:
    return name.partition("/")[0]


def head_of(paper: str) -> str:
    """The comment that a file begins with."""
    lines = (PACKAGE / "published" / f"{paper}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def words_of(name: str) -> tuple[str, ...]:
    """The words that train a target: its own, or those of the target whose training it shares; none: listed only."""
    target = TARGETS[name]
    if shared := target.get("trained_as"):
        return words_of(f"{paper_of(name)}/{shared}")
    return tuple(target["command"] or ())


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    return composed(words, [])


def trained_by(words: tuple[str, ...]) -> DictConfig:
    """The configuration of a training, to be changed at will."""
    return OmegaConf.create(OmegaConf.to_container(_composed(words)))


def said_of(name: str) -> str:
    """How our protocol differs, in one text."""
    return " ".join(TARGETS[name]["differs"])


RUNNABLE = [name for name in TARGETS if words_of(name)]


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_says_first_how_it_was_read_and_then_where_it_is_found(name):
    paper = PAPERS[name]
    assert re.search("read", head_of(name))
    assert tuple(paper) == PAPER
    assert re.fullmatch(NAME, name)
    assert all(url is None or re.fullmatch(r"https://\S+", url) for url in (paper["source"], paper["code"]))


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_exactly_the_keys_of_the_form(name):
    target = TARGETS[name]
    training = "trained_as" if "trained_as" in target else "command"
    assert [key for key in target if key != "tested"] == [training if key == "command" else key for key in TARGET]
    assert target.get("tested", "last") == "last"  # or left out: the best of the validations
    assert tuple(target["protocol"]) == PROTOCOL
    assert target["score"] in SCORES
    assert target["cause"] is None or isinstance(target["cause"], str)
    assert all(isinstance(text, str) for text in target["differs"])
    for figure in target["figures"]:
        assert tuple(figure) == (*FIGURE, *(key for key in OPTIONAL if key in figure))
    assert all(tuple(rerun) == RERUN for rerun in target["reruns"])


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_an_id_a_benchmark_and_a_title_that_fit_a_table(name):
    target = TARGETS[name]
    assert re.fullmatch(rf"{NAME}/{NAME}/{NAME}", name)
    assert re.fullmatch(rf"{NAME}/{NAME}", target["benchmark"])
    assert name.split("/")[1] == target["benchmark"].split("/")[0]
    assert len(target["title"]) <= 60
    assert [other["title"] for other in PAPERS[paper_of(name)]["targets"].values()].count(target["title"]) == 1


@pytest.mark.parametrize("name", TARGETS)
def test_every_figure_says_what_it_is_where_it_stands_and_how_it_was_read(name):
    target = TARGETS[name]
    names = [figure["name"] for figure in target["figures"]]
    assert names
    assert len(set(names)) == len(names)
    for figure in target["figures"]:
        value, interval = figure["value"], figure["interval"]
        assert figure["read"] in READ
        assert all(isinstance(figure[key], str) and figure[key] for key in ("name", "interval_is", "where"))
        assert value is None or target["score"] not in ("accuracy", "error") or 1 < value <= 100, "percent, as printed"
        assert interval is None or (value is not None and interval >= 0)
        assert (figure["interval_is"] in ("not printed", "not read")) <= (interval is None)


@pytest.mark.parametrize("name", TARGETS)
def test_no_figure_that_is_quoted_or_from_memory_counts_as_read(name):
    for figure in TARGETS[name]["figures"]:
        assert figure["read"] == "unread" or "memory" not in figure["where"]
        assert figure["read"] in ("quoted", "unread") or "quoted" not in figure["where"]
        if figure["read"] == "unread" and figure["value"] is not None:
            assert "from memory" in figure["where"] + head_of(paper_of(name))


@pytest.mark.parametrize("name", TARGETS)
def test_every_rerun_names_a_figure_of_its_target_and_its_source(name):
    target = TARGETS[name]
    for rerun in target["reruns"]:
        assert rerun["figure"] in [figure["name"] for figure in target["figures"]]
        assert rerun["read"] in READ
        assert isinstance(rerun["value"], int | float)
        assert re.fullmatch(r"https://\S+", rerun["source"])


@pytest.mark.parametrize("name", [name for name in TARGETS if "trained_as" in TARGETS[name]])
def test_a_shared_training_is_that_of_a_sibling_with_a_command(name):
    sibling = TARGETS[f"{paper_of(name)}/{TARGETS[name]['trained_as']}"]
    assert sibling["command"]
    assert sibling["score"] == TARGETS[name]["score"]


def test_no_two_targets_of_a_paper_are_trained_by_the_same_words():
    trained = [(paper_of(name), words_of(name)) for name in RUNNABLE if "command" in TARGETS[name]]
    assert len(set(trained)) == len(trained)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if "command" in TARGETS[name]])
def test_every_command_composes_and_is_as_long_as_the_paper_s_training(name):
    cfg, words = trained_by(words_of(name)), words_of(name)
    if said := re.match(r"(\d+) steps(?: of (\d+) tasks?)?", TARGETS[name]["protocol"]["training"] or ""):
        assert cfg.steps == int(said[1])
        assert said[2] is None or cfg.meta_batch_size == int(said[2])
    elif "not read" not in said_of(name):  # the length of the preset, which its header explains
        assert not [word for word in words if word.startswith("steps=")]


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_figure_is_of_the_paper_s_ways_and_shots_and_of_a_step_that_is_taken(name):
    protocol = TARGETS[name]["protocol"]
    for figure in TARGETS[name]["figures"]:
        cfg = changed(trained_by(words_of(name)), figure.get("evaluate", []), [])
        assert not figure.get("evaluate") or cfg != trained_by(words_of(name)), "or leave evaluate out"
        for key in ("ways", "shots"):
            assert not isinstance(protocol[key], int) or cfg.task.get(f"num_{key}", protocol[key]) == protocol[key]
        assert figure.get("step", 0) <= (cfg.evaluation.inner_steps or cfg.meta_learner.get("inner_steps", 0))


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_test_on_other_queries_or_fewer_tasks_than_the_paper_s_is_said(name):
    protocol, cfg = TARGETS[name]["protocol"], trained_by(words_of(name))
    tasks, queries = protocol["tasks"], cfg.task.get("num_queries")
    assert tasks in (None, cfg.evaluation.num_tasks) or f"instead of {tasks}" in said_of(name)
    fixed = "runs" in TARGETS[name]["title"]  # Lake's
    assert fixed or protocol["queries"] in (None, queries) or "quer" in said_of(name)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("interval_is:", "intervall_is:", "'intervall_is' is no field of a figure; did you mean 'interval_is'?"),
        ("read: paper", "read: papr", "read is 'papr'; use one of paper, code, quoted, unread"),
        ("value: 0.67", "value: 0,67", "67 is no field of a figure"),
        ("    cause: null\n", "", "cause is missing"),
        ("cited_as:", "cite_as:", "'cite_as' is no field of a paper; did you mean 'cited_as'?"),
    ],
)
def test_a_file_of_another_form_is_named_with_the_place(right, wrong, said, tmp_path):
    path = tmp_path / "maml.yaml"
    path.write_text((PACKAGE / "published" / "maml.yaml").read_text(encoding="utf-8").replace(right, wrong), "utf-8")
    with pytest.raises(ConfigError) as raised:
        list(targets_in(path))
    assert "maml.yaml" in str(raised.value) and said in str(raised.value)


SAYING = [*config_dir().glob("experiment/**/*.yaml"), *(PACKAGE.parent / "docs" / "algorithms").glob("*.md")]


@pytest.mark.parametrize("path", sorted(SAYING), ids=lambda path: path.stem)
def test_a_figure_that_nobody_has_read_is_marked_in_heads_of_presets_and_on_pages(path):
    text = path.read_text(encoding="utf-8")
    head = " ".join(line for line in text.splitlines() if line.startswith("# "))
    for line in text.splitlines() if path.suffix == ".md" else [head]:
        cited = [target for target in targets().values() if target.paper.cited_as in line]
        for figure in [
            figure for target in cited for figure in target.figures if figure.value and figure.read in MARKS
        ]:
            plain = re.escape(f"{figure.value:g}") + (
                rf"(?: \+- {figure.interval:g}(?!\d))?" if figure.interval else ""
            )
            bare = rf"(?<![\d.]){plain}(?![\d.]| \+-|{re.escape(MARKS[figure.read])})"
            assert not re.search(bare, line), figure
