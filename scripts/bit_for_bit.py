"""Short runs of every kind, bit by bit: for changes that must not alter what metarun computes.

    python scripts/bit_for_bit.py record FILE [NAME ...]     before the change: the sha256 of the last theta and the results
                                                             of each run, or of those named
    python scripts/bit_for_bit.py compare FILE               after it, on the same machine: which are others (exit code 1)

A run is float64 on one thread of the CPU. Of results.json the means and the protocol count, but for the names of modules.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ROOT / "tests" / "outside"
BUDGET = ["device=cpu", "dtype=float64", "steps=6", "meta_batch_size=4", "execution.threads=1"]
BUDGET += ["evaluation.every=3", "evaluation.num_val_tasks=8", "evaluation.num_tasks=12"]
LOOPED, VMAPPED = "execution=looped", "execution=vmapped"
IMAGES = ["task=prototypes", "task.num_classes=9", "base_learner=conv4", "base_learner.channels=6"]
POOLED = [*IMAGES, "base_learner.downsample=max_pool"]
WORDS = ["task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", "task.num_queries=3"]
TOKENS = [*WORDS, "task/features=tokens"]
RUNS: dict[str, list[str]] = {
    "maml_sinusoid": [VMAPPED],
    "maml_chunked_clipped": [
        *(*POOLED, VMAPPED, "execution.chunk=3", "clip_norm=0.5", "scheduler=cosine", "scheduler.T_max=6")
    ],
    "maml_recomputed": [*IMAGES, LOOPED, "execution.inner_memory=recomputed", "meta_learner.inner_steps=4"],
    "maml_compiled": [VMAPPED, "execution.compile=true"],
    "maml_plus_plus_annealed": [*IMAGES, "meta_learner=maml_plus_plus", LOOPED],
    "reptile": [*IMAGES, "meta_learner=reptile", VMAPPED, "optimizer=sgd"],
    "imaml": [*IMAGES, "meta_learner=imaml", VMAPPED],
    "es_maml": ["meta_learner=es_maml", LOOPED],
    "meta_sgd_rates": ["meta_learner=meta_sgd", VMAPPED, "optimizer=adamw"],
    "cavia": ["meta_learner=cavia", LOOPED],
    "warpgrad": [*IMAGES, "meta_learner=warpgrad", VMAPPED],
    "protonet_running": [*POOLED, "base_learner.batch_norm=running", "meta_learner=protonet", LOOPED],
    "matchingnet": [*POOLED, "meta_learner=matchingnet", VMAPPED],
    "relationnet": [*POOLED, "meta_learner=relationnet", "meta_learner.hidden_size=16", LOOPED],
    "r2d2": [*POOLED, "meta_learner=r2d2", VMAPPED],
    "metaoptnet": [*IMAGES, "base_learner.batch_norm=support", "meta_learner=metaoptnet", VMAPPED],
    "baseline_plus_plus": [*POOLED, "meta_learner=baseline_plus_plus", LOOPED],
    "fine_tune": [*IMAGES, "meta_learner=fine_tune", LOOPED],
    "cnp": ["meta_learner=cnp", VMAPPED, "task=gaussian_process"],
    "hypernetwork": ["meta_learner=hypernetwork", LOOPED],
    "snail": [*POOLED, "meta_learner=snail", VMAPPED],
    "learned_optimizer": ["meta_learner=learned_optimizer", "meta_learner.unroll=5", VMAPPED],
    "meta_lstm": [*IMAGES, "meta_learner=meta_lstm", VMAPPED],
    "teacher": [*POOLED, "meta_learner=teacher", LOOPED],
    "resnet12_dropout": [
        *(*IMAGES[:2], "base_learner=resnet12", "base_learner.channels=[3,4,5,6]", "base_learner.drop_block_steps=0"),
        *("meta_learner=protonet", VMAPPED),
    ],
    "text_cnn": [*TOKENS, "base_learner=text_cnn", "meta_learner=protonet", LOOPED],
    "transformer": [*TOKENS, "base_learner=transformer", "base_learner.width=8", VMAPPED],
    "hashed_residual": [*WORDS, "base_learner=residual", "meta_learner=protonet", VMAPPED],
    "table": [
        *("task=csv_regression", f"task.path={OUTSIDE / 'measurements.csv'}", "task.task_column=subject", LOOPED),
        *("task.input_columns=[dose]", "task.output_columns=[response]", "task.num_shots=2", "task.num_queries=2"),
        *("meta_learner.inner_lr=0.01", "meta_learner.inner_steps=1"),
    ],
    "pendulum": ["experiment=matrix/system_identification", "task=pendulum", "meta_learner=r2d2", VMAPPED],
    "elsewhere": [*IMAGES, VMAPPED, "evaluation.task=[prototypes]"],
}


def digests(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The digest of each run, one after the other. A run that fails ends the script: it would compare nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            overrides = RUNS[name]
            run = Path(folder, name)
            arguments = [f"--config-dir={OUTSIDE}", *BUDGET, *overrides, f"data_root={folder}/data", f"run_dir={run}"]
            command = [sys.executable, "-m", "metarun", *arguments]
            done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr}")
            yield name, digest_of(run)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def digest_of(run: Path) -> str:
    import torch

    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    seen = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(state["theta"]):
        seen.update(leaf.detach().contiguous().numpy().tobytes())
    seen.update(json.dumps(comparable(json.loads((run / "results.json").read_text())), sort_keys=True).encode())
    return seen.hexdigest()


def comparable(node: Any) -> Any:
    """``node`` without what differs from run to run, or from layout to layout of the code, without the settings,
    which a new one joins, and of scores the means alone, without those of methods without training."""
    if isinstance(node, dict):
        kinds = ("classes", "tasks", "sizes")  # written out: this also runs beside older code
        left_out = ["_target_", "path", "task", "base_learner", "meta_learner", "ci95", "learning_speed", "complexity"]
        left_out += ["version", "episodes", *(f"{part}_{kind}" for part in ("num", "ci95_over") for kind in kinds)]
        return {
            k: comparable(v)
            for k, v in node.items()
            if not k.endswith(("_ms", "_mb")) and k not in left_out and "/baseline_" not in k
        }
    return [comparable(value) for value in node] if isinstance(node, list) else node


def main() -> int:
    what, *rest = sys.argv[1:] or [""]
    if what not in ("record", "compare") or not rest or set(rest[1:]) - RUNS.keys() or (what == "compare" and rest[1:]):
        sys.exit(__doc__)
    path, names = Path(rest[0]), rest[1:] or list(RUNS)
    known: dict[str, str] = json.loads(path.read_text()) if what == "compare" else {}
    found = {}
    for name, digest in digests(known or names):
        found[name] = digest
        verdict = digest[:12] if not known else "the same" if known[name] == digest else f"ANOTHER: {digest[:12]}"
        print(f"{name:24} {verdict}", flush=True)
    if what == "record":
        path.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(known) and found != known)


if __name__ == "__main__":
    sys.exit(main())
