"""Short trainings whose scores would tell that something between a gradient and a score has gone wrong.

python -m tests.canaries [NAME ...]     trains each, over SEEDS, by the plain loop of ``tests/plain.py``, and writes the
                                        mean and the deviation over seeds into tests/canaries.json
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests import plain
from tests.composing import OUTSIDE

SEEDS, NUM_TASKS = range(1, 6), 200
INTERVALS = Path(__file__).with_suffix(".json")
PREPARED = tempfile.TemporaryDirectory(prefix="metarun-")  # sentences
IMAGES = ["task=prototypes", "task.strength=2.5", "meta_batch_size=4"]
WORDS = [
    *("task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", f"data_root={PREPARED.name}", "task.num_shots=1"),
    *("task.num_queries=3", "task/features=tokens", "meta_batch_size=4"),
]
PROTONET = ["meta_learner=protonet", "optimizer.lr=0.003"]
CANARIES: dict[str, list[str]] = {
    "conv4_max_pool_protonet": [
        *(*IMAGES, "meta_learner=protonet", "optimizer.lr=0.01", "steps=250", "execution=looped"),
        *("base_learner=conv4", "base_learner.channels=16", "base_learner.downsample=max_pool"),
        "base_learner.batch_norm=running",
    ],
    "conv4_max_pool_r2d2": [
        *(*IMAGES, "meta_learner=r2d2", "optimizer=adamw", "optimizer.lr=0.003", "steps=200", "execution=vmapped"),
        *("base_learner=conv4", "base_learner.channels=16", "base_learner.downsample=max_pool"),
    ],
    "conv4_stride_maml": [
        *(*IMAGES, "meta_learner=maml", "meta_learner.inner_lr=0.2", "optimizer.lr=0.003", "steps=200"),
        *("execution=vmapped", "base_learner=conv4", "base_learner.channels=16", "evaluation.inner_steps=3"),
    ],
    "resnet12_protonet": [
        *(*IMAGES, "task.strength=4", "task.num_shots=5", "task.num_queries=5", *PROTONET, "steps=150"),
        *("execution=looped", "base_learner=resnet12", "base_learner.channels=[8,12,16,20]"),
        *("base_learner.drop_rate=0.05", "base_learner.drop_block_steps=50"),
    ],
    "text_cnn_protonet": [*WORDS, *PROTONET, "steps=120", "execution=looped", "base_learner=text_cnn"],
    "transformer_protonet": [
        *(*WORDS, "meta_learner=protonet", "optimizer.lr=0.001", "steps=120", "execution=vmapped"),
        *("base_learner=transformer", "base_learner.width=16"),
    ],
    "mlp_regression_maml": ["task=sinusoid", "meta_batch_size=10", "steps=2000", "execution=vmapped"],
    "cnp_regression": [
        "task=gaussian_process",
        "meta_learner=cnp",
        "meta_learner.smallest_deviation=0.1",
        "meta_batch_size=10",
        "steps=600",
        "execution=vmapped",
    ],
}
COMMON = ["dtype=float32", "log_every=100", "evaluation.every=100000", "evaluation.num_val_tasks=2"]


def overrides_of(name: str, seed: int) -> list[str]:
    return [*COMMON, f"evaluation.num_tasks={NUM_TASKS}", *CANARIES[name], f"seed={seed}"]


def measured(name: str) -> dict[str, float]:
    """Mean and deviation over SEEDS of the final score, by the plain loop."""
    means = []
    for seed in SEEDS:
        x, theta = plain.trained(overrides_of(name, seed))
        means.append(plain.scores(x, theta, NUM_TASKS)[:, -1].mean().item())
        print(name, seed, means[-1], file=sys.stderr, flush=True)
    values = torch.tensor(means, dtype=torch.float64)
    return {"mean": values.mean().item(), "deviation": values.std().item(), "seeds": len(SEEDS)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = json.loads(INTERVALS.read_text()) if INTERVALS.is_file() else {}
    for each in sys.argv[1:] or CANARIES:
        known[each] = measured(each)
        INTERVALS.write_text(json.dumps(known, indent=1) + "\n")
