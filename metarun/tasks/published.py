"""Data sets that somebody publishes: their files, where they are looked for, and what is said where they are missing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from metarun.tasks.download import fetch
from metarun.tasks.store import ClassRows, Source

T = TypeVar("T")


class PublishedFile(NamedTuple):
    """A file by its name below the folder of its data set, where it is published, and how much it holds."""

    name: str
    url: str
    md5: str
    num_classes: int
    num_examples: int  # of all classes


@dataclass(frozen=True)
class Published:
    """Files of a data set in ``folder``, both below the data root; ``unpacked``, a folder of what is in them, is as good."""

    title: str
    files: tuple[PublishedFile, ...]
    folder: str = ""
    unpacked: str = ""
    size: str = ""  # of the download, where it is large
    terms: str = ""  # a sentence

    def source(
        self,
        data_root: Path,
        name: str,
        row_shape: tuple[int, ...],
        download: bool,
        read_file: Callable[[Path, PublishedFile], ClassRows],
    ) -> Source:
        """The classes that ``read_file`` finds in each file, kept as <data_root>/prepared/<name>."""
        read, missing = partial(self.read, data_root, read_file), partial(self.missing, data_root, download)
        return Source(data_root / "prepared" / name, row_shape, read, missing)

    def missing(self, data_root: Path, download: bool) -> str:
        """Message of what is neither there nor to be downloaded, and where to get it; empty where nothing is missing."""
        folder = data_root / self.folder
        lacking = [file for file in self.files if not (folder / file.name).is_file()]
        if download or not lacking or (self.unpacked and (folder / self.unpacked).is_dir()):
            return ""
        names, urls = (" and ".join(column) for column in zip(*(file[:2] for file in lacking), strict=True))
        size, unpacked = f" ({self.size})", f", or what is in it unpacked as {folder / self.unpacked}"
        return (
            f"{self.title} needs {names}{size * bool(self.size)} in {folder}{unpacked * bool(self.unpacked)}. To download "
            f"there: metarun ... task.download=true. Or put {urls} there yourself, or name the folder that holds "
            f"{self.folder or names.split('/')[0]} with data_root (or METARUN_DATA).{f' {self.terms}' * bool(self.terms)}"
        )

    def read(self, data_root: Path, read_file: Callable[[Path, PublishedFile], Iterator[T]]) -> Iterator[T]:
        """All that ``read_file`` finds in each file, or in the unpacked folder; missing files are downloaded first."""
        folder = data_root / self.folder
        if self.unpacked and (folder / self.unpacked).is_dir():
            yield from read_file(folder / self.unpacked, self.files[0])
            return
        for file in self.files:
            fetch(file.url, file.md5, folder / file.name)
        for file in self.files:
            yield from read_file(folder / file.name, file)
