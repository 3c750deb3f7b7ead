"""Tiny trained runs to be applied to new examples, and such examples: drawings, sentences and rows made by numbers."""

import csv
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.running import metarun

BUDGET = [
    *["device=cpu", "execution=looped", "steps=2", "meta_batch_size=1", "evaluation.every=2"],
    *["evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "logger=none"],
]
SIZE = 12  # pixels of a side, as the networks see images
IMAGES = [
    "'task.split={train:3,val:3,test:3}'",
    f"task.size={SIZE}",
    "task.channels=1",
    "task.num_ways=3",
    "task.num_shots=1",
    "task.num_queries=2",
]
SENTENCES = ["task.num_ways=2", "task.num_shots=2", "task.num_queries=2", "'task.split={train:2,val:2,test:2}'"]
MLP = ["base_learner=mlp", "base_learner.hidden=[8]"]
COLUMNS = ["task.task_column=subject", "task.input_columns=[dose,kind]", "task.output_columns=[level]"]
KINDS = {
    "protonet": ["task=image_folder", "task.path=DATA/photos", *IMAGES, *MLP, "meta_learner=protonet"],
    "running norms": [
        *["task=image_folder", "task.path=DATA/photos", *IMAGES, "meta_learner=protonet", "base_learner=conv4"],
        *["base_learner.channels=4", "base_learner.downsample=max_pool", "base_learner.batch_norm=running"],
        *["task.size=16"],
    ],
    "maml": ["task=image_folder", "task.path=DATA/photos", *IMAGES, *MLP, "meta_learner=maml"],
    "hashed": [
        *["task=text_jsonl", "task.path=DATA/texts.jsonl", *SENTENCES, *MLP, "meta_learner=protonet"],
        *["task/features=hashed", "task.features.num_buckets=64"],
    ],
    "tokens": [
        *["task=text_jsonl", "task.path=DATA/texts.jsonl", *SENTENCES, "meta_learner=protonet"],
        *["task/features=tokens", "base_learner=embedding_bag"],
    ],
    "table": [
        *["task=csv_regression", "task.path=DATA/table.csv", *COLUMNS, "task.log_columns=[level]", *MLP],
        *["task.num_shots=3", "task.num_queries=3", "meta_learner=gaussian_process"],
    ],
    "sinusoid": ["task=sinusoid", "meta_learner=maml", "base_learner.hidden=[8]", "task.num_queries=5"],
}


@functools.cache
def data() -> Path:
    """A folder with what the runs are trained on."""
    folder = Path(tempfile.mkdtemp())
    for c in range(9):
        drawings(folder / "photos" / f"shape{c}", c, range(4))
    rows = [{"text": sentence(c, i), "label": f"intent{c}"} for c in range(6) for i in range(5)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table(folder / "table.csv", [f"subject{t}" for t in range(6)], 8)
    return folder


@functools.cache
def run(kind: str) -> Path:
    """The folder of a finished run of this kind; it may not be changed."""
    folder = Path(tempfile.mkdtemp()) / "run"
    words = [word.strip("'").replace("DATA", str(data())) for word in KINDS[kind]]
    outcome = metarun(*words, *BUDGET, f"data_root={data()}", f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    return folder


def drawings(folder: Path, shape: int, numbers: range, size: int = 20) -> list[Path]:
    """PNG files of a shape: a bar of its own place and brightness, with a little noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in numbers:
        noise = np.random.default_rng([shape, number]).integers(0, 30, (size, size))
        image = noise + 20 * shape
        image[shape : shape + 6, :] += 60
        paths.append(folder / f"{number}.png")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def sentence(c: int, i: int) -> str:
    words = ["balance", "weather", "music", "flight", "dinner", "alarm", "hotel", "taxi"]
    return f"please {words[c]} number {i}, {words[c]} {'now' if i % 2 else 'later'}"


def table(path: Path, subjects: list[str], count: int, level: bool = True) -> Path:
    """A table of ``count`` rows of each subject: dose, kind, and level = exp(intercept + slope x dose)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "dose", "kind", *["level"] * level])
        for subject in subjects:
            rng = np.random.default_rng([*subject.encode()])
            a, b = rng.normal(1, 0.3), rng.normal(0.5, 0.2)
            for row in range(count):
                dose, kind = round(float(rng.uniform(0, 3)), 3), "ab"[row % 2]
                value = round(float(np.exp(a + b * dose + 0.2 * (kind == "b"))), 4)
                writer.writerow([subject, dose, kind, *[value] * level])
    return path
