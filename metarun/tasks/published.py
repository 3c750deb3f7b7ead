"""Data sets that somebody publishes: files, where they are looked for, a reader, and the message where they are missing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metarun.tasks.download import fetch
from metarun.tasks.store import ClassRows, Source


class PublishedFile(NamedTuple):
    """A file by its name below the folder of its data set, where it is published, and how much it holds."""

    name: str
    url: str
    md5: str
    num_classes: int
    num_examples: int  # of all classes


@dataclass(frozen=True)
class Published:
    """A data set as it was published, of which ``read`` makes arrays to be kept as <data_root>/prepared/<name>.

    Its files are looked for in ``folder`` below the data root; ``unpacked``, a folder of what is in them, is as good.
    """

    title: str
    files: tuple[PublishedFile, ...]
    name: str
    row_shape: tuple[int, ...]
    read: Callable[[dict[Path, PublishedFile]], ClassRows]  # of what lies where
    folder: str = ""
    unpacked: str = ""
    size: str = ""  # of the download, where it is large
    terms: str = ""  # a sentence

    def source(self, data_root: str | Path, download: bool) -> Source:
        """Source of the arrays. Files that are missing are downloaded where that is allowed."""
        folder = Path(data_root) / self.folder
        whole = folder / self.unpacked if self.unpacked else None

        def missing() -> str:
            return "" if download or (whole and whole.is_dir()) else self.missing_in(folder)

        def read() -> ClassRows:
            if whole and whole.is_dir():
                return self.read({whole: self.files[0]})
            for file in self.files:
                fetch(file.url, file.md5, folder / file.name)
            return self.read({folder / file.name: file for file in self.files})

        return Source(Path(data_root) / "prepared" / self.name, self.row_shape, read, missing)

    def missing_in(self, folder: Path) -> str:
        """Message of which files are not in ``folder``, and where to get them; empty where all are."""
        missing = [file for file in self.files if not (folder / file.name).is_file()]
        if not missing:
            return ""
        names, urls = " and ".join(file.name for file in missing), " and ".join(file.url for file in missing)
        size = f" ({self.size})" if self.size else ""
        unpacked = f", or what is in it unpacked as {folder / self.unpacked}" if self.unpacked else ""
        terms = f" {self.terms}" if self.terms else ""
        return (
            f"{self.title} needs {names}{size} in {folder}{unpacked}. To download there: metarun ... task.download=true. Or "
            f"put {urls} there yourself, or name the folder that holds {self.folder or names.split('/')[0]} with data_root "
            f"(or METARUN_DATA).{terms}"
        )
