"""A learner with a network of somebody else, tried on two tasks before a run begins: by a loop, and vmapped.

The trial is made on a copy, in float64, where the two ways differ by rounding alone unless one of them is wrong. It takes
about as long as a training step.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor, nn

from metarun.config.experiment import take_theta
from metarun.config.returned import check_returned, is_foreign
from metarun.core import Episode, FewShotLearner, MetaLearner, Metrics, Params, frozen
from metarun.errors import ConfigError, MetarunError, listed, place_of
from metarun.evaluation.eval_mode import eval_mode, modules_of
from metarun.execution.execution import Execution, Looped, Vmapped, generators_kept
from metarun.execution.failures import memory_errors
from metarun.models.exact.layers import BatchNorm
from metarun.trees import leaf_names, ravel, slice_tasks, tree_leaves, tree_map

# how far the two meta-gradients may be apart, relative; float32 is for networks that insist on it
SAME = {torch.float64: 1e-6, torch.float32: 1e-3}
OFF = "off, relative"
MOVED = 0.01  # of theta, so that no weight is at a special value such as 0


@dataclass
class Trial:
    """What was found: empty where nothing is wrong."""

    failure: str = ""  # why there is no meta-gradient, vmapped or not
    not_vmapped: str = ""  # why it must not be vmapped
    changed: list[str] = field(default_factory=list)  # what a training step changes in the networks, beside theta
    draws: bool = False  # whether it draws random numbers from torch
    differs: float = 0.0  # how far two meta-gradients are apart that should be one, relative; 0 where it is rounding


def tried(learner: MetaLearner, episodes: Episode, steps: int, vmapped: bool = True) -> Trial:
    """The trial of ``learner``, whose modules hold their parameters, on ``episodes``, as it begins and ends a run of
    ``steps`` steps; ``vmapped`` or in a loop alone. Changes nothing. Raises ConfigError where ``init`` refuses settings."""
    trial = Trial()
    for dtype, tolerance in SAME.items():
        try:
            copy = deepcopy(learner)
        except (RuntimeError, TypeError) as error:
            return Trial(failure=f"it cannot be copied to be tried ({reason(error)})")
        try:
            with generators_kept(), memory_errors():
                torch.manual_seed(0)
                started = _started(copy, episodes, dtype)
                if is_foreign(learner):
                    check_returned(copy, *started)
                return _tried(copy, steps, started, tolerance, vmapped)
        except torch.OutOfMemoryError:
            trial = Trial(not_vmapped="two tasks do not fit into memory to be compared")
        except ConfigError:  # of settings that ``init`` refuses
            raise
        except (RuntimeError, ValueError, MetarunError) as error:
            trial = Trial(failure=reason(error))
        except Exception:  # a mistake in somebody's code: the run will stop at it, with a traceback and a folder
            return Trial()
    return trial


def _started(learner: MetaLearner, episodes: Episode, dtype: torch.dtype) -> tuple[Params, Episode]:
    """A theta near the learner's first one and the episodes, with its networks in ``dtype``; not on MPS, which has few.

    As in the run, the networks' own parameters are on "meta", where a pass that reads them beside theta raises.
    """
    device = tree_leaves(episodes)[0].device
    device = torch.device("cpu") if device.type == "mps" else device
    for module in modules_of(learner):
        module.to(device, dtype)

    cast = partial(_cast, dtype=dtype, device=device)
    theta = tree_map(cast, take_theta(learner))
    if whole := [n for n, p in zip(leaf_names(theta), tree_leaves(theta), strict=True) if not p.is_floating_point()]:
        raise ValueError(f"its theta holds what is no fraction ({listed(whole)}), which no gradient can move")
    theta = tree_map(lambda p: p + MOVED * torch.randn_like(p), theta)
    return theta, tree_map(cast, episodes)


def _tried(learner: MetaLearner, steps: int, started: tuple[Params, Episode], tolerance: float, vmapped: bool) -> Trial:
    theta, episodes = started
    if not tree_leaves(theta):
        return Trial(failure="every parameter is frozen (requires_grad=False), so there is nothing to train")
    torch.manual_seed(0)
    before, numbers, generators = _tensors(learner, theta), _numbers(learner), _generators()
    expected = _results(Looped(), learner, steps, theta, episodes)
    trial = Trial(draws=not all(map(torch.equal, generators, _generators())))
    after, once = _tensors(learner, theta), _numbers(learner)
    trial.changed = [name for name in after if name not in before or not torch.equal(before[name], after[name])]
    torch.manual_seed(0)
    again = _results(Looped(), learner, steps, theta, episodes)
    if numbers != once:  # a size that is kept stays the same, a counter goes on
        trial.changed += [name for name, value in _numbers(learner).items() if value != once.get(name)]
    trial.differs = next((off for a, b in zip(again, expected, strict=True) if (off := _off(a, b)) > tolerance), 0.0)
    if trial.changed or trial.differs or not vmapped:
        return trial
    try:
        found = _results(Vmapped(None), learner, steps, theta, episodes)
    except Exception as error:  # whatever it is, the same code has just run in a loop
        trial.not_vmapped = reason(error)
        return trial
    for what, a, b in zip(("meta-gradient", "query loss"), found, expected, strict=True):
        if (off := _off(a, b)) > tolerance and not trial.draws:
            trial.not_vmapped = f"its {what} would be {off:.1g} {OFF}"
            break
    return trial


def _off(found: Tensor, expected: Tensor) -> float:
    """How far ``found`` is from ``expected``, relative; 0 where that is not finite, for it tells nothing."""
    if not expected.isfinite().all():
        return 0.0
    off = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    return off if math.isfinite(off) else math.inf


def reads_all_queries(learner: FewShotLearner, theta: Params, episodes: Episode) -> bool:
    """Whether a prediction depends on the queries beside it in some other way than by batch norms of metarun.

    False where that cannot be told, as of a network that draws, or takes no query alone. Changes nothing.
    """
    for dtype, tolerance in SAME.items():
        try:
            copy, episode = deepcopy(learner), slice_tasks(tree_map(partial(_cast, dtype=dtype), episodes), 0)
            with eval_mode(copy), torch.no_grad():
                near = tree_map(lambda p: p + MOVED * torch.randn_like(p), tree_map(partial(_cast, dtype=dtype), theta))
                return _moved_by_others(copy, near, episode, dtype, tolerance)
        except Exception:  # a learner that needs float32, or one that fails: its training says so
            continue
    return False


def _moved_by_others(
    learner: FewShotLearner, theta: Params, episode: Episode, dtype: torch.dtype, tolerance: float
) -> bool:
    """Whether the first or the last query is predicted otherwise alone than among all."""
    for network in modules_of(learner):
        network.to(dtype)
    phi, x = learner.adapt(theta, episode.support), torch.cat([episode.query.x, episode.support.x])
    for norm in (m for network in modules_of(learner) for m in network.modules() if isinstance(m, BatchNorm)):
        norm.mode = "running"
        norm.mean, norm.var = (torch.full((1,), value, dtype=dtype, device=x.device) for value in (0.0, 1.0))
    generators = _generators()
    among = learner.predict(phi, x)[[0, -1]]
    if not all(map(torch.equal, generators, _generators())):
        return False
    alone = torch.cat([learner.predict(phi, x[:1]), learner.predict(phi, x[-1:])])
    return bool((alone - among).norm() > tolerance * among.norm())


def _cast(value: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    return value.to(device or value.device, dtype if value.is_floating_point() else value.dtype)


def _results(
    execution: Execution, learner: MetaLearner, steps: int, theta: Params, episodes: Episode
) -> tuple[Tensor, Tensor]:
    """The mean meta-gradients of the first and the last step, and each task's query loss as evaluation takes it."""
    first, last = learner.at(0), learner.at(steps)
    annealed = [first] if first == last else [first, last]
    gradients = [execution.mean_grad(learner.meta_loss, theta, episodes)[0] for learner in annealed]

    def scored(theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        return learner.query_loss(learner.adapt(theta, episode.support), episode.query)

    with eval_mode(learner), torch.no_grad():
        losses, _ = execution.map(scored, theta, episodes)
    return ravel(gradients)[0], losses


def _tensors(learner: MetaLearner, theta: Params) -> dict[str, Tensor]:
    """Copies of what a forward pass must leave as it is: buffers, frozen parameters and theta."""
    held = {f"theta.{name}": p for name, p in zip(leaf_names(theta), tree_leaves(theta), strict=True)}
    for key, network in networks_of(learner).items():
        tensors = {**dict(network.named_buffers()), **frozen(network)}
        held |= {f"{key}.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in held.items()}


def _numbers(learner: MetaLearner) -> dict[str, int | float | list[float]]:
    """Attributes of the networks' modules that are plain numbers, or tensors that no buffer holds."""
    modules = [(f"{key}.{path}", m) for key, net in networks_of(learner).items() for path, m in net.named_modules()]
    return {
        f"{path.rstrip('.')}.{name}": value.detach().tolist() if isinstance(value, Tensor) else value
        for path, module in modules
        for name, value in vars(module).items()
        if isinstance(value, int | float | Tensor)
    }


def networks_of(learner: MetaLearner) -> dict[str, nn.Module]:
    """The networks among the learner's fields, by the keys that a configuration has for them."""
    values = {field.name: getattr(learner, field.name) for field in fields(learner)}  # type: ignore[arg-type]
    keys = {name: name if name == "base_learner" else f"meta_learner.{name}" for name in values}
    return {keys[name]: value for name, value in values.items() if isinstance(value, nn.Module)}


def _generators() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def reason(error: Exception) -> str:
    """The error in a line, with the place in somebody else's code where it was raised."""
    place = f" ({place})" if (place := place_of(error)) else ""
    first = next(iter(str(error).strip().splitlines()), "no message").rstrip(".!")
    return f"{type(error).__name__}: {first[:300]}{place}"
