"""What ``test_triton_convolution`` runs in a process of its own, where triton interprets the kernels on the CPU.

float32, against torch's own convolution in float64. 1e-5 leaves room for the rounding of sums of a few hundred products,
through two derivatives.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from metarun.adaptation import last, recomputing, repeat
from metarun.errors import KernelFailed
from metarun.execution import Looped, Vmapped
from metarun.measuring import _formulated
from metarun.models import triton_convolution as operators
from metarun.models import triton_kernels
from metarun.models.layers import Conv2d, convolving
from metarun.trees import tree_map, zip_map
from tests.helpers import image_episodes, make, relative_error

FLOAT32 = 1e-5


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


def native(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``Forward``, by a loop over the tasks."""
    return torch.stack([F.conv2d(a, w, stride=stride, padding=padding) for a, w in zip(x, weight, strict=True)])


def derivatives(convolve, x: Tensor, weight: Tensor, stride: int, padding: int) -> list[Tensor]:
    """The convolution, its gradients, and the gradients of a function of them."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(x, weight, stride, padding)
    first = torch.autograd.grad((out**3).sum(), [x, weight], create_graph=True)
    return [out, *first, *torch.autograd.grad(sum((g**2).sum() for g in first), [x, weight])]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_torchs_to_second_order(stride, padding, kernel):
    x, weight = tensors((1, 2, 2, 6, 5), (1, 3, 2, kernel, kernel))
    found = derivatives(operators.Forward.apply, x, weight, stride, padding)
    expected = derivatives(native, x.double(), weight.double(), stride, padding)
    assert all(relative_error(f.double(), e) < FLOAT32 for f, e in zip(found, expected, strict=True))


def test_sizes_of_several_tiles_and_parts_are_torchs_to_second_order(monkeypatch):
    monkeypatch.setattr(triton_kernels, "STEPS", 1)
    for name in ("PLACES", "CHANNELS", "DEPTH"):  # the smallest tiles there are
        monkeypatch.setattr(triton_kernels, name, 16)
    x, weight = tensors((1, 2, 2, 5, 4), (1, 17, 2, 3, 3))  # 40 places, 17 channels, 18 taps: no multiples of 16
    found = derivatives(operators.Forward.apply, x, weight, 1, 1)
    expected = derivatives(native, x.double(), weight.double(), 1, 1)
    assert all(relative_error(f.double(), e) < FLOAT32 for f, e in zip(found, expected, strict=True))


X, WEIGHT, G = (2, 3, 2, 5, 4), (2, 4, 2, 3, 3), (2, 3, 4, 3, 2)
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
    assert relative_error(found, torch.stack(loop)) < FLOAT32


def test_an_operator_under_two_vmaps_is_the_operator_in_two_loops():
    x, weight = tensors((2, 2, *X), (2, *WEIGHT))
    found = vmap(vmap(lambda a, w: operators.Forward.apply(a, w, 2, 1)), (0, None))(x, weight)
    expected = torch.stack([native(a, w, 2, 1) for b in x for a, w in zip(b, weight, strict=True)]).view_as(found)
    assert relative_error(found, expected) < FLOAT32


def two_layers() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A network, its params, and images for two tasks."""
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(1, 3, 3, 1, 1), nn.Tanh(), Conv2d(3, 2, 3, 2, 1))
    return net, {name: p.detach() for name, p in net.named_parameters()}, torch.randn(2, 2, 1, 5, 4)


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
    double = tree_map(torch.Tensor.double, params)
    expected = autograd_outside(net.double(), double, tasks.double(), False)
    with convolving("triton"), recomputing(recomputed):
        found = meta_gradient(net, params, tasks, vectorised)
    assert relative_error(tree_map(torch.Tensor.double, found), expected) < FLOAT32


def traced(fn, *arguments: Tensor) -> tuple[GraphModule, list[str]]:
    """The graph of ``fn``, and the convolutions in it."""
    with convolving("triton"):
        graph = make_fx(fn)(*arguments)
    return graph, [str(node.target).split(".")[1] for node in graph.graph.nodes if "conv" in str(node.target)]


def test_a_gradient_has_the_convolutions_that_it_needs_and_no_others():
    net, params, tasks = two_layers()

    def gradient(*leaves: Tensor) -> list[Tensor]:
        return list(
            grad(lambda p: functional_call(net, p, (tasks[0],)).sum())(dict(zip(params, leaves, strict=True))).values()
        )

    _, convolutions = traced(gradient, *params.values())
    backward = ["conv_input_gradient", "conv_weight_gradient", "conv_weight_gradient"]  # none for the images
    assert sorted(convolutions) == ["conv_forward", "conv_forward", *backward]


def test_a_compiled_graph_gives_the_eager_meta_gradient():
    net, params, tasks = two_layers()

    def meta_gradient(*leaves: Tensor) -> list[Tensor]:
        return list(autograd_outside(net, dict(zip(params, leaves, strict=True)), tasks, True).values())

    graph, convolutions = traced(meta_gradient, *params.values())
    assert set(convolutions) == {"conv_forward", "conv_input_gradient", "conv_weight_gradient"}
    found = torch.compile(graph, fullgraph=True, dynamic=False, backend="aot_eager")(*params.values())
    expected = autograd_outside(net, params, tasks, True)
    assert relative_error(dict(zip(params, found, strict=True)), expected) < FLOAT32


@pytest.mark.parametrize("name", OPERATORS)
def test_the_shapes_that_a_compiler_expects_are_those_that_a_kernel_gives(name):
    _, *shapes, numbers = OPERATORS[name]
    opaque = getattr(operators, f"conv_{name.replace(' ', '_')}")
    opcheck(opaque, (*tensors(*shapes), *numbers), test_utils=("test_schema", "test_faketensor"))


def in_float32():
    built, theta = make("maml", "stride_transductive")
    built.base_learner.float()
    episodes = tree_map(lambda t: t.float() if t.is_floating_point() else t, image_episodes(2))
    return built.meta_loss, tree_map(torch.Tensor.float, theta), episodes


@pytest.mark.parametrize("where", ["forward", "weight_gradient"])
def test_a_candidate_whose_kernels_fail_is_left_out_and_says_why(where, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such instruction\nand a long explanation")

    monkeypatch.setattr(triton_kernels, where, broken)  # in the backward pass too the error must stay what it is
    refused: list[str] = []
    candidates = _formulated([Vmapped(None), Looped()], *in_float32(), refused)
    assert [c.describe() for c in candidates] == ["vmapped_slices", "vmapped", "looped_slices", "looped"]
    assert ["vmapped_triton" in refused[0], "looped_triton" in refused[1], len(refused)] == [True, True, 2]
    assert all("no such instruction" in note and "explanation" not in note for note in refused)
    with pytest.raises(KernelFailed, match=r"Set execution\.convolution to native or slices"):
        Looped(convolution="triton").mean_grad(*in_float32())


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_a_candidate_whose_kernels_run_or_are_out_of_memory_is_timed(error, monkeypatch):
    def mean_grad(*arguments):
        if error:
            raise error

    monkeypatch.setattr(Looped, "mean_grad", mean_grad)
    refused: list[str] = []
    candidates = _formulated([Looped()], *in_float32(), refused)
    assert [c.describe() for c in candidates] == ["looped_triton", "looped_slices", "looped"] and not refused
