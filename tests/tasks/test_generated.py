"""What every task that is drawn, and not read, must do; and the episodes of each, by their hash."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from metarun.evaluation.episodes import manifest
from tests.composing import experiment, train, unexamined
from tests.running import metarun

# name: the sha256 of the choices behind 20 test episodes, of seed 0 and the sizes in the YAML
MANIFESTS = {
    "sinusoid": "1d92b31a50cd2614b64769973b8c723d865da0f24cdbe792457df2064a9cc3fd",
    "harmonics": "9aa0d29e1ea64a594c1dd1bafe94a6c71c6ef06a109e81f5ca35d5519a36e99b",
    "step_functions": "9aa0d29e1ea64a594c1dd1bafe94a6c71c6ef06a109e81f5ca35d5519a36e99b",
    "mixed_curves": "a44c0095e6eed3d3691a5fb9fa91fd3e1a03334f8329edf7554f287a32671c19",
    "gaussian_process": "afd546690d4ad2ca9b6890e0794e24b6b218393a0f9e57eedfb53c5eda4384c5",
    "gp_rbf": "40450f2ec7611e32e0479532929ee515475386bb7a2de87d984d1f5867518ef1",
    "gp_matern52": "40450f2ec7611e32e0479532929ee515475386bb7a2de87d984d1f5867518ef1",
    "gp_periodic": "40450f2ec7611e32e0479532929ee515475386bb7a2de87d984d1f5867518ef1",
    "gp_weakly_periodic": "ad04682be326c3cdf9078b5e2815135c848d594e58fcc9a045740e81abe6c548",
    "sawtooth": "060419363f1a9bd5ae0fd397da219eaf5dd2ed170b59cca149ad1ef1bc3aa5ae",
    "process_mixture": "cba86a159fc6eaf42ea4d794c83acddc34ec0438f48feda88f81fa8d46f64b55",
    "linear_regression": "515c9925d6759290dcbf5ea29278f2f9d015baf8c18982991a6cf4d75416d0fd",
    "pendulum": "bb87654965dfaa37fe18d23fd4a4e05820aebafbecbee71637be109bf749eaaf",
    "cart_pole": "ec32d5306978762ac779976bdd7fb7afc0abd51a1134aeeef550a9eb6327df38",
    "two_link_arm": "94644cf04e01b2c45e06ad0840803088888ca748c89423c8286c826d78dcf07b",
    "tabular_prior": "e5c1fba80cd1a0447f76d283ff1f91ea5284eb581ff5167916a3f7ed390071bb",
    "quadratics": "184647922e6a543c2de1ed2036a03d15d4fec82bb32c7d1e30490b586de48230",
    "logistic_regression": "344d730b6e183628cf6fe1b1047ddd9ab6a0fef8e8a2c6b935d9fa46b2a44339",
    "mlp_problems": "a699425fd83e7879c930bfcca8ab56cf4878f6456c69b1a99167744c8b1a7db0",
}
REGRESSION = ("sinusoid", "harmonics", "step_functions", "mixed_curves", "gaussian_process", "linear_regression")
REGRESSION += ("gp_rbf", "gp_matern52", "gp_periodic", "gp_weakly_periodic", "sawtooth", "process_mixture")
SYSTEMS = ("pendulum", "cart_pole", "two_link_arm")
TABLES = ("tabular_prior",)
PROBLEMS = ("quadratics", "logistic_regression", "mlp_problems")  # for learned optimizers: support and query are one
CONTINUOUS = {
    "tabular_prior": ["task.num_features=[20,20]", "task.categorical=0"]
}  # else two rows may be alike by chance
BUDGET = ["steps=2", "evaluation.every=1", "evaluation.num_val_tasks=2", "evaluation.num_tasks=3", "meta_batch_size=2"]


def beside(name: str) -> list[str]:
    """A learner and a network that fit the task."""
    if name in PROBLEMS:
        return ["meta_learner=learned_optimizer", "meta_learner.inner_steps=2", "meta_learner.unroll=1"]
    return ["base_learner.hidden=[8]"]


@cache
def task_of(name: str, *overrides: str):
    return experiment(f"task={name}", *beside(name), *overrides).task


def test_every_generated_task_has_its_episodes_written_down_here():
    assert set(MANIFESTS) == {*REGRESSION, *SYSTEMS, *TABLES, *PROBLEMS}


@pytest.mark.parametrize("name", MANIFESTS)
def test_test_episodes_are_those_that_they_have_always_been(name):
    assert manifest(task_of(name), "test", 20) == MANIFESTS[name]


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_episode_is_the_same_alone_in_company_and_in_any_order(name):
    together = task_of.__wrapped__(name).sample("val", [3, 1, 2])  # of another object
    for place, index in enumerate([3, 1, 2]):
        alone = task_of(name).sample("val", [index])
        for one, many in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(
                one.x[0], many.x[place], rtol=0, atol=1e-12
            )  # a batched product may sum otherwise
            torch.testing.assert_close(one.y[0], many.y[place], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MANIFESTS)
def test_splits_and_seeds_have_other_episodes_and_no_query_point_is_in_the_support(name):
    seen = set()
    for seed in (0, 1):
        for split in ("train", "val", "test"):
            support, query, _ = task_of(name, f"seed={seed}", *CONTINUOUS.get(name, [])).sample(split, range(5))
            rows = [row.tobytes() for row in np.asarray(query.x.flatten(0, 1)).astype("<f8")]
            assert not seen & set(rows)
            seen |= set(rows)
            if name not in PROBLEMS:
                assert not set(rows) & {row.tobytes() for row in np.asarray(support.x.flatten(0, 1)).astype("<f8")}


@pytest.mark.parametrize("name", [*REGRESSION, *SYSTEMS])
def test_training_sizes_apply_to_training_episodes_only(name):
    task = task_of(
        name, "task.num_shots=3", "task.num_queries=20", "task.train_num_shots=4", "task.train_num_queries=10"
    )
    sizes = {s: tuple(batch.x.shape[1] for batch in task.sample(s, [0])[:2]) for s in ("train", "val", "test")}
    assert sizes == {"train": (4, 10), "val": (3, 20), "test": (3, 20)}


@pytest.mark.parametrize("name", MANIFESTS)
def test_episodes_have_the_dtype_of_the_run_and_finite_numbers(name):
    for dtype in ("float32", "float64"):
        episode = task_of(name, f"dtype={dtype}").sample("train", range(4))
        floats = [t for batch in episode[:2] for t in batch[:2] if t.is_floating_point()]
        assert {t.dtype for t in floats} == {getattr(torch, dtype)}
        assert all(torch.isfinite(t).all() for t in floats)


@pytest.mark.parametrize("name", [n for n in MANIFESTS if n not in ("sinusoid", "quadratics")])
def test_two_training_steps_and_a_resumed_third_end_as_three_do(name, tmp_path):
    train(tmp_path / "whole", f"task={name}", *beside(name), *BUDGET, "steps=3")
    with unexamined():
        train(tmp_path / "run", f"task={name}", *beside(name), *BUDGET)
        train(tmp_path / "run", f"task={name}", *beside(name), *BUDGET, "steps=3", "resume=auto")
    ends = [torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True)["theta"] for run in ("run", "whole")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("run", "whole")]
    assert {k: v for k, v in results[0].items() if k.startswith("test/")} == {
        k: v for k, v in results[1].items() if k.startswith("test/")
    }


@pytest.mark.parametrize("name", ["mixed_curves", "cart_pole", "mlp_problems"])
def test_the_command_line_trains_two_steps(name, tmp_path):
    outcome = metarun(f"task={name}", *beside(name), *BUDGET, "device=cpu", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize("name", [n for n in REGRESSION if n != "linear_regression"])
def test_a_picture_has_a_panel_for_each_episode_with_its_support_points(name):
    figure = task_of(name).show("test", [0, 1, 2, 5])
    shown = [panel for panel in figure.axes if panel.lines]
    assert len(shown) == 4
    support = task_of(name).sample("test", [5]).support
    x, y = shown[3].lines[1].get_data()
    np.testing.assert_allclose(np.stack([x, y]), torch.cat(support[:2], -1)[0].T.numpy(), atol=1e-9)


def test_sizes_below_one_are_refused():
    for name in ("mixed_curves", "gaussian_process", "linear_regression", "pendulum"):
        with pytest.raises(Exception, match=r"task.num_shots is 0, but an episode needs at least 1"):
            task_of(name, "task.num_shots=0")
