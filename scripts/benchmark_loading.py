"""How fast images are ready and drawn: python scripts/benchmark_loading.py [--data-root DIR] [--scratch DIR]

    omniglot       episodes a second of 5-way 1-shot 1-query meta-batches of 32, as a run's training gets them
    cifar_fs       seconds until a prepared CIFAR-100 gives its first episode
    60000 x 84     episodes a second from a memory-mapped array of the size of mini-ImageNet (1.27 GB, made in the scratch
                   folder of random bytes), and the memory of this process that is not the system's cache of files

Writes docs/receipts/benchmark_loading.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.tasks.augmentation import NONE
from metarun.tasks.cifar import cifar_fs
from metarun.tasks.image_classes import ImageClasses, ImageData
from metarun.tasks.omniglot import Omniglot
from metarun.tasks.store import Source
from metarun.training.stream import meta_batches

ROOT = Path(__file__).resolve().parent.parent
RECEIPT = ROOT / "docs" / "receipts" / "benchmark_loading.json"
EPISODE: dict[str, Any] = {"num_ways": 5, "num_shots": 5, "num_queries": 15}
SHARED: dict[str, Any] = {
    "train_num_ways": None,
    "train_num_shots": None,
    "train_num_queries": None,
    "augmentation": NONE,
    "seed": 0,
}
NUM_CLASSES, NUM_IMAGES, SIDE = 100, 600, 84
NUM_EPISODES = 300
META_BATCH, NUM_META_BATCHES = 32, 2000


def random_images(scratch: Path) -> ImageData:
    """60000 random images in 100 classes, to be prepared as any data set is."""

    def classes() -> Iterator[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for c in range(NUM_CLASSES):
            yield f"{c:03}", rng.integers(0, 256, (NUM_IMAGES, 3, SIDE, SIDE), dtype=np.uint8)

    source = Source(scratch / "prepared" / "benchmark-84", (3, SIDE, SIDE), classes)
    return ImageData("benchmark", source, lambda names: ("train",) * 64 + ("val",) * 16 + ("test",) * 20)


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measured(task: ImageClasses) -> dict[str, float]:
    """Episodes a second, of the clock and of this process's own time; its memory before and after."""
    task.sample("train", [0])
    before, start, cpu_start = anonymous_mib(), time.perf_counter(), time.process_time()
    for i in range(NUM_EPISODES):
        task.sample("train", [i])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "episodes_per_second": round(NUM_EPISODES / seconds, 1),
        "episodes_per_cpu_second": round(NUM_EPISODES / cpu_seconds, 1),
        "anonymous_mib_before": round(before, 1),
        "anonymous_mib_after": round(anonymous_mib(), 1),
    }


def first_episode(data_root: str, place: dict[str, Any]) -> dict[str, float]:
    """Seconds to build the prepared task, and to its first episode."""
    start = time.perf_counter()
    task = cifar_fs(**EPISODE, **SHARED, **place, download=False, data_root=data_root)
    built = time.perf_counter() - start
    task.sample("train", [0])
    return {"seconds_to_build": round(built, 3), "seconds_to_first_episode": round(time.perf_counter() - start, 3)}


def stream(data_root: str, place: dict[str, Any]) -> dict[str, float]:
    """Omniglot episodes a second from the stream that feeds a run, with nothing to do between them."""
    counts: dict[str, Any] = {"num_ways": 5, "num_shots": 1, "num_queries": 1}
    shared = {key: value for key, value in SHARED.items() if key != "augmentation"}
    choices: dict[str, Any] = {"split": "vinyals", "trainval": False, "rotations": "per_task", "download": False}
    task = Omniglot(**counts, **choices, **shared, **place, data_root=data_root)
    task.sample("train", [0])
    start = time.perf_counter()
    for _ in meta_batches(task, META_BATCH, 0, NUM_META_BATCHES):
        pass
    return {"episodes_per_second": round(META_BATCH * NUM_META_BATCHES / (time.perf_counter() - start))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=os.path.expanduser, default=os.environ.get("METARUN_DATA", "~/.cache/metarun")
    )
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place: dict[str, Any] = {"device": device, "dtype": torch.float32}
    large = ImageClasses(data=lambda: random_images(Path(options.scratch)), **EPISODE, **SHARED, **place)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    content = {
        "command": "python scripts/benchmark_loading.py",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": {"system": platform.platform(), "torch": torch.__version__, "device": device.type},
        "load": round(os.getloadavg()[0], 1),
        "episode": EPISODE,
        "cifar_fs, prepared": first_episode(options.data_root, place),
        "omniglot, 5 ways, 1 shot, 1 query": stream(options.data_root, place),
        "60000 x 84 x 84 x 3": {"array_mib": round(large.images.rows.nbytes / 2**20), **measured(large)},
        "peak_mib_with_mapped_pages": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    RECEIPT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
