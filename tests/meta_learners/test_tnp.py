"""A whole run of a transformer neural process against a plain loop over torch's own layers, in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Episode
from tests.composing import experiment, train
from tests.models.test_attention import FEEDFORWARD, HEADS, WIDTH, torchs
from tests.running import checkpoint, read

STEPS, TASKS, LR = 100, 3, 0.01
SETTINGS = [
    *("task=gp_rbf", "task.length_scale=[1.0,1.5]", "task.scale=[0.9,1.0]"),
    *("task.num_shots=[3,8]", "task.num_queries=5", "base_learner=linear", "meta_learner=tnp"),
    *(f"meta_learner.width={WIDTH}", f"meta_learner.heads={HEADS}", f"meta_learner.feedforward={FEEDFORWARD}"),
    *(
        "meta_learner.depth=2",
        "meta_learner.embedder_layers=2",
        "optimizer=adam",
        f"optimizer.lr={LR}",
        "scheduler=cosine",
    ),
    *(f"steps={STEPS}", f"meta_batch_size={TASKS}", "dtype=float64", "device=cpu"),
    *(f"evaluation.every={STEPS}", "evaluation.num_val_tasks=40", "evaluation.num_tasks=40"),
]


class Plain:
    """The process as torch's layers make it, with the weights of theta_0."""

    def __init__(self, theta):
        theta = copy.deepcopy(theta)
        self.outer = {name: [(p["weight"], p["bias"]) for p in theta[name]] for name in ("embedder", "predictor")}
        self.layers = [torchs(layer, norm_first=False, activation="relu") for layer in theta["layers"]]
        self.leaves = [p for pairs in self.outer.values() for pair in pairs for p in pair]
        for p in self.leaves:
            p.requires_grad_()
        self.leaves += [p for layer in self.layers for p in layer.parameters()]

    def network(self, name: str, x: Tensor) -> Tensor:
        *hidden, last = self.outer[name]
        for weight, bias in hidden:
            x = F.relu(F.linear(x, weight, bias))
        return F.linear(x, *last)

    def loss(self, episodes: Episode) -> Tensor:
        """Negative log likelihood of each task [B]."""
        (x, y, _), (at, target, _) = episodes[:2]
        rows = torch.cat([torch.cat([x, y], 2), F.pad(at, (0, 1))], 1)
        rows = self.network("embedder", rows)
        hidden = torch.arange(rows.shape[1]).expand(rows.shape[1], -1) >= x.shape[1]  # all see the support alone
        for layer in self.layers:
            rows = layer(rows, src_mask=hidden)
        mean, raw = self.network("predictor", rows[:, x.shape[1] :]).chunk(2, 2)
        return -torch.distributions.Normal(mean, F.softplus(raw)).log_prob(target).mean((1, 2))


@pytest.mark.parametrize("execution", ["looped", "vmapped"])
def test_a_trained_process_is_that_of_torchs_layers_in_a_plain_loop(execution, tmp_path):
    built = experiment(*SETTINGS)
    plain, task = Plain(built.theta_0), built.task
    optimizer = torch.optim.Adam(plain.leaves, lr=LR, foreach=False)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / STEPS)) / 2
        episodes = task.at("train", step).sample("train", range(step * TASKS, (step + 1) * TASKS))
        optimizer.zero_grad()
        plain.loss(episodes).mean().backward()
        optimizer.step()
    with torch.no_grad():
        blocks = [task.at("test", i).sample("test", range(20 * i, 20 * i + 20)) for i in range(2)]
        expected = torch.cat([plain.loss(block) for block in blocks]).mean().item()

    train(tmp_path, *SETTINGS, f"execution={execution}")
    assert checkpoint(tmp_path, "best")["step"] == STEPS
    assert read(tmp_path / "results.json")["test/negative_log_likelihood"]["mean"] == pytest.approx(expected, rel=1e-9)
