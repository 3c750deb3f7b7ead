"""mini-ImageNet and tieredImageNet: photos of ImageNet at 84 x 84 pixels, split by class.

mini-ImageNet: 100 classes of 600 images; Vinyals et al. 2016's idea, the list of 64 / 16 / 20 classes is that of Ravi and
Larochelle, ICLR 2017. tieredImageNet: 608 classes, 351 / 97 / 160, that share no parent category across splits; Ren et
al., ICLR 2018, https://arxiv.org/abs/1803.00676.

ImageNet's terms do not let its images be passed on, so nothing is downloaded; every layout in which they go round is read.
Photos of another size are squashed to 84 x 84, none of them cut, by the filters of the releases (docs/fidelity.md).
"""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from metarun.errors import DataError
from metarun.tasks.image_classes import ImageData, image_task
from metarun.tasks.image_files import Ranges, is_image, plain
from metarun.tasks.pickles import load_pickle
from metarun.tasks.splits import SPLITS, published_splits
from metarun.tasks.store import ClassRows, Source

SIDE = 84
RULE = 2  # of making arrays out of files; raise it when it changes, and they are prepared again
Readers = dict[str, Callable[[], np.ndarray]]  # by class of one split: they give its images, uint8 [n, 3, 84, 84]


class Benchmark(NamedTuple):
    """A data set as it must be: the classes of each split by their WordNet numbers, and the images of each (None: any)."""

    title: str
    folder: str  # below the data root
    classes: dict[str, list[str]]
    num_images: int | None
    resize: Callable[[Image.Image], np.ndarray]  # a photo RGB of any size to uint8 [84, 84, 3]

    def decode(self, source: Path | BinaryIO | Image.Image, name: object) -> np.ndarray:
        """The photo as uint8 [3, 84, 84]; raises DataError with ``name`` when it is no image, or not a whole one."""
        return self.resize(plain(source, name, 3, Ranges())).transpose(2, 0, 1)

    def decode_all(self, files: Sequence[Path]) -> np.ndarray:
        """The photos as uint8 [n, 3, 84, 84]."""
        return np.stack([self.decode(file, file) for file in files])


def lanczos(image: Image.Image) -> np.ndarray:
    """Squashed by Pillow's LANCZOS, as mini-ImageNet by MAML's release."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def cubic(image: Image.Image) -> np.ndarray:
    """Squashed by OpenCV's INTER_CUBIC, as tieredImageNet by its release: four pixels a side, however much it shrinks.

    torch's has the same weights, and differs by a level in a pixel of a thousand.
    """
    x = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None]
    x = interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False)[0]
    return x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


@image_task
def mini_imagenet(data_root: str) -> ImageData:
    """Colour photos 84 x 84: mini-ImageNet, 64 / 16 / 20 classes of 600."""
    return images_of(
        Benchmark("mini-ImageNet", "mini-imagenet", published_splits("mini_imagenet"), 600, lanczos), Path(data_root)
    )


@image_task
def tiered_imagenet(data_root: str) -> ImageData:
    """Colour photos 84 x 84: tieredImageNet, 351 / 97 / 160 classes."""
    return images_of(
        Benchmark("tieredImageNet", "tiered-imagenet", published_splits("tiered_imagenet"), None, cubic),
        Path(data_root),
    )


def images_of(benchmark: Benchmark, data_root: Path) -> ImageData:
    """The benchmark, prepared as <data_root>/prepared/<folder>-84-<RULE>; classes are named split/class."""
    folder = data_root / benchmark.folder

    def missing() -> str:
        if _layout(folder) is not None:
            return ""
        return (
            f"{benchmark.title} needs its images in {folder}, and may not be downloaded: ImageNet's images "
            "(https://image-net.org) are for those who accept its terms. Put one of these there: "
            f"{'; '.join(layout.describe for layout in LAYOUTS)}. Or name the folder that holds {benchmark.folder} with "
            "data_root (or METARUN_DATA)."
        )

    def read() -> ClassRows:
        layout = _layout(folder)
        assert layout is not None
        for split in SPLITS:
            yield from _checked(benchmark, split, layout.read(folder, split, benchmark), folder)

    source = Source(data_root / "prepared" / f"{benchmark.folder}-{SIDE}-{RULE}", (3, SIDE, SIDE), read, missing)
    return ImageData(
        benchmark.folder.replace("-", "_"),
        source,
        lambda names: [name.partition("/")[0] for name in names],
        decode=benchmark.decode,
    )


def _checked(benchmark: Benchmark, split: str, classes: Readers, folder: Path) -> ClassRows:
    """The classes by name, and the images of each by their bytes, so that every copy gives one order.

    Where classes have WordNet numbers for names those must be the listed ones, else as many.
    """
    listed = benchmark.classes[split]
    numbered = all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes)
    if len(classes) != len(listed) or (numbered and {*classes} != {*listed}):
        odd = sorted({*listed} ^ {*classes})[:3] if numbered else []
        raise DataError(
            f"{folder} is not {benchmark.title}: its split {split!r} holds {len(classes)} classes and must hold the "
            f"{len(listed)} of the published list" + (f" (see {', '.join(odd)})." if odd else ".")
        )
    for name, images_of in sorted(classes.items()):
        images = images_of()
        if benchmark.num_images is not None and len(images) != benchmark.num_images:
            raise DataError(
                f"{folder}: the class {name} of the split {split!r} holds {len(images)} images and must hold "
                f"{benchmark.num_images}."
            )
        yield f"{split}/{name}", images[sorted(range(len(images)), key=lambda i: images[i].tobytes())]


# ------------------------------------------------------------------------------------------------------------- layouts


class Layout(NamedTuple):
    """A layout of files. ``sign``: paths that give it away; ``read(folder, split, benchmark)`` finds a split's classes."""

    describe: str
    sign: tuple[str, ...]
    read: Callable[[Path, str, Benchmark], Readers]


