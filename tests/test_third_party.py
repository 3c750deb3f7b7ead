"""A learner, a task and a base learner of somebody else, in a folder outside the package, run with no edit of metarun."""

import re
import sys
from pathlib import Path

import pytest

from tests.running import TINY, metarun, read, state

CODE = '''
"""All three kinds in one module."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from metarun.core import Batch, Episode, FewShotLearner, TaskDistribution, TaskSpec
from metarun.objectives import SQUARED_ERROR
from metarun.counter import uniform


class Line(TaskDistribution):
    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(self, num_shots: int, num_queries: int, seed, device, dtype):
        self.num_shots, self.num_queries, self.seed, self.device, self.dtype = num_shots, num_queries, seed, device, dtype

    def draw(self, split, indices):
        u = uniform(self.seed, f"line/{split}", np.asarray(indices), 1 + self.num_shots + self.num_queries)
        return {"slope": u[:, 0], "x": u[:, 1:]}

    def episodes(self, draw):
        x = torch.from_numpy(draw["x"]).to(self.device, self.dtype)[..., None]
        y = x * torch.from_numpy(draw["slope"]).to(self.device, self.dtype)[:, None, None]
        k = self.num_shots
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def fingerprint(self):
        return "lines"


class Polynomial(nn.Module):
    def __init__(self, input_shape, num_outputs, degree: int):
        super().__init__()
        self.degree = degree
        self.coefficients = nn.Parameter(torch.zeros(degree + 1))

    def forward(self, x):
        return sum(c * x**k for k, c in enumerate(self.coefficients))


@dataclass(frozen=True)
class Shrink(FewShotLearner):
    """Adapts by scaling theta: not sensible, but its own."""

    factor: float

    def adapt(self, theta, support):
        return {name: self.factor * p for name, p in theta.items()}
'''
FILES = {
    "task/line.yaml": "_target_: {module}.Line\nnum_shots: 3\nnum_queries: 4\n",
    "base_learner/polynomial.yaml": "_target_: {module}.Polynomial\ndegree: 2\n",
    "meta_learner/shrink.yaml": "_target_: {module}.Shrink\nfactor: 0.5\n",
}
TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial_own_algorithm.md"
GROUPS = ["task=line", "base_learner=polynomial", "meta_learner=shrink"]
BUDGET = [text for text in TINY if not text.startswith(("base_learner", "task"))]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A config folder with its module beside the YAML."""
    return outsiders(tmp_path / "mine", "outsiders_module")


def outsiders(folder: Path, module: str) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(module=module))
    (folder / f"{module}.py").write_text(CODE)
    sys.modules.pop(module, None)
    return folder


def test_a_learner_a_task_and_a_base_learner_of_an_outsider_run_by_config_dir(folder, tmp_path):
    run = tmp_path / "run"
    outcome = metarun(f"--config-dir={folder}", *GROUPS, *BUDGET, f"run_dir={run}")
    assert outcome.code == 0, outcome.text
    assert state(run) == "completed"
    results = read(run / "results.json")
    assert results["protocol"]["data"] == "lines"
    assert results["complexity"]["parameters"] == 3
    assert results["test/mse"]["n"] == 6

    assert metarun("evaluate", str(run)).code == 2, "what the run was made of is not there without the folder"
    again = metarun("evaluate", str(run), f"--config-dir={folder}", "meta_learner.factor=0.5")
    assert again.code == 0, again.text
    (evaluation,) = (run / "evaluations").glob("*.json")
    assert read(evaluation)["test/mse"] == results["test/mse"]

    assert metarun(f"resume={run}", "steps=14").code == 2
    assert metarun(f"--config-dir={folder}", f"resume={run}", "steps=14").code == 0


def test_without_config_dir_the_options_are_unknown_and_the_targets_refused(folder):
    outcome = metarun(*GROUPS)
    assert outcome.code == 2
    assert "there is no task called 'line'" in outcome.err
    outcome = metarun("task._target_=outsiders_module.Line")
    assert outcome.code == 2
    assert "'outsiders_module.Line' is outside the modules" in outcome.err
    assert "--config-dir DIR" in outcome.err and "--allow outsiders_module" in outcome.err
    assert "outsiders_module" not in sys.modules


def test_allow_lets_a_config_name_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(outsiders(tmp_path / "installed", "outsiders_package"))
    mine = [
        "~task.train_num_shots",
        "~task.train_num_queries",
        "~task.query_grid",
        "~task.frequency",
        "task.num_shots=3",
    ]
    command = ["task._target_=outsiders_package.Line", *mine, *TINY, f"run_dir={tmp_path / 'run'}"]
    assert metarun(*command).code == 2
    assert "outsiders_package" not in sys.modules, "a refused target is not imported"
    outcome = metarun("--allow", "outsiders_package", *command)
    assert outcome.code == 0, outcome.text


def test_what_one_command_allows_the_next_does_not(folder, tmp_path):
    assert metarun(f"--config-dir={folder}", "--cfg=job").code == 0
    assert metarun("task._target_=outsiders_module.Line").code == 2


def test_a_crash_of_an_outsider_s_code_shows_the_traceback_and_is_noted(folder, tmp_path):
    run = tmp_path / "run"
    (folder / "outsiders_module.py").write_text(CODE.replace("self.factor * p", "self.factro * p"))
    outcome = metarun(f"--config-dir={folder}", *GROUPS, *BUDGET, f"run_dir={run}")
    assert outcome.code == 1
    assert "no attribute 'factro'" in outcome.err and "Traceback" in outcome.err
    assert state(run) == "failed"
    assert "factro" in read(run / "status.json")["error"]


def test_the_examples_of_the_tutorial_run_as_they_are_printed(tmp_path):
    names = ["sign_maml.py", "meta_learner/sign_maml.yaml", "line.py", "task/line.yaml", "worst.py"]
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", TUTORIAL.read_text(), re.S)
    files = dict(zip(names, blocks, strict=True))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    groups = ["meta_learner=sign_maml", "task=line", "base_learner=mlp", "+evaluation.evaluator.w._target_=worst.Worst"]
    outcome = metarun(f"--config-dir={tmp_path}", *groups, *BUDGET, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    scores = read(tmp_path / "run" / "results.json")
    assert scores["test/mse_step_1"]["n"] == scores["test/worst_step_1"]["n"] == 6
    assert scores["test/worst"]["mean"] ** 2 > scores["test/mse"]["mean"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("regresses = False", "meta_learner: Shrink classifies, but the task Line has no classes"),
        ("needs_train_classes = True", "meta_learner: Shrink learns to tell all training classes apart, but Line has"),
    ],
)
def test_a_task_beyond_what_an_outsider_s_learner_declares_is_refused(folder, declared, message):
    (folder / "outsiders_module.py").write_text(CODE.replace("    factor: float", f"    {declared}\n    factor: float"))
    outcome = metarun(f"--config-dir={folder}", *GROUPS, *BUDGET)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_network_that_is_declared_outside_theta_keeps_its_values(folder, tmp_path):
    borrowed = 'outside_theta = ("base_learner",)\n\n    factor: float\n\n    def init(self):\n        '
    borrowed += 'return {"slope": torch.ones(1)}'
    code = CODE.replace("    factor: float", f"    {borrowed}")
    code += "\n    def predict(self, phi, x):\n        return phi['slope'] * x + self.base_learner(x)\n"
    (folder / "outsiders_module.py").write_text(code)
    outcome = metarun(f"--config-dir={folder}", *GROUPS, *BUDGET, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
