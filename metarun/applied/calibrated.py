"""Batch norms in mode ``running`` of a loaded run: their statistics are computed once and kept beside its checkpoints.

They take 32 training tasks, which is most of a minute for 60 ways of images. What was kept is used only where computing it
again would give the same bits: for the same theta, training episodes, settings, execution, code, torch and machine.
"""

import hashlib
import json
import pickle
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

import metarun
from metarun.applied.trained import Trained
from metarun.evaluation.calibration import CALIBRATION_TASKS, calibrate, calibrates, running_norms
from metarun.evaluation.episodes import manifest
from metarun.evaluation.eval_mode import modules_of
from metarun.output.checkpoint import save
from metarun.trees import leaf_names, tree_leaves

FILE = "norms.pt"  # the last that was computed: few evaluate one run under many settings
VERSIONED = ("metarun", "torch", "torchvision")  # packages whose code the key tells from another


def calibrate_once(run: Trained) -> None:
    """Give the norms the statistics of the run's training tasks: those that were kept, or else new ones, which are kept."""
    learner, path = run.experiment.learner, run.folder.checkpoints / FILE
    if not calibrates(learner):
        return
    layers, key = running_norms(learner), _key(run) if _versioned(run) else None
    kept = _kept(path, key, run.experiment.device) if key else None
    if kept is not None:
        for name, layer in layers.items():
            layer.mean, layer.var = kept[name]
        return
    calibrate(run.training_learner, run.theta, run.training_task, run.execution)
    if key:
        with suppress(OSError):  # a disk that cannot be written costs time alone
            save(path, {"key": key, "norms": {name: (layer.mean, layer.var) for name, layer in layers.items()}})


def _kept(path: Path, key: str, device: torch.device) -> dict[str, Any] | None:
    """What was kept for ``key``; None where there is nothing, or a damaged file."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return state["norms"] if state["key"] == key else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
        return None


def _versioned(run: Trained) -> bool:
    """Whether all that computes is code that the key knows: a user's own networks change without a version."""
    networks = [m for network in modules_of(run.experiment.learner) for m in network.modules()]
    objects = [run.experiment.learner, run.training_task, *networks]
    return all(type(each).__module__.partition(".")[0] in VERSIONED for each in objects)


def _key(run: Trained) -> str:
    """A hash of all that the statistics are a function of, to the last bit."""
    experiment, task = run.experiment, run.training_task
    facts = {
        "settings": [experiment.protocol, (run.folder.path / "config.yaml").read_text(encoding="utf-8")],
        "data": [task.fingerprint(), task.fitted(), manifest(task, "train", CALIBRATION_TASKS)],
        "execution": [run.execution.describe(), str(experiment.device), torch.get_num_threads()],
        "code": [code_digest(), torch.__version__],
        "machine": [platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "theta": leaf_names(run.theta),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for leaf in tree_leaves(run.theta):
        digest.update(leaf.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """A hash of metarun's own code."""
    root = Path(metarun.__file__).parent
    files = sorted(root.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
