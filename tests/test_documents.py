"""Documents that can be tested: their examples pass the check line that they ask of a contribution."""

import re
import shutil
import subprocess

import pytest

from tests.running import ROOT

SIGN_MAML, LINE = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


@pytest.mark.skipif(shutil.which("ruff") is None, reason="needs ruff: pip install -e '.[dev]'")
@pytest.mark.parametrize(("path", "text"), [("meta_learners/sign_maml.py", SIGN_MAML), ("tasks/line.py", LINE)])
def test_the_examples_of_contributing_pass_its_check_line(path, text):
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
READERS = {"sign_maml.py", "line.py", "sign_maml.yaml", "line.yaml", "printed.py"}  # what a reader writes himself
READERS |= {"example.py"}  # and what metarun export writes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_files_and_links_that_there_are(page):
    text = page.read_text()
    named = {
        name
        for name in re.findall(r"(?:\w+/)*\w+\.py\b|configs/[\w/]+\.yaml", text)
        if name.rpartition("/")[2] not in READERS
    }
    if page.stem == "fidelity":  # it names files of other projects
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
