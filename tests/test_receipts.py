"""A claim has a receipt: the README's table is what the receipts say."""

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("receipt", ROOT / "scripts" / "receipt.py")
assert spec and spec.loader
receipt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(receipt)


def test_the_readme_shows_the_table_that_the_receipts_give():
    text = (ROOT / "README.md").read_text()
    assert receipt.with_table(text) == text


def test_every_receipt_names_its_command_and_commit_and_no_path_of_a_machine():
    paths = list((ROOT / "docs" / "receipts").glob("*.json"))
    assert paths
    for path in paths:
        kept = json.loads(path.read_text())
        assert kept["command"].startswith("metarun ") or kept["command"].startswith("python ")
        assert re.fullmatch(r"[0-9a-f]{40}", kept["commit"])
        assert not re.search(r'"/|=/|~/', path.read_text())
