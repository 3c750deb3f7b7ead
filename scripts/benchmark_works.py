"""What scripts/benchmark.py times: meta-gradients to compute, and metarun and a plain loop that compute them.

An engine is made of a work and a dtype: a function of no arguments, which returns the mean meta-gradient of the same tasks
from the same weights, a tensor a parameter.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = Callable[[], list[Any]]
Engine = Callable[["Work", Any], Step]  # of a work and a dtype


def device() -> str:
    """Where all is computed: what --device said, also in the processes of the measurements."""
    return os.environ.get("METARUN_BENCHMARK_DEVICE", "cpu")


@dataclass(frozen=True)
class Work:
    """One meta-gradient to compute: conv4 (or the sinusoid MLP), ways, shots, queries, inner steps, tasks."""

    model: str  # stride | max_pool | mlp
    channels: int
    size: int
    colours: int
    learner: str  # maml | reptile | protonet
    ways: int
    shots: int
    queries: int
    steps: int
    inner_lr: float
    tasks: int
    seed: int = 0
    smooth: bool = False  # softplus in place of ReLU: no kink where rounding decides on which side a number lies


WORKS = {
    "sinusoid": Work("mlp", 40, 1, 1, "maml", 1, 10, 10, 1, 0.01, 25),
    "omniglot": Work("stride", 64, 28, 1, "maml", 5, 1, 1, 1, 0.4, 32),
    "mini": Work("max_pool", 32, 84, 3, "maml", 5, 1, 15, 5, 0.01, 4),
    "protonet_60way": Work("max_pool", 64, 28, 1, "protonet", 60, 1, 5, 0, 0.0, 1),
    "reptile": Work("stride", 64, 28, 1, "reptile", 5, 10, 1, 5, 0.1, 5),
}


def parts(work: Work, dtype: Any) -> tuple[Any, Any, Any]:
    """A fresh base learner, its objective and the episodes of a work; equal in every process."""
    import torch

    from metarun.core import Batch, Episode
    from metarun.models.conv4 import Conv4
    from metarun.models.mlp import MLP
    from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR

    torch.manual_seed(work.seed)
    if work.model == "mlp":
        net: Any = MLP((1,), 1, [40, 40], None, "torch")
        x = [torch.randn(work.tasks, n, 1) for n in (work.shots, work.queries)]
        y = [torch.randn(work.tasks, n, 1) for n in (work.shots, work.queries)]
        objective = SQUARED_ERROR
    else:
        shape = (work.colours, work.size, work.size)
        net = Conv4(shape, work.ways, work.channels, work.model, "transductive")  # type: ignore[arg-type]
        counts = (work.shots, work.queries)
        x = [torch.rand(work.tasks, work.ways * n, *shape) for n in counts]
        y = [torch.arange(work.ways).repeat_interleave(n).expand(work.tasks, -1).contiguous() for n in counts]
        objective = CROSS_ENTROPY
    if work.smooth:
        net.body = type(net.body)(*(torch.nn.Softplus() if isinstance(m, torch.nn.ReLU) else m for m in net.body))
    batches = [
        Batch(a.to(device(), dtype), b.to(device(), dtype if b.is_floating_point() else None))
        for a, b in zip(x, y, strict=True)
    ]
    return net.to(device(), dtype), objective, Episode(*batches)


def learner_of(work: Work, net: Any, objective: Any) -> Any:
    from metarun.meta_learners.maml import MAML
    from metarun.meta_learners.protonet import ProtoNet
    from metarun.meta_learners.reptile import Reptile

    if work.learner == "protonet":
        return ProtoNet(net, objective, work.ways, "euclidean")
    if work.learner == "reptile":
        return Reptile(net, objective, work.inner_lr, work.steps, None)
    return MAML(net, objective, work.inner_lr, work.steps, False, "all", "sgd")


def with_fused_norms(net: Any) -> Any:
    """The same network with torch's own batch norm, as a peer's user writes it."""
    import torch
    from torch import nn

    from metarun.models.exact.layers import BatchNorm

    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNorm):
                fused = nn.BatchNorm2d(len(child.weight), track_running_stats=False).to(child.weight)
                with torch.no_grad():
                    fused.weight.copy_(child.weight)
                    fused.bias.copy_(child.bias)
                setattr(module, name, fused)
    return net


def metarun(chosen: Callable[[Any], Any]) -> Engine:
    """metarun with the execution that is ``chosen`` from its module, by the settings that it makes for itself."""

    def prepare(work: Work, dtype: Any) -> Step:
        from metarun.execution import execution
        from metarun.execution.choosing import choose_execution
        from metarun.process import return_freed_memory
        from metarun.trees import tree_leaves

        net, objective, episodes = parts(work, dtype)
        learner = learner_of(work, net, objective)
        theta = learner.init()
        workload = execution.Workload(learner.meta_loss, theta, episodes, steps=10**6)
        choice = choose_execution(chosen(execution), workload)
        return_freed_memory()  # as a run does

        def step() -> list[Any]:
            return tree_leaves(choice.execution.mean_grad(learner.meta_loss, theta, episodes)[0])

        step.chosen = "; ".join([choice.execution.describe(), *choice.notes])  # type: ignore[attr-defined]
        return step

    return prepare


METARUN = {
    "metarun": metarun(lambda module: module.Auto(None, compile=False)),
    "metarun_compiled": metarun(lambda module: module.Auto(None, compile=True)),
    "metarun_stored": metarun(lambda module: module.Looped(inner_memory="stored")),
    "metarun_recomputed": metarun(lambda module: module.Looped(inner_memory="recomputed")),
}


def plain_loop(work: Work, dtype: Any) -> Step:
    """Plain torch.autograd, task after task: what most scripts do, and the reference in float64."""
    import torch
    from torch.func import functional_call

    net, objective, episodes = parts(work, dtype)
    net = with_fused_norms(net)
    theta = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def step() -> list[Any]:
        total = [torch.zeros_like(p) for p in theta.values()]
        for i in range(work.tasks):
            support, query = ((batch.x[i], batch.y[i]) for batch in episodes[:2])
            if work.learner == "protonet":
                z, q = (functional_call(net.body, _under(theta, "body."), (x,)) for x in (support[0], query[0]))
                logits = -(torch.cdist(q, z.view(work.ways, work.shots, -1).mean(1)) ** 2)
                grads = torch.autograd.grad(objective.loss(logits, query[1]), list(theta.values()), allow_unused=True)
            else:
                second = work.learner == "maml"
                phi = theta if second else {k: p.detach().requires_grad_() for k, p in theta.items()}
                for _ in range(work.steps):
                    loss = objective.loss(functional_call(net, phi, (support[0],)), support[1])
                    inner = torch.autograd.grad(loss, list(phi.values()), create_graph=second)
                    phi = {k: p - work.inner_lr * g for (k, p), g in zip(phi.items(), inner, strict=True)}
                if second:
                    loss = objective.loss(functional_call(net, phi, (query[0],)), query[1])
                    grads = torch.autograd.grad(loss, list(theta.values()))
                else:
                    grads = tuple(p.detach() - phi[k].detach() for k, p in theta.items())
            total = [t + g / work.tasks if g is not None else t for t, g in zip(total, grads, strict=True)]
        return [
            t for t, name in zip(total, theta, strict=True) if work.learner != "protonet" or name.startswith("body.")
        ]

    return step


def _under(theta: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): p for name, p in theta.items() if name.startswith(prefix)}
