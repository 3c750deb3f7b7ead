"""Matching networks: classify by attention over the support set.

    a_i = softmax over the support set of scale cos(f(x), g(x_i));   p(class n | x) = sum of a_i over the examples of class n

f and g are the base learner's ``body``; its ``head`` is not used and not trained. With ``num_reads`` k above 0 both see
the whole support set (full context embeddings, the paper's appendix A):

    g(x_i) = body(x_i) + forward LSTM_i + backward LSTM_i, run over the support set
    r_{k-1} = sum_i softmax(h_{k-1} . g)_i g(x_i);   h_k = LSTM([body(x), r_{k-1}], h_{k-1}) + body(x);   h_0 = 0
    f(x) = h_k after num_reads

Outputs are the logarithms of sums of exp(scale cos), whose softmax is p, so cross-entropy is the paper's loss. Its
formula has no scale (1), so that the softmax over few images stays flat; CloserLookFewShot, ``methods/matchingnet.py``, has
100 (and sets negative cosines to 0). The LSTMs depend on the order of the support set, of which the paper says nothing: here
it is that of the episode. Any number of ways.

Vinyals et al., NeurIPS 2016, https://arxiv.org/abs/1606.04080. Cost: one forward and backward pass; full context adds 2 S
LSTM steps one after another, and ``num_reads`` more for the queries. S support, Q query, N ways, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, parameters_of
from metarun.models.cells import LSTMCell
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, check_learned, num_features
from metarun.objectives import one_hot


@dataclass(frozen=True)
class MatchingNet(FewShotLearner):
    """A classifier by attention over the support set.

    ``input_shape`` is that of one example. ``num_reads`` (0 or more) is the number of reads of the support set by full
    context embeddings; with 0 there are none, and a body without parameters raises ValueError. ``scale`` (above 0)
    multiplies the cosines.
    """

    any_ways = True
    regresses = False

    num_ways: int
    input_shape: tuple[int, ...]
    num_reads: int
    scale: float = 1.0  # runs of an earlier metarun do not say it

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.num_reads < 0:
            raise ValueError(f"num_reads is {self.num_reads}; use 1 or more, or 0 for no full context embeddings.")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; cosines are multiplied by a number above 0.")
        if self.num_reads == 0:
            check_learned(self.base_learner, "MatchingNet")
        for inputs, d in self.cell_sizes().values():
            _structure(inputs, d)  # now: vmap refuses the draws of a module made inside it

    def cell_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and hidden units of each LSTM cell, by its name in theta."""
        if self.num_reads == 0:
            return {}
        d = num_features(self.base_learner, self.input_shape)
        return {"forward": (d, d), "backward": (d, d), "reader": (2 * d, d)}

    def init(self) -> Params:
        sizes, like = self.cell_sizes(), next(self.base_learner.parameters())  # the body may have none
        embedding = parameters_of(body_of(self.base_learner))
        cells = {name: parameters_of(LSTMCell(*size).to(like)) for name, size in sizes.items()}
        return {"embedding": embedding, **cells}

    def adapt(self, theta: Params, support: Batch) -> Params:
        z = functional_call(body_of(self.base_learner), theta["embedding"], (support.x,))  # [S, D]
        embedding = with_support(body_of(self.base_learner), theta["embedding"], support.x)
        if self.num_reads:
            z = z + _run(theta["forward"], z) + _run(theta["backward"], z.flip(0)).flip(0)
        labels = one_hot(support.y, self.num_ways, z.dtype)  # [S, N]
        reader = {"reader": theta["reader"]} if self.num_reads else {}
        return {"embedding": embedding, **reader, "memory": z, "labels": labels}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["embedding"], (x,))  # [Q, D]
        if self.num_reads:
            z = self.read(phi["reader"], z, phi["memory"])
        cosines = F.normalize(z) @ F.normalize(phi["memory"]).T  # [Q, S]
        of_class = (self.scale * cosines)[:, None].masked_fill(phi["labels"].T == 0, -torch.inf)  # [Q, N, S]
        return of_class.logsumexp(-1)

    def read(self, reader: Params, z: Tensor, memory: Tensor) -> Tensor:
        """f(x) [Q, D] from body(x) [Q, D], by ``num_reads`` reads of g(x_i) [S, D]."""
        h, c = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(self.num_reads):
            r = (h @ memory.T).softmax(1) @ memory  # the first read is the mean
            h, c = _cell(reader, torch.cat([z, r], 1), (h, c))
            h = h + z
        return h


def _run(cell: Params, z: Tensor) -> Tensor:
    """The outputs [S, D] of an LSTM that reads the rows of z [S, D] one after another."""
    state = torch.zeros_like(z[:1]), torch.zeros_like(z[:1])
    outputs = []
    for row in z.split(1):
        state = _cell(cell, row, state)
        outputs.append(state[0])
    return torch.cat(outputs)


def _cell(params: Params, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return functional_call(_structure(x.shape[1], state[0].shape[1]), params, (x, state))


@cache
def _structure(num_inputs: int, hidden_size: int) -> LSTMCell:
    with torch.device("meta"):
        return LSTMCell(num_inputs, hidden_size)
