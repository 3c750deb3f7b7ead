"""Time and check meta-gradients side by side: python scripts/benchmark.py [WORK ...] [--device cuda] [--out DIR]

Every engine computes the mean meta-gradient of the same tasks from the same weights, in a process of its own: metarun's with
the settings that metarun makes for itself, the peers' as their users run them. Rounds are interleaved, so that a busy
machine slows all alike. Each row: median milliseconds, the ratio to metarun in the same run, peak memory above the loaded
process, and the largest relative error against a float64 loop of plain autograd. A peer that is not installed is reported.

Peers come from their packages: pip install higher torchopt jax parallel-metalearn; learn2learn no longer builds, so its
algorithm files are read from the source archive that `pip download --no-deps --no-binary learn2learn learn2learn==0.2.0`
leaves in --peers DIR.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

WARM_UP, MIN_REPEATS, MIN_SECONDS = 2, 3, 4.0
DEVICE = os.environ.get("METARUN_BENCHMARK_DEVICE", "cpu")


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
CURVES = {
    "tasks": ("omniglot", "tasks", (1, 4, 16, 64, 256)),
    "inner_steps": ("sinusoid", "steps", (1, 5, 20, 100)),
    "ways": ("omniglot", "ways", (2, 5, 10, 20)),
}
KINKS = ("omniglot", range(6))  # work and seeds; errors with and without kinks
MEMORY = ("mini", (1, 10, 50), ("metarun_stored", "metarun_recomputed"))  # work, inner steps, engines


# ---------------------------------------------------------------- the same weights and tasks for everybody


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
        Batch(a.to(DEVICE, dtype), b.to(DEVICE, dtype if b.is_floating_point() else None))
        for a, b in zip(x, y, strict=True)
    ]
    return net.to(DEVICE, dtype), objective, Episode(*batches)


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


# ---------------------------------------------------------------- engines: a function of no arguments -> list of gradients


def metarun_engine(execution: Callable[[], Any]) -> Callable[[Work, Any], Callable[[], list[Any]]]:
    def prepare(work: Work, dtype: Any) -> Callable[[], list[Any]]:
        from metarun.execution.choosing import choose_execution
        from metarun.execution.execution import Workload
        from metarun.process import return_freed_memory
        from metarun.trees import tree_leaves

        net, objective, episodes = parts(work, dtype)
        learner = learner_of(work, net, objective)
        theta = learner.init()
        choice = choose_execution(execution(), Workload(learner.meta_loss, theta, episodes, steps=10**6))
        return_freed_memory()  # as a run does

        def step() -> list[Any]:
            return tree_leaves(choice.execution.mean_grad(learner.meta_loss, theta, episodes)[0])

        step.chosen = "; ".join([choice.execution.describe(), *choice.notes])  # type: ignore[attr-defined]
        return step

    return prepare


def _auto(compile_it: Any) -> Any:
    from metarun.execution.execution import Auto

    return Auto(None, compile=compile_it)


def _looped(memory: Any) -> Any:
    from metarun.execution.execution import Looped

    return Looped(inner_memory=memory)


def plain_loop(work: Work, dtype: Any) -> Callable[[], list[Any]]:
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


def learn2learn_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    """learn2learn's own MAML: clone, adapt, backward, task after task."""
    import torch

    _only_maml(work)
    folder = _learn2learn_folder(Path(os.environ["METARUN_BENCHMARK_PEERS"]))
    for name in ("learn2learn", "learn2learn.algorithms"):  # its __init__ files import what does not build
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML

    net, objective, episodes = parts(work, dtype)
    net = with_fused_norms(net)
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


def higher_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    import higher
    import torch

    _only_maml(work)
    net, objective, episodes = parts(work, dtype)
    net = with_fused_norms(net)
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


def torchopt_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    import torch
    import torchopt

    _only_maml(work)
    net, objective, episodes = parts(work, dtype)
    net = with_fused_norms(net)
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


