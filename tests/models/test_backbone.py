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

from metarun.core import Batch
from metarun.meta_learners.fine_tune import FineTune
from metarun.models.backbone import Backbone
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


def test_the_body_is_the_model_on_grey_images_repeated_and_normalised_as_for_imagenet():
    colours = images(4).expand(-1, 3, -1, -1)
    mean, deviation = ([values[c] for c in range(3)] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = torch.stack([(colours[:, c] - mean[c]) / deviation[c] for c in range(3)], 1)
    # the constants are stored in float32
    torch.testing.assert_close(resnet().body(images(4)), plain_resnet()(normalised), rtol=1e-5, atol=1e-5)


def test_a_second_order_gradient_under_vmap_is_that_of_a_loop():
    net = Backbone(GREY, 3, "shufflenet_v2_x0_5", None, "transductive").double()
    # 64 pixels and 6 images leave 24 values to the last norms; over 3, the loss would be too steep to compare
    x = F.interpolate(images(2, 6).flatten(0, 1), scale_factor=2.0, mode="bilinear").unflatten(0, (2, 6))
    theta = dict(net.named_parameters())

    def loss(theta: dict, x: torch.Tensor) -> torch.Tensor:
        return (functional_call(net, theta, (x,)) ** 2).mean()

    def after_a_step(theta: dict, x: torch.Tensor) -> torch.Tensor:
        steps = grad(loss)(theta, x)
        return loss({name: p - 0.01 * steps[name] for name, p in theta.items()}, x)

    together = vmap(grad(after_a_step), (None, 0))(theta, x)
    alone = [grad(after_a_step)(theta, x[i]) for i in range(2)]
    assert relative_error(together, {name: torch.stack([g[name] for g in alone]) for name in theta}) < EXACT


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
        (GREY, "resnet81", "which is no model of torchvision; did you mean 'resnet18'"),
        (GREY, "squeezenet1_1", "no linear layer to replace"),
        (GREY, "convnext_tiny", "has layer norms, .* Choose a model with batch norms"),
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
