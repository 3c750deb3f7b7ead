"""Conditional neural process: a network reads the support set into a representation, another predicts from it.

    z(x) = body(x);   r_s = h(z(x_s), y_s)
    mean:       r(x) = mean of r_s over the support set
    attention:  r(x) = sum over s of softmax_s(<W_q z(x), W_k z(x_s)> / sqrt d) W_v r_s, in 8 heads, times W_o
    regression: (mean, raw) of y at x = g(z(x), r(x)), trained by the Gaussian log-likelihood
                deviation = smallest + (1 - smallest) softplus(raw)
    classes:    r_n is r over the examples of class n alone, without y;   logit_n(x) = g(z(x), r_n(x))

Adaptation is a forward pass. The score and ``query_loss`` are those of the predicted mean, so they compare with other
learners; ``negative_log_likelihood`` is what regression minimises. The base learner's head is not used and not trained.
The released code of both papers has 0.1 for the smallest deviation, as their presets have here. That bounds the likelihood:
where y can be known better, it costs most of what a good learner gains. So the default is 0, without a bound; on curves
without noise, give a number that is good enough.

Unlike the papers: x goes through the base learner's body first, shared by h, g and the attention (``base_learner=linear``
has the identity for a body: the CNP of the paper; attention wants an ``mlp``). The paper concatenates the class
representations; here one g scores each class by its own, so that permuting labels permutes outputs, and any number of
ways is possible. The targets are the query set, without the support set. Of the attentive process it is the
deterministic path: no latent variable and no self-attention.

Garnelo et al., ICML 2018, https://arxiv.org/abs/1807.01613; attention: Kim et al., ICLR 2019,
https://arxiv.org/abs/1901.05761. Cost: one forward and backward pass, no inner loop; attention adds Q * S products.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Metrics, Params, parameters_of
from metarun.meta_learners.likelihood import check_smallest, deviation_of, scored
from metarun.models.dense import dense, perceptron
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.objectives import among, examples_of, one_hot

HEADS = 8  # Kim et al. 2019, released code

# S support, Q query, D features, R the width of a representation, d = R / HEADS, G groups: the N classes, or one


@dataclass(frozen=True)
class CNP(FewShotLearner):
    """A conditional neural process: ``num_ways`` None is for regression on ``num_outputs`` targets.

    ``aggregation`` is how the support set is summed up. ``width`` is R, also the width of hidden layers; attention
    needs a multiple of 8. The encoder h has ``encoder_layers`` (1 or more) linear layers, the decoder g
    ``decoder_layers`` (0 or more) hidden ones. No deviation is below ``smallest_deviation``; 0 is the unbounded form.
    """

    any_ways = True
    reads_masks = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression
    aggregation: Literal["mean", "attention"]
    width: int
    encoder_layers: int
    decoder_layers: int
    smallest_deviation: float = 0.1  # runs of an earlier metarun do not say it

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        check_smallest(self.smallest_deviation)
        if min(self.width, self.encoder_layers) < 1 or self.decoder_layers < 0:
            raise ValueError(
                f"width {self.width} and encoder_layers {self.encoder_layers} must be 1 or more, and decoder_layers "
                f"{self.decoder_layers} 0 or more."
            )
        if self.aggregation == "attention" and self.width % HEADS:
            raise ValueError(f"width is {self.width}, but attention has {HEADS} heads: use a multiple of {HEADS}.")

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        label, outputs = (self.num_outputs, 2 * self.num_outputs) if self.num_ways is None else (0, 1)
        theta = {
            "body": parameters_of(body_of(self.base_learner)),
            "encoder": dense([features + label] + [self.width] * self.encoder_layers, like),
            "decoder": dense([features + self.width] + [self.width] * self.decoder_layers + [outputs], like),
        }
        if self.aggregation == "attention":
            sizes = {"query": features, "key": features, "value": self.width, "out": self.width}
            theta["attention"] = {name: dense([size, self.width], like)[0]["weight"] for name, size in sizes.items()}
        return theta

    def adapt(self, theta: Params, support: Batch) -> Params:
        body = body_of(self.base_learner)
        z = functional_call(body, theta["body"], (support.x,))  # [S, D]
        if self.num_ways is None:
            r = perceptron(theta["encoder"], torch.cat([z, support.y.flatten(1)], 1))  # [S, R]
            members = z.new_ones(len(z), 1)  # [S, G]
        else:
            r = perceptron(theta["encoder"], z)
            members = one_hot(support.y, self.num_ways, z.dtype)
        if (examples := examples_of(support)) is not None:  # a padded row is a member of no group
            members = members * examples[:, None]
        phi = {
            "body": with_support(body, theta["body"], support.x),
            "decoder": theta["decoder"],
            "present": () if self.num_ways is None else members.sum(0) > 0,  # a class without examples is not predicted
        }
        if self.aggregation == "mean":
            number = members.sum(0)[:, None].clamp(min=1)  # of no examples the representation is 0
            return {**phi, "representation": (members.T @ r) / number}  # [G, R]
        w = theta["attention"]
        projections = {"query": w["query"], "out": w["out"]}
        return {**phi, **projections, "keys": z @ w["key"].T, "values": r @ w["value"].T, "members": members}

    def representation(self, phi: Params, z: Tensor) -> Tensor:
        """Representations of the support set for each row of z [Q, D], group by group: [Q, G, R]."""
        if self.aggregation == "mean":
            return phi["representation"].expand(len(z), -1, -1)
        query, key, value = (heads(x) for x in (z @ phi["query"].T, phi["keys"], phi["values"]))
        similarity = query @ key.transpose(1, 2) / math.sqrt(key.shape[-1])  # [heads, Q, S]
        own = phi["members"].T > 0  # [G, S]
        own = own | ~own.any(1, keepdim=True)  # of no examples: any, which changes nothing
        weights = torch.where(own, similarity[:, :, None], -torch.inf).softmax(-1)  # [heads, Q, G, S]
        read = weights @ value[:, None]  # [heads, Q, G, d]
        return read.permute(1, 2, 0, 3).flatten(2) @ phi["out"].T

    def outputs(self, phi: Params, x: Tensor) -> Tensor:
        """Outputs of g for x [Q, ...]: logits [Q, N], or in regression means and raw deviations [Q, 2 num_outputs]."""
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        r = self.representation(phi, z)
        both = torch.cat([z[:, None].expand(-1, r.shape[1], -1), r], -1)  # [Q, G, D + R]
        return perceptron(phi["decoder"], both).flatten(1)  # [Q, N], or [Q, 2 num_outputs]

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        outputs = self.outputs(phi, x)
        return outputs[:, : self.num_outputs] if self.num_ways is None else among(phi["present"], outputs)

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.outputs(phi, x).chunk(2, 1)
        return mean, deviation_of(raw, self.smallest_deviation)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        if self.num_ways is not None:
            return super().query_loss(phi, query)
        return scored(self.objective, *self.posterior(phi, query.x), query)


def heads(x: Tensor) -> Tensor:
    """Split rows [rows, R] among the attention heads: [heads, rows, d]."""
    return x.unflatten(1, (HEADS, -1)).transpose(0, 1)
