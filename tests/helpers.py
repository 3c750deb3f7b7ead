"""Small tasks, base learners and learners in float64, and the two ways the tests compare gradients.

B tasks, N ways, K shots, S = N*K support and query images each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metarun.config.experiment import take_theta
from metarun.core import Batch, Episode, FewShotLearner, MetaLearner, Params
from metarun.execution.execution import Looped, Vmapped
from metarun.meta_learners.anil import ANIL
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.protonet import ProtoNet
from metarun.meta_learners.reptile import Reptile
from metarun.models.conv4 import Conv4
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import slice_tasks, tree_leaves, tree_map, zip_map

WAYS, SHOTS, IMAGE = 2, 3, (1, 16, 16)
INNER_LR, INNER_STEPS = 0.3, 3

BASES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(IMAGE, WAYS, [8, 6], None, "torch"),
    "mlp_transductive": lambda: MLP(IMAGE, WAYS, [8, 6], "transductive", "torch"),
    "mlp_support": lambda: MLP(IMAGE, WAYS, [8, 6], "support", "torch"),
    "stride_transductive": lambda: Conv4(IMAGE, WAYS, 3, "stride", "transductive"),
    "stride_support": lambda: Conv4(IMAGE, WAYS, 3, "stride", "support"),
    "max_pool_transductive": lambda: Conv4(IMAGE, WAYS, 3, "max_pool", "transductive"),
    "max_pool_support": lambda: Conv4(IMAGE, WAYS, 3, "max_pool", "support"),
}


def maml(net: nn.Module, first_order: bool, adapted: Any) -> MAML:
    return MAML(net, CROSS_ENTROPY, INNER_LR, INNER_STEPS, first_order, adapted, "sgd")


LEARNERS: dict[str, Callable[[nn.Module], FewShotLearner]] = {
    "maml": lambda net: maml(net, False, "all"),
    "maml_body": lambda net: maml(net, False, "body"),
    "maml_head": lambda net: maml(net, False, "head"),
    "fomaml": lambda net: maml(net, True, "all"),
    "fomaml_head": lambda net: maml(net, True, "head"),
    "anil": lambda net: ANIL(net, CROSS_ENTROPY, INNER_LR, INNER_STEPS),
    "reptile": lambda net: Reptile(net, CROSS_ENTROPY, INNER_LR, INNER_STEPS, None),
    "protonet": lambda net: ProtoNet(net, CROSS_ENTROPY, WAYS, "euclidean"),
}


def moved(learner: MetaLearner) -> tuple[Any, Any]:
    """The learner with a theta away from its start, where weights may be 1 and biases 0."""
    return learner, tree_map(lambda p: p + 0.1 * torch.randn_like(p), learner.init())


def make(learner: str, base: str) -> tuple[FewShotLearner, Params]:
    """A learner and a theta in float64, with norm weights and biases away from 1 and 0."""
    torch.manual_seed(0)
    built = LEARNERS[learner](BASES[base]().double())
    return built, tree_map(lambda p: p + 0.1 * torch.randn_like(p), take_theta(built))


def image_episodes(num_tasks: int) -> Episode:
    """Noise images around one random mean image per class; leaves lead with the task axis [B, ...]."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, *IMAGE, generator=generator, dtype=torch.float64)

    means = noise(num_tasks, WAYS, 1)
    y = torch.arange(WAYS).repeat_interleave(SHOTS).repeat(num_tasks, 1)  # [B, S]

    def batch() -> Batch:
        return Batch((means + noise(num_tasks, WAYS, SHOTS)).flatten(1, 2), y)

    return Episode(batch(), batch())


def wave() -> Episode:
    """A sine wave: 5 support and 7 query points."""
    x = torch.rand(12, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4 - 2
    return Episode(Batch(x[:5], x[:5].sin()), Batch(x[5:], x[5:].sin()))


def one_episode() -> Episode:
    return slice_tasks(image_episodes(1), 0)


def meta_gradient(learner: MetaLearner, theta: Params, episode: Episode) -> Params:
    """The gradient that training uses for one task, by autograd alone (no vmap)."""
    leaves = tree_map(lambda p: p.detach().clone().requires_grad_(), theta)
    loss, _ = learner.meta_loss(leaves, episode)
    grads = iter(torch.autograd.grad(loss, tree_leaves(leaves), materialize_grads=True))
    return tree_map(lambda _: next(grads), leaves)


def check_slope(
    learner: MetaLearner, theta: Params, episode: Episode, eps: float = 1e-6, close: tuple[float, float] | None = None
) -> None:
    """The meta-gradient along a random direction is the loss's finite difference; ``eps`` is far below the distance to
    the nearest kink, of a ReLU, say, at these seeds. ``close``: the difference relative to the slope, and in all."""
    torch.manual_seed(2)
    direction = tree_map(torch.randn_like, theta)

    def loss(step: float) -> Tensor:
        return learner.meta_loss(zip_map(lambda p, d: p + step * d, theta, direction), episode)[0]

    g, d = flat(meta_gradient(learner, theta, episode)), flat(direction)
    slope = (loss(eps) - loss(-eps)) / (2 * eps)
    # rounding 1e-16 / eps and truncation eps^2 times a third derivative: 1e-6 of the gradient's size covers both
    assert abs(slope - g @ d) < 1e-6 * g.norm() * d.norm()
    if close:
        torch.testing.assert_close(slope, g @ d, rtol=close[0], atol=close[1])


def check_vmap(learner: MetaLearner, theta: Params, episodes: Episode, exact: float = 1e-10) -> None:
    """vmap and a loop over the tasks give the same meta-gradient."""
    looped, vmapped = (e.mean_grad(learner.meta_loss, theta, episodes)[0] for e in (Looped(), Vmapped(None)))
    assert relative_error(vmapped, looped) < exact


def check_order_of_support(learner: FewShotLearner, theta: Params, episode: Episode, exact: float = 1e-10) -> None:
    """Predictions do not depend on the order of the support."""
    support, query, _ = episode
    order = torch.randperm(len(support.y), generator=torch.Generator().manual_seed(3))
    shuffled = learner.predict(learner.adapt(theta, Batch(support.x[order], support.y[order])), query.x)
    straight = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(shuffled, straight, rtol=exact, atol=exact)  # sums in another order


def check_order_of_classes(
    learner: FewShotLearner, theta: Params, episode: Episode, exact: float = 1e-10, atol: float | None = None
) -> None:
    """Permuting the labels of two classes permutes the outputs."""
    support, query, _ = episode
    swapped = learner.predict(learner.adapt(theta, support._replace(y=1 - support.y)), query.x)
    straight = learner.predict(learner.adapt(theta, support), query.x)
    atol = exact if atol is None else atol
    torch.testing.assert_close(swapped, straight.flip(1), rtol=exact, atol=atol)  # sums in another order


def flat(tree: Any) -> Tensor:
    """Every element of a tree of tensors in one vector."""
    return torch.cat([leaf.detach().flatten() for leaf in tree_leaves(tree)])


def relative_error(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected|| over all leaves; dictionaries must have the same names in any order."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual = [actual[name] for name in expected]
    return float((flat(actual) - flat(expected)).norm() / flat(expected).norm())
