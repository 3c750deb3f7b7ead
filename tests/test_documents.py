"""Documents that can be tested: their examples pass the check line that they ask of a contribution."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
import typer

from metarun.commands.app import app
from metarun.config.explain import keys_of
from metarun.config.help import COMMANDS
from metarun.errors import ConfigError
from metarun.sweep.grammar import combinations
from tests.composing import composed
from tests.running import ROOT

SIGN_MAML, LINE, WORST = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "tutorial_own_algorithm.md").read_text(), re.S
)


@pytest.mark.skipif(shutil.which("ruff") is None, reason="needs ruff: pip install -e '.[dev]'")
@pytest.mark.parametrize(
    ("path", "text"),
    [("meta_learners/sign_maml.py", SIGN_MAML), ("tasks/line.py", LINE), ("evaluation/worst.py", WORST)],
)
def test_the_examples_of_the_tutorial_pass_the_check_line_of_contributing(path, text):
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        words = [*command, "--stdin-filename", f"metarun/{path}", "-"]
        checked = subprocess.run(words, input=text, cwd=ROOT, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


# ---- documents name what there is ----

PAGES = [*ROOT.glob("*.md"), *(ROOT / "metarun").glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
FILES = [
    f"/{path.relative_to(ROOT)}"
    for room in ("metarun", "configs", "scripts", "tests")
    for path in (ROOT / room).rglob("*")
]
READERS = {"sign_maml.py", "worst.py", "line.py", "sign_maml.yaml", "line.yaml", "printed.py"}  # what a reader writes
READERS |= {"example.py"}  # and what metarun export writes


def test_the_page_of_networks_names_every_one_that_can_be_chosen():
    text = (ROOT / "docs" / "base_learners.md").read_text()
    networks = sorted(path.stem for path in (ROOT / "configs" / "base_learner").glob("*.yaml"))
    assert len(networks) > 10
    assert [name for name in networks if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_files_and_links_that_there_are(page):
    text = page.read_text()
    named = {
        name
        for name in re.findall(r"(?:\w+/)*\w+\.py\b|configs/[\w/]+\.yaml", text)
        if name.rpartition("/")[2] not in READERS
    }
    if page.stem in ("equations", "fidelity", "settings"):  # they name files of other projects
        named = {name for name in named if name.startswith(("metarun/", "configs/"))}
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in FILES)] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_a_decision_has_context_decision_and_evidence_in_six_lines():
    records = (ROOT / "docs" / "decisions.md").read_text().split("\n### ")[1:]
    assert len(records) > 50
    for record in records:
        title, _, rest = record.partition("\n\n")
        lines = rest.partition("\n\n")[0].rstrip("\n").splitlines()
        assert [line.split(".**")[0] for line in lines if line[0] == "-"] == [
            "- **Context",
            "- **Decision",
            "- **Evidence",
        ]
        assert len(lines) <= 6 and max(map(len, [title, *lines])) <= 120, title


# ---- what a reader follows: links, commands, and the page that a script writes ----


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; those of a heading that comes again with a number."""
    text, found, counts = re.sub(r"```.*?```", "", page.read_text(), flags=re.S), set(), Counter()
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_link_to_a_heading_finds_it(page):
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text())
    own = [(page.parent / path if path else page, anchor) for path, anchor in links if "://" not in path]
    assert [(str(path), anchor) for path, anchor in own if anchor not in anchors(path)] == []


def test_the_index_leads_to_every_page_and_readme_to_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.stem != "index"]
    assert [name for name in pages if f"({name})" not in index] == []
    assert "(docs/index.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["equations", "experiments", "settings"])
