"""Training on one task distribution, validation and test on others: ``evaluation.task``, through the command line."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torchvision.transforms.v2 import functional as tv

from metarun.applied.trained import changed
from metarun.config.compose import composed, readable
from metarun.config.elsewhere import without_effect
from metarun.core import TaskDistribution
from metarun.evaluation.episodes import manifest
from metarun.evaluation.estimates import Estimate, estimate, mean_of
from metarun.evaluation.records import read_records
from metarun.evaluation.suite import fitted
from metarun.sweep.composing import Composer
from tests.composing import OUTSIDE as OUTSIDE_FOLDER
from tests.composing import compose, experiment
from tests.running import OUTSIDE, assert_as_if_never_stopped, killed, metarun, metrics, read, scores, sweep

BUDGET = [
    *["device=cpu", "execution=looped", "steps=4", "meta_batch_size=2", "base_learner.hidden=[6]", "log_every=2"],
    *["evaluation.every=2", "evaluation.num_val_tasks=3", "evaluation.num_tasks=4"],
]
PROTOTYPES = [OUTSIDE, "task=prototypes", "meta_learner=protonet"]
TWO = ["evaluation.task={same: prototypes, noisy: prototypes}", "evaluation.task.noisy.strength=0.5"]
TALL = '''
import numpy as np
import torch
from dataclasses import replace
from metarun.core import Batch, Episode, TaskDistribution, TaskSpec
from metarun.objectives import CROSS_ENTROPY
from metarun.counter import uniform


class Tall(TaskDistribution):
    """Colour images of noise, 24 x 20."""

    spec = TaskSpec((3, 24, 20), num_outputs=3, objective=CROSS_ENTROPY, num_ways=3, train_num_ways=3)

    def __init__(self, seed: int, dtype: torch.dtype):
        self.seed, self.dtype = seed, dtype

    def draw(self, split, indices):
        return {"x": uniform(self.seed, split, np.asarray(indices), 12 * 3 * 24 * 20).reshape(-1, 12, 3, 24, 20)}

    def episodes(self, draw):
        x, y = torch.from_numpy(draw["x"]).to(self.dtype), torch.arange(3).repeat(len(draw["x"]), 2)
        return Episode(Batch(x[:, :6], y), Batch(x[:, 6:], y))

    def fingerprint(self):
        return "tall"


class Few(Tall):
    """With a test set of three episodes."""

    spec = replace(Tall.spec, num_test_tasks=3)
'''


@pytest.fixture(scope="module")
def tall(tmp_path_factory) -> str:
    """The flag that adds a folder with images of another size and colour."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "tall.py").write_text(TALL)
    (folder / "task").mkdir()
    (folder / "task" / "tall.yaml").write_text("_target_: tall.Tall\n")
    (folder / "task" / "few.yaml").write_text("_target_: tall.Few\n")
    return f"--config-dir={folder}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run scored on two tasks, which nothing may change."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = metarun(*PROTOTYPES, *TWO, *BUDGET, f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    return folder


# ---- several ----


def test_every_task_has_its_score_and_their_mean_is_the_runs(run):
    test = {name: Estimate(**value) for name, value in scores(run).items()}
    same, noisy = test["test/same/accuracy"], test["test/noisy/accuracy"]
    assert same.n == noisy.n == 4
    assert same.mean > noisy.mean
    alone = mean_of([same, noisy])
    assert (test["test/accuracy"].mean, test["test/accuracy"].n) == (alone.mean, alone.n)
    rows = read_records(run / "episodes.jsonl")
    of_tasks = [[r["scores"]["accuracy"] for r in rows if r["task"] == name] for name in ("same", "noisy")]
    assert test["test/accuracy"].ci95 == pytest.approx(estimate(torch.tensor(of_tasks).double().mean(0)).ci95, rel=1e-9)
    assert test["test/accuracy"].mean == pytest.approx((same.mean + noisy.mean) / 2)
    assert {"val/accuracy", "val/same/accuracy", "val/noisy/accuracy"} <= metrics(run)[-2].keys()


def test_the_best_checkpoint_is_that_of_the_mean_over_tasks(run):
    rows = {row["step"]: row["val/accuracy"] for row in metrics(run) if "val/accuracy" in row}
    best = max(rows, key=lambda step: (rows[step], -step))
    assert read(run / "results.json")["protocol"]["checkpoint_step"] == best


def test_results_hold_node_fingerprint_and_manifest_of_each_task(run):
    tasks = read(run / "results.json")["protocol"]["tasks"]
    assert tasks["noisy"]["task"]["strength"] == 0.5
    assert tasks["noisy"]["data"].startswith("prototypes: strength 0.5")
    x = experiment(*PROTOTYPES[1:], *TWO, "base_learner.hidden=[6]", "dtype=float32", "evaluation.num_tasks=4")
    assert tasks["same"]["manifest"] == manifest(x.suite.elsewhere["same"].task, "test", 4)
    assert read(run / "run.json")["evaluation_data"].keys() == {"same", "noisy"}


def test_a_run_without_other_tasks_is_named_as_ever(tmp_path):
    outcome = metarun(*PROTOTYPES, *BUDGET, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    results = read(tmp_path / "run/results.json")
    assert {name for name in results if "/" in name} == {"test/query_loss", "test/accuracy", "test/baseline_accuracy"}
    assert "manifest" in results["protocol"] and "tasks" not in results["protocol"]


def test_a_mean_of_estimates_has_the_interval_of_independent_ones():
    assert mean_of([Estimate(0.2, 0.03, 10), Estimate(0.6, 0.04, 30)]) == Estimate(0.4, math.hypot(0.03, 0.04) / 2, 40)


def test_a_killed_run_ends_as_if_it_never_was(run, tmp_path):
    words = [*PROTOTYPES, *TWO, *BUDGET, f"run_dir={tmp_path / 'run'}"]
    killed("during a validation", *words, cwd=tmp_path)
    assert metarun(*words, "resume=auto").code == 0
    assert_as_if_never_stopped(tmp_path / "run", run)


def test_two_other_tasks_are_two_overrides_of_hydra(run, tmp_path):
    native = ["+task@evaluation.task.same=prototypes", "+task@evaluation.task.noisy=prototypes", TWO[1]]
    assert metarun(*PROTOTYPES, *native, *BUDGET, f"run_dir={tmp_path / 'run'}").code == 0
    assert scores(tmp_path / "run") == scores(run)


def test_a_sweep_goes_over_them(tmp_path):
    outcome = sweep(*PROTOTYPES, "evaluation.task=prototypes,[prototypes],null", *BUDGET, f"sweep_dir={tmp_path}")
    assert outcome.code == 0, outcome.text
    assert len([path for path in tmp_path.iterdir() if (path / "results.json").is_file()]) == 2


def test_more_episodes_than_a_test_set_has_are_refused_by_the_evaluation_task_alone(tall, tmp_path):
    words = [tall, "meta_learner=protonet", *BUDGET]
    refused = metarun(*words, "task=tall", "evaluation.task=few", f"run_dir={tmp_path / 'run'}")
    assert refused.code == 2
    assert "evaluation.task.few: its test set has 3 episodes, but evaluation.num_tasks is 4. Set eval" in refused.err
    assert not (tmp_path / "run").exists()
    outcome = metarun(*words, "task=few", "evaluation.task=tall", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    assert scores(tmp_path / "run")["test/tall/accuracy"]["n"] == 4


# ---- settings of the training task ----

CHARACTERS = ["task=omniglot", "task.split=maml", "task.resize=nearest", "task.trainval=true", "task.num_shots=3"]
CHARACTERS += ["task.train_num_ways=20"]


def scored(*overrides: str) -> Any:
    """The nodes of evaluation.task."""
    return OmegaConf.to_container(composed([*overrides], [OUTSIDE_FOLDER]).evaluation.task)


def test_the_training_tasks_own_option_has_the_settings_of_its_data():
    same = scored(*CHARACTERS, "evaluation.task={own: omniglot, one: omniglot}", "evaluation.task.one.num_shots=1")
    assert [same["own"][key] for key in ("split", "resize", "num_shots")] == ["maml", "nearest", 3]
    assert (same["own"]["trainval"], same["own"]["train_num_ways"]) == (False, None)  # of training alone
    assert same["one"] == same["own"] | {"num_shots": 1}
    given = [f"evaluation.task.omniglot.{text}" for text in ("split=vinyals", "resize=lanczos")]
    assert scored(*CHARACTERS, "evaluation.task=omniglot", *given)["omniglot"]["split"] == "vinyals"
    node = "+evaluation.task.omniglot={split: vinyals, num_queries: 7}"
    assert scored(*CHARACTERS, "+task@evaluation.task.omniglot=omniglot", node)["omniglot"]["num_queries"] == 7


def test_inherited_parts_of_a_task_are_chosen_as_one():
    words = ["task=clinc150", "task.split_seed=3", "task/features=tokens", "evaluation.task=clinc150"]
    node = scored(*words)["clinc150"]
    assert node["split_seed"] == 3 and node["features"]["_target_"].endswith("Tokens")
    other = scored(*words, "task/features@evaluation.task.clinc150.features=hashed")["clinc150"]
    assert other["split_seed"] == 3 and other["features"]["_target_"].endswith("Hashed")
    listed = scored(*words, "evaluation.task.clinc150.split.test=20")["clinc150"]
    assert listed["split"] == {"train": 50, "val": 50, "test": 20}


def test_another_option_of_the_same_class_keeps_its_own_settings():
    words = ["task=gp_rbf", "task.noise_std=0.3", "evaluation.task=[gp_periodic,gp_rbf]"]
    nodes = scored(*words)
    assert nodes["gp_periodic"]["kernel"] == "periodic" and nodes["gp_periodic"]["noise_std"] == 0.02
    assert nodes["gp_rbf"]["noise_std"] == 0.3
    assert scored("experiment=maml_omniglot_5w1s", "evaluation.task=omniglot")["omniglot"]["split"] == "maml"


def test_a_sweep_and_an_evaluation_take_over_the_same_settings():
    words = [*PROTOTYPES[1:], "task.strength=0.7", "evaluation.task=prototypes"]
    swept = Composer([OUTSIDE_FOLDER])
    assert swept(words, ["evaluation.task=prototypes"]).evaluation.task.prototypes.strength == 0.7
    own = compose(*PROTOTYPES[1:], "task.strength=0.7")
    node = changed(own, ["evaluation.task=prototypes"], [OUTSIDE_FOLDER], PROTOTYPES[1:]).evaluation.task.prototypes
    assert node.strength == 0.7


# ---- evaluate ----


def test_a_finished_run_is_tested_on_others_or_on_its_own(run, tmp_path):
    words = ["evaluate", run, OUTSIDE]
    assert metarun(*words, "evaluation.task=prototypes", "evaluation.task.prototypes.num_ways=5").code == 0
    assert metarun(*words, "evaluation.task=null").code == 0
    assert metarun(*words, "--split", "train").code == 0
    found = [read(path) for path in (run / "evaluations").glob("*.json")]
    named = [{name for name in each if name.endswith("/accuracy")} for each in found]
    assert {"test/accuracy", "test/prototypes/accuracy"} in named
    assert {"test/accuracy"} in named and {"train/accuracy"} in named
    five = next(each for each in found if "test/prototypes/accuracy" in each)
    assert five["protocol"]["tasks"]["prototypes"]["task"]["num_ways"] == 5


# ---- fitting ----


def test_images_of_another_size_and_colour_are_fitted_where_that_is_asked_for(tall, tmp_path):
    words = [tall, *PROTOTYPES, "evaluation.task=tall", *BUDGET, f"run_dir={tmp_path / 'run'}"]
    refused = metarun(*words)
    assert refused.code == 2
    assert "evaluation.task.tall: its inputs have shape [3, 24, 20]" in refused.err
    assert "[1, 16, 16]. Set evaluation.fit_images=true" in refused.err
    outcome = metarun(*words, "evaluation.fit_images=true")
    assert outcome.code == 0, outcome.text
    assert "test/tall/accuracy" in read(tmp_path / "run/results.json")


def seen(task: TaskDistribution, shape: tuple[int, ...], inverted: bool = False) -> TaskDistribution:
    """The task as networks see it that are trained on images of this shape, inverted or not."""
    return fitted(task, replace(task.spec, input_shape=shape, inverted=inverted), True)


def test_images_of_other_ink_are_inverted_whether_or_not_they_are_resized():
    grey = experiment("task=prototypes", "base_learner=mlp", "base_learner.hidden=[6]").task
    same, wide = seen(grey, (1, 16, 16), inverted=True), seen(grey, (3, 8, 12), inverted=True)
    torch.testing.assert_close(same.sample("test", [0]).query.x, 1 - grey.sample("test", [0]).query.x)
    torch.testing.assert_close(
        wide.sample("test", [0]).support.x, 1 - seen(grey, (3, 8, 12)).sample("test", [0]).support.x
    )
    assert same.fingerprint() == f"{grey.fingerprint()}, inverted"
    assert fitted(same, grey.spec, False).fingerprint() == f"{grey.fingerprint()}, inverted, inverted"


def test_resized_images_are_torchvisions_and_the_draw_is_the_tasks():
    grey = experiment("task=prototypes", "base_learner=mlp", "base_learner.hidden=[6]").task
    x = grey.sample("test", [0, 1]).support.x  # [2, S, 1, 16, 16]
    wide = seen(grey, (3, 8, 12))
    fit = wide.sample("test", [0, 1]).support.x
    expected = tv.resize(x.flatten(0, 1), [8, 12], antialias=True).repeat(1, 3, 1, 1)
    torch.testing.assert_close(fit.flatten(0, 1), expected)
    assert manifest(wide, "test", 3) == manifest(grey, "test", 3)
    assert wide.fingerprint() == f"{grey.fingerprint()}, fitted to [3, 8, 12]"
    back = seen(wide, (1, 8, 12)).sample("test", [0, 1]).support.x
    # torchvision's weights of red, green and blue add up to 0.9999
    torch.testing.assert_close(back, fit[:, :, :1], rtol=2e-4, atol=1e-6)
    assert fitted(grey, grey.spec, False) is grey


# ---- what is fitted in training ----

GROWTH = "subject,dose,response\n" + "".join(f"s{s},{s + r},{s * r}\n" for s in range(10) for r in range(12))
COLUMNS = {"task_column": "subject", "input_columns": "[dose]", "output_columns": "[response]"}


def table(key: str, path: Path) -> list[str]:
    """The settings of a table at the place ``key``."""
    return [f"{key}.path='{path}'", *(f"{key}.{name}={value}" for name, value in COLUMNS.items())]


@pytest.fixture
def tables(tmp_path) -> list[str]:
    """A run on one table with another of larger doses to test on."""
    larger = [line.split(",") for line in GROWTH.splitlines()[1:]]
    rows = [f"new {subject},{5 * int(dose)},{response}" for subject, dose, response in larger]
    for name, text in (("own", GROWTH), ("new", "\n".join([GROWTH.splitlines()[0], *rows]))):
        (tmp_path / f"{name}.csv").write_text(text)
    own = ["task=csv_regression", *table("task", tmp_path / "own.csv")]
    return [*own, "evaluation.task={new: csv_regression}", *table("evaluation.task.new", tmp_path / "new.csv")]


def test_another_table_is_measured_by_the_means_of_the_training(tables):
    x = experiment(*tables)
    own, new = x.task, x.suite.elsewhere["new"].task
    assert new.fitted() == own.fitted()
    assert torch.equal(new.y, own.y)
    (scale,) = own.fitted()["inputs"]
    of_dose = torch.tensor([5.0 * (s + r) for s in range(10) for r in range(12)])
    torch.testing.assert_close(new.x[:, 0], (of_dose.double() - scale["mean"][0]) / scale["deviation"][0])


def test_a_finished_run_measures_another_table_as_its_training_did(tables, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    assert metarun(*tables, *BUDGET, f"run_dir={run}").code == 0
    own = [text for text in tables if not text.startswith("evaluation.task")]
    assert metarun(*own, *BUDGET, f"run_dir={other}").code == 0
    # with no training task it has no means of its own; of both runs the last theta, for the best was chosen elsewhere
    elsewhere = [*tables[len(own) :], "evaluation.task.new.split={test: all}", "--checkpoint=last"]
    half = tmp_path / "half.csv"  # of other means, by which nothing may be measured
    half.write_text("\n".join(GROWTH.splitlines()[:61]))
    for folder, task in ((run, []), (other, []), (other, [f"task.path='{half}'"])):
        outcome = metarun("evaluate", folder, *task, *elsewhere)
        assert outcome.code == 0, outcome.text
    found = [read(path)["test/new/mse"] for folder in (run, other) for path in (folder / "evaluations").glob("*.json")]
    assert len(found) == 3 and all(score == found[0] for score in found)


@pytest.mark.parametrize(("features", "base"), [("hashed", "residual"), ("tokens", "embedding_bag")])
def test_other_sentences_are_encoded_by_what_was_fitted_in_training(features, base, tmp_path):
    lines = (Path(__file__).parent / "outside" / "requests.jsonl").read_text().splitlines()
    (tmp_path / "own.jsonl").write_text("\n".join(lines[::2]))
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    words = [
        "meta_learner=protonet",
        f"base_learner={base}",
        f"data_root={tmp_path}",
        "evaluation.task={new: text_jsonl}",
    ]
    words += ["task=text_jsonl", f"task/features={features}", f"task/features@evaluation.task.new.features={features}"]
    for key, name in (("task", "own"), ("evaluation.task.new", "new")):
        words += [f"{key}.path='{tmp_path / name}.jsonl'", f"{key}.num_ways=2", f"{key}.num_queries=3"]
    x = experiment(*words)
    own, new = x.task, x.suite.elsewhere["new"].task
    assert new.fitted() == own.fitted()
    rows = torch.tensor([new.text_set.texts.index(text) for text in own.text_set.texts])
    assert torch.equal(new.encoded.take(rows), own.encoded.take(torch.arange(len(rows))))


# ---- mistakes ----

MISTAKES = {
    "an unknown name": (["evaluation.task=prototypez"], "evaluation.task=prototypez: there is no task called"),
    "an unknown name in a list": (["evaluation.task=[prototypes,sinusoit]"], "did you mean 'sinusoid'"),
    "another score": (
        ["evaluation.task=sinusoid"],
        "evaluation.task.sinusoid: its score is mse, but the training task's is accuracy",
    ),
    "an unknown setting": (["evaluation.task=prototypes", "evaluation.task.prototypes.num_wayz=3"], "num_ways"),
    "a wrong type": (["evaluation.task=prototypes", "evaluation.task.prototypes.num_ways=a"], "prototypes.num_ways is 'a'"),
    "other outputs than the head has": (
        ["meta_learner=maml", "evaluation.task=prototypes", "evaluation.task.prototypes.num_ways=4"],
        "it needs 4 outputs, but the head of MAML has those of the training task, 3. Set evaluation.task.prototypes.num_",
    ),
    "ways of training episodes": (
        ["evaluation.task=omniglot", "evaluation.task.omniglot.train_num_ways=20"],
        "evaluation.task.omniglot.train_num_ways has no effect: only training draws such episodes; leave it out.",
    ),
    "augmentation": (
        ["evaluation.task={far: cub}", "task/augmentation@evaluation.task.far.augmentation=standard"],
        "evaluation.task.far.augmentation has no effect: only training draws such episodes; leave it out.",
    ),
    "data that is not there": (
        ["evaluation.task=cifar_fs", "data_root=nowhere"],
        "metarun ... evaluation.task.cifar_fs.download=true",
    ),
    "fitting nothing": (["evaluation.fit_images=true"], "has no effect without evaluation.task"),
    "several at once by comma": (["evaluation.task=prototypes,sinusoid"], "one list is written evaluation.task=["),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_exit_code_2_before_anything_runs(mistake, tmp_path):
    words, message = MISTAKES[mistake]
    outcome = metarun(*PROTOTYPES, *BUDGET, *words, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2, outcome.text
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def refused(target: str, *overrides: str) -> list[str]:
    """The settings of evaluation.task.far, a task of this class, that are told to have no effect."""
    cfg = OmegaConf.create({"evaluation": {"task": {"far": {"_target_": target}}}})
    return [text.partition(" ")[0] for text in without_effect(cfg, readable([*overrides]))]


def test_an_evaluation_refuses_settings_of_training_episodes_that_are_not_empty():
    key, target = "evaluation.task.far", "metarun.tasks.cifar.cifar_fs"
    of_training = [f"{key}.train_num_shots=5", f"++{key}.augmentation.flip=0.5", f"{key}.augmentation={{flip: 1}}"]
    named = [f"{key}.train_num_shots", f"{key}.augmentation.flip", f"{key}.augmentation"]
    assert refused(target, *of_training) == named
    assert refused(target, f"{key}={{train_num_shots: 5, num_shots: 5}}") == named[:1]
    nothing = [
        f"{key}.train_num_ways=null",
        f"task/augmentation@{key}.augmentation=none",
        f"{key}.augmentation.flip=0.0",
    ]
    assert refused(target, *nothing, f"{key}.num_ways=5", "task.train_num_ways=20") == []


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("omniglot.Omniglot", "trainval=true"),
        ("omniglot_lake.OmniglotLake", "trainval=true"),
        ("linear_regression.LinearRegression", "grow_dims=[1,1,2]"),
        ("linear_regression.LinearRegression", "grow_shots=[1,1,2]"),
    ],
)
def test_each_class_of_tasks_says_which_of_its_settings_only_training_follows(target, setting):
    key = f"evaluation.task.far.{setting}"
    assert refused(f"metarun.tasks.{target}", key) == [key.partition("=")[0]]
    assert refused("metarun.tasks.sinusoid.Sinusoid", key) == []


# ---- real images ----


@pytest.mark.data
def test_omniglot_to_cifar_in_grey_and_back_to_omniglot(data_root, tmp_path):
    words = ["task=omniglot", f"data_root={data_root}", "meta_learner=protonet", "evaluation.task=[omniglot,cifar_fs]"]
    outcome = metarun(*words, "evaluation.fit_images=true", *BUDGET, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    tasks = read(tmp_path / "run/results.json")["protocol"]["tasks"]
    assert tasks["cifar_fs"]["data"].endswith("fitted to [1, 28, 28], inverted")
    assert "fitted" not in tasks["omniglot"]["data"]
