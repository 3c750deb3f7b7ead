"""In-context learning: a causal transformer reads x_1, y_1, x_2, y_2, ... and says each y before it sees it.

    rows    x_1, y_1, ..., x_P, y_P of support and query: z(x) = body(x), y one-hot or the target, both filled with zeros
    h_t     = W_in row_t + b + position_t
    layers  h <- h + W_o attention(norm(h));   h <- h + W_2 GELU(W_1 norm(h));   row t reads rows 1, ..., t
    f_k     = W_out norm(h at x_k) + c, which has read x_1, y_1, ..., x_{k-1}, y_{k-1}, x_k
    loss    = mean over k of the objective of (f_k, y_k): one pass trains the prediction from 0, 1, ..., P - 1 examples

Adaptation reads the support set once and keeps its keys and values; each query comes next after it, at the same place,
and sees no other query. So a score is the prediction from K examples, whatever the number of queries. Training reads
support and query as one sequence: with one query (``task.train_num_queries=1``) its length is that of a test plus one.

As in the paper: W_in is one map for x and y, positions are learned, and the layers are GPT-2's (norms first and one at
the end, 4 C hidden units, weights of deviation 0.02, of W_o and W_2 by sqrt(2 layers) less). Unlike it, x goes through
the base learner's body first (``base_learner=linear`` has the identity), and classes can be learned, too. The base
learner's head is not used and not trained. Order matters: predictions depend on that of the support set.

Garg et al., NeurIPS 2022, https://arxiv.org/abs/2208.01066 (released code). Cost: one forward and backward pass, no
inner loop; attention adds (2 P)^2 products a layer.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, parameters_of
from metarun.models.attention import causal, encode, norm, norm_weights, read, remember, transformer
from metarun.models.dense import dense
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.models.precision import check_bfloat16, in_bfloat16
from metarun.objectives import examples_of, of_examples, one_hot

DEVIATION = 0.02  # of GPT-2's weights and positions
GELU = partial(F.gelu, approximate="tanh")  # GPT-2's

# S support, Q query, P = S + Q points, D features, O outputs, C width


@dataclass(frozen=True)
class InContext(FewShotLearner):
    """A causal transformer over points and their labels.

    ``width`` C is a multiple of ``heads``. ``max_points`` (2 or more) is the most points of a sequence, for which there
    are positions: support and query of training, or the support and one query. More raise ValueError. With ``bfloat16``
    the layers compute in it (models/precision.py).
    """

    reads_masks: ClassVar[bool] = True

    input_shape: tuple[int, ...]
    num_outputs: int
    width: int
    depth: int
    heads: int
    max_points: int
    bfloat16: bool = False

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        check_bfloat16(self.bfloat16, next(self.base_learner.parameters()))
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads or self.max_points < 2:
            raise ValueError(
                f"width {self.width}, depth {self.depth} and heads {self.heads} must be 1 or more, width a multiple of "
                f"heads, and max_points {self.max_points} 2 or more."
            )

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        layers = transformer(self.width, self.depth, self.heads, 4 * self.width, like)
        for layer in layers:
            for name in ("qkv", "out", "expand", "contract"):
                small = DEVIATION / math.sqrt(2 * self.depth) if name in ("out", "contract") else DEVIATION
                layer[name] = {
                    "weight": small * torch.randn_like(layer[name]["weight"]),
                    "bias": 0 * layer[name]["bias"],
                }
        return {
            "body": parameters_of(body_of(self.base_learner)),
            "read_in": dense([max(features, self.num_outputs), self.width], like)[0],
            "positions": DEVIATION * torch.randn(2 * self.max_points, self.width).to(like),
            "layers": layers,
            "norm": norm_weights(self.width, like),
            "read_out": dense([self.width, self.num_outputs], like)[0],
        }

    def adapt(self, theta: Params, support: Batch) -> Params:
        self.refuse_size(len(support.x))
        body, examples = body_of(self.base_learner), examples_of(support)
        z = functional_call(body, theta["body"], (support.x,))  # [S, D]
        h, seen = self.sequence(theta, z, self.labels(support, z), examples)
        phi = {name: theta[name] for name in ("read_in", "layers", "norm", "read_out")}
        phi |= {"body": with_support(body, theta["body"], support.x)}
        with in_bfloat16(self.bfloat16, h):
            phi |= {"memory": remember(theta["layers"], h, seen, self.heads, activation=GELU)}
        if examples is None:
            return {**phi, "position": theta["positions"][2 * len(z)]}
        number = examples.sum()[None]
        return {**phi, "position": theta["positions"][2 * number][0], "seen": examples.repeat_interleave(2)}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        h = F.linear(filled(z, phi["read_in"]), **phi["read_in"]) + phi["position"]
        with in_bfloat16(self.bfloat16, h):
            h = read(phi["layers"], phi["memory"], h, phi.get("seen"), activation=GELU)
        return F.linear(norm(phi["norm"], h.to(z.dtype)), **phi["read_out"])

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        """Loss of the predictions of all points of support and query, each from those before it."""
        (support, query), body = episode[:2], body_of(self.base_learner)
        num_support = len(support.x)
        self.refuse_size(num_support, len(query.x))
        z = functional_call(body, theta["body"], (support.x,))
        z_query = functional_call(body, with_support(body, theta["body"], support.x), (query.x,))
        labels = torch.cat([self.labels(batch, z) for batch in (support, query)])
        examples = _joined(support, query)
        outputs = self.outputs(theta, torch.cat([z, z_query]), labels, examples)
        loss, _ = self.loss(outputs, torch.cat([support.y, query.y]), examples)
        of_query = examples if examples is None else examples[num_support:]
        _, metrics = self.loss(outputs[num_support:], query.y, of_query)
        return loss, {**metrics, "sequence_loss": loss.detach()}

    def outputs(self, theta: Params, z: Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        """Outputs [P, O] for features z [P, D], each from the ``labels`` [P, O] before it."""
        h, seen = self.sequence(theta, z, labels, examples)
        with in_bfloat16(self.bfloat16, h):
            h = encode(theta["layers"], h, seen, self.heads, activation=GELU)
        return F.linear(norm(theta["norm"], h[::2].to(z.dtype)), **theta["read_out"])

    def sequence(self, theta: Params, z: Tensor, labels: Tensor, examples: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows [2 P, C] of features z [P, D] and ``labels`` [P, O], in turn, and what each row sees [2 P, 2 P].

        Rows that are no ``examples`` [P] are not seen, and not counted by positions.
        """
        pairs = torch.stack([filled(rows, theta["read_in"]) for rows in (z, labels)], 1)  # [P, 2, max(D, O)]
        h, seen = F.linear(pairs.flatten(0, 1), **theta["read_in"]), causal(2 * len(z), z)
        if examples is None:
            return h + theta["positions"][: len(h)], seen
        first = 2 * (examples.cumsum(0) - 1).clamp(min=0)
        places = torch.stack([first, first + 1], 1).flatten()
        return h + theta["positions"][places], seen & examples.repeat_interleave(2)

    def labels(self, batch: Batch, like: Tensor) -> Tensor:
        """Targets, or classes as one-hot vectors in the dtype of ``like``: [S, O]."""
        if batch.y.is_floating_point():
            return batch.y.flatten(1)
        return one_hot(batch.y, self.num_outputs, like.dtype)

    def loss(self, outputs: Tensor, y: Tensor, examples: Tensor | None) -> tuple[Tensor, Metrics]:
        """Loss and metrics of ``outputs`` [P, O], over the rows that are ``examples`` [P]."""
        objective = of_examples(self.objective, examples)
        loss = objective.loss(outputs, y)
        return loss, {"query_loss": loss.detach(), objective.score_name: objective.score(outputs, y)}

    def refuse_size(self, num_support: int, num_query: int = 1) -> None:
        what = "support and query of a training episode" if num_query > 1 else "a support set and one query"
        if (num_points := num_support + num_query) > self.max_points:
            raise ValueError(
                f"meta_learner.max_points is {self.max_points}, but {what} are {num_points} points; set it to that or more "
                "(it is a size of the network), or lower the number of shots"
                + (" or task.train_num_queries." if num_query > 1 else ".")
            )


def filled(rows: Tensor, read_in: Params) -> Tensor:
    """Rows [P, n] filled up with zeros to the width of ``read_in``."""
    return F.pad(rows, (0, read_in["weight"].shape[1] - rows.shape[1]))


def _joined(support: Batch, query: Batch) -> Tensor | None:
    """The examples among the points of both; None: all."""
    masks = [examples_of(batch) for batch in (support, query)]
    if all(mask is None for mask in masks):
        return None
    every = [torch.ones(len(b.x), dtype=torch.bool, device=b.x.device) for b in (support, query)]
    return torch.cat([all_ if mask is None else mask for mask, all_ in zip(masks, every, strict=True)])