def _of_cache(folder: Path, split: str, benchmark: Benchmark) -> Readers:
    """{"image_data": uint8 [num_images, 84, 84, 3], "class_dict": {class: places}}"""
    path = folder / f"mini-imagenet-cache-{split}.pkl"
    record = _record(path, "image_data", "class_dict")
    images = np.asarray(record["image_data"])
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
        raise DataError(f"{path} holds images {images.dtype} {images.shape[1:]} and must hold uint8 {(SIDE, SIDE, 3)}.")
    channels_first = images.transpose(0, 3, 1, 2)
    return {_text(name): partial(channels_first.__getitem__, places) for name, places in record["class_dict"].items()}


def _of_pngs(folder: Path, split: str, benchmark: Benchmark) -> Readers:
    """A list of PNG files as arrays of bytes, beside {"label_specific": [class of each], "label_specific_str": [names]}."""
    path = folder / f"{split}_images_png.pkl"
    pngs, labels = _pickle(path), _record(folder / f"{split}_labels.pkl", "label_specific")
    of = np.asarray(labels["label_specific"])
    if len(of) != len(pngs):
        raise DataError(f"{path} holds {len(pngs)} images, and {split}_labels.pkl labels {len(of)}.")

    def images_of(label: Any) -> np.ndarray:
        places = np.flatnonzero(of == label)
        return np.stack([benchmark.decode(io.BytesIO(bytes(pngs[i])), f"{path}, image {i}") for i in places])

    names = [_text(name) for name in labels.get("label_specific_str", ())]
    present = np.unique(of)
    if len({*names}) != len(present):  # two kinds of crane have one name
        names = [f"{label:03}" for label in present]
    return {name: partial(images_of, label) for name, label in zip(names, present, strict=True)}


def _of_csv(folder: Path, split: str, benchmark: Benchmark) -> Readers:
    """Lines filename,label, with the files in the folder images."""
    path = folder / f"{split}.csv"
    files: dict[str, list[Path]] = {}
    try:
        for record in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            files.setdefault(record["label"], []).append(folder / "images" / record["filename"])
    except (OSError, csv.Error, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no CSV file with the columns filename and label: {error!r}.") from error
    return {name: partial(benchmark.decode_all, paths) for name, paths in files.items()}


def _of_folders(folder: Path, split: str, benchmark: Benchmark) -> Readers:
    """<split>/<class>/<image>, or <class>/<image> for the listed classes."""
    base = folder / split
    names = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else benchmark.classes[split]
    base = base if base.is_dir() else folder
    return {name: partial(_decoded, benchmark, base / name) for name in names if (base / name).is_dir()}


def _decoded(benchmark: Benchmark, folder: Path) -> np.ndarray:
    files = sorted(filter(is_image, folder.iterdir()))
    if not files:
        raise DataError(f"{folder} holds no images.")
    return benchmark.decode_all(files)


LAYOUTS = (
    Layout("mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl", ("mini-imagenet-cache-*.pkl",), _of_cache),
    Layout("train_images_png.pkl and train_labels.pkl, and so for val and test", ("*_images_png.pkl",), _of_pngs),
    Layout("train.csv, val.csv and test.csv (filename,label) beside a folder images", ("train.csv",), _of_csv),
    Layout("class folders, as train/n01532829/*.jpg or n01532829/*.jpg", ("train/*/", "n*/"), _of_folders),
)


def _layout(folder: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if any(any(folder.glob(sign)) for sign in layout.sign)), None)


def _pickle(path: Path) -> Any:
    try:
        return load_pickle(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. It may be cut off; copy it again.") from error


def _record(path: Path, *keys: str) -> dict[str, Any]:
    """A pickled dictionary with these keys, which Python 2 may have written."""
    content = _pickle(path)
    record = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    if missing := [key for key in keys if key not in record]:
        raise DataError(f"{path} lacks {' and '.join(missing)}; it is not a file of this layout.")
    return record


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
