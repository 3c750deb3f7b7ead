"""The peers of scripts/benchmark.py, each as its own users run it.

They come from their packages: pip install higher torchopt jax parallel-metalearn; learn2learn no longer builds, so its
algorithm files are read from the source archive that `pip download --no-deps --no-binary learn2learn learn2learn==0.2.0`
leaves in --peers DIR.
"""

import os
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_works import Engine, Step, Work, device, parts, with_fused_norms


class NotComparable(Exception):
    """The peer has nothing that could be compared with metarun's on this work."""


def of_maml(peer: Callable[[Work, Any, Any, Any], Step], fused: bool = True) -> Engine:
    """A peer's engine, which gets the network (with torch's own batch norms, where ``fused``), objective and episodes."""

    def prepare(work: Work, dtype: Any) -> Step:
        if work.learner != "maml":
            raise NotComparable(f"has no {work.learner} to compare")
        net, objective, episodes = parts(work, dtype)
        return peer(work, with_fused_norms(net) if fused else net, objective, episodes)

    return prepare


def in_learn2learn(work: Work, net: Any, objective: Any, episodes: Any) -> Step:
    """learn2learn's own MAML: clone, adapt, backward, task after task."""
    import torch

    folder = _learn2learn_folder(Path(os.environ["METARUN_BENCHMARK_PEERS"]))
    for name in ("learn2learn", "learn2learn.algorithms"):  # its __init__ files import what does not build
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML

    maml = MAML(net, lr=work.inner_lr, first_order=False)

    def step() -> list[Any]:
        maml.zero_grad()
        for i in range(work.tasks):
            learner = maml.clone()
            for _ in range(work.steps):
                learner.adapt(objective.loss(learner(episodes.support.x[i]), episodes.support.y[i]))
            (objective.loss(learner(episodes.query.x[i]), episodes.query.y[i]) / work.tasks).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]

    return step


def _learn2learn_folder(peers: Path) -> Path:
    folder = peers / "learn2learn-0.2.0"
    if not folder.is_dir():
        archive = peers / "learn2learn-0.2.0.tar.gz"
        if not archive.is_file():
            raise ImportError(f"no {archive.name} in --peers")
        with tarfile.open(archive) as file:
            file.extractall(peers, filter="data")
    return folder


def in_higher(work: Work, net: Any, objective: Any, episodes: Any) -> Step:
    import higher
    import torch

    inner = torch.optim.SGD(net.parameters(), lr=work.inner_lr)

    def step() -> list[Any]:
        net.zero_grad()
        for i in range(work.tasks):
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(work.steps):
                    optimizer.step(objective.loss(fast(episodes.support.x[i]), episodes.support.y[i]))
                (objective.loss(fast(episodes.query.x[i]), episodes.query.y[i]) / work.tasks).backward()
        return [p.grad for p in net.parameters()]

    return step


def in_torchopt(work: Work, net: Any, objective: Any, episodes: Any) -> Step:
    import torch
    import torchopt

    optimizer = torchopt.MetaSGD(net, lr=work.inner_lr)
    params = list(net.parameters())

    def step() -> list[Any]:
        start = torchopt.extract_state_dict(net, by="reference")
        total = [torch.zeros_like(p) for p in params]
        for i in range(work.tasks):
            for _ in range(work.steps):
                optimizer.step(objective.loss(net(episodes.support.x[i]), episodes.support.y[i]))
            loss = objective.loss(net(episodes.query.x[i]), episodes.query.y[i])
            total = [t + g / work.tasks for t, g in zip(total, torch.autograd.grad(loss, params), strict=True)]
            torchopt.recover_state_dict(net, start)
        return total

    return step


def in_parallel_metalearn(work: Work, net: Any, objective: Any, episodes: Any) -> Step:
    """parallel-metalearn's MAML with its vmap backend, and an outer optimizer that does not move."""
    import torch
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any, **flags: Any) -> dict[str, Any]:
            return {"logits": self.net(x), "buffers": dict(self.named_buffers())}

        def get_fast_weights(self) -> dict[str, Any]:
            return dict(self.named_parameters())

    class Loss(nn.Module):
        def forward(self, out_dict: Any, targets: Any, **context: Any) -> tuple[Any, Any]:
            loss = objective.loss(out_dict["logits"], targets)
            return loss, loss.detach()

    model = Model()
    inner = InnerSGD(model.get_fast_weights(), inner_lr=work.inner_lr, max_inner_steps=work.steps, learn_lr=False)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    shared = {"inner_optimizer": inner, "support_loss_fn": Loss(), "inner_steps": work.steps}
    maml = MAML(model=model, optimizer=still, chunk_size=80, **shared)
    batch = (*episodes.support, *episodes.query)

    def step() -> list[Any]:
        maml.step(iter([batch]))
        return [p.grad for p in model.parameters()]

    return step


