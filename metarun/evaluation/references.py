"""Methods of statistics for vectors, scored on the episodes of a test beside the learner: what a task names as references.

They are those that Garg et al. 2022 compare with (https://arxiv.org/abs/2208.01066, released code), without an offset:

    least_squares  the shortest w of those with the least |X w - y|^2
    averaging      w = mean of y_i x_i, which least squares tends to for x ~ N(0, I) and many points
    lasso          w with the least |X w - y|^2 / 2 S + 0.01 |w|_1
    nearest_3      the mean of the 3 nearest points
    greedy_tree    a regression tree of depth 4, grown question by question to the least squared error

S support and Q query points, D dimensions, N nodes of a tree's level
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.core import Batch, Params
from metarun.evaluation.baselines import FrozenBaseline, Oracle, RawBaseline, Untrained
from metarun.evaluation.scoring import Evaluator, Subject, Values, score_episodes
from metarun.execution.execution import Vmapped
from metarun.objectives import Objective

STEPS = 500  # of the lasso: for S >= D / 2 its slope is then 0 to rounding; coordinate descent takes 20 times as long


class References(Evaluator):
    """``<method>_<score>`` for each of the task's ``references``."""

    def episode_scores(self, subject: Subject) -> Values:
        objective, values = subject.task.spec.objective, {}
        for name in subject.task.references:
            learner = REFERENCES[name](objective)
            scores = score_episodes(replace(subject, learner=learner, theta={}, execution=Vmapped(None)))
            values[f"{name}_{objective.score_name}"] = scores[objective.score_name]
        return values


BASELINES = (FrozenBaseline(), RawBaseline(), Oracle(), References())


@dataclass(frozen=True)
class LinearMap(Untrained):
    """A method that finds w of y = x w; ``fit`` does from x [S, D] and y [S, O]."""

    fit: Callable[[Tensor, Tensor], Tensor]

    def adapt(self, theta: Params, support: Batch) -> Params:
        return {"w": self.fit(support.x, support.y)}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return x @ phi["w"]


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The shortest solution [D, O], also where there are many."""
    return torch.linalg.pinv(x, rtol=max(x.shape) * torch.finfo(x.dtype).eps) @ y


def averaging(x: Tensor, y: Tensor) -> Tensor:
    """The mean of the points' x y [D, O]."""
    return x.T @ y / len(x)


def lasso(x: Tensor, y: Tensor, alpha: float = 0.01) -> Tensor:
    """The solution [D, O], by proximal steps with momentum, which begins anew where it leads uphill.

    Beck and Teboulle 2009 (FISTA); O'Donoghue and Candes 2015 (restarts).
    """
    square, product = x.T @ x / len(x), x.T @ y / len(x)
    lr = 1 / torch.linalg.matrix_norm(square, 2)
    w = ahead = torch.zeros_like(product)
    age = x.new_ones(())
    for _ in range(STEPS):
        down = ahead - lr * (square @ ahead - product)
        new = down.sign() * (down.abs() - lr * alpha).clamp(min=0)
        uphill, older = ((ahead - new) * (new - w)).sum() > 0, (1 + (1 + 4 * age**2).sqrt()) / 2
        ahead = torch.where(uphill, new, new + (age - 1) / older * (new - w))
        age, w = torch.where(uphill, torch.ones_like(age), older), new
    return w


@dataclass(frozen=True)
class Nearest(Untrained):
    """The mean of the ``neighbours`` nearest points; of all where there are fewer."""

    neighbours: int

    def adapt(self, theta: Params, support: Batch) -> Params:
        return {"x": support.x, "y": support.y}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        distance = (x[:, None] - phi["x"]).square().sum(-1)  # [Q, S]
        nearest = distance.topk(min(self.neighbours, len(phi["x"])), largest=False).indices
        return phi["y"][nearest].mean(1)


@dataclass(frozen=True)
class GreedyTree(Untrained):
    """A regression tree: at each of ``depth`` levels, each node asks x_j <= t where that leaves the least squared error.

    t is halfway between two of the node's points. A node whose points are all alike, or alone, asks nothing.
    """

    depth: int

    def adapt(self, theta: Params, support: Batch) -> Params:
        x, y = support.x, support.y
        inside, value = x.new_ones(1, len(x)), y.mean(0)[None]  # [N, S], [N, O]
        questions = []
        for _ in range(self.depth):
            feature, threshold = best_questions(x, y, inside)
            no = x.T[feature] > threshold[:, None]  # [N, S]
            inside = torch.stack([inside * ~no, inside * no], 1).flatten(0, 1)  # [2 N, S]
            count = inside.sum(1, keepdim=True)
            mean = inside @ y / count.clamp(min=1)
            value = torch.where(count > 0, mean, value.repeat_interleave(2, 0))
            questions.append((feature, threshold))
        return {"questions": questions, "value": value}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        node = x.new_zeros(len(x)).long()
        for feature, threshold in phi["questions"]:
            asked = x.gather(1, feature[node][:, None])[:, 0]
            node = 2 * node + (asked > threshold[node])
        return phi["value"][node]


def best_questions(x: Tensor, y: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The feature [N] and threshold [N] of the best question of each node; ``inside`` [N, S] is 1 for its points."""
    order = x.argsort(0).T  # [D, S]
    sorted_x = x.T.gather(1, order)
    members = inside[:, order]  # [N, D, S]
    left = members.cumsum(-1)
    sums = (members[..., None] * y[order]).cumsum(2)  # [N, D, S, O]
    right, rest = left[..., -1:] - left, sums[:, :, -1:] - sums
    explained = sums.square().sum(-1) / left.clamp(min=1) + rest.square().sum(-1) / right.clamp(min=1)
    apart = torch.cat(
        [sorted_x[:, 1:] > sorted_x[:, :-1], sorted_x[:, :1] < sorted_x[:, :1]], 1
    )  # from the next [D, S]
    possible = apart & (left > 0) & (right > 0)
    best = torch.where(possible, explained, -torch.inf).flatten(1).argmax(1)  # [N]; where nothing is possible, 0
    feature = best // len(x)
    at = sorted_x.flatten()[best]
    column, own = x.T[feature], inside > 0  # [N, S]
    below = torch.where(own & (column <= at[:, None]), column, -torch.inf).amax(1)
    above = torch.where(own & (column > at[:, None]), column, torch.inf).amin(1)
    can = possible.flatten(1).any(1)
    return feature, torch.where(can, (below + above) / 2, torch.inf)


REFERENCES: dict[str, Callable[[Objective], Untrained]] = {
    "least_squares": lambda objective: LinearMap(objective, least_squares),
    "averaging": lambda objective: LinearMap(objective, averaging),
    "lasso": lambda objective: LinearMap(objective, lasso),
    "nearest_3": lambda objective: Nearest(objective, 3),
    "greedy_tree": lambda objective: GreedyTree(objective, 4),
}
