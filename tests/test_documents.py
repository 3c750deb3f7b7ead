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
