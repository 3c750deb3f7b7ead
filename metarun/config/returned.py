"""What a learner of somebody else returns: a loss and metrics of the kinds that a run reads."""

from typing import Any

from torch import Tensor

from metarun.core import Episode, MetaLearner, Params
from metarun.errors import did_you_mean, shortened
from metarun.trees import slice_tasks, tree_map


def is_foreign(part: object) -> bool:
    """Whether metarun has not made its class."""
    return not type(part).__module__.startswith("metarun.")


def check_returned(learner: MetaLearner, theta: Params, episodes: Episode) -> None:
    """Raise ValueError where ``meta_loss`` or ``query_loss`` of one task returns something else than a run can read."""
    episode, theta = slice_tasks(episodes, 0), tree_map(lambda p: p.detach().requires_grad_(), theta)
    metrics = _checked("query_loss", learner.query_loss(learner.adapt(theta, episode.support), episode.query))
    _checked("meta_loss", learner.meta_loss(theta, episode))
    objective = getattr(learner, "objective", None)
    for name in ["query_loss", *([objective.score_name] if objective else [])]:
        if name not in metrics:
            rest = f"by which a run is judged{did_you_mean(name, metrics)}"
            raise ValueError(
                f"the metrics of query_loss lack {name!r}, {rest}; super().query_loss(phi, query) has them"
            )


def _checked(method: str, returned: Any) -> dict[str, Tensor]:
    """The metrics of a pair of a loss and metrics."""
    rule = "must return a pair: the loss, a tensor without dimensions, and a mapping of such tensors by name"
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise ValueError(f"{method} {rule}; it returns {_said(returned)}")
    loss, metrics = returned
    for name, value in {"the loss": loss, **{f"metric {name!r}": value for name, value in metrics.items()}}.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(f"{method} {rule}; {name} is {_said(value)}")
    return metrics


def _said(value: Any) -> str:
    """A value as messages have it: of a tensor its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of the shape {[*value.shape]}"
    return f"{shortened(repr(value), 80)} ({type(value).__name__})"
