"""Taking the patches of images, and its transpose, each as one kernel for an NVIDIA GPU.

Images [R, S H W] have R channels of tasks and S images each; patches [R, k k, S h w] hold what a kernel of size k sees at
each place. No atomics and no autotuning, so a resumed run is bit-identical.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metarun.models.exact.geometry import size_after

BLOCK = 512  # places, or pixels, of a program


@triton.jit(do_not_specialize=["S"])
def _take(
    images, out, S,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Kernel of ``take``: images [R, S H W] -> out [R, k k, S h w]."""
    places = S * h * w
    blocks = tl.cdiv(places, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # offsets may pass 2**31
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = place // (h * w), place % (h * w) // w, place % w
    within = images + row * S * (H * W) + image * (H * W)
    outs = out + row * places * (K * K) + place
    for i in tl.static_range(K):
        down = y * STRIDE + i - PADDING
        fits_down = (place < places) & (down >= 0) & (down < H)
        for j in tl.static_range(K):
            across = x * STRIDE + j - PADDING
            value = tl.load(within + down * W + across, fits_down & (across >= 0) & (across < W), 0.0)
            tl.store(outs + (i * K + j) * places, value, place < places)


@triton.jit(do_not_specialize=["S"])
def _fold(
    patches, out, S,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Kernel of ``fold``: patches [R, k k, S h w] -> out [R, S H W]."""
    pixels, places = S * H * W, S * h * w
    blocks = tl.cdiv(pixels, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = pixel // (H * W), pixel % (H * W) // W, pixel % W
    within = patches + row * places * (K * K) + image * (h * w)
    total = tl.zeros((BLOCK,), patches.dtype.element_ty)
    for i in tl.static_range(K):
        down = y + PADDING - i
        high = down // STRIDE
        fits_down = (pixel < pixels) & (down >= 0) & (high < h) & (high * STRIDE == down)
        for j in tl.static_range(K):
            across = x + PADDING - j
            wide = across // STRIDE
            fits = fits_down & (across >= 0) & (wide < w) & (wide * STRIDE == across)
            total += tl.load(within + (i * K + j) * places + high * w + wide, fits, 0.0)
    tl.store(out + row * pixels + pixel, total, pixel < pixels)


def take(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Take patches by one kernel: x [B, C, S, H, W] -> [B, C k k, S h w]."""
    tasks, channels, images, height, width = x.shape
    h, w = size_after((height, width), kernel, stride, padding)
    out = x.new_empty(tasks, channels * kernel**2, images * h * w)
    with torch.cuda.device_of(out):
        _take[(triton.cdiv(images * h * w, BLOCK) * tasks * channels,)](
            x.contiguous(), out, images, height, width, h, w, kernel, stride, padding, BLOCK
        )
    return out


def fold(patches: Tensor, images: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Fold patches back by one kernel, the transpose of ``take``: [B, C k k, S h w] -> [B, C, S, H, W]."""
    tasks, (h, w) = len(patches), size_after((height, width), kernel, stride, padding)
    out = patches.new_empty(tasks, patches.shape[1] // kernel**2, images, height, width)
    with torch.cuda.device_of(out):
        _fold[(triton.cdiv(images * height * width, BLOCK) * tasks * out.shape[1],)](
            patches.contiguous(), out, images, height, width, h, w, kernel, stride, padding, BLOCK
        )
    return out
