"""Base learners compute what they say; gradients are in test_oracles."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.models.conv4 import Conv4
from metarun.models.mlp import MLP
from metarun.models.parts import body_of, head_of

equal = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)  # float64: the same sums in another order


@pytest.mark.parametrize(
    ("side", "downsample", "features"),
    [(28, "stride", 4), (28, "max_pool", 4), (84, "stride", 4), (84, "max_pool", 25 * 4)],
)
def test_conv4_has_the_number_of_features_its_docstring_names(side, downsample, features):
    net = Conv4((3, side, side), 5, 4, downsample, "transductive")
    assert net.body(torch.randn(2, 3, side, side)).shape == (2, features)
    assert net(torch.randn(2, 3, side, side)).shape == (2, 5)


def test_strided_conv4_ends_in_the_mean_over_the_image():
    net = Conv4((1, 32, 32), 2, 3, "stride", "transductive").double()
    x = torch.randn(4, 1, 32, 32).double()
    last_block = net.body[:-1](x)
    assert last_block.shape == (4, 3, 2, 2)
    equal(net.body(x), F.adaptive_avg_pool2d(last_block, 1).flatten(1))


def test_conv4_with_64_channels_on_omniglot_has_the_parameters_of_the_paper():
    net = Conv4((1, 28, 28), 5, 64, "stride", "transductive")
    convolutions = (9 * 1 * 64 + 64) + 3 * (9 * 64 * 64 + 64)
    assert sum(p.numel() for p in net.parameters()) == convolutions + 4 * 2 * 64 + (64 * 5 + 5)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_building_conv4_leaves_no_trace_in_its_buffers(downsample):
    assert all(buffer.numel() == 0 for buffer in Conv4((1, 16, 16), 2, 3, downsample, "running").buffers())


@pytest.mark.parametrize("shape", [(1,), (16, 16)])
def test_conv4_refuses_inputs_that_are_not_images(shape):
    with pytest.raises(ValueError, match="Choose base_learner=mlp"):
        Conv4(shape, 2, 3, "stride", "transductive")


def test_conv4_refuses_images_that_four_halvings_use_up():
    with pytest.raises(ValueError, match="below 16 pixels"):
        Conv4((1, 16, 15), 2, 3, "max_pool", "transductive")


def test_mlp_is_linear_layers_with_relu_between():
    net = MLP((2, 3), 4, [5, 7], None, "torch").double()
    x = torch.randn(6, 2, 3).double()
    first, second, last = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    hidden = F.relu(x.reshape(6, 6) @ first.weight.T + first.bias)
    hidden = F.relu(hidden @ second.weight.T + second.bias)
    equal(net(x), hidden @ last.weight.T + last.bias)


def test_mlp_with_batch_norm_is_unmoved_by_the_scale_of_its_inputs():
    net = MLP((3,), 2, [5, 7], "transductive", "torch").double()
    nn.init.zeros_(net.body[1].bias)
    x = torch.randn(8, 3).double()
    # eps = 1e-5 beside the variance is all that sees the scale; at 1e3 and 1e4 it is below 1e-9 of it
    torch.testing.assert_close(net(1e3 * x), net(1e4 * x), rtol=1e-7, atol=1e-7)


def test_truncated_normal_weights_end_at_two_deviations_and_biases_are_zero():
    torch.manual_seed(0)
    net = MLP((50,), 3, [200, 100], None, "truncated_normal")
    for layer in (m for m in net.modules() if isinstance(m, nn.Linear)):
        assert layer.weight.abs().max() <= 0.02
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    weights = net.body[1].weight  # a normal cut at two deviations has 0.8796 of its deviation; 10000 draws give 1%
    assert weights.std().item() == pytest.approx(0.01 * 0.8796, rel=0.03)


@pytest.mark.parametrize("hidden", [[], [4, 0]])
def test_mlp_refuses_missing_or_empty_layers(hidden):
    with pytest.raises(ValueError, match=r"base_learner\.hidden is"):
        MLP((1,), 1, hidden, None, "torch")


@pytest.mark.parametrize(
    "net", [MLP((3, 16, 16), 2, [4], None, "torch"), Conv4((3, 16, 16), 2, 4, "stride", "support")]
)
def test_the_head_after_the_body_is_the_whole_network(net):
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(head_of(net)(body_of(net)(x)), net(x))


@pytest.mark.parametrize(("part", "name"), [(body_of, "body"), (head_of, "head")])
def test_a_network_without_the_part_is_refused_with_the_parts_it_has(part, name):
    net = nn.Sequential()
    net.add_module("trunk", nn.Linear(1, 1))
    with pytest.raises(ValueError, match=f"part named '{name}'; Sequential has trunk"):
        part(net)


def test_conv4_can_keep_its_strided_features_flat():
    assert Conv4((1, 28, 28), 5, 64, "stride", "transductive", flatten=True).head.in_features == 256


def test_conv4_begins_as_the_released_codes_say():
    """Deviations of the first convolution's and the head's weights; torch's own is left where nothing is named."""
    torch.manual_seed(0)
    found = {}
    for init in ("torch", "xavier", "maml", "imaml"):
        net = Conv4((1, 28, 28), 5, 64, "max_pool", "transductive", init=init)
        found[init] = (
            float(net.body[4].weight.detach().std()),
            float(net.head.weight.detach().std()),
            float(net.head.bias.detach().max()),
        )
    xavier, head = (2 / (9 * 128)) ** 0.5, (2 / 69) ** 0.5
    assert found["xavier"] == pytest.approx((xavier, head, 0.0), rel=0.15)
    assert found["maml"] == pytest.approx((xavier, 1.0, 0.0), rel=0.15)
    assert found["imaml"][:2] == pytest.approx((1.73 * xavier, 1.73 * head), rel=0.15)
    assert 0 < found["imaml"][2] <= 0.05
    assert found["torch"][0] == pytest.approx((1 / (3 * 9 * 64)) ** 0.5, rel=0.15)
