"""What is shown of a single episode: the features of its examples in a plane, and a curve with its predictions."""

from typing import Any

import torch

from metarun.core import Batch, FewShotLearner
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.explaining.numbers import plane
from metarun.evaluation.explaining.observed import BODY, episode_of, layers_of, phis_of
from metarun.evaluation.scoring import Subject
from metarun.trees import tree_map


@torch.no_grad()
def embedding(subject: Subject, index: int) -> dict[str, Any] | str:
    """The features of an episode's support and query in the plane in which they differ most, before and after the steps."""
    learner, episode = subject.learner, episode_of(subject, index)
    if not (isinstance(learner, FewShotLearner) and isinstance(episode.support, Batch)):
        return "the learner has no body"
    with eval_mode(learner):
        phis = phis_of(learner, subject.theta, episode)
        ends = [phis[0], phis[-1]] if len(phis) > 1 else phis
        features = [[layers_of(learner, phi, batch.x).get(BODY) for batch in episode[:2]] for phi in ends]
    known = [part for pair in features for part in pair if part is not None]
    if len(known) < 2 * len(ends):
        return "the learner has no body that gives each example its features"
    if known[0].shape[1] < 2:
        return "the body gives a single feature"
    mean, axes, share = plane(torch.cat(known))
    places = [[((part.double() - mean) @ axes).tolist() for part in pair if part is not None] for pair in features]
    labels = [batch.y.flatten(1)[:, 0].tolist() if batch.y.dim() > 1 else batch.y.tolist() for batch in episode[:2]]
    names = ("before", "after") if len(ends) > 1 else ("after",)
    shown: dict[str, Any] = {"episode": index, "features": known[0].shape[1], "share_of_variance": share}
    for name, pair in zip(names, places, strict=True):
        shown[name] = dict(zip(("support", "query"), pair, strict=True))
    return shown | {"labels": dict(zip(("support", "query"), labels, strict=True))}


@torch.no_grad()
def curve(subject: Subject, index: int) -> dict[str, Any] | None:
    """The points of an episode of single numbers, in the order of x, with what is predicted before and after the steps."""
    learner, episode = subject.learner, episode_of(subject, index)
    single = subject.task.spec.input_shape == (1,) and subject.task.spec.num_outputs == 1
    if not single or subject.task.spec.num_ways or not isinstance(learner, FewShotLearner):
        return None
    with eval_mode(learner):
        phis = phis_of(learner, subject.theta, episode)
        ends = {"before": phis[0], "after": phis[-1]} if len(phis) > 1 else {"after": phis[0]}
        predicted = {name: learner.predict(phi, episode.query.x)[:, 0] for name, phi in ends.items()}
    order = episode.query.x[:, 0].argsort()
    shown: dict[str, Any] = {name: y[order].tolist() for name, y in predicted.items()}
    for part, batch in (("support", episode.support), ("query", tree_map(lambda leaf: leaf[order], episode.query))):
        shown[part] = {"x": batch.x[:, 0].tolist(), "y": batch.y[:, 0].tolist()}
    return shown
