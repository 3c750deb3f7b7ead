"""What generated regression tasks share: the numbers of their points, and the uniform numbers that each is made from.

B episodes, K support and Q query points
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metarun.core import Draw
from metarun.counter import uniform
from metarun.tasks.episodes import check_positive

Rows = tuple[int, int]  # how many, and how many uniforms each


class Sizes(NamedTuple):
    """K and Q: support and query points of an episode."""

    num_shots: int  # K
    num_queries: int  # Q


def sizes_by_split(
    num_shots: int, num_queries: int, train_num_shots: int | None, train_num_queries: int | None
) -> dict[str, Sizes]:
    """K and Q of each split; None stands for the number at test. Raises ValueError where one is below 1."""
    test = Sizes(num_shots, num_queries)
    train = Sizes(
        num_shots if train_num_shots is None else train_num_shots,
        num_queries if train_num_queries is None else train_num_queries,
    )
    check_positive(test, "task.")
    check_positive(train, "task.train_")
    return {"train": train, "val": test, "test": test}


def uniforms(
    seed: int, stream: str, indices: Sequence[int] | np.ndarray, of_task: int, query: Rows, support: Rows
) -> Draw:
    """Uniform numbers of episodes: ``task`` [B, of_task], ``query`` and ``support`` [B, rows, width].

    The support comes last, so that with other K the tasks and their queries are the same.
    """
    ends = np.cumsum([of_task, query[0] * query[1], support[0] * support[1]])
    first, second, third = np.split(uniform(seed, stream, np.asarray(indices), int(ends[-1])), ends[:-1], axis=1)
    return {"task": first, "query": second.reshape(-1, *query), "support": third.reshape(-1, *support)}
