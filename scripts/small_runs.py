"""Small runs, and small data of a user's own, for the campaign of wrong inputs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from wrong_input import ANY, Case, answer

SMALL = (  # and some steps
    *("device=cpu", "execution=looped", "meta_batch_size=1", "log_every=1", "evaluation.every=1"),
    *("evaluation.num_val_tasks=2", "evaluation.num_tasks=2"),
)
TINY = (*SMALL, "steps=2", "base_learner.hidden=[8]")


@dataclass(frozen=True)
class OwnData:
    """Images in class folders, a table and sentences, all small; and how tasks read them."""

    folder: Path

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Overrides for a task of each kind of input."""
        return {
            "numbers": (),
            "images": ("task=image_folder", *self.files_of("task=image_folder")),
            "words": ("task=text_jsonl", "task/features=tokens", *self.files_of("task=text_jsonl")),
        }

    def files_of(self, choice: str, folder: str = "") -> tuple[str, ...]:
        """What a choice of a task, or an experiment with one, needs to find its files; nothing for tasks without any."""
        at = folder or str(self.folder)
        columns = ("task.task_column=subject", "task.input_columns=[dose]", "task.output_columns=[response]")
        files = {
            "task=image_folder": (f"task.path={at}/photos", "task.size=28", "task.num_queries=2"),
            "task=text_jsonl": (f"task.path={at}/sentences.jsonl",),
            "task=csv_regression": (f"task.path={at}/table.csv", *columns),
            "experiment=protonet_text": (f"task.path={at}/sentences.jsonl",),
            "experiment=maml_text": (f"task.path={at}/sentences.jsonl",),
            "experiment=table": (f"task.path={at}/table.csv", *columns),
        }
        return (*files[choice], f"data_root={folder or self.folder}/prepared") if choice in files else ()


def own_data(folder: Path) -> OwnData:
    """Make the files."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for c in range(10):
        (folder / "photos" / f"class{c}").mkdir(parents=True)
        for i in range(8):
            picture = draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "photos" / f"class{c}" / f"{i}.png")
    rows = [f"s{s},{draw.normal():.3f},{draw.normal():.3f}" for s in range(20) for _ in range(12)]
    (folder / "table.csv").write_text("\n".join(["subject,dose,response", *rows]) + "\n")
    words = ["when", "do", "you", "open", "on", "monday", "is", "the", "late", "train"]
    texts = [(" ".join(draw.choice(words, 5)), f"label{c}") for c in range(10) for _ in range(12)]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in texts]
    (folder / "sentences.jsonl").write_text("".join(lines))
    return OwnData(folder)


def completed_run(place: Path) -> Path:
    """Make a small run on sine waves in ``place``; its folder."""
    made = answer(Case("", "", (*TINY, "run_dir=run"), ANY), place)
    assert made.code == 0, made.text
    return place / "run"
