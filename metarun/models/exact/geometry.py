"""Sizes of images and of what a kernel leaves of them."""

from collections.abc import Iterable


def size_after(size: Iterable[int], kernel: int, stride: int, padding: int) -> list[int]:
    """[h, w] of images of ``size`` [H, W]."""
    return [(n + 2 * padding - kernel) // stride + 1 for n in size]
