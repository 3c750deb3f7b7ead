"""The inner loop of learners that adapt by steps: the file of one of them says what a step is, and what else is its own."""

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from metarun.core import Batch, FewShotLearner, Params
from metarun.inner.loops import last
from metarun.models.norm_state import adapting, with_support


class GradientLearner(FewShotLearner):
    """A learner that adapts by ``inner_steps`` steps, which ``path`` takes.

    Where phi is more than the base learner's parameters by name, a learner has its own ``predict`` and ``ended``.
    """

    inner_steps: int  # a hyperparameter of each concrete learner, at its own place among the others

    @abstractmethod
    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        """Yield phi after 0, 1, ..., ``steps`` inner steps, each before it is ``ended``."""

    def ended(self, phi: Params, support: Batch) -> Params:
        """Add to phi the statistics that norms in mode ``support`` have on the support set."""
        return with_support(self.base_learner, phi, support.x)

    def adapt(self, theta: Params, support: Batch) -> Params:
        return self.ended(last(self.path(theta, support, self.inner_steps)), support)

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return (self.ended(phi, support) for phi in self.path(theta, support, steps))

    def support_loss(self, phi: Params, support: Batch) -> Tensor:
        """L(phi, support), the task's objective on the support set."""
        with adapting():
            return self.objective.loss(self.predict(phi, support.x), support.y)