def in_torch_func(work: Work, net: Any, objective: Any, episodes: Any) -> Step:
    """Plain torch.func as its tutorial writes it: vmap over tasks of a function with grad inside, in one call."""
    from torch.func import functional_call, grad, vmap

    theta = {name: p.detach().clone() for name, p in net.named_parameters()}

    def task_loss(theta: Any, episode: Any) -> Any:
        def loss(phi: Any, batch: Any) -> Any:
            return objective.loss(functional_call(net, phi, (batch.x,)), batch.y)

        phi = theta
        for _ in range(work.steps):
            g = grad(loss)(phi, episode.support)
            phi = {name: p - work.inner_lr * g[name] for name, p in phi.items()}
        return loss(phi, episode.query)

    def mean_loss(theta: Any) -> Any:
        return vmap(task_loss, in_dims=(None, 0))(theta, episodes).mean()

    return lambda: list(grad(mean_loss)(theta).values())


def in_jax(work: Work, net: Any, _: Any, episodes: Any) -> Step:
    """jit(vmap) in JAX, with the network written out."""
    import jax
    import jax.numpy as jnp
    import torch

    jax.config.update("jax_enable_x64", episodes.support.x.dtype == torch.float64)
    theta = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in net.named_parameters()}
    data = [(jnp.asarray(b.x.cpu().numpy()), jnp.asarray(b.y.cpu().numpy())) for b in episodes[:2]]
    layers = [(name, type(m).__name__) for name, m in net.named_modules()]

    def forward(p: Any, x: Any) -> Any:
        for name, kind in layers:
            if kind == "Conv2d":
                stride = (2, 2) if work.model == "stride" else (1, 1)
                x = jax.lax.conv_general_dilated(x, p[name + ".weight"], stride, [(1, 1), (1, 1)])
                x = x + p[name + ".bias"][:, None, None]
            elif kind == "BatchNorm":
                mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
                x = (x - mean) / jnp.sqrt(var + 1e-5)
                x = x * p[name + ".weight"][:, None, None] + p[name + ".bias"][:, None, None]
            elif kind == "ReLU":
                x = jax.nn.relu(x)
            elif kind == "MaxPool2d":
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            elif kind == "ImageMean":
                x = x.mean((2, 3))
            elif kind == "Flatten":
                x = x.reshape(x.shape[0], -1)
            elif kind == "Linear":
                x = x @ p[name + ".weight"].T + p[name + ".bias"]
        return x

    def loss(p: Any, x: Any, y: Any) -> Any:
        out = forward(p, x)
        if work.model == "mlp":
            return ((out - y) ** 2).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1).mean()

    def task_loss(p: Any, support: Any, query: Any) -> Any:
        phi = p
        for _ in range(work.steps):
            phi = jax.tree.map(lambda a, g: a - work.inner_lr * g, phi, jax.grad(loss)(phi, *support[:2]))
        return loss(phi, *query[:2])

    step = jax.jit(jax.grad(lambda p: jax.vmap(task_loss, in_axes=(None, 0, 0))(p, *data).mean()))

    def gradient() -> list[Any]:
        g = jax.block_until_ready(step(theta))
        return [torch.utils.dlpack.from_dlpack(g[name]) for name in theta]  # JAX sorts the names

    if device() != "cpu":  # torch knows nothing of JAX's memory there
        memory = jax.local_devices()[0].memory_stats
        gradient.peak_mb = lambda: memory()["peak_bytes_in_use"] / 2**20  # type: ignore[attr-defined]
    return gradient


PEERS = {
    "learn2learn": of_maml(in_learn2learn),
    "higher": of_maml(in_higher),
    "torchopt": of_maml(in_torchopt),
    "parallel_metalearn": of_maml(in_parallel_metalearn),
    "torch_func": of_maml(in_torch_func, fused=False),
    "jax": of_maml(in_jax, fused=False),
}
