"""Meta-training in plain PyTorch, as in a notebook: the independent loop that whole runs must agree with.

From metarun it takes the network, its start, the episodes and the values of the configuration, and nothing else: autograd
task by task, an optimizer of torch that is not fused, clipping and schedules of torch. MAML and prototypical networks are
written out; of other learners, whose gradients have oracles of their own, it takes the loss.
"""

from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.experiment import Experiment
from metarun.evaluation.eval_mode import modules_of
from metarun.models.dropout import dropping
from metarun.trees import leaf_names, slice_tasks, tree_flatten, tree_map, tree_unflatten
from tests.composing import built, compose

CALIBRATION_TASKS = 32


def start(cfg: DictConfig) -> tuple[Experiment, Any]:
    """The objects of a run, and theta_0."""
    x = built(cfg)
    return x, tree_map(lambda p: p.detach().clone().contiguous(), x.theta_0)


# ---- learners, written out ----


def maml_outputs(learner: Any, theta: dict[str, Tensor], episode: Any) -> list[Tensor]:
    """Outputs for the query after 0 ... ``inner_steps`` inner steps."""
    net, support = learner.base_learner, episode.support
    loss = F.mse_loss if support.y.is_floating_point() else F.cross_entropy
    phi, outputs = dict(theta), [functional_call(net, theta, (episode.query.x,))]
    for _ in range(learner.inner_steps):
        was, _ = net.training, net.train()  # an inner step at the test is one as in training
        inner = loss(functional_call(net, phi, (support.x,)), support.y)
        net.train(was)
        grads = torch.autograd.grad(inner, list(phi.values()), create_graph=True, allow_unused=True)
        rows = zip(phi.items(), grads, strict=True)
        phi = {name: p if g is None else p - learner.inner_lr * g for (name, p), g in rows}
        outputs.append(functional_call(net, phi, (episode.query.x,)))
    return outputs


def protonet_outputs(learner: Any, theta: dict[str, Tensor], episode: Any) -> list[Tensor]:
    """Minus the squared distances of the queries to the class means; or the cosines, times a learned scale."""
    body, (support, query, *_) = learner.base_learner.body, episode
    embedding = theta["embedding"] if learner.distance == "cosine" else theta
    z = functional_call(body, embedding, (support.x,))
    means = torch.stack([z[support.y == n].mean(0) for n in range(learner.num_ways)])
    asked = functional_call(body, embedding, (query.x,))[:, None]
    if learner.distance == "cosine":
        return [theta["scale"] * F.cosine_similarity(asked, means, dim=-1)]
    return [-((asked - means) ** 2).sum(-1)]


WRITTEN_OUT = {"MAML": maml_outputs, "ProtoNet": protonet_outputs}


def task_loss(learner: Any, theta: Any, episode: Any) -> Tensor:
    name = type(learner).__name__
    if name not in WRITTEN_OUT:
        return learner.meta_loss(theta, episode)[0]
    outputs, y = WRITTEN_OUT[name](learner, theta, episode)[-1], episode.query.y
    return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


# ---- training ----


