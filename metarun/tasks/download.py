"""Fetching a public file: checked by its md5, and continued where an earlier transfer broke off."""

import hashlib
import logging
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from metarun.errors import DataError

TIMEOUT_SECONDS = 60  # without a byte

logger = logging.getLogger(__name__)


def fetch(url: str, md5: str, path: Path) -> None:
    """Download ``url`` to ``path`` unless it is there. Until it is whole and checked, what has come lies in .NAME.partial.

    Raises DataError when the transfer breaks off (then the next call continues it) or the content has another md5.
    Call it while holding the lock of what is prepared: two transfers to one file would mix.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    what = f"could not download {url} (md5 {md5}) to {path}"
    try:
        _transfer(url, partial)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{what}: {error}. Try again: what has come is kept and continued. Or put the file there yourself."
        ) from error
    if (found := _md5(partial)) != md5:
        partial.unlink()
        raise DataError(
            f"{what}: what came has md5 {found} and was deleted. Try again, or put the file there yourself."
        )
    partial.replace(path)


def _transfer(url: str, partial: Path) -> None:
    """Append to ``partial`` what it still lacks of ``url``."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = Request(url, headers={"User-Agent": "metarun", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code == 416 and have:  # it lacks nothing; the md5 is the judge
            return
        raise
    with response, open(partial, "ab" if response.status == 206 else "wb") as file:
        start = file.tell()
        length = response.headers.get("Content-Length")
        logger.info("Downloading %s: from byte %d, %s to come", url, start, length)
        shutil.copyfileobj(response, file, 2**20)
        came = file.tell() - start
    if length is not None and came < int(length):
        raise ConnectionError(f"the connection broke off after {came} of {length} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
