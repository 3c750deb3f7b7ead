"""``rates``: parts of theta with learning rates of their own."""

import math

import pytest
import torch
from torch import nn

from metarun.config.experiment import optimizer_of
from metarun.errors import ConfigError
from metarun.execution.update import Update
from metarun.output.checkpoint import save
from metarun.output.metrics import written
from metarun.trees import leaf_names, tree_leaves
from tests.composing import CHEAP, experiment, train
from tests.running import checkpoint, metarun

FEW = ["steps=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "meta_batch_size=2"]
TORCH, NO_FACTOR = "scheduler._target_=torch.optim.lr_scheduler.", ["~scheduler.factor", "~scheduler.total_iters"]
SCHEDULES = {
    "constant": [],
    "cosine_to_above_0": ["scheduler=cosine", "scheduler.T_max=8", "scheduler.eta_min=0.01"],
    "one_cycle": [
        f"{TORCH}OneCycleLR",
        *NO_FACTOR,
        "+scheduler.max_lr=0.3",
        "+scheduler.total_steps=8",
        "+scheduler.cycle_momentum=false",
    ],
    "restarts": [f"{TORCH}CosineAnnealingWarmRestarts", *NO_FACTOR, "+scheduler.T_0=3", "+scheduler.eta_min=0.01"],
}


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_of_zero_freezes_a_part_under_every_schedule(schedule, tmp_path):
    frozen = theta_after(tmp_path / "frozen", "+rates.head=0", *SCHEDULES[schedule])
    for name, p in experiment(*FEW).theta_0.items():
        assert torch.equal(frozen[name], p) == name.startswith("head")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_part_steps_at_its_multiple_of_the_schedule(schedule):
    x = experiment("+rates.body.3=2", "+rates.body.1=5", "optimizer=sgd", "optimizer.lr=0.1", *SCHEDULES[schedule])
    theta = {name: p.detach().double().requires_grad_() for name, p in x.theta_0.items()}
    plain = x.optimizer([nn.Parameter(torch.ones(1))])
    update = Update(tree_leaves(theta), optimizer_of(x, tree_leaves(theta), leaf_names(theta)), None)
    schedulers, expected = [x.scheduler(update.optimizer), x.scheduler(plain)], {"body.1": 5, "body.3": 2, "head": 1}
    for _ in range(6):
        before, rate = {name: p.detach().clone() for name, p in theta.items()}, plain.param_groups[0]["lr"]
        update([torch.ones_like(p) for p in theta.values()])
        plain.step()
        for name, p in theta.items():
            step = rate * expected[name.rpartition(".")[0]]
            torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, step))
        for scheduler in schedulers:
            scheduler.step()


def test_the_gradient_of_a_frozen_part_takes_nothing_of_the_clipped_norm():
    x = experiment("+rates.head=0", "optimizer=sgd", "optimizer.lr=1", "clip_norm=0.5")
    theta = {name: p.detach().clone().requires_grad_() for name, p in x.theta_0.items()}
    update = Update(tree_leaves(theta), optimizer_of(x, tree_leaves(theta), leaf_names(theta)), x.clip)
    update([torch.full_like(p, 1e6 if name.startswith("head") else 1.0) for name, p in theta.items()])
    moved = torch.cat([(p.detach() - x.theta_0[name]).flatten() for name, p in theta.items()])
    assert moved.norm() == pytest.approx(0.5, rel=1e-5)


def test_the_logged_rate_is_the_scheduled_one_of_the_logged_step(tmp_path):
    words = ["+rates.body=3", "+rates.head=0", "scheduler=cosine", "steps=4", "log_every=1"]
    train(tmp_path / "run", *FEW, *words)
    logged = [values["train/lr"] for _, values in written(tmp_path / "run/metrics.jsonl") if "train/lr" in values]
    assert logged == pytest.approx([0.001 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])


def test_a_checkpoint_from_before_multiples_goes_on_with_its_own_rates(tmp_path):
    words = [*FEW, "+rates.head=0.5", "optimizer=sgd", "optimizer.lr=0.25", f"run_dir={tmp_path / 'run'}", *CHEAP]
    assert metarun(*words).code == 0
    state, last = checkpoint(tmp_path / "run", "last"), tmp_path / "run/checkpoints/last.pt"
    for group in state["optimizer"]["param_groups"]:  # as they were: multiplied, for the scheduler too
        group["lr"] *= group.pop("multiple")
    state["scheduler"]["base_lrs"] = state["scheduler"]["_last_lr"] = [0.25, 0.125]
    save(last, {key: value for key, value in state.items() if key != "lr"})
    assert metarun(f"resume={tmp_path / 'run'}", "steps=4").code == 0
    whole = theta_after(tmp_path / "whole", *words[:-5], "steps=4")
    found = checkpoint(tmp_path / "run", "last")
    assert found["step"] == 4
    assert all(torch.equal(found["theta"][name], p) for name, p in whole.items())


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
