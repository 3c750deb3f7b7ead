"""The convolution as matrix products: torch's, to any order, looped and under vmap; and its kernels, interpreted."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from metarun.execution.compiled import merge_equal
from metarun.inner.loops import last, recomputing, repeat
from metarun.models.exact import convolution as operators
from metarun.models.exact.layers import Conv2d, convolving
from metarun.trees import zip_map
from tests.helpers import relative_error

ROOT = Path(__file__).parents[2]
EXACT = 1e-12
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="the package triton is not installed")


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def native(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``Forward``, by a loop over the tasks."""
    loop = [F.conv2d(a.transpose(0, 1), w, stride=stride, padding=padding) for a, w in zip(x, weight, strict=True)]
    return torch.stack(loop).transpose(1, 2)


def derivatives(convolve, x: Tensor, weight: Tensor, stride: int, padding: int) -> list[Tensor]:
    """The convolution, its gradients, and the gradients of a function of them."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(x, weight, stride, padding)
    first = torch.autograd.grad((out**3).sum(), [x, weight], create_graph=True)
    return [out, *first, *torch.autograd.grad(sum((g**2).sum() for g in first), [x, weight])]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("long", [10**6, 7])  # places of a sum: never and always in parts
def test_it_is_torchs_to_second_order(long, stride, padding, kernel, monkeypatch):
    monkeypatch.setattr(operators, "LONG", long)
    x, weight = tensors((2, 2, 6, 6, 5), (2, 3, 2, kernel, kernel))
    found = derivatives(operators.Forward.apply, x, weight, stride, padding)
    expected = derivatives(native, x, weight, stride, padding)
    assert all(relative_error(f, e) < EXACT for f, e in zip(found, expected, strict=True))


X, WEIGHT, G = (2, 2, 3, 5, 4), (2, 4, 2, 3, 3), (2, 4, 3, 3, 2)
OPERATORS = {
    "forward": (operators.Forward, X, WEIGHT, (2, 1)),
    "input gradient": (operators.InputGradient, G, WEIGHT, (2, 1, 5, 4)),
    "weight gradient": (operators.WeightGradient, G, X, (2, 1, 3)),
}


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (3, 1), (None, 4)], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_under_vmap_is_the_operator_in_a_loop(name, in_dims):
    operator, *shapes, numbers = OPERATORS[name]
    pair = tensors(*(s if d is None else (*s[:d], 2, *s[d:]) for s, d in zip(shapes, in_dims, strict=True)))
    loop = [
        operator.apply(*(t if d is None else t.select(d, i) for t, d in zip(pair, in_dims, strict=True)), *numbers)
        for i in range(2)
    ]
    found = vmap(lambda a, b: operator.apply(a, b, *numbers), in_dims)(*pair)
    assert relative_error(found, torch.stack(loop)) < EXACT


def test_an_operator_under_two_vmaps_is_the_operator_in_two_loops():
    x, weight = tensors((2, 2, *X), (2, *WEIGHT))
    found = vmap(vmap(lambda a, w: operators.Forward.apply(a, w, 2, 1)), (0, None))(x, weight)
    expected = torch.stack([native(a, w, 2, 1) for b in x for a, w in zip(b, weight, strict=True)]).view_as(found)
    assert relative_error(found, expected) < EXACT


def two_layers() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A network, its params, and images for two tasks."""
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(1, 3, 3, 1, 1), nn.Tanh(), Conv2d(3, 2, 3, 2, 1)).double()
    params = {name: p.detach() for name, p in net.named_parameters()}
    return net, params, torch.randn(2, 2, 1, 5, 4, dtype=torch.float64)


