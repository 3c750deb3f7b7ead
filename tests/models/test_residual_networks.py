"""ResNet-12, wide residual networks, R2-D2's and their dropout: the papers' sizes, the same function again, exact by vmap.

float64; 1e-10 is for the same sums in another order. Names of theta in the second writings are those of the modules.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from metarun.counter import words
from metarun.execution.execution import Looped, Vmapped
from metarun.meta_learners.maml import MAML
from metarun.models.conv4 import Conv4
from metarun.models.dropout import DropBlock, Dropout, dropping, drops
from metarun.models.r2d2_conv import R2D2Conv
from metarun.models.resnet12 import ResNet12
from metarun.models.wrn import WideResNet
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import tree_map
from tests.helpers import image_episodes, meta_gradient, relative_error
from tests.running import OUTSIDE, assert_as_if_never_stopped, killed, metarun, metrics

SAME = 1e-10
CHANNELS = [64, 160, 320, 640]
TINY = [3, 4, 5, 6]


def resnet12(shape=(1, 16, 16), channels=TINY, features="flat", rate=0.1, block=2, steps=0) -> ResNet12:
    torch.manual_seed(0)
    return ResNet12(shape, 2, channels, features, rate, block, steps, "transductive")


def wrn(shape=(1, 16, 16), depth=10, width=1, dropout=0.0) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(shape, 2, depth, width, dropout, "transductive")


NETWORKS = {
    "resnet12": resnet12,
    "resnet12 mean": lambda: resnet12(features="mean"),
    "wrn": wrn,
    "wrn dropout": lambda: wrn(dropout=0.3),
    "r2d2_conv": lambda: R2D2Conv((1, 16, 16), 2, TINY, 0.3, "transductive"),
    "conv4 of four widths": lambda: Conv4((1, 16, 16), 2, TINY, "max_pool", "transductive"),
}


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def moved(net: nn.Module) -> nn.Module:
    """In float64, with norm weights and biases off ones and zeros."""
    net.double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


# ---- the papers' sizes ----


def test_resnet12_has_the_papers_12_4_million_parameters_and_features():
    net = resnet12((3, 84, 84), CHANNELS)
    assert size(net.body) == 12_424_320
    assert net.head.in_features == 640 * 5 * 5
    assert resnet12((3, 32, 32), CHANNELS).head.in_features == 640 * 2 * 2
    assert resnet12((3, 84, 84), CHANNELS, "mean").head.in_features == 640


def test_the_thinner_resnet12_has_8_million_parameters():
    assert size(resnet12((3, 84, 84), [64, 128, 256, 512]).body) == 7_996_800


def test_wrn_28_10_has_the_papers_36_5_million_parameters():
    net = WideResNet((3, 32, 32), 10, 28, 10, 0.0, "transductive")
    assert size(net) == 36_479_194
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 1 + 2 * 12 + 3  # 25 of 3x3, three shortcuts


def test_conv4_of_four_widths_is_the_network_of_one_width_where_they_are_equal():
    torch.manual_seed(0)
    one = Conv4((3, 16, 16), 5, 7, "stride", "transductive")
    torch.manual_seed(0)
    four = Conv4((3, 16, 16), 5, [7, 7, 7, 7], "stride", "transductive")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), four.parameters(), strict=True))


def test_conv4_of_four_widths_has_them():
    net = Conv4((3, 84, 84), 5, [96, 192, 384, 512], "max_pool", "transductive")
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [96, 192, 384, 512]
    assert net.head.in_features == 512 * 25


# ---- the same functions, written again ----


def norm(p: dict, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True)


@pytest.mark.parametrize("features", ["flat", "mean"])
def test_resnet12_is_the_function_of_its_docstring(features):
    net = moved(resnet12((3, 20, 17), features=features))
    x = torch.randn(5, 3, 20, 17).double()
    p, z = dict(net.named_parameters()), x
    for i in range(4):
        at, a = f"body.{i}", z
        for conv, bn in ((0, 1), (3, 4), (6, 7)):
            a = norm(p, f"{at}.residual.{bn}", F.conv2d(a, p[f"{at}.residual.{conv}.weight"], padding=1))
            a = F.leaky_relu(a, 0.1) if conv < 6 else a
        a = a + norm(p, f"{at}.shortcut.1", F.conv2d(z, p[f"{at}.shortcut.0.weight"]))
        z = F.max_pool2d(F.leaky_relu(a, 0.1), 2)
    z = z.mean((2, 3)) if features == "mean" else z.flatten(1)
    torch.testing.assert_close(net(x), F.linear(z, p["head.weight"], p["head.bias"]), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("size", [16, 28, 21])
def test_r2d2s_network_is_the_function_of_the_released_code(size):
    torch.manual_seed(0)
    net = moved(R2D2Conv((3, size, size), 2, TINY, 0.4, "transductive"))
    x = torch.randn(5, 3, size, size).double()
    p, z = dict(net.named_parameters()), x
    for i in range(4):
        at, layer = ("body.first", 4 * i) if i < 3 else ("body.last", 0)
        conv = F.conv2d(z, p[f"{at}.{layer}.weight"], p[f"{at}.{layer}.bias"], padding=1)
        before, z = z, F.leaky_relu(F.max_pool2d(norm(p, f"{at}.{layer + 1}", conv), 2, 2 if i < 3 else 1), 0.1)
    z = torch.cat([F.max_pool2d(before, 2, 1).flatten(1), z.flatten(1)], 1)
    torch.testing.assert_close(net.body(x), z, rtol=SAME, atol=SAME)
    with dropping([net], seed=0, step=1):
        dropped = net.body(x)[:, -6:] == 0  # of the last block, which nothing pools afterwards
    assert 0.2 < dropped.double().mean() < 0.6


def test_r2d2s_network_has_the_papers_sizes_and_refuses_others():
    assert R2D2Conv((1, 28, 28), 5, [96, 192, 384, 512], 0.0, "running").head.in_features == 3584
    assert R2D2Conv((1, 28, 28), 5, 64, 0.0, "running").head.in_features == 512
    for shape, channels, told in (
        ((1, 28), 4, "needs images"),
        ((1, 16, 15), 4, "16 pixels"),
        ((1, 16, 16), [4], "of four"),
    ):
        with pytest.raises(ValueError, match=told):
            R2D2Conv(shape, 5, channels, 0.0, "running")


def test_a_wide_residual_network_is_the_function_of_its_docstring():
    net = moved(wrn((3, 12, 12), depth=16, width=2))
    x = torch.randn(4, 3, 12, 12).double()
    p = dict(net.named_parameters())
    z = F.conv2d(x, p["body.0.weight"], padding=1)
    for i, stride in enumerate((1, 1, 2, 1, 2, 1)):
        at = f"body.{i + 1}"
        o = norm(p, f"{at}.first.0", z).relu()
        a = norm(p, f"{at}.residual.1", F.conv2d(o, p[f"{at}.residual.0.weight"], stride=stride, padding=1)).relu()
        a = F.conv2d(a, p[f"{at}.residual.4.weight"], padding=1)
        shortcut = F.conv2d(o, p[f"{at}.shortcut.weight"], stride=stride) if i in (0, 2, 4) else z
        z = shortcut + a
    z = norm(p, "body.7", z).relu().mean((2, 3))
    torch.testing.assert_close(net(x), F.linear(z, p["head.weight"], p["head.bias"]), rtol=SAME, atol=SAME)


# ---- meta-gradients ----


@pytest.mark.parametrize("memory", ["stored", "recomputed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_order_meta_gradient_by_vmap_is_that_of_a_loop_and_of_autograd(name, memory):
    net = moved(NETWORKS[name]())
    learner, episodes = MAML(net, CROSS_ENTROPY, 0.1, 2, False, "all", "sgd"), image_episodes(2)
    theta = learner.init()
    with dropping([net], 3, 1):
        together, _ = Vmapped(None, inner_memory=memory).mean_grad(learner.meta_loss, theta, episodes)
        alone, _ = Looped().mean_grad(learner.meta_loss, theta, episodes)
        by_hand = [meta_gradient(learner, theta, tree_map(lambda t, i=i: t[i], episodes)) for i in range(2)]
    assert relative_error(together, alone) < SAME
    assert relative_error(alone, tree_map(lambda a, b: (a + b) / 2, by_hand[0], by_hand[1])) < SAME


def test_the_meta_gradient_is_that_of_finite_differences():
    net = moved(resnet12())
    theta, x = dict(net.named_parameters()), image_episodes(1).support.x[0]
    direction = {name: torch.randn_like(p) for name, p in theta.items()}

    def after_a_step(t: Tensor) -> Tensor:
        at = {name: p + t * direction[name] for name, p in theta.items()}
        steps = grad(lambda q: functional_call(net, q, (x,)).square().mean())(at)
        return functional_call(net, {n: p - 0.01 * steps[n] for n, p in at.items()}, (x,)).square().mean()

    with dropping([net], 0, 5):
        zero, h = torch.zeros((), dtype=torch.float64), 1e-6
        slope = grad(after_a_step)(zero)
        difference = (after_a_step(zero + h) - after_a_step(zero - h)) / (2 * h)
    assert slope.item() == pytest.approx(difference.item(), rel=1e-5)  # h^2 and rounding / h


# ---- dropout ----


def test_nothing_drops_outside_a_training_step_or_in_evaluation():
    x = torch.rand(3, 4, 6, 6)
    for layer in (Dropout(0.5, "a"), DropBlock(0.5, "a", 3)):
        assert torch.equal(layer(x), x)
        with dropping([layer], 0, 0):
            assert not torch.equal(layer(x), x)
            assert torch.equal(layer.eval()(x), x)


def test_masks_are_those_of_the_seed_the_step_and_the_layer():
    def mask(seed: int, step: int, name: str) -> Tensor:
        layer = Dropout(0.5, name)
        with dropping([layer], seed, step):
            return layer(torch.ones(2, 3, 8, 8))

    first = mask(0, 0, "a")
    assert torch.equal(mask(0, 0, "a"), first)
    assert not any(torch.equal(mask(*other), first) for other in ((1, 0, "a"), (0, 1, "a"), (0, 0, "b")))
    assert not torch.equal(first[0], first[1])


def test_dropout_leaves_the_wanted_share_and_the_mean():
    layer, n = Dropout(0.3, "a"), 200_000
    with dropping([layer], 0, 0):
        y = layer(torch.ones(n, dtype=torch.float64))
    four_deviations = 4 * (0.3 * 0.7 / n) ** 0.5
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=four_deviations)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.7}


def test_drop_block_drops_squares_about_as_often_as_asked_and_keeps_the_mean():
    layer = DropBlock(0.1, "a", 3)
    with dropping([layer], 0, 0):
        y = layer(torch.ones(40, 50, 10, 10, dtype=torch.float64))
    dropped = (y == 0).double()
    # Ghiasi et al.: the rate counts overlapping squares twice, so a little less is dropped
    assert 0.085 < dropped.mean() < 0.1
    assert y.mean().item() == pytest.approx(1, abs=1e-12)
    corners = F.avg_pool2d(dropped, 3, stride=1) == 1  # every dropped value is in a square that is dropped whole
    covered = F.max_pool2d(F.pad(corners.double(), (2,) * 4), 3, stride=1)
    assert torch.equal(covered, dropped)


def test_the_rate_of_drop_block_rises_linearly_to_its_end():
    layer = DropBlock(0.2, "a", 2, steps=100)

    def share(step: int) -> float:
        with dropping([layer], 0, step):
            return (layer(torch.ones(20, 50, 8, 8)) == 0).float().mean().item()

    assert share(0) == 0
    assert 0.08 < share(50) < 0.1 and 0.17 < share(100) < 0.2
    assert 0.17 < share(1000) < 0.2


def test_a_square_as_large_as_the_map_drops_it_whole():
    layer = DropBlock(0.5, "a", 5)
    with dropping([layer], 0, 0):
        y = layer(torch.ones(30, 20, 2, 2))
    assert set((y != 0).float().mean((2, 3)).unique().tolist()) == {0.0, 1.0}


def test_only_networks_that_drop_depend_on_the_step():
    assert drops([resnet12()]) and not drops([Conv4((1, 16, 16), 2, 3, "stride", "running")])


def test_words_are_uniform_and_fixed_for_ever():
    drawn = words(1, "a", 60_000)
    assert drawn.dtype == np.uint16
    counts = np.bincount(drawn >> 12, minlength=16)
    assert ((counts - 3750) ** 2 / 3750).sum() < 37.7  # chi-square, 15 degrees: 1 in 1000
    assert words(1, "a", 3).tolist() == drawn[:3].tolist() == FIRST_WORDS


FIRST_WORDS = [21449, 51378, 30993]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet12((1, 15, 16)), "needs images .* of 16 pixels or more"),
        (lambda: resnet12((4,)), "Choose base_learner=mlp"),
        (lambda: resnet12(channels=[1, 2, 3]), r"channels is \[1, 2, 3\]; give the channels of the four blocks"),
        (lambda: resnet12(rate=1.0), "a drop rate of 1.0"),
        (lambda: resnet12(block=0), "side of a dropped square is 0"),
        (lambda: wrn(depth=27), "depth is 27 and width 1; the depth .* multiple of 6"),
        (lambda: wrn(shape=(3,)), "Choose base_learner=mlp"),
        (lambda: Conv4((1, 16, 16), 2, [1, 2], "stride", "running"), r"channels is \[1, 2\]; .* a list of four"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- whole runs ----

TRAINED = [
    *[OUTSIDE, "task=prototypes", "meta_learner=protonet", "base_learner=resnet12", "base_learner.channels=[2,3,3,2]"],
    *["base_learner.drop_block=2", "base_learner.drop_block_steps=4", "device=cpu", "steps=6", "meta_batch_size=2"],
    *["evaluation.every=3", "evaluation.num_val_tasks=3", "evaluation.num_tasks=4", "log_every=1", "dtype=float64"],
]


def test_a_run_with_dropout_that_was_killed_ends_as_if_it_never_was(tmp_path):
    arguments = [*TRAINED, "execution=looped"]
    assert metarun(*arguments, f"run_dir={tmp_path / 'whole'}").code == 0
    killed(
        "during a validation", *arguments, f"run_dir={tmp_path / 'run'}", cwd=tmp_path
    )  # the second: after six steps
    assert metarun(*arguments, f"run_dir={tmp_path / 'run'}", "resume=auto").code == 0
    assert_as_if_never_stopped(tmp_path / "run", tmp_path / "whole")


def test_dropout_changes_training_and_vmapped_training_drops_as_looped_does(tmp_path):
    losses = {}
    for name, more in {
        "looped": ["execution=looped"],
        "vmapped": ["execution=vmapped"],
        "without": ["execution=looped", "base_learner.drop_rate=0"],
    }.items():
        assert metarun(*TRAINED, *more, f"run_dir={tmp_path / name}").code == 0
        losses[name] = [row["train/query_loss"] for row in metrics(tmp_path / name) if "train/query_loss" in row]
    assert losses["vmapped"] == pytest.approx(losses["looped"], rel=1e-8)
    assert losses["without"] != pytest.approx(losses["looped"], rel=1e-3)
