"""Few-shot system identification: predict what a robot of unknown masses, lengths and friction does next, from K moves.

    a task:    parameters ~ U[ranges] of the system
    support:   K transitions (state, action, next state) from states ~ U[-reach, reach] and actions ~ U[-1, 1]
    query:     motions of ``rollout_steps`` transitions each, from such a state under such actions

Inputs and outputs are those of ``metarun.control.encoding``: the outputs have mean 0 and variance 1 over training tasks, so
always predicting the mean has an ``mse`` of 1. ``rollout_mse`` is that of the model fed with its own predictions, relative
to the reach of each coordinate and velocity, mean over the steps of a motion.

B episodes, K shots, R query motions, H steps of each, n coordinates, A actions, P parameters and the motors' direction
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.control.encoding import Encoding
from metarun.control.planner import CrossEntropy
from metarun.control.system import System
from metarun.core import Batch, Draw, Episode, Metrics, Params, TaskSpec
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import uniforms
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_STANDARD_TASKS = 256  # training tasks whose transitions give the mean and deviation of the outputs


class SystemIdentification(Sized):
    """Episodes of transitions of a system.

    The query rows of a motion stand in the order of time, for a rollout goes along it: on purpose, order says here what
    comes next. A network with a state along the batch could read a row's answer from the one behind it.
    ``fitted``: what a run fitted on its training tasks, whose network's outputs are in that unit.
    ``planner`` and ``control_steps`` are for ``metarun control RUN``: how it plans, and the steps of an episode.
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        system: System,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        rollout_steps: int,
        planner: CrossEntropy,
        control_steps: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Mapping[str, Any] | None = None,
    ) -> None:
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        for size in (*self.sizes.values(), *self.sizes.smallest.values()):
            if rollout_steps < 1 or size.num_queries % rollout_steps:
                raise ValueError(
                    f"task.rollout_steps is {rollout_steps}, but the {size.num_queries} query transitions are motions of "
                    "that many steps; use a divisor of task.num_queries and task.train_num_queries."
                )
        if control_steps < 1:
            raise ValueError(f"task.control_steps is {control_steps}; use 1 or more.")
        self.system, self.planner = system, planner
        self.rollout_steps = self.query_unit = rollout_steps
        self.control_steps = control_steps
        self.seed, self.device, self.dtype = seed, device, dtype
        self.encoding = self._known(fitted or {}) or self.standardised()
        self.spec = TaskSpec((self.encoding.num_inputs,), len(system.angles), SQUARED_ERROR)

    def standardised(self) -> Encoding:
        """The encoding with mean and deviation of the outputs over the first training tasks."""
        n = len(self.system.angles)
        raw = Encoding(self.system, torch.zeros(n).double(), torch.ones(n).double())
        _, _, states = self.motions(self.draw("train", range(NUM_STANDARD_TASKS)))
        changes = raw.outputs(states[..., :-1, :], states[..., 1:, :]).flatten(0, -2)
        if not (changes.isfinite().all() and (changes.std(0) > 0).all()):
            ranges = ", ".join(f"{name} {list(map(float, r))}" for name, r in self.system.ranges.items())
            raise ValueError(
                f"systems of these ranges have motions without finite changes that differ: {ranges}. Correct those of "
                "task.system that no such system has."
            )
        return Encoding(self.system, changes.mean(0), changes.std(0))

    def _known(self, fitted: Mapping[str, Any]) -> Encoding | None:
        """The encoding of a run that was trained on such a system, whatever its ranges; None without such a run."""
        outputs = fitted.get("change_of_velocities")
        if outputs is None or len(outputs["mean"]) != len(self.system.angles):
            return None
        return Encoding(
            self.system, *(torch.tensor(outputs[name], dtype=torch.float64) for name in ("mean", "deviation"))
        )

    def fitted(self) -> dict[str, Any]:
        mean, deviation = self.encoding.mean.tolist(), self.encoding.deviation.tolist()
        return {"change_of_velocities": {"mean": mean, "deviation": deviation}}

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the task [B, P + 1], the query motions [B, R, 2n + H A] and the support [B, K, 2n + A]."""
        (shots, queries), steps = self.sizes[split], self.rollout_steps
        states, actions, parameters = len(self.system.reach), self.system.num_actions, len(self.system.ranges) + 1
        motions, transitions = (queries // steps, states + steps * actions), (shots, states + actions)
        return uniforms(self.seed, f"system_identification/{split}", indices, parameters, motions, transitions)

    def parameters(self, draw: Draw) -> Tensor:
        """Parameters of the systems behind a draw: float64 [B, P + 1] on the CPU."""
        return self.system.parameters(torch.from_numpy(draw["task"]))

    def motions(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters [B, 1, P + 1], actions [B, R, H, A] and states [B, R, H + 1, 2n] of the query."""
        parameters = self.parameters(draw)[:, None]
        start, actions = self._states_and_actions(draw["query"])
        return parameters, actions, self.system.simulate(parameters, start, actions)

    def _states_and_actions(self, u: np.ndarray) -> tuple[Tensor, Tensor]:
        """States [B, M, 2n] and actions [B, M, steps, A] of uniforms [B, M, 2n + steps A]."""
        centred = torch.from_numpy(2 * u - 1)
        num_states = len(self.system.reach)
        start = centred[..., :num_states] * centred.new_tensor(self.system.reach)
        return start, centred[..., num_states:].unflatten(-1, (-1, self.system.num_actions))

    def episodes(self, draw: Draw) -> Episode:
        parameters, actions, states = self.motions(draw)
        before, action = self._states_and_actions(draw["support"])  # [B, K, 2n], [B, K, 1, A]
        after = self.system.step(parameters, before, action[..., 0, :])
        support = self._batch(before, action[..., 0, :], after)
        query = self._batch(states[..., :-1, :], actions, states[..., 1:, :])
        return Episode(support, Batch(*(leaf.flatten(1, 2) for leaf in query[:2])))

    def _batch(self, before: Tensor, action: Tensor, after: Tensor) -> Batch:
        x, y = self.encoding.inputs(before, action), self.encoding.outputs(before, after)
        return Batch(x.to(self.device, self.dtype), y.to(self.device, self.dtype))

    def further_scores(self, learner: Any, phi: Params, episode: Episode) -> Metrics:
        """Error of the query motions as ``rollout_mse``, predicted from their first state and their actions."""
        x, y = (leaf.unflatten(0, (-1, self.rollout_steps)) for leaf in episode.query[:2])  # [R, H, ...]
        state, distances = self.encoding.state(x[:, 0]), []
        for t in range(self.rollout_steps):
            inputs = self.encoding.inputs(state, self.encoding.action(x[:, t]))
            state = self.encoding.advance(state, learner.predict(phi, inputs))
            truth = self.encoding.advance(self.encoding.state(x[:, t]), y[:, t])
            distances.append(self.encoding.squared_distance(state, truth))
        return {"rollout_mse": torch.stack(distances).mean()}

    def fingerprint(self) -> str:
        ranges = ", ".join(f"{name} {list(map(float, r))}" for name, r in self.system.ranges.items())
        either = ", motors either way round" if self.system.reversible else ""
        return f"{type(self.system).__name__}: {ranges}{either}, dt {self.system.dt}, motions of {self.rollout_steps}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Motions of the systems of some episodes, from one state and under one slow wave of actions."""
        from metarun.drawing import motions

        parameters, seconds = self.parameters(self.draw(split, indices)), np.arange(101) * self.system.dt
        wave = torch.from_numpy(np.sin(2 * np.pi * seconds[:-1] / (seconds[-1] / 2)))
        actions = wave[:, None].expand(-1, self.system.num_actions)
        start = self.system.start(torch.full((len(self.system.reach),), 0.75).double())
        states = torch.stack([self.system.simulate(p, start, actions) for p in parameters])
        named = [
            ", ".join(f"{name} {value:.2f}" for name, value in zip(self.system.ranges, row.tolist(), strict=False))
            + (", reversed" if row[-1] < 0 else "")
            for row in parameters
        ]
        return motions(seconds, states.numpy(), list(self.system.coordinates), named)
