"""How a function of one task is run over a batch of tasks, and the step that follows.

The three that a configuration names stand here under the names that saved runs have for them.
"""

from metarun.execution.execution import Auto, Looped, Vmapped

__all__ = ["Auto", "Looped", "Vmapped"]