def meta_losses(net: nn.Module, params: dict[str, Tensor], tasks: Tensor, vectorised: bool) -> Tensor:
    """MAML: the first layers of the inner step have weights of all tasks, the adapted ones weights of each."""

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, p, (x,)).square().mean()

    def step(p: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return zip_map(lambda value, slope: value - 0.3 * slope, p, grad(loss)(p, x))

    def task_loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss(last(repeat(step, p, 1, x)), x.flip(0) + 0.5)

    return (
        vmap(task_loss, (None, 0))(params, tasks) if vectorised else torch.stack([task_loss(params, x) for x in tasks])
    )


def autograd_outside(net, params, tasks, vectorised):
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    total = meta_losses(net, leaves, tasks, vectorised).sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def functorch_outside(net, params, tasks, vectorised):
    return grad(lambda p: meta_losses(net, p, tasks, vectorised).sum())(params)


@pytest.mark.parametrize(
    ("meta_gradient", "vectorised", "recomputed"),
    [
        (autograd_outside, False, False),
        (autograd_outside, True, False),
        (autograd_outside, True, True),
        (functorch_outside, True, False),
    ],
)
def test_a_second_order_meta_gradient_of_two_layers_is_torchs(meta_gradient, vectorised, recomputed):
    net, params, tasks = two_layers()
    expected = autograd_outside(net, params, tasks, False)
    with convolving("matmul"), recomputing(recomputed):
        found = meta_gradient(net, params, tasks, vectorised)
    assert relative_error(found, expected) < EXACT


def traced(fn, *arguments: Tensor):
    with convolving("matmul"):
        return make_fx(fn)(*arguments)


def count(graph, name: str) -> int:
    return sum(name in str(node.target) for node in graph.graph.nodes)


def test_a_gradient_has_the_products_that_it_needs_and_no_others():
    net, params, tasks = two_layers()

    def gradient(*leaves: Tensor) -> list[Tensor]:
        return list(
            grad(lambda p: functional_call(net, p, (tasks[0],)).sum())(dict(zip(params, leaves, strict=True))).values()
        )

    graph = traced(gradient, *params.values())
    # two forward, two for the weights, one for the input of the second layer and none for the images
    assert (count(graph, "bmm"), count(graph, "fold")) == (5, 1)


def test_a_graph_takes_the_same_patches_once_and_gives_the_same_meta_gradient():
    net, params, tasks = two_layers()

    def meta_gradient(*leaves: Tensor) -> list[Tensor]:
        return list(autograd_outside(net, dict(zip(params, leaves, strict=True)), tasks, True).values())

    graph = traced(meta_gradient, *params.values())
    before = count(graph, "metarun.take")
    merge_equal(graph.graph)
    graph.recompile()
    assert count(graph, "metarun.take") < before
    expected = autograd_outside(net, params, tasks, True)
    assert relative_error(dict(zip(params, graph(*params.values()), strict=True)), expected) < EXACT


def test_a_graph_that_writes_or_draws_is_not_merged():
    def writing(x: Tensor) -> Tensor:
        y = x.clone()
        y.add_(1)
        return y + x.clone()

    def drawing(x: Tensor) -> Tensor:
        return x + torch.rand_like(x) - torch.rand_like(x)

    for fn in (writing, drawing):
        graph = make_fx(fn)(torch.ones(3))
        before = len(graph.graph.nodes)
        merge_equal(graph.graph)
        assert len(graph.graph.nodes) == before


def test_the_shapes_that_a_compiler_expects_are_those_that_an_operator_gives():
    for kernel, stride, padding in ((3, 2, 1), (1, 1, 0), (5, 1, 2)):
        (x,) = tensors((2, 3, 4, 7, 6))
        patches = operators.take(x, kernel, stride, padding)
        tests = ("test_schema", "test_faketensor")
        opcheck(operators.take, (x, kernel, stride, padding), test_utils=tests)
        opcheck(operators.fold, (patches, 4, 7, 6, kernel, stride, padding), test_utils=tests)


@needs_triton
def test_interpreted_on_the_cpu_the_kernels_give_torchs_patches():
    """In a process of its own: triton is imported either to interpret or to compile."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/interpreted_patches.py"]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize("name", ["_take", "_fold"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(name, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from metarun.models.exact import triton_patches

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_patches, name)
    constants = {"H": 14, "W": 14, "h": 7, "w": 7, "K": 3, "STRIDE": 2, "PADDING": 1}
    constants["BLOCK"] = triton_patches.BLOCK
    types = dict.fromkeys(("images", "patches", "out"), "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in function.arg_names}
    given = {(i,): constants[name] for i, name in enumerate(function.arg_names) if name in constants}
    compiled = triton.compile(ASTSource(function, signature, constexprs=given), GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 0
