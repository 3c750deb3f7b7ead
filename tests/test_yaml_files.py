"""YAML of others: what a loader could not follow is refused by its name, before a loader sees it."""

import pytest

from metarun.config.yaml_files import DEEPEST, MOST_NODES, group_file_problem, refuse_bombs
from tests.running import metarun

LEARNER = "_target_: mine.Mine\n"


def bomb(levels: int, width: int = 10) -> bytes:
    """Lists of lists, ``width ** levels`` values if all is written out."""
    lines = ["a0: &a0 [" + ", ".join("x" * width) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


def test_aliases_that_stay_small_are_followed():
    refuse_bombs(bomb(4))
    refuse_bombs(b"base: &base {a: 1}\nmore: {<<: *base, b: 2}\n")
    refuse_bombs(b"a: " + b"[" * (DEEPEST - 3) + b"]" * (DEEPEST - 3))


def test_aliases_that_unfold_into_more_than_memory_holds_are_refused():
    with pytest.raises(ValueError, match=f"more than {MOST_NODES} values"):
        refuse_bombs(bomb(9))


@pytest.mark.parametrize("content", [b"[" * 2000 + b"]" * 2000, b"{a: " * 2000 + b"1" + b"}" * 2000])
def test_what_is_nested_without_end_is_refused(content):
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
        refuse_bombs(content)


def test_an_anchor_that_holds_itself_is_refused():
    with pytest.raises(ValueError, match=r"\*a stands inside its own anchor"):
        refuse_bombs(b"a: &a\n  b: *a\n")


@pytest.mark.parametrize(("content", "reason"), [
    (b"- a\n", "it must hold settings"),
    (b"abc\n", "it must hold settings"),
    (b"a: 2\n1: 2\n", "the key in line 2 is no word"),
    (b"# @package [[\na: 1\n", r"@package [[ names no place"),
])  # fmt: skip
def test_a_file_that_is_no_option_of_a_group_is_refused(content, reason):
    assert reason in group_file_problem(content)


@pytest.mark.parametrize("content", [b"", b"a: 1\n", b"# @package _global_\na: 1\n", b"a: [\n"])
def test_what_hydra_can_read_or_refuse_itself_is_left_to_it(content):
    assert group_file_problem(content) is None


CIRCLE = {"task/bad.yaml": "defaults: [worse]\n", "task/worse.yaml": "defaults: [bad]\n"}
STEPZ = {"experiment/bad.yaml": "# @package _global_\nstepz: 3\n"}
DEFAULTS = "# @package _global_\ndefaults:\n  - {}\n"
FOLDERS = {  # by name: the files of a config folder, what is typed, and what the answer says
    "a list": ({"task/bad.yaml": "- a\n"}, "task=bad", "task/bad.yaml: it must hold settings"),
    "a bomb": ({"task/bad.yaml": bomb(9).decode()}, "task=bad", "task/bad.yaml: its aliases unfold"),
    "depth": ({"task/bad.yaml": "a: " + "[" * 2000 + "]" * 2000}, "task=bad", "nested more than 50 levels"),
    "defaults in a circle": (CIRCLE, "task=bad", "its defaults name each other in a circle"),
    "an unknown key": (STEPZ, "experiment=bad", "experiment=bad: in its file, stepz is not a setting; did you mean steps?"),
    "no package": (
        {"experiment/bad.yaml": "seed: 3\n"}, "experiment=[smoke,bad]", "begin it with the line '# @package _global_'"),
    "a default without its slash": (
        {"experiment/bad.yaml": DEFAULTS.format("meta_learner: reptile")}, "experiment=bad",
        "in the defaults of experiment/bad.yaml, groups begin with a slash: write '- override /meta_learner: reptile'"),
    "a default that overrides by a wrong name": (
        {"experiment/bad.yaml": DEFAULTS.format("override /meta_learner: reptil")}, "experiment=[smoke,bad]",
        "in the defaults of its file, meta_learner=reptil: there is no meta_learner called 'reptil'; did you mean 'rept"),
    "a default of the same group by a wrong name": (
        {"experiment/bad.yaml": DEFAULTS.format("smok")}, "experiment=bad",
        "in the defaults of experiment/bad.yaml, experiment=smok: there is no experiment called 'smok'; did you mean 'sm"),
    "an option as a value": (
        {"experiment/bad.yaml": "# @package _global_\nmeta_learner: reptile\n"}, "experiment=bad",
        "chooses one in its defaults: '- override /meta_learner: reptile'"),
    "no learner": (
        {"mine.py": "class Mine:\n    pass\n", "meta_learner/bad.yaml": LEARNER}, "meta_learner=bad",
        "derived from MetaLearner"),
    "a function that makes none": (
        {"mine.py": "def Mine():\n    return 5\n", "meta_learner/bad.yaml": LEARNER}, "meta_learner=bad",
        "meta_learner: it makes a int, but must make a MetaLearner"),
    "a module that raises": (
        {"mine.py": "x = 1\nx[0]\n", "meta_learner/bad.yaml": LEARNER}, "meta_learner=bad",
        "cannot import 'mine': TypeError: 'int' object is not subscriptable (mine.py, line 2)"),
    "a module that exits": (
        {"mine.py": "raise SystemExit(3)\n", "meta_learner/bad.yaml": LEARNER}, "meta_learner=bad",
        "SystemExit: 3 (mine.py"),
    "a module that does not parse": (
        {"mine.py": "def (:\n", "meta_learner/bad.yaml": LEARNER}, "meta_learner=bad",
        "SyntaxError: invalid syntax (mine.py"),
    "a class that raises": (
        {"mine.py": "from torch import nn\nclass Mine(nn.Module):\n    def __init__(self):\n        {}['no']\n",
         "base_learner/bad.yaml": LEARNER}, "base_learner=bad", "base_learner: KeyError: 'no' (mine.py, line 4)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_config_folder_that_cannot_be_used_is_answered_with_the_reason(name, tmp_path, monkeypatch):
    files, override, reason = FOLDERS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text.replace("mine.Mine", f"mine_{tmp_path.name}.Mine"))
    if "mine.py" in files:
        (tmp_path / "mine.py").rename(tmp_path / f"mine_{tmp_path.name}.py")  # each module is imported once
    outcome = metarun(f"--config-dir={tmp_path}", override, f"run_dir={tmp_path / 'run'}")
    assert (outcome.code, "Traceback" in outcome.text) == (2, False), outcome.text
    assert reason in outcome.err.replace(f"mine_{tmp_path.name}", "mine")
    assert not (tmp_path / "run").exists()
