"""torchvision's models as base learners: the same function, exact gradients under vmap, weights from a file or by name.

float64, tiny images; EXACT is for the same sums in another order through some twenty batch norms over few values.
"""

from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from metarun.core import Batch
from metarun.meta_learners.fine_tune import FineTune
from metarun.models.backbone import Backbone
from metarun.models.exact.replaced import make_exact
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import relative_error

EXACT = 1e-8
GREY = (1, 32, 32)


def resnet(weights: str | None = None) -> Backbone:
    torch.manual_seed(0)
    return Backbone(GREY, 3, "resnet18", weights, "transductive").double()


def plain_resnet() -> nn.Module:
    """torchvision's own with the weights that ``resnet`` draws, and without its classifier."""
    torch.manual_seed(0)
    net = models.resnet18().double()
    net.fc = nn.Identity()
    return net


def images(*leading: int) -> torch.Tensor:
    return torch.rand(*leading, *GREY, generator=torch.Generator().manual_seed(1)).double()


def vmap_error_to_second_order(net: nn.Module, x: torch.Tensor) -> float:
    """Relative difference of two tasks' meta-gradients [2, ...] through one step of SGD, by vmap and by a loop."""
    theta = dict(net.named_parameters())

    def loss(theta: dict, x: torch.Tensor) -> torch.Tensor:
        return (functional_call(net, theta, (x,)) ** 2).mean()

    def after_a_step(theta: dict, x: torch.Tensor) -> torch.Tensor:
        steps = grad(loss)(theta, x)
        return loss({name: p - 0.01 * steps[name] for name, p in theta.items()}, x)

    together = vmap(grad(after_a_step), (None, 0), randomness="different")(theta, x)
    alone = [grad(after_a_step)(theta, x[i]) for i in range(2)]
    return relative_error(together, {name: torch.stack([g[name] for g in alone]) for name in theta})


def test_the_body_is_the_model_on_repeated_grey_images_normalised_as_for_imagenet():
    colours = images(4).expand(-1, 3, -1, -1)
    mean, deviation = ([values[c] for c in range(3)] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = torch.stack([(colours[:, c] - mean[c]) / deviation[c] for c in range(3)], 1)
    # the constants are stored in float32
    torch.testing.assert_close(resnet().body(images(4)), plain_resnet()(normalised), rtol=1e-5, atol=1e-5)


def test_a_second_order_gradient_under_vmap_is_that_of_a_loop():
    net = Backbone(GREY, 3, "shufflenet_v2_x0_5", None, "transductive").double()
    # 64 pixels and 6 images leave 24 values to the last norms; over 3, the loss would be too steep to compare
    x = F.interpolate(images(2, 6).flatten(0, 1), scale_factor=2.0, mode="bilinear").unflatten(0, (2, 6))
    assert vmap_error_to_second_order(net, x) < EXACT


SMALL = {
    "vit": lambda: models.VisionTransformer(32, 16, 2, 2, 16, 24, num_classes=4),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], 0.0, num_classes=4),
    "swin": lambda: models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=4),
    "maxvit": lambda: models.MaxVit((32, 32), 8, 1, [8, 16], [1, 1], 4, 0.0, num_classes=4),
}  # torchvision's own classes at a size at which float64 second derivatives take seconds


@pytest.mark.parametrize("kind", SMALL)
def test_models_of_layer_norms_or_attention_are_unchanged_and_exact_twice_under_vmap(kind):
    torch.manual_seed(0)
    net = SMALL[kind]().double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)  # classifiers of transformers begin at zero
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean = norm.running_var = None  # those of the batch, as in mode transductive
    x = torch.rand(2, 3, 3, 32, 32, dtype=torch.float64)
    expected = net(x[0])
    make_exact(net, "transductive")
    torch.testing.assert_close(net(x[0]), expected, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, nn.LayerNorm | nn.MultiheadAttention | nn.BatchNorm2d) for m in net.modules())
    assert vmap_error_to_second_order(net, x) < EXACT


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_16"])
def test_common_models_are_torchvisions_function_with_weights_from_a_file(name, tmp_path):
    torch.manual_seed(0)
    size = {"image_size": 32} if name.startswith("vit") else {}
    reference = models.get_model(name, **size)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    net = Backbone((3, 32, 32), 2, name, str(tmp_path / "weights.pt"), "transductive")
    for module in reference.modules():  # as metarun's: no draws, and norms by the batch
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    children = [(path, m) for path, m in reference.named_modules() if isinstance(m, nn.Linear)]
    reference.set_submodule(children[-1][0], nn.Identity())
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)  # in float32, fifty norms of four images differ by 2%
    torch.testing.assert_close(net.double().body.model(x), reference.double()(x), rtol=1e-8, atol=1e-8)


