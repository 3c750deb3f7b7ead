"""Sizes of images after a kernel has passed over them."""

from collections.abc import Iterable


def size_after(size: Iterable[int], kernel: int, stride: int, padding: int) -> list[int]:
    """Height and width after a convolution of images of ``size`` [H, W], in pixels."""
    return [(n + 2 * padding - kernel) // stride + 1 for n in size]