def parallel_metalearn_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    """parallel-metalearn's MAML with its vmap backend, and an outer optimizer that does not move."""
    import torch
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from torch import nn

    _only_maml(work)
    net, objective, episodes = parts(work, dtype)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = with_fused_norms(net)

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
    maml = MAML(
        model=model,
        optimizer=still,
        inner_optimizer=inner,
        support_loss_fn=Loss(),
        inner_steps=work.steps,
        chunk_size=80,
    )
    batch = (*episodes.support, *episodes.query)

    def step() -> list[Any]:
        maml.step(iter([batch]))
        return [p.grad for p in model.parameters()]

    return step


def torch_func_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    """Plain torch.func as its tutorial writes it: vmap over tasks of a function with grad inside, in one call."""
    from torch.func import functional_call, grad, vmap

    _only_maml(work)
    net, objective, episodes = parts(work, dtype)
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


def jax_engine(work: Work, dtype: Any) -> Callable[[], list[Any]]:
    """jit(vmap) in JAX, with the network written out."""
    import jax
    import jax.numpy as jnp
    import torch

    _only_maml(work)
    jax.config.update("jax_enable_x64", dtype == torch.float64)
    net, _, episodes = parts(work, dtype)
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

    if DEVICE != "cpu":  # torch knows nothing of JAX's memory there
        memory = jax.local_devices()[0].memory_stats
        gradient.peak_mb = lambda: memory()["peak_bytes_in_use"] / 2**20  # type: ignore[attr-defined]
    return gradient


def _only_maml(work: Work) -> None:
    if work.learner != "maml":
        raise NotComparable(f"has no {work.learner} to compare")


class NotComparable(Exception):
    pass


ENGINES: dict[str, Callable[[Work, Any], Callable[[], list[Any]]]] = {
    "metarun": metarun_engine(lambda: _auto(False)),
    "metarun_compiled": metarun_engine(lambda: _auto(True)),
    "metarun_stored": metarun_engine(lambda: _looped("stored")),
    "metarun_recomputed": metarun_engine(lambda: _looped("recomputed")),
    "learn2learn": learn2learn_engine,
    "higher": higher_engine,
    "torchopt": torchopt_engine,
    "parallel_metalearn": parallel_metalearn_engine,
    "torch_func": torch_func_engine,
    "plain_loop": plain_loop,
    "jax": jax_engine,
}
COMPARED = [name for name in ENGINES if name not in MEMORY[2]]


# ---------------------------------------------------------------- one measurement, in a process of its own


def worker(engine: str, work: Work, reference: str) -> dict[str, Any]:
    """Milliseconds, memory and error of one engine on one work."""
    if engine.startswith("metarun"):
        from metarun.process import prepare

        prepare()
    import torch

    if torch.get_num_threads() > 1 and engine == "reference":
        torch.set_num_threads(1)
    if engine.startswith("metarun"):  # as its own runs; a peer's user has torch's default, TF32 in convolutions
        torch.backends.cudnn.allow_tf32 = False
    dtype = torch.float64 if engine == "reference" else torch.float32
    if DEVICE != "cpu":
        torch.cuda.set_device(torch.device(DEVICE).index or 0)
    torch.zeros(1, device=DEVICE)
    base = resident()
    began = time.perf_counter()
    step = (plain_loop if engine == "reference" else ENGINES[engine])(work, dtype)
    if engine == "reference":
        torch.save([g.detach().cpu() for g in step()], reference)
        return {}
    gradient = [g.detach().cpu().double().clone() for g in step()]
    ready = time.perf_counter() - began  # building, choosing and compiling included
    for _ in range(WARM_UP - 1):
        step()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    with PeakMemory() as peak:  # not while the clock runs: on 2 cores looking on costs 10%
        step()
    row: dict[str, Any] = {"ms": statistics.median(times) * 1e3, "ready_s": ready}
    row |= {"peak_mb": getattr(step, "peak_mb", lambda: (peak.bytes - base) / 2**20)()}
    row["chosen"] = getattr(step, "chosen", None)
    if Path(reference).is_file():
        exact = torch.load(reference, weights_only=True)
        row["error"] = relative_error(gradient, exact)
    return row