def test_a_page_that_a_script_writes_is_what_it_would_write_now(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--check"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert exit_.value.code == 0


def test_the_page_of_settings_has_every_setting_of_a_run():
    page = (ROOT / "docs" / "settings.md").read_text()
    for overrides in ([], ["task=omniglot", "base_learner=conv4", "meta_learner=reptile", "execution=vmapped"]):
        keys = {key for key in keys_of(composed(overrides, [])) if not key.endswith(("_target_", "_partial_"))}
        keys -= {"experiment", "per_learner", "per_task"}
        assert sorted(key for key in keys if f"| `{key}` |" not in page and "planner" not in key) == []


def test_every_setting_has_its_type_default_and_meaning():
    rows = re.findall(r"^\| `.*$", (ROOT / "docs" / "settings.md").read_text(), re.M)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert len(rows) > 400 and {len(row) for row in cells} == {5}
    assert [row[0] for row in cells if not all(row[:4])] == []
    assert len([row for row in cells if row[4]]) > 60  # sources, of those that are from a paper or its code


def commands(page: Path) -> list[str]:
    """The command lines of metarun in a page's blocks of code and in its words set as code."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    lines = [
        line.strip().removeprefix("$ ")
        for line in (*blocks.splitlines(), *re.findall(r"^    (metarun .*)$", text, re.M))
    ]
    within = re.findall(r"(?<!`)`(metarun(?: [^`\n]*(?:\n[^`\n]+)?)?)`(?!`)", text)
    found = [
        line for line in (*lines, *map(" ".join, map(str.split, within))) if re.match(r"metarun\b(?! *[:(]|\.)", line)
    ]
    return sorted({re.sub(r"\s+# .*", "", line) for line in found})


WRITTEN = {  # what stands in commands for something of the reader's
    **{"task.path=FILE": "task.path=a.jsonl", "task=NAME": "task=sinusoid", "meta_learner=NAME": "meta_learner=maml"},
    **{"base_learner=NAME": "base_learner=mlp", "experiment=NAME": "experiment=smoke", "-m": "", "...": "", "…": ""},
    **{"experiment=[NAME,smoke]": "experiment=[maml_sinusoid,smoke]", "[overrides]": "", "[KEY=VALUE ...]": ""},
}
OF_THE_READER = (
    "--config-dir",
    "--allow",
    "--info",
    "-sc",
    "--hydra-help",
    "--version",
    "--help",
    "SHELL",
    "KEY",
    "WORDS",
)
ALONE = ("jobs=", "sweep_dir=", "retries=", "timeout=", "--dry", "hydra/", "launcher", "+launcher.")


def problem_of(line: str) -> str:
    """What is wrong with a command line of a page; nothing where it can be run, or holds what only its reader has."""
    try:
        words = [WRITTEN.get(word, word).replace(",...", "") for word in shlex.split(line)[1:]]
    except ValueError as error:
        return f"{line}: {error}"
    if any(mark in word for word in words for mark in OF_THE_READER) or {"meta_learner=sign_maml", "task=line"} & {
        *words
    }:
        return ""
    words = [word for word in words if word and not word.startswith(ALONE)]
    if words and words[0] in COMMANDS:
        return problem_of_sub_command(words)
    words = [word for word in words if word not in ("--cfg", "job", "--resolve", "--package", "task")]
    try:
        sweep = "-m" in shlex.split(line)
        for overrides in combinations(words) if sweep else [words]:
            composed(overrides, [])
    except ConfigError as error:
        return f"{line}: {error}"
    return ""


def problem_of_sub_command(words: list[str]) -> str:
    """What typer finds wrong with a sub-command, which is not called."""
    context, command = None, typer.main.get_command(app)
    while isinstance(command, click.Group):
        if not words or words[0] not in command.commands:
            return "" if words == [] or words[0].isupper() else f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    missing = [p for p in command.params if p.required and isinstance(p, click.Argument)]
    try:
        context = command.make_context("metarun", [*words, *(["RUN"] if missing and not words else [])])
    except click.ClickException as error:
        return f"{' '.join(words)}: {error.format_message()}"
    context.close()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_can_be_run(page):
    if page.stem in ("CHANGELOG", "decisions"):  # they tell of commands of their time
        pytest.skip("history")
    assert [problem for line in commands(page) if (problem := problem_of(line))] == []
