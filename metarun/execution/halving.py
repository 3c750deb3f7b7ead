"""Tasks in groups as large as memory allows."""

import logging
from typing import Any

import torch

from metarun.core import Episode, Params
from metarun.execution.execution import Execution, TaskFunction
from metarun.execution.failures import memory_errors
from metarun.process import return_freed_memory
from metarun.trees import slice_tasks, tree_leaves

logger = logging.getLogger(__name__)


class HalvingMap:
    """``execution.map`` of as many tasks at a time as fit into memory: half of them, once they do not. It says so."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.most: int | None = None

    def __call__(self, fn: TaskFunction, theta: Params, episodes: Episode) -> list[Any]:
        """The results of the groups of tasks that were taken together. Raises torch.OutOfMemoryError for a single one."""
        n = size = len(tree_leaves(episodes)[0])
        while True:
            size = min(size, self.most or size)
            try:
                with memory_errors():
                    parts = [slice_tasks(episodes, slice(i, i + size)) for i in range(0, n, size)]
                    found = [self.execution.map(fn, theta, part) for part in parts]
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2
            return_freed_memory()
        if size < min(n, self.most or n):
            self.most = size
            logger.info("evaluation: out of memory with %d tasks at a time; going on with %d", n, size)
        return found