def relative_error(gradient: list[Any], exact: list[Any]) -> float:
    import torch

    difference = torch.cat([(a - b).flatten() for a, b in zip(gradient, exact, strict=True)])
    return (difference.norm() / torch.cat([g.flatten() for g in exact]).norm()).item()


def synchronize() -> None:
    import torch

    if DEVICE != "cpu":
        torch.cuda.synchronize()


def resident() -> int:
    """Bytes held in this process; of a GPU the most so far, with what metarun tried before it chose."""
    if DEVICE != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """The largest resident size while inside, looked at every few milliseconds."""

    def __enter__(self) -> "PeakMemory":
        self.bytes, self.done = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


def measured(engine: str, work: Work, reference: Path, peers: Path, timeout: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", engine, json.dumps(asdict(work)), str(reference)]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str((reference.parent / "compiled").resolve())}
    environment = {**os.environ, **cache, "METARUN_BENCHMARK_PEERS": str(peers)}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "METARUN_BENCHMARK_DEVICE": DEVICE}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {timeout:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]}
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---------------------------------------------------------------- tables and figures


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, rows in results["works"].items():
        lines += [f"\n### {name}\n", "| engine | ms | times metarun's | peak MB | error | ready, s: cold, warm |"]
        lines += ["|---|---|---|---|---|---|"]
        base = rows.get("metarun", {}).get("ms")
        for engine, row in rows.items():
            if "failed" in row:
                lines.append(f"| {engine} | {row['failed']} | | | | |")
            else:
                ratio = f"{row['ms'] / base:.2f}" if base else ""
                ready = f"{row['cold_s']:.1f}, {row['warm_s']:.1f}"
                cells = f"{row['ms']:.2f} | {ratio} | {row['peak_mb']:.0f} | {row['error']:.1e} | {ready}"
                lines.append(f"| {engine} | {cells} |")
    return "\n".join(lines) + "\n"


def draw_curves(curves: dict[str, Any], out: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for engine, points in lines.items():
            known = [(float(x), row["ms"]) for x, row in points.items() if "ms" in row]
            axes.plot([x for x, _ in known], [ms for _, ms in known], marker="o", label=engine)
        axes.set(xlabel=f"{name.replace('_', ' ')} ({CURVES[name][0]})", xscale="log", yscale="log")
        axes.set_xticks(values := CURVES[name][2], [str(value) for value in values])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.supylabel("ms a meta-gradient", fontsize="medium")
    figure.savefig(out / "curves.png", dpi=130)


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if "ms" in row]
    if not good:
        return rows[0]
    ready = [row["ready_s"] for row in good]  # the first round compiles with an empty cache, the others with a full one
    medians = {key: statistics.median(row[key] for row in good) for key in ("ms", "peak_mb", "error") if key in good[0]}
    chosen = {"chosen": [row["chosen"] for row in good]} if good[0]["chosen"] else {}
    return medians | {"cold_s": ready[0], "warm_s": min(ready[1:], default=ready[0])} | chosen


