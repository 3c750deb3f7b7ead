"""``rates``: parts of theta with learning rates of their own."""

import pytest
import torch

from metarun.config.experiment import optimizer_of
from metarun.errors import ConfigError
from metarun.trees import leaf_names, tree_leaves
from tests.composing import experiment, train

FEW = ["steps=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "meta_batch_size=2"]


def theta_after(folder, *overrides):
    from metarun.output.checkpoint import load

    train(folder, *FEW, *overrides)
    return load(folder / "checkpoints/last.pt", torch.device("cpu"))["theta"]


def test_a_rate_of_zero_freezes_a_part_and_leaves_the_others_as_they_were(tmp_path):
    frozen = theta_after(tmp_path / "frozen", "+rates.head=0")
    plain = experiment(*FEW).theta_0
    for name, p in plain.items():
        assert torch.equal(frozen[name], p) == name.startswith("head")


def test_a_rate_of_one_changes_nothing(tmp_path):
    one = theta_after(tmp_path / "one", "+rates.head=1", "optimizer=sgd")
    plain = theta_after(tmp_path / "plain", "optimizer=sgd")
    assert all(torch.equal(one[name], p) for name, p in plain.items())


def test_every_part_steps_at_its_multiple_of_the_rate():
    x = experiment("+rates.body.3=2", "+rates.body.1=5", "optimizer=sgd", "optimizer.lr=0.1")
    theta = x.theta_0
    optimizer = optimizer_of(x, tree_leaves(theta), leaf_names(theta))
    rates = {leaf.data_ptr(): group["lr"] for group in optimizer.param_groups for leaf in group["params"]}
    expected = {"body.1": 0.5, "body.3": 0.2, "head": 0.1}
    for name, leaf in theta.items():
        assert rates[leaf.data_ptr()] == pytest.approx(expected[name.rpartition(".")[0]])


def test_a_part_that_theta_lacks_is_named_with_those_it_has(tmp_path):
    with pytest.raises(ConfigError, match=r"rates.heed: theta has no part of that name; it has .*head.weight"):
        train(tmp_path / "run", *FEW, "+rates.heed=2")
    assert not (tmp_path / "run").exists()  # so that the corrected command may have it


def test_rates_that_change_nothing_leave_the_draws_of_a_learner_as_they_were(tmp_path):
    words = ["meta_learner=meta_sgd", "optimizer=sgd"]  # Meta-SGD draws its initial rate
    one = theta_after(tmp_path / "one", "+rates.weights=1", *words)
    plain = theta_after(tmp_path / "plain", *words)
    assert all(map(torch.equal, tree_leaves(one), tree_leaves(plain)))


def test_a_negative_rate_is_refused():
    with pytest.raises(ConfigError, match=r"rates.head is -1, but must be a number of 0 or more"):
        experiment("+rates.head=-1")
