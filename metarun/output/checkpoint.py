"""Checkpoints: written whole or not at all, and read only where they are whole."""

import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun.errors import CheckpointError, refuse_divergence
from metarun.files import write_atomically
from metarun.trees import tree_leaves

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Save a tree of tensors and plain values. It is serialised in memory first, so that no half file can exist."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def refuse_infinite(leaves: list[Tensor], step: int, seed: int) -> None:
    """Raise Diverged if an entry of theta is no finite number: a gradient may overflow where the loss before it did not."""
    bad = [entries[0].item() for leaf in leaves if (entries := leaf.detach()[~leaf.detach().isfinite()]).numel()]
    refuse_divergence({"an entry of theta": bad[0]} if bad else {}, step, seed)


def generators() -> dict[str, Any]:
    """The states of torch's generators; a run on the CPU does not wake the GPUs for it."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def set_generators(states: dict[str, Any]) -> None:
    """Set what ``generators`` gave, as far as this machine has the devices."""
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"][: torch.cuda.device_count()]])


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Load what ``save`` wrote; raises CheckpointError for a damaged, foreign or absent file."""
    if path.is_dir():
        raise CheckpointError(f"the checkpoint {path} is a folder. Move it away, or choose another run_dir.")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}. The run was stopped before its first validation.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        refuse_damage(state)
    except Exception as error:  # torch.load raises what the damage happens to cause: pickle, zip, key, runtime errors
        raise _damaged(path, error) from error
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Inside, objects take what ``load`` gave of ``path``; raises CheckpointError where it is not theirs."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise _damaged(path, error) from error


@torch.no_grad()
def copy(theta: Any, leaves: list[Tensor]) -> None:
    """Give a run's ``leaves`` the values of ``theta``; raises ValueError where it is another's."""
    for p, saved in zip(leaves, tree_leaves(theta), strict=True):
        p.copy_(like(saved, p))


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Let ``optimizer`` go on from ``saved``, in the dtypes it has there: torch makes them those of the parameters, and
    NAdam multiplies a number of float32 beside parameters of float64."""
    optimizer.load_state_dict(saved)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, state in saved["state"].items():
        kept = {name: value.dtype for name, value in state.items() if isinstance(value, Tensor)}
        optimizer.state[params[i]] |= {name: optimizer.state[params[i]][name].to(dtype) for name, dtype in kept.items()}


def like(saved: Tensor, leaf: Tensor) -> Tensor:
    """``saved``, which is to be copied into ``leaf``; raises ValueError for another shape, which torch would expand."""
    if saved.shape != leaf.shape:
        raise ValueError(f"a parameter has shape {tuple(saved.shape)}, but the run's has shape {tuple(leaf.shape)}")
    return saved


def refuse_damage(state: Any) -> None:
    """Raise ValueError unless ``state`` is what a run saves: every part, of its type, and finite where it is learned."""
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("it is no checkpoint of metarun")
    if state["format"] != FORMAT:
        raise ValueError(f"checkpoint format {state['format']}, this metarun reads format {FORMAT}")
    if missing := [key for key in PARTS if key not in state]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if wrong := [key for key, fits in PARTS.items() if not fits(state[key])]:
        raise ValueError(f"its entries {', '.join(wrong)} are damaged or not finite")
    if state["validated"] > state["step"] or state["best"].get("step", 0) > state["step"]:
        raise ValueError("it was validated after its own step")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_learned(theta: Any) -> bool:
    """Whether it is a tree of finite tensors of floats."""
    leaves = tree_leaves(theta)
    kinds = all(isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.is_sparse for leaf in leaves)
    return bool(leaves) and kinds and all(bool(leaf.isfinite().all()) for leaf in leaves)


def _is_best(best: Any) -> bool:
    """Whether it is empty, before the first validation, or a score and its step."""
    if best == {}:
        return True
    score = isinstance(best, dict) and best.get("value")
    return type(score) is float and math.isfinite(score) and _is_count(best.get("step"))


def _are_generators(states: Any) -> bool:
    if not isinstance(states, dict) or not isinstance(states.get("cuda"), list):
        return False
    tensors = [states.get("cpu"), *states["cuda"]]
    return all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in tensors) and (
        states["cpu"].shape == torch.get_rng_state().shape
    )


PARTS: dict[str, Callable[[Any], bool]] = {
    "theta": _is_learned,
    "step": _is_count,
    "validated": _is_count,
    "best": _is_best,
    "means": lambda means: isinstance(means, dict) and set(means) == {"sums", "count"} and _is_count(means["count"]),
    "optimizer": lambda state: isinstance(state, dict) and {"state", "param_groups"} <= set(state),
    "scheduler": lambda state: isinstance(state, dict) and _is_count(state.get("last_epoch")),
    "generators": _are_generators,
}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, pickle.UnpicklingError):  # torch's message advises to let the file run code
        reason = "it is damaged, or holds more than tensors and plain values"
    return CheckpointError(
        f"the checkpoint {path} cannot be read ({type(error).__name__}: {reason}).\n"
        f"The run's metrics and results are untouched. To go on from the other checkpoint, copy {other} over it; "
        f"to start anew, choose another run_dir."
    )