def main() -> None:
    global DEVICE  # noqa: PLW0603  # of this process and, by the environment, of its workers
    if sys.argv[1:2] == ["--worker"]:
        try:
            print(json.dumps(worker(sys.argv[2], Work(**json.loads(sys.argv[3])), sys.argv[4])))
        except (ImportError, NotComparable) as error:
            sys.exit(f"{sys.argv[2]}: {error}")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], metavar="WORK", help=f"of {', '.join(WORKS)}, or none")
    parser.add_argument("--engines", nargs="+", default=COMPARED, choices=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curves", action="store_true", help="also over tasks, inner steps and ways")
    parser.add_argument(
        "--memory", action="store_true", help="also peak memory over inner steps, stored and recomputed"
    )
    parser.add_argument("--kinks", action="store_true", help="also errors with softplus in place of ReLU")
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--out", type=Path, default=Path("benchmark"))
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one engine on one work")
    parser.add_argument("--device", default=DEVICE, help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    DEVICE = options.device
    anything = options.works or options.curves or options.memory or options.kinks
    if not anything or not set(options.works) <= set(WORKS):
        parser.error(f"name at least one of {', '.join(WORKS)}, or give --curves, --memory or --kinks")
    if DEVICE != "cpu" and not _has(DEVICE):
        parser.error(f"--device {DEVICE}: torch finds no such device here")
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "compiled", ignore_errors=True)
    command = " ".join(["python scripts/benchmark.py", *sys.argv[1:]])
    results: dict[str, Any] = {"command": command, "commit": _commit(), "versions": _versions()}
    results |= {"date": time.strftime("%Y-%m-%d"), "cpus": os.cpu_count(), "device": _device()}
    results |= {"load": [os.getloadavg()[0]], "rounds": options.rounds, "works": {}}
    for name in options.works:
        results["works"][name] = compare(WORKS[name], options.engines, options)
    if options.kinks:
        results["kinks"] = kinks()
    if options.curves:
        results["curves"] = {}
        for curve, (name, what, values) in CURVES.items():
            for value in values:
                changed: dict[str, Any] = {what: value}
                work = replace(WORKS[name], **changed)
                for engine, row in compare(work, ["metarun", "learn2learn"], options).items():
                    results["curves"].setdefault(curve, {}).setdefault(engine, {})[value] = row
        draw_curves(results["curves"], options.out)
    if options.memory:
        results["memory"] = memory(options)
    results["load"].append(os.getloadavg()[0])
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (options.out / "table.md").write_text(text)
    print(text)


def compare(work: Work, engines: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Every engine on one work, as many rounds in turns as asked for; the median row of each."""
    reference = options.out / "reference.pt"
    failed = measured("reference", work, reference, options.peers, options.timeout)
    if failed:
        return dict.fromkeys(engines, failed)
    rows: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            if number == 0 or "ms" in rows[engine][0]:  # what failed once is not tried again
                rows[engine].append(measured(engine, work, reference, options.peers, options.timeout))
                print(f"{engine}: {rows[engine][-1]}", file=sys.stderr)
    reference.unlink()
    return {engine: median_row(found) for engine, found in rows.items()}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if DEVICE != "cpu" else DEVICE


def memory(options: argparse.Namespace) -> dict[int, Any]:
    """Rows of one task over inner steps, stored and recomputed; no errors, for the tests hold one to the other."""
    name, steps, kinds = MEMORY
    results = {}
    for value in steps:
        work, absent = replace(WORKS[name], steps=value, tasks=1), options.out / "none.pt"
        results[value] = {kind: measured(kind, work, absent, options.peers, options.timeout) for kind in kinds}
        print(f"{value} inner steps: {results[value]}", file=sys.stderr)
    return results


def kinks() -> dict[str, Any]:
    """Errors of metarun's and a plain loop's meta-gradient for several draws, with ReLU and with softplus."""
    import torch

    name, seeds = KINKS
    found: dict[str, Any] = {}
    for smooth in (False, True):
        for seed in seeds:
            work = replace(WORKS[name], seed=seed, smooth=smooth)
            exact = [g.detach() for g in plain_loop(work, torch.float64)()]
            for engine in ("metarun_stored", "plain_loop"):
                error = relative_error([g.detach() for g in ENGINES[engine](work, torch.float32)()], exact)
                found.setdefault("softplus" if smooth else "relu", {}).setdefault(engine, []).append(error)
    return found


def _has(device: str) -> bool:
    import torch

    return torch.cuda.is_available() and (torch.device(device).index or 0) < torch.cuda.device_count()


def _versions() -> dict[str, str]:
    """Of torch and the peers that are installed; learn2learn's stands in the name of its archive."""
    found = {}
    for name in ("torch", "jax", "higher", "torchopt", "parallel-metalearn"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
