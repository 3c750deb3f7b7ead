"""Any classification model of torchvision as a base learner: random weights, a local file, or torchvision's own.

    body: image -> 3 channels by ImageNet's means and deviations -> the model without its last linear layer -> [S, D]
    head: a new linear layer

Its batch norms, layer norms and attention become metarun's (exact to second order under vmap), so what a weights file says
of running statistics is not used: with ``batch_norm=running`` they are computed on training tasks. Dropout and stochastic
depth are left out, as adaptation must not draw. Vision transformers are made for the task's size of images, and position
embeddings from a file are interpolated to it.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import Permute, StochasticDepth

from metarun.errors import did_you_mean
from metarun.models.exact.layers import BatchNormMode, LayerNorm
from metarun.models.exact.replaced import make_exact

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ImageNetColours(nn.Module):
    """Colours as torchvision's models were trained on: x [S, 1 or 3, H, W] in [0, 1] -> [S, 3, H, W].

    Grey is repeated; then ImageNet's means are taken off and its deviations divide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.mean: Tensor
        self.deviation: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Backbone(nn.Module):
    """A torchvision model without its last linear layer (``body``), and a new linear ``head``.

    ``name`` is torchvision's name of the model. ``weights`` is None for random ones, a file, or a name of torchvision's
    own. Raises ValueError for an unknown name, for inputs that are not images of 1 or 3 channels or do not suit the
    model, and for weights that do not fit or cannot be read.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        name: str,
        weights: str | None,
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise ValueError(
                f"base_learner torchvision needs images of 1 or 3 channels, but the task's inputs have shape "
                f"{list(input_shape)}. Choose base_learner=mlp."
            )
        model, features = _without_classifier(name, input_shape)
        if weights is not None:
            _load(model, name, _state(name, weights))
        _replace(model, _without_draws)
        make_exact(model, batch_norm)
        self.body = nn.Sequential(OrderedDict(colours=ImageNetColours(), model=model))
        self.head = nn.Linear(features, num_outputs)
        try:
            with torch.no_grad():
                self(torch.zeros(2, *input_shape))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(_too_odd(name, input_shape, error)) from error

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _without_classifier(name: str, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Make the model with random weights and without its last linear layer; return it and the number of features.

    Raises ValueError for an unknown name, a model without a linear layer, and images that it cannot take.
    """
    known = models.list_models(module=models)
    if name not in known:
        guess = did_you_mean(name, known) or "."
        raise ValueError(f"base_learner.name is {name!r}, which is no model of torchvision{guess}")
    try:
        model = models.get_model(name, **_settings(name, input_shape))
    except (AssertionError, ValueError) as error:  # of transformers, whose patches or windows must fill the image
        raise ValueError(_too_odd(name, input_shape, error)) from error
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"base_learner.name {name!r} has no linear layer to replace; choose another, such as resnet18."
        )
    path, classifier = layers[-1]
    model.set_submodule(path, nn.Identity())
    return model, classifier.in_features


def _too_odd(name: str, input_shape: tuple[int, ...], error: Exception) -> str:
    return (
        f"base_learner.name {name!r} cannot take images of {list(input_shape)}: {error}. Choose a model for images of any "
        "size, such as resnet18, or a task with larger ones."
    )


def _settings(name: str, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Arguments that some models of torchvision need: to have one output, or the size of the images."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("maxvit_"):
        return {"input_size": input_shape[1:]}
    return {"image_size": input_shape[1]} if name.startswith("vit_") else {}


def _replace(module: nn.Module, better: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every module below ``module`` by what ``better`` makes of it."""
    for name, child in module.named_children():
        setattr(module, name, better(child))
        _replace(getattr(module, name), better)


def _without_draws(module: nn.Module) -> nn.Module:
    """``module``, or what stands for it: nothing that draws, or writes in place what an inner loop differentiates."""
    if isinstance(module, nn.Dropout | StochasticDepth):
        return nn.Identity()
    if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0
    if isinstance(module, LayerNorm2d):  # the names that theta has in older checkpoints
        norm = LayerNorm(module.normalized_shape[0], module.eps)
        norm.weight, norm.bias = module.weight, module.bias
        return nn.Sequential(Permute([0, 2, 3, 1]), norm, Permute([0, 3, 1, 2]))
    if getattr(module, "inplace", False):
        module.inplace = False  # type: ignore[assignment]
    return module


def _state(name: str, weights: str) -> dict[str, Any]:
    """Read the parameters that ``weights`` names: one of torchvision's for this model, else a file.

    Raises ValueError where they cannot be downloaded, found or read.
    """
    published = models.get_model_weights(name).__members__
    if weights in published:
        try:
            return published[weights].get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash
            raise ValueError(
                f"base_learner.weights {weights!r} cannot be downloaded from {published[weights].url}: {error}. "
                "Download that file elsewhere and give its path instead."
            ) from error
    if not Path(weights).expanduser().is_file():
        raise ValueError(
            f"base_learner.weights is {weights!r}, which is neither a file nor one of torchvision's weights of {name} "
            f"({', '.join(published)}). Correct the path, or use null for random weights."
        )
    try:
        return torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"base_learner.weights {weights!r} is not a state dict that torch.load(..., weights_only=True) reads: "
            f"{str(error).splitlines()[0]} Save one by torch.save(model.state_dict(), PATH)."
        ) from error


def _load(model: nn.Module, name: str, state: dict[str, Any]) -> None:
    """Load ``state`` into the model, leaving out what it holds of a classifier.

    Raises ValueError where shapes differ or parameters are missing.
    """
    try:
        if isinstance(model, models.VisionTransformer):
            state = interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state))
        missing = model.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, TypeError) as error:  # other shapes, or no dictionary
        raise ValueError(f"base_learner.weights do not fit {name}: {' '.join(str(error).split())}") from error
    if missing := [key for key in missing if not key.endswith(STATISTICS)]:
        raise ValueError(f"base_learner.weights do not fit {name}: they lack {', '.join(missing[:3])} ...")
