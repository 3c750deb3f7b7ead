"""What only a GPU can show: recorded steps, kernels of our own, episodes drawn beside the steps. Skipped elsewhere."""

import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.execution.choosing import choose_execution
from metarun.execution.compiled import Compiled
from metarun.execution.cuda_graph import CudaGraphed, Recorded
from metarun.execution.decorated import GraphFailed
from metarun.execution.execution import Auto, Looped, Vmapped, Workload
from metarun.execution.update import Update
from metarun.models.exact import convolution as operators
from metarun.models.exact.layers import MaxPool2d
from metarun.training.stream import meta_batches
from metarun.trees import tree_leaves, tree_map
from tests.composing import experiment, train
from tests.helpers import BASES, LEARNERS, image_episodes, make, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FLOAT32 = 1e-4  # accumulated rounding of a few thousand operations in another order


def on_gpu(base: str = "mlp", dtype: torch.dtype = torch.float32):
    """A learner, its theta and four episodes, the same numbers in every dtype."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    theta = make("maml", base)[1]
    built = LEARNERS["maml"](BASES[base]().to("cuda", dtype))
    return built, *tree_map(
        lambda t: t.to("cuda", dtype) if t.is_floating_point() else t.cuda(), (theta, image_episodes(4))
    )


@pytest.mark.parametrize("inner", [Vmapped(None), Vmapped(2), Vmapped(3), Looped()], ids=lambda inner: inner.describe())
def test_a_recorded_meta_gradient_is_the_eager_one_for_other_numbers_too(inner):
    built, theta, episodes = on_gpu()
    compiled = CudaGraphed(Compiled(inner))
    kept = []
    for shift in (0.0, 0.5):
        moved = {name: p + shift * torch.randn_like(p) for name, p in theta.items()}
        expected, metrics = inner.mean_grad(built.meta_loss, moved, episodes)
        gradient, found = compiled.mean_grad(built.meta_loss, moved, episodes)
        kept.append((expected, gradient))
        assert all(torch.allclose(found[name], metrics[name], rtol=FLOAT32) for name in metrics)
    assert [key[0] for key, _ in compiled.cache.graphs] == ["gradient"]
    assert all(relative_error(gradient, expected) < FLOAT32 for expected, gradient in kept)  # none overwritten


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        (partial(torch.optim.Adam, lr=0.01, fused=True), partial(nn.utils.clip_grad_norm_, max_norm=0.1)),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), lambda leaves: None),
    ],
    ids=["adam", "momentum"],
)
@pytest.mark.parametrize("inner", [Vmapped(None), Looped()], ids=lambda inner: inner.describe())
def test_a_recorded_step_is_the_eager_step(inner, optimizer, clip, monkeypatch):
    def trained(execution):
        built, theta, episodes = on_gpu()
        leaves = [p.clone().requires_grad_() for p in theta.values()]
        update = Update(leaves, optimizer(leaves), clip)
        schedule = torch.optim.lr_scheduler.StepLR(update.optimizer, 2, 0.5)
        moving = dict(zip(theta, leaves, strict=True))
        execution.rehearse(Workload(built.meta_loss, moving, episodes, update))  # must change nothing
        for _ in range(6):  # after the second, with other thetas, memories and rates than those it was recorded with
            metrics = execution.train_step(built.meta_loss, moving, episodes, update)
            schedule.step()
        return [p.detach() for p in leaves], update.memory(), metrics

    made, record = [], Recorded.__init__
    monkeypatch.setattr(Recorded, "__init__", lambda self, *arguments: made.append(1) or record(self, *arguments))
    compiled = CudaGraphed(Compiled(inner, whole=True))
    found, expected = trained(compiled), trained(inner)
    assert len(made) == 2  # one to rehearse, one for all steps
    assert [key[0] for key, _ in compiled.cache.graphs] == ["step"]
    for mine, eager in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.allclose(mine, eager, rtol=FLOAT32, atol=1e-6)
    assert torch.allclose(found[2]["query_loss"], expected[2]["query_loss"], rtol=FLOAT32)


def test_what_cannot_be_recorded_says_how_to_do_without():
    built, theta, episodes = on_gpu()

    def waiting(theta, episodes):
        return torch.full((), theta["w"].sum().item())

    compiled = CudaGraphed(Compiled(Vmapped(None)))
    with pytest.raises(GraphFailed, match=r"execution\.cuda_graph=false"):
        compiled._recording(("x",), waiting, nullcontext(), {"w": torch.ones(2, device="cuda")}, episodes)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for shift in (0.0, 0.5):  # and the next recording is right
        moved = {name: p + shift for name, p in theta.items()}
        found, _ = compiled.mean_grad(built.meta_loss, moved, episodes)
        assert relative_error(found, Vmapped(None).mean_grad(built.meta_loss, moved, episodes)[0]) < FLOAT32
    torch.randn(2, device="cuda")  # and the device still works, its generator too
    without = Compiled(Vmapped(None))
    gradient, _ = without.mean_grad(built.meta_loss, theta, episodes)
    expected, _ = Vmapped(None).mean_grad(built.meta_loss, theta, episodes)
    assert relative_error(gradient, expected) < FLOAT32


@pytest.mark.parametrize("base", ["stride_transductive", "max_pool_transductive"])
def test_every_formulation_gives_the_meta_gradient_of_float64(base, monkeypatch):
    built, theta, episodes = on_gpu(base)
    executions = {how: Vmapped(None, convolution=how) for how in ("native", "matmul")}
    executions["compiled"] = CudaGraphed(Compiled(Vmapped(None, convolution="matmul")))
    found = {how: execution.mean_grad(built.meta_loss, theta, episodes)[0] for how, execution in executions.items()}
    exactly, theta, episodes = on_gpu(base, torch.float64)
    monkeypatch.setattr(MaxPool2d, "forward", nn.MaxPool2d.forward)
    exact, _ = Looped().mean_grad(exactly.meta_loss, theta, episodes)
    errors = {how: relative_error(tree_map(torch.Tensor.double, gradient), exact) for how, gradient in found.items()}
    assert max(errors.values()) < FLOAT32, errors


# the kernels are compiled once for images of a size, whatever their number: 5, then 1 and 16
SHAPES = [(5, 1, 64, 28, 2), (1, 1, 64, 28, 2), (16, 1, 64, 28, 2), (5, 64, 64, 14, 2), (5, 64, 64, 4, 2)]
SHAPES += [(75, 3, 32, 42, 1), (30, 32, 48, 21, 1)]


@pytest.mark.parametrize(("images", "channels", "outs", "size", "stride"), SHAPES)
def test_our_kernels_are_torchs_convolution_to_second_order(images, channels, outs, size, stride):
    torch.manual_seed(0)
    x = torch.randn(3, channels, images, size, size, device="cuda")
    weight = torch.randn(3, outs, channels, 3, 3, device="cuda") / (3 * channels**0.5)

    def native(x, weight, stride, padding):
        tasks = zip(x.transpose(1, 2), weight, strict=True)
        return torch.stack([F.conv2d(a, w, stride=stride, padding=padding) for a, w in tasks]).transpose(1, 2)

    def derivatives(convolve, x, weight):
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = convolve(x, weight, stride, 1)
        first = torch.autograd.grad((out**3).sum(), [x, weight], create_graph=True)
        return [out, *first, *torch.autograd.grad(sum((g**2).sum() for g in first), [x, weight])]

    found = derivatives(operators.Forward.apply, x, weight)
    expected = derivatives(native, x.double(), weight.double())
    assert all(relative_error(f.double(), e) < 1e-5 for f, e in zip(found, expected, strict=True))


def test_auto_chooses_something_that_gives_the_meta_gradient():
    built, theta, episodes = on_gpu("stride_transductive")
    choice = choose_execution(Auto(None), Workload(built.meta_loss, theta, episodes, steps=10))
    assert {"vmapped", "vmapped_matmul"} <= choice.milliseconds.keys()
    found, _ = choice.execution.mean_grad(built.meta_loss, theta, episodes)
    expected, _ = Looped().mean_grad(built.meta_loss, theta, episodes)
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("base", ["stride_transductive", "max_pool_transductive"])
def test_what_is_not_compiled_is_recorded_and_gives_the_meta_gradient(base):
    built, theta, episodes = on_gpu(base)
    choice = choose_execution(Auto(None, compile=False), Workload(built.meta_loss, theta, episodes, steps=10**5))
    assert {"vmapped_recorded", "vmapped_matmul_recorded"} <= choice.milliseconds.keys(), choice.notes
    assert choice.execution.describe() in ("vmapped_recorded", "vmapped_matmul_recorded")
    for shift in (0.0, 0.1):
        moved = tree_map(lambda p, shift=shift: p + shift, theta)
        found, _ = choice.execution.mean_grad(built.meta_loss, moved, episodes)
        expected, _ = Looped().mean_grad(built.meta_loss, moved, episodes)
        assert relative_error(found, expected) < 1e-3


def test_episodes_drawn_beside_the_steps_are_those_of_the_task():
    task = experiment("task=prototypes", "device=cuda").task
    work, kept = torch.ones(2000, 2000, device="cuda"), []
    for batch in meta_batches(task, 2, 0, 600):
        work = (
            work @ work / 2000
        )  # the queue is long, and the next block is drawn while steps still wait to read this one
        kept.append(tree_map(torch.clone, batch))
    for t, batch in enumerate(kept):
        expected = task.sample("train", [2 * t, 2 * t + 1])
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(batch), tree_leaves(expected), strict=True))


def test_a_compiled_run_that_stopped_and_went_on_is_the_run_that_did_not(tmp_path):
    common = ("experiment=maml_sinusoid", "device=cuda", "execution.compile=true", "evaluation.every=10")
    whole = train(tmp_path / "whole", *common, "steps=20")
    train(tmp_path / "half", *common, "steps=10")
    again = train(tmp_path / "half", *common, "steps=20", "resume=auto")
    assert whole == again


def test_out_of_memory_in_a_recording_leaves_nothing_behind_and_the_next_is_right():
    built, theta, episodes = on_gpu()
    big = [torch.zeros(1, device="cuda")]

    def full(x):
        if torch.cuda.is_current_stream_capturing():
            big[0] = torch.zeros(2**28, device="cuda")  # 1 GiB
            raise torch.OutOfMemoryError("full")
        return x + 1

    compiled = CudaGraphed(Compiled(Vmapped(None)))
    before = torch.cuda.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError):
        compiled._recording(("x",), full, nullcontext(), torch.ones(2, device="cuda"))
    big.clear()
    assert torch.cuda.memory_allocated() < before + 2**20
    smaller = compiled.smaller(4)
    assert smaller is not None and not smaller.cache.graphs
    expected, _ = Vmapped(None).mean_grad(built.meta_loss, theta, episodes)
    for _ in range(2):
        gradient, _ = smaller.mean_grad(built.meta_loss, theta, episodes)
        assert relative_error(gradient, expected) < FLOAT32


def test_the_logs_of_a_run_on_a_gpu_are_those_of_a_cpu(tmp_path):
    """On a GPU a log is written while the next step runs, and reads what it is of all the same."""

    def rows(device: str) -> list[dict[str, float]]:
        common = ("experiment=maml_sinusoid", "execution=vmapped", "evaluation.every=10", "log_every=3", "steps=20")
        train(tmp_path / device, *common, f"device={device}")
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if "loss" in k or k == "step"} for line in lines]

    for mine, expected in zip(rows("cuda"), rows("cpu"), strict=True):
        assert mine == pytest.approx(expected, rel=1e-6)