def test_position_embeddings_from_a_file_are_interpolated_to_the_size_of_the_images(tmp_path):
    torch.save(models.get_model("vit_b_32", image_size=64).state_dict(), tmp_path / "weights.pt")
    net = Backbone((3, 96, 96), 2, "vit_b_32", str(tmp_path / "weights.pt"), "transductive")
    assert net.body.model.encoder.pos_embedding.shape == (1, 1 + 9, 768)


def test_fine_tuning_the_last_part_leaves_the_others_as_they_are():
    learner = FineTune(resnet(), CROSS_ENTROPY, 3, 10, ["model.layer4"], 0.1, 2, "sgd")
    theta = learner.init()
    phi = learner.adapt(theta, Batch(images(6), torch.arange(3).repeat(2)))
    moved = {name.split(".")[1] for name, p in phi["body"].items() if not torch.equal(p, theta["body"][name])}
    assert moved == {"layer4"}


def test_weights_from_a_file_are_those_of_the_file_whatever_its_classifier(tmp_path):
    torch.manual_seed(7)
    saved = models.resnet18(num_classes=11)
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    body = resnet(str(tmp_path / "weights.pt")).body.model
    expected = {name: p.double() for name, p in saved.named_parameters() if not name.startswith("fc.")}
    assert all(torch.equal(p, expected.pop(name)) for name, p in body.named_parameters())
    assert not expected


def test_weights_by_name_are_torchvisions(monkeypatch):
    torch.manual_seed(7)
    published = models.resnet18().state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **_: published)
    assert torch.equal(resnet("IMAGENET1K_V1").body.model.conv1.weight, published["conv1.weight"].double())


def test_weights_that_cannot_be_downloaded_are_a_message(monkeypatch):
    def offline(self: object, **_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"'DEFAULT' cannot be downloaded from https://.*no route.*give its path"):
        resnet("DEFAULT")


def test_a_file_that_is_missing_damaged_or_of_another_model_is_a_message(tmp_path):
    with pytest.raises(ValueError, match=r"neither a file nor one of .* of resnet18 \(IMAGENET1K_V1.*use null"):
        resnet("nowhere.pt")
    (tmp_path / "damaged.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"damaged.pt' is not a state dict .* Save one by torch.save"):
        resnet(str(tmp_path / "damaged.pt"))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"do not fit resnet18: they lack bn1.weight"):
        resnet(str(tmp_path / "part.pt"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"do not fit resnet18: .*size mismatch"):
        resnet(str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        (GREY, "resnet81", "which is no model of torchvision; did you mean 'resnet18'\\?$"),
        (GREY, "squeezenet1_1", "no linear layer to replace"),
        ((3, 40, 40), "vit_b_32", r"cannot take images of \[3, 40, 40\]: .*patch size.*any size, such as resnet18"),
        ((3, 32, 64), "vit_b_32", r"cannot take images of \[3, 32, 64\]"),
        ((3, 32, 32), "maxvit_t", r"cannot take images of \[3, 32, 32\]: .*partition size"),
        ((1, 16, 16), "densenet121", r"cannot take images of \[1, 16, 16\]"),
        ((2, 32, 32), "resnet18", "needs images of 1 or 3 channels"),
        ((4,), "resnet18", "Choose base_learner=mlp"),
    ],
)
def test_models_and_inputs_that_do_not_go_together_are_refused(shape, name, message):
    with pytest.raises(ValueError, match=message):
        Backbone(shape, 3, name, None, "transductive")


def test_no_model_draws_when_it_predicts():
    net = Backbone((1, 32, 32), 3, "mobilenet_v3_small", None, "transductive")
    x = images(3).float()
    assert torch.equal(net(x), net(x))
    assert not any(isinstance(module, nn.Dropout) for module in net.modules())
    assert F.relu(net.body(x)).shape == (3, net.head.in_features)
