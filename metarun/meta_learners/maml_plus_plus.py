"""MAML++: MAML with four additions that steady its training, each with its own switch.

    theta = (weights, norms, rates);   phi_k = (weights_k, norms[max(k - 1, 0)])     after k inner steps
    weights_{k+1} = weights_k - rates[k] * grad L((weights_k, norms[k]), support)
    meta-gradient = d sum_k importance_k L(phi_k, query) / d theta,   k = 1 ... K

``multi_step_epochs``: importance is spread over all steps at first, 1/K each, and moves to the last one, linearly over so
many epochs, while the others keep 0.03/K or more; afterwards the last step has all of it. 0: the last step alone.
``learned_rates``: a rate for each tensor of weights and each step, learned from inner_lr on.
``per_step_norms``: weight and bias of each batch norm, if there are any, for each inner step.
``first_order_epochs``: so many epochs without second derivatives to begin with. 0: none.
The paper's fifth addition, an outer rate annealed by a cosine, is ``scheduler=cosine``.

An epoch is ``steps_per_epoch`` training steps; training starts in epoch ``epoch``. Evaluation knows no epochs. Steps beyond
the trained ones repeat the last rates and norms. Weights and biases of norms take no inner steps, as in the released
settings.

Statistics of batch norms: in each inner step those of the support batch at that step, in training and in evaluation, so no
step is normalised by another's and there is no buffer to update: evaluation stays pure and resuming exact. The released
code does the same with queries (``batch_norm: transductive``): it accumulates running statistics for each step and never
reads them. ``support`` normalises queries by the support set under phi_k, ``running`` by training tasks under phi_K.

Paper and released code differ on importance (drawn as a curve there; here the code's), on first order (50 epochs; off) and
on the score, which is of an ensemble of the five best checkpoints there, of the best one here.

Antoniou, Edwards and Storkey, ICLR 2019, https://arxiv.org/abs/1810.09502. Cost: as MAML, and K query passes rather than
one while importance is spread.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor
from torch.func import grad

from metarun.core import Batch, Episode, Metrics, Params, parameters_of
from metarun.inner.loops import checkpointed, last, repeat
from metarun.meta_learners.base import GradientLearner
from metarun.models.exact.layers import BatchNorm
from metarun.trees import detach, select, tree_map, zip_map

LEAST = 0.03  # importance of the earlier steps falls to this share of its start; released code


@dataclass(frozen=True)
class MAMLPlusPlus(GradientLearner):
    """MAML with four additions, each with a switch of its own.

    ``inner_lr`` is the rate of every step, or where ``learned_rates`` start. An epoch has ``steps_per_epoch`` (1 or
    more) training steps. ``multi_step_epochs``, ``first_order_epochs`` and ``epoch``, in which training starts, are 0
    or more.
    """

    inner_lr: float
    inner_steps: int
    multi_step_epochs: int
    learned_rates: bool
    per_step_norms: bool
    first_order_epochs: int
    steps_per_epoch: int
    epoch: int

    def __post_init__(self) -> None:
        for name, least in (("multi_step_epochs", 0), ("first_order_epochs", 0), ("steps_per_epoch", 1), ("epoch", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}, but must be {least} or more.")

    def at(self, step: int) -> "MAMLPlusPlus":
        annealed = max(self.epoch, self.multi_step_epochs, self.first_order_epochs)  # from then on nothing changes
        return replace(self, epoch=min(self.epoch + step // self.steps_per_epoch, annealed))

    def batch_norms(self) -> list[str]:
        """Names of the batch norms of the base learner."""
        return [name for name, module in self.base_learner.named_modules() if isinstance(module, BatchNorm)]

    def init(self) -> Params:
        affine = {f"{name}.{part}" for name in self.batch_norms() for part in ("weight", "bias")}
        norms, weights = select(parameters_of(self.base_learner), affine.__contains__)
        trained = max(1, self.inner_steps)
        rows = trained if self.per_step_norms else 1
        theta = {"weights": weights, "norms": tree_map(lambda p: p.expand(rows, -1).clone(), norms)}  # [K, C]
        if self.learned_rates:
            theta["rates"] = tree_map(lambda p: p.new_full((trained,), self.inner_lr), weights)  # [K]
        return theta

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        """Yield phi after 0, 1, ..., ``steps`` inner steps, each with the norms of the step that led there."""
        weights = theta["weights"]
        rates = theta["rates"] if self.learned_rates else tree_map(lambda p: p.new_full((1,), self.inner_lr), weights)
        yield {**weights, **row(theta["norms"], 0)}
        for k in range(steps):
            norms = row(theta["norms"], k)
            weights = last(repeat(self.step, weights, 1, row(rates, k), norms, support))
            yield {**weights, **norms}

    def step(self, weights: Params, rates: Params, norms: Params, support: Batch) -> Params:
        """One inner step."""

        def support_loss(weights: Params, norms: Params) -> Tensor:
            return self.support_loss({**weights, **norms}, support)

        start = weights, norms
        gradient = grad(support_loss)(*(detach(start) if self.epoch < self.first_order_epochs else start))
        return zip_map(lambda p, rate, g: p - rate * g, weights, rates, gradient)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        importance = self.importance()
        phis = list(self.path(theta, episode.support, self.inner_steps))[-len(importance) :]

        def loss(phi: Params, episode: Episode) -> tuple[Tensor, Metrics]:
            return self.query_loss(self.ended(phi, episode.support), episode.query)

        losses, metrics = zip(*(checkpointed(loss, phi, episode) for phi in phis), strict=True)
        return sum(w * loss for w, loss in zip(importance, losses, strict=True)), metrics[-1]

    def importance(self) -> list[float]:
        """Weights of the query losses after the last steps of the inner loop; they sum to 1."""
        k, share = self.inner_steps, 1 - self.epoch / max(1, self.multi_step_epochs)
        if self.epoch >= self.multi_step_epochs or k < 2:
            return [1.0]
        earlier = max(share, LEAST) / k
        return [earlier] * (k - 1) + [1 - (k - 1) * earlier]


def row(stacked: Params, k: int) -> Params:
    """Row k of every tensor, or the last row where there are no more."""
    return tree_map(lambda p: p[min(k, len(p) - 1)], stacked)
