"""Hypernetwork: a network reads the support set and writes weights of the base learner, in one forward pass.

    z(x) = body(x)
    head:           e_n = mean over the support examples of class n of h(z(x_s));   (w_n, b_n) = g(e_n)
                    regression: e = mean over the support set of h(z(x_s), y_s);   (W, b) = g(e)
                    output_n(x) = <w_n, z(x)> + b_n
    film_and_head:  first (scale, shift) = g'(mean over the support set of h'(z(x_s))), with y_s in regression, and every
                    channel of every layer of the body becomes (1 + scale) * channel + shift; then the head from the new z

A class's weights come from its own examples through the same g, so permuting labels permutes outputs, and any number of
ways is possible; the order of the support set does not matter. The base learner's own head is not used and not trained.
The layers that are modulated are the body's norms, or where it has none all its layers; g' starts at zero, so that
training starts from the body as it is.

The two ways are those of CNAPs. Unlike there, the body is trained with the rest rather than beforehand on one large set
of classes, and one vector for the whole set modulates every layer, without the path from layer to layer.

Ha, Dai and Le, ICLR 2017, https://arxiv.org/abs/1609.09106; CNAPs: Requeima et al., NeurIPS 2019,
https://arxiv.org/abs/1906.07697. Cost: one forward and backward pass, two of the body on the support set with FiLM.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, frozen, parameters_of
from metarun.models.dense import Layers, dense, perceptron
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.objectives import among, one_hot

# S support, D features, G groups: the N classes, or one; O rows of the head: N, or num_outputs


@dataclass(frozen=True)
class Hypernetwork(FewShotLearner):
    """A network that writes weights of the base learner; ``num_ways`` None is for regression on ``num_outputs``.

    ``generates`` says which weights. ``width`` is that of the summaries of examples and of hidden layers. The encoders
    h have ``encoder_layers`` (1 or more) linear layers, the generators g ``generator_layers`` (0 or more) hidden ones.
    """

    any_ways = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression
    generates: Literal["head", "film_and_head"]
    width: int
    encoder_layers: int
    generator_layers: int

    def __post_init__(self) -> None:
        if min(self.width, self.encoder_layers) < 1 or self.generator_layers < 0:
            raise ValueError(
                f"width {self.width} and encoder_layers {self.encoder_layers} must be 1 or more, and generator_layers "
                f"{self.generator_layers} 0 or more."
            )
        if self.generates == "film_and_head" and not self.modulated_layers():
            raise ValueError(
                "generates is 'film_and_head', but the body of the base learner has no layers with a weight and a bias "
                "to modulate; use generates=head or another base learner."
            )

    def modulated_layers(self) -> dict[str, int]:
        """The layers of the body that FiLM modulates: the beginning of their parameters' names -> channels."""
        shapes = {name: p.shape for name, p in body_of(self.base_learner).named_parameters()}
        layers = {name.removesuffix("bias"): shape for name, shape in shapes.items() if name.endswith("bias")}
        norms = [prefix for prefix in layers if len(shapes[prefix + "weight"]) == 1]
        return {prefix: layers[prefix][0] for prefix in norms or layers}

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        label, rows = (self.num_outputs, self.num_outputs) if self.num_ways is None else (0, 1)
        theta: dict[str, Any] = {"body": parameters_of(body_of(self.base_learner))}
        theta |= self.reader("head", features + label, rows * (features + 1), like)
        if self.generates == "film_and_head":
            theta |= self.reader("film", features + label, 2 * sum(self.modulated_layers().values()), like)
            theta["film_generator"][-1] = {name: 0 * p for name, p in theta["film_generator"][-1].items()}
        return theta

    def reader(self, name: str, inputs: int, outputs: int, like: Tensor) -> dict[str, Layers]:
        """Weights of h and g: from examples to a vector of ``width``, and from there to what is generated."""
        hidden = [self.width] * self.generator_layers
        return {
            f"{name}_encoder": dense([inputs] + [self.width] * self.encoder_layers, like),
            f"{name}_generator": dense([self.width, *hidden, outputs], like),
        }

    def adapt(self, theta: Params, support: Batch) -> Params:
        net, body = body_of(self.base_learner), theta["body"]
        if self.generates == "film_and_head":
            body = self.modulated(theta, support)
        z = functional_call(net, body, (support.x,))  # [S, D]
        e = perceptron(theta["head_encoder"], self.examples(z, support.y))  # [S, width]
        members = z.new_ones(len(z), 1) if self.num_ways is None else one_hot(support.y, self.num_ways, z.dtype)
        count = members.sum(0)
        means = (members.T @ e) / count[:, None].clamp(min=1)  # [G, width]
        rows = perceptron(theta["head_generator"], means).view(-1, z.shape[1] + 1)  # [O, D + 1]
        head = {"weight": rows[:, :-1], "bias": rows[:, -1]}
        present = () if self.num_ways is None else count > 0
        return {"body": with_support(net, body, support.x), "head": head, "present": present}

    def modulated(self, theta: Params, support: Batch) -> Params:
        """The body with the scales and shifts of this task in its layers: (1 + a)(W x + b) + c = W' x + b'."""
        body, layers = {**frozen(body_of(self.base_learner)), **theta["body"]}, self.modulated_layers()
        z = functional_call(body_of(self.base_learner), body, (support.x,))
        e = perceptron(theta["film_encoder"], self.examples(z, support.y)).mean(0)
        film = perceptron(theta["film_generator"], e).split([c for c in layers.values() for _ in ("scale", "shift")])
        changed = {}
        for prefix, scale, shift in zip(layers, film[::2], film[1::2], strict=True):
            weight, bias = body[prefix + "weight"], body[prefix + "bias"]
            changed[prefix + "weight"] = weight * (1 + scale).view(-1, *[1] * (weight.dim() - 1))
            changed[prefix + "bias"] = bias * (1 + scale) + shift
        return {**body, **changed}

    def examples(self, z: Tensor, y: Tensor) -> Tensor:
        """Inputs of h for each example: its features, and in regression its target."""
        return torch.cat([z, y.flatten(1)], 1) if self.num_ways is None else z

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        outputs = F.linear(z, **phi["head"])
        return outputs if self.num_ways is None else among(phi["present"], outputs)
