"""What a method without training reaches on the episodes of a test: a score beside it says what training was worth.

N ways, S support and Q query examples, D numbers in an input
"""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, MetaLearner, Metrics, Params, TaskDistribution
from metarun.evaluation.episodes import Chunk, chunks_of
from metarun.evaluation.scoring import Evaluator, Subject, Values, score_episodes
from metarun.evaluation.suite import baseline_of
from metarun.execution.execution import Vmapped
from metarun.objectives import CROSS_ENTROPY, Objective, among

RIDGE = 1e-3  # of the inputs' mean variance: 0.1% of what least squares finds along a direction of that variance


class FrozenBaseline(Evaluator):
    """``frozen_<score>``: that of the nearest class means of the task's frozen features; nothing where it has none."""

    def episode_scores(self, subject: Subject) -> Values:
        baseline = baseline_of(subject.task)
        if baseline is None or subject.split == "train":  # training episodes may have other ways
            return {}
        name = subject.task.spec.objective.score_name
        return {f"frozen_{name}": score_episodes(replace(subject, learner=baseline, theta=baseline.init()))[name]}


class RawBaseline(Evaluator):
    """``baseline_<score>``: that of ``raw_baseline``, where the task has one."""

    def episode_scores(self, subject: Subject) -> Values:
        learner = raw_baseline(subject.task, subject.split)
        if learner is None:
            return {}
        name = subject.task.spec.objective.score_name
        raw = replace(subject, learner=learner, theta=learner.init(), execution=Vmapped(None))
        return {f"baseline_{name}": score_episodes(raw)[name]}


class Oracle(Evaluator):
    """``oracle_<score>``: those of one who knows how the episodes were made, where the task can say (``task.oracle``)."""

    def episode_scores(self, subject: Subject) -> Values:
        def of(chunk: Chunk) -> Metrics:
            subject.between()
            at, indices = chunk
            return at.oracle(at.draw(subject.split, indices))

        chunks = chunks_of(subject.task, subject.split, subject.num_tasks)
        if not chunks or not of((chunks[0][0], chunks[0][1][:1])):
            return {}
        found = subject.execution.spread(chunks, of)
        return {f"oracle_{name}": torch.cat([scores[name] for scores in found]) for name in found[0]}


def raw_baseline(task: TaskDistribution, split: str) -> MetaLearner | None:
    """The method for raw inputs: class means where there are classes, ridge regression of vectors.

    None where inputs are words, where frozen features stand for them, and where a score is no accuracy or squared error.
    """
    spec, vectors = task.spec, len(task.spec.input_shape) == 1
    if spec.num_tokens is not None or task.frozen is not None:
        return None
    ways = spec.train_num_ways if split == "train" else spec.num_ways
    if ways is not None:
        return ClassMeans(spec.objective, ways) if spec.objective == CROSS_ENTROPY else None
    return Ridge(spec.objective) if vectors and spec.objective.loss is F.mse_loss else None


def baseline_name(task: TaskDistribution, score: str) -> tuple[str, str]:
    """The name of the score without training that the task has, if it has one, and in words what gets it."""
    if task.frozen is not None:
        return f"frozen_{score}", "frozen features"
    what = "ridge regression of the support" if task.spec.num_ways is None else "nearest class mean of the raw inputs"
    return f"baseline_{score}", what


@dataclass(frozen=True)
class Untrained(MetaLearner):
    """A method whose theta is empty: it has nothing but the support."""

    objective: Objective

    def init(self) -> Params:
        return {}

    @abstractmethod
    def predict(self, phi: Params, x: Tensor) -> Tensor:
        """Outputs [Q, num_outputs] for the inputs x [Q, ...]."""

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        outputs = self.predict(phi, query.x)
        return self.objective.loss(outputs, query.y), {
            self.objective.score_name: self.objective.score(outputs, query.y)
        }


@dataclass(frozen=True)
class ClassMeans(Untrained):
    """The class whose mean over the support is nearest to the input, pixel by pixel."""

    num_ways: int

    def adapt(self, theta: Params, support: Batch) -> Params:
        x, offset = _centred(support.x)
        onehot = F.one_hot(support.y, self.num_ways).to(x.dtype)  # [S, N]
        count = onehot.sum(0)
        means = (onehot.T @ x) / count[:, None].clamp(min=1)  # [N, D]
        return {"means": means, "offset": offset, "present": count > 0}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        c = phi["means"]
        near = 2 * (x.flatten(1) - phi["offset"]) @ c.T - (c * c).sum(1)  # -||x - c||^2 + ||x||^2  [Q, N]
        return among(phi["present"], near)


@dataclass(frozen=True)
class Ridge(Untrained):
    """Least squares of the support, y = x w + offset, with a penalty on w of ``RIDGE`` x S x the inputs' mean variance.

    The penalty grows with the inputs' scale, so that other units change nothing; it makes w unique where S <= D.
    """

    def adapt(self, theta: Params, support: Batch) -> Params:
        (x, x_mean), (y, y_mean) = _centred(support.x), _centred(support.y)
        num_points, num_dims = x.shape
        penalty = (RIDGE * (x * x).sum() / num_dims).clamp(min=torch.finfo(x.dtype).eps)  # 0 where all x are equal
        if num_dims <= num_points:
            w = torch.linalg.solve(x.T @ x + penalty * torch.eye(num_dims).to(x), x.T @ y)
        else:  # the same w by a smaller system
            w = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(num_points).to(x), y)
        return {"w": w, "x_mean": x_mean, "y_mean": y_mean}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return (x - phi["x_mean"]) @ phi["w"] + phi["y_mean"]


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [S, D] minus their mean, and this mean [D]: differences of large numbers keep their digits."""
    rows = values.flatten(1)
    return rows - rows.mean(0), rows.mean(0)
