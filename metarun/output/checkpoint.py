"""Checkpoints and small files that are either wholly there or not at all."""

import io
from pathlib import Path
from typing import Any

import torch

from metarun.errors import CheckpointError
from metarun.files import write_atomically


def save(path: Path, state: dict[str, Any]) -> None:
    """Save a tree of tensors and plain values. It is serialised in memory first, so that no half file can exist."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


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
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}. The run was stopped before its first validation.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if state["format"] != 1:
            raise ValueError(f"checkpoint format {state['format']}, this metarun reads format 1")
    except Exception as error:  # torch.load raises what the damage happens to cause: pickle, zip, key, runtime errors
        other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {reason}).\n"
            f"The run's metrics and results are untouched. To go on from the other checkpoint, copy {other} over it; "
            f"to start anew, choose another run_dir."
        ) from error
    return state
