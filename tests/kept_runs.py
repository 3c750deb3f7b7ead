"""Run folders written by hand, quickly and without training."""

import json
import platform
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

EPISODES = 600
LEARNERS = {
    "maml": {"_target_": "metarun.meta_learners.maml.MAML", "inner_lr": 0.01, "inner_steps": 1},
    "protonet": {"_target_": "metarun.meta_learners.protonet.ProtoNet", "distance": "euclidean"},
    "maml_plus_plus": {"_target_": "metarun.meta_learners.maml_plus_plus.MAMLPlusPlus", "inner_steps": 5},
}
TASKS = {
    "omniglot": {"_target_": "metarun.tasks.omniglot.Omniglot", "num_ways": 5, "num_shots": 1},
    "sinusoid": {"_target_": "metarun.tasks.sinusoid.Sinusoid", "num_shots": 5},
}


def config(learner: str = "maml", task: str = "omniglot", seed: int = 0, **values: Any) -> dict[str, Any]:
    """The configuration of a run, as config.yaml has it."""
    names = {"meta_learner": LEARNERS[learner], "task": TASKS[task]}
    names |= {"base_learner": {"_target_": "metarun.models.mlp.MLP", "hidden": [40, 40]}}
    names |= {"optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001}}
    return {"seed": seed, "steps": 100, "run_dir": None, **names, "evaluation": {"num_tasks": 600}, **values}


def told(seconds_ago: float) -> str:
    """A time as run folders have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() - seconds_ago))


def keep(path: Path, score: float | None = 0.9, state: str = "completed", ago: float = 60, **settings: Any) -> Path:
    """Write a run folder; ``score`` is its test accuracy, ``ago`` the seconds since it began."""
    path.mkdir(parents=True, exist_ok=True)
    cfg = config(**settings)
    (path / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    hardware = {
        "host": platform.node(),
        "system": "Linux",
        "python": "3.11.7",
        "torch": "2.9.0",
        "cpus": 2,
        "threads": 1,
    }
    history = [{"started": told(ago), "argv": ["metarun"], "overrides": [f"seed={cfg['seed']}"]}]
    facts = {
        "metarun": "0.1.0",
        "seed": cfg["seed"],
        "data": "omniglot: 32460 images",
        "hardware": hardware,
        "git": None,
    }
    write(path / "run.json", {**facts, "history": history})
    status = {
        "state": state,
        "updated": told(ago / 2),
        "pid": 1,
        "step": 100 if state == "completed" else 50,
        "steps": 100,
    }
    (path / ".lock").touch()
    if score is not None:
        status |= {"test/accuracy": score}
        curve = {f"test/accuracy_step_{k}": mean(0.2 + (score - 0.2) * k / 2) for k in range(3)}
        scores = {"test/query_loss": mean(1 - score), "test/accuracy": mean(score), **curve}
        cost = {"parameters": 1761, "adaptation_ms": 0.5}
        protocol = {"inner_steps": 1, "num_tasks": 600, "split": "test", "checkpoint_step": 90}
        protocol |= {"manifest": f"1d92b3{cfg['seed']}"}  # of the episodes, which each seed draws for itself
        write(path / "results.json", {**scores, "protocol": protocol, "complexity": cost})
    write(path / "status.json", status)
    rows = [{"step": 50, "train/accuracy": 0.7}, {"step": 50, "val/accuracy": 0.8, "val/accuracy_ci95": 0.01}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def episodes(path: Path, values: Any, seed: int = 0, score: str = "accuracy", **more: Any) -> Path:
    """Write the scores of a run's episodes, drawn under a seed."""
    rows = [
        {"episode": i, "split": "test", "hash": f"{seed}-{i}", "scores": {score: value, "query_loss": 1.0}, **more}
        for i, value in enumerate(values)
    ]
    (path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(path: Path, values: Any, **settings: Any) -> Path:
    """A run with these scores of its test episodes."""
    values = [float(value) for value in values]
    return episodes(keep(path, score=fmean(values), **settings), values, settings.get("seed", 0))


def mean(value: float) -> dict[str, Any]:
    """A score as results.json has it."""
    return {"mean": value, "ci95": 0.0123, "n": 600}


def write(path: Path, content: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content, indent=2))