def optimizer_of(cfg: Any, theta: Any, leaves: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of the configuration, not fused; ``rates`` may name the outermost parts of theta."""
    kind, settings = made_by(cfg.optimizer)
    settings |= {"foreach": False, "fused": False}
    if not cfg.rates:
        return kind(leaves, **settings)
    rates = OmegaConf.to_container(cfg.rates)
    parts = [name.split(".", maxsplit=1)[0] for name in leaf_names(theta)]
    rows = zip(leaves, parts, strict=True)
    groups = [{"params": [p], "lr": settings["lr"] * rates.get(part, 1.0)} for p, part in rows]
    return kind(groups, **settings)


def made_by(node: Any) -> tuple[Any, dict[str, Any]]:
    """A class of torch and its settings, from a node of the configuration."""
    settings = OmegaConf.to_container(node)
    name = settings.pop("_target_").rpartition(".")[2]
    settings.pop("_partial_")
    return getattr(torch.optim, name, None) or getattr(torch.optim.lr_scheduler, name), settings


def clip(cfg: Any, leaves: list[Tensor]) -> None:
    if cfg.clip_norm is not None:
        nn.utils.clip_grad_norm_(leaves, cfg.clip_norm, foreach=False)
    if cfg.clip_value is not None:
        nn.utils.clip_grad_value_(leaves, cfg.clip_value, foreach=False)


def trained(overrides: list[str]) -> tuple[Experiment, Any]:
    """The objects of a run and its theta after the last step."""
    cfg = compose(*overrides)
    x, theta = start(cfg)
    leaves, structure = tree_flatten(tree_map(lambda p: p.requires_grad_(), theta))
    optimizer = optimizer_of(cfg, theta, leaves)
    schedule, settings = made_by(cfg.scheduler)
    scheduler = schedule(optimizer, **settings)
    for step in range(x.steps):
        episodes = x.task.sample("train", range(step * x.meta_batch_size, (step + 1) * x.meta_batch_size))
        optimizer.zero_grad()
        with dropping(modules_of(x.learner), x.seed, step):
            for i in range(x.meta_batch_size):
                loss = task_loss(x.learner.at(step), tree_unflatten(leaves, structure), slice_tasks(episodes, i))
                (loss / x.meta_batch_size).backward()
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous()
        clip(cfg, leaves)
        optimizer.step()
        scheduler.step()
    return x, tree_map(torch.Tensor.detach, theta)


# ---- scores ----


def calibrate(learner: Any, theta: Any, task: Any) -> None:
    """Give norms in mode ``running`` the moments that the queries of the first training tasks have under theta, or phi: the
    mean over tasks, and the variance within tasks plus that of their means."""
    norms = [m for m in learner.base_learner.modules() if type(m).__name__ == "BatchNorm" and m.mode == "running"]
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {id(m): [] for m in norms}
    last: dict[int, tuple[Tensor, Tensor]] = {}
    for i in range(CALIBRATION_TASKS) if norms else ():
        episode = slice_tasks(task.sample("train", [i]), 0)
        outputs = WRITTEN_OUT[type(learner).__name__]
        hooks = [m.register_forward_pre_hook(lambda m, given: last.update({id(m): moments(given[0])})) for m in norms]
        outputs(learner, theta, episode)  # ends with the queries
        for hook in hooks:
            hook.remove()
        for number, found in last.items():
            seen[number].append(found)
    for m in norms:
        means, variances = map(torch.stack, zip(*seen[id(m)], strict=True))
        m.mean, m.var = means.mean(0).detach(), (variances.mean(0) + means.var(0, unbiased=False)).detach()
    learner.base_learner.eval()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of x [S, C, H, W]."""
    return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)


def scores(x: Experiment, theta: Any, num_tasks: int) -> Tensor:
    """The score of each of the first test episodes, after each inner step [episodes, steps]."""
    theta, learner = tree_map(lambda p: p.detach().requires_grad_(), theta), x.test_learner
    calibrate(x.learner, theta, x.task)
    name, rows = type(learner).__name__, []
    for i in range(num_tasks):
        episode = slice_tasks(x.task.sample("test", [i]), 0)
        if name in WRITTEN_OUT:
            rows.append([score(o.detach(), episode.query.y) for o in WRITTEN_OUT[name](learner, theta, episode)])
        else:
            metrics = learner.query_loss(learner.adapt(theta, episode.support), episode.query)[1]
            rows.append([metrics[x.task.spec.objective.score_name].item()])
    return torch.tensor(rows, dtype=torch.float64)


def score(outputs: Tensor, y: Tensor) -> float:
    """Accuracy for labels y [Q], mean squared error for numbers y [Q, 1]."""
    return (F.mse_loss(outputs, y) if y.is_floating_point() else (outputs.argmax(1) == y).double().mean()).item()
