"""The joint likelihood of a query set, by the chain rule: for learners that predict each query on its own.

    log p(y_1, ..., y_Q | C) = sum over i of log p(y_i | C, (x_1, y_1), ..., (x_{i-1}, y_{i-1}))

Each query is predicted by the learner adapted to the support set C and the queries before it, in the episode's order. Of a
Gaussian process it is the joint density; a learner that is no consistent process gets another number in another order.
Bruinsma et al., ICLR 2023, https://arxiv.org/abs/2303.14468 (not read). Cost: Q adaptations a task.

    metarun evaluate RUN +evaluation.evaluator.joint._target_=metarun.evaluation.autoregressive.Autoregressive
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.core import Batch, FewShotLearner, MetaLearner, Metrics, Params
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.scoring import Evaluator, Subject, Values, score_episodes
from metarun.meta_learners.likelihood import surprise

NAME = "negative_log_likelihood"  # of learners that report it


class Autoregressive(Evaluator):
    """``autoregressive_negative_log_likelihood`` of an episode, for each number in y; nothing without a deviation."""

    @torch.no_grad()
    def episode_scores(self, subject: Subject) -> Values:
        learner, task = subject.learner, subject.task
        if not isinstance(learner, FewShotLearner) or task.spec.num_ways is not None:
            return {}
        one = task.sample(subject.split, [0])
        support, query = (Batch(batch.x[0], batch.y[0]) for batch in one[:2])
        if learner.posterior(learner.adapt(subject.theta, support), query.x)[1] is None:
            return {}
        with eval_mode(learner):
            return score_episodes(replace(subject, learner=OneByOne(learner)))


@dataclass(frozen=True)
class OneByOne(MetaLearner):
    """``learner``, adapted to the support set and the queries so far for each query."""

    learner: FewShotLearner

    def init(self) -> Params:
        return self.learner.init()

    def adapt(self, theta: Params, support: Batch) -> Params:
        return {"theta": theta, "support": Batch(support.x, support.y)}

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        theta, support = phi["theta"], phi["support"]
        surprises = []
        for i in range(len(query.x)):
            seen = Batch(torch.cat([support.x, query.x[:i]]), torch.cat([support.y, query.y[:i]]))
            surprises.append(
                self.surprise(self.learner.adapt(theta, seen), Batch(query.x[i : i + 1], query.y[i : i + 1]))
            )
        loss = torch.stack(surprises).mean()
        return loss, {"autoregressive_negative_log_likelihood": loss}

    def surprise(self, phi: Params, query: Batch) -> Tensor:
        """-log p of one query under the learner's own density, or the normal one of its deviation, for each number in y."""
        _, metrics = self.learner.query_loss(phi, query)
        if NAME in metrics:
            return metrics[NAME]
        mean, deviation = self.learner.posterior(phi, query.x)
        assert deviation is not None
        return surprise(mean, deviation, query.y).mean()
