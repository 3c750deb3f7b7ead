"""CAVIA: adapt a few context parameters c that the network is given as further inputs; its weights are shared by tasks.

    theta = (net, context layer W, b);   c_0 = 0;   c_{k+1} = c_k - inner_lr * grad_c L(net(. | c_k), support)
    phi = net(. | c_K);   meta-gradient = d L(phi, query) / d theta

``layer`` says where c comes in. 0: beside the inputs of the first layer, which must be linear: W1 [x, c] + b1 is
W1 x + (b1 + W c), a bias that moves. n: FiLM on the n-th batch norm: its weight becomes s * weight and its bias
s * bias + t with (s, t) = W c + b. Either way phi is a set of weights for the network as it is.

In the authors' code (classification/models.py) s and t start near 0. The next batch norm divides by them, which enlarges
the gradient of c, so that a step of 1.0 learns: ``film_start="released"``. With "identity" s = 1 at c = 0, the network
starts as it would without c, and steps are about 100 times larger. Their FiLM comes after the pooling, here before ReLU and
pooling; it differs in channels with s < 0, half of them in their start. c joins inputs in networks without batch norm
only: a batch norm takes away again what is added to all of its inputs.

Zintgraf et al., ICML 2019, https://arxiv.org/abs/1810.03642. Cost: as MAML in time (the gradient of c passes through the
network), while only c differs between tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metarun.core import Batch, Params, frozen, parameters_of
from metarun.inner.loops import descent, first_order_descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.models.exact.layers import BatchNorm


@dataclass(frozen=True)
class CAVIA(GradientLearner):
    """Gradient descent of context parameters alone, which begin at zero in every task.

    ``num_context`` (1 or more) is their number. They enter the first layer (``layer`` 0) or batch norm number ``layer``
    (from 1 on). ``inner_lr`` is their step size, ``inner_steps`` the number of steps. ``first_order`` takes the inner
    gradients as constants. ``film_start``: what FiLM does at c = 0 in the beginning, "identity" (nothing) or "released".
    """

    num_context: int
    layer: int
    inner_lr: float
    inner_steps: int
    first_order: bool
    film_start: Literal["identity", "released"] = "identity"

    def __post_init__(self) -> None:
        if self.num_context < 1:
            raise ValueError(f"num_context is {self.num_context}; adaptation needs 1 context parameter or more.")
        layer_with_context(self.base_learner, self.layer)
        if self.layer == 0 and self.film_start != "identity":
            raise ValueError(
                f"film_start is {self.film_start!r}, which is for FiLM; name a batch norm by layer (1, 2, ...), or leave it."
            )

    def init(self) -> Params:
        _, width, fan_in = layer_with_context(self.base_learner, self.layer)
        like = next(self.base_learner.parameters())
        net = parameters_of(self.base_learner)
        if self.layer == 0:  # the columns of torch's Linear(fan_in + num_context, width) that meet c
            columns = nn.Linear(fan_in + self.num_context, width).weight[:, fan_in:]
            return {"net": net, "context": {"weight": columns.detach().to(like)}}
        linear = nn.Linear(self.num_context, 2 * width)
        if self.film_start == "released":
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
        film = parameters_of(linear.to(like))
        if self.film_start == "identity":
            film["bias"] = torch.cat([torch.ones(width), torch.zeros(width)]).to(film["bias"])
        return {"net": net, "context": film}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return (self.given(theta, c) for c in self.contexts(theta, support, steps))

    def contexts(self, theta: Params, support: Batch, steps: int) -> Iterator[Tensor]:
        """The context parameters [num_context] after 0, 1, ..., ``steps`` steps."""
        descend = first_order_descent if self.first_order else descent

        def loss(c: Tensor, theta: Params, support: Batch) -> Tensor:
            return self.support_loss(self.given(theta, c), support)

        start = torch.zeros_like(theta["context"]["weight"][0])
        return descend(loss, start, SGD(self.inner_lr), steps, theta, support)

    def given(self, theta: Params, c: Tensor) -> Params:
        """The network's parameters given c."""
        name, _, _ = layer_with_context(self.base_learner, self.layer)
        weight, bias = f"{name}.weight", f"{name}.bias"
        net, context = {**frozen(self.base_learner), **theta["net"]}, theta["context"]
        moved = context["weight"] @ c
        if self.layer == 0:
            return {**net, bias: net[bias] + moved}
        scale, shift = (moved + context["bias"]).chunk(2)
        return {**net, weight: scale * net[weight], bias: scale * net[bias] + shift}


def layer_with_context(net: nn.Module, layer: int) -> tuple[str, int, int]:
    """Name, width and number of inputs of the first layer (``layer`` 0), or of batch norm number ``layer``."""
    modules = [(name, m) for name, m in net.named_modules() if list(m.parameters(recurse=False))]
    batch_norms = [(name, m) for name, m in modules if isinstance(m, BatchNorm)]
    if layer == 0:
        name, first = modules[0]
        if batch_norms or not isinstance(first, nn.Linear) or first.bias is None:
            raise ValueError(
                f"layer is 0, but context joins the inputs of a linear layer with a bias, in a network without batch norm; "
                f"{type(net).__name__} has {len(batch_norms)} batch norms and begins with {type(first).__name__}. Set "
                f"layer to the number of a batch norm (FiLM), or choose base_learner=mlp without batch norm."
            )
        return name, first.out_features, first.in_features
    if not 1 <= layer <= len(batch_norms):
        raise ValueError(
            f"layer is {layer}, but {type(net).__name__} has {len(batch_norms)} batch norms; choose one of them by its "
            f"number, from 1 on, or set layer to 0 to give the context to the first layer."
        )
    name, norm = batch_norms[layer - 1]
    return name, len(norm.weight), len(norm.weight)
