"""Taking the patches of images, and its transpose, each as one kernel for an NVIDIA GPU.

Images [R, S H W] have R channels of tasks and S images each; patches [R, k k, S h w] hold what a kernel of size k sees at
each place. No atomics and no autotuning, so a resumed run is bit-identical.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # places, or pixels, of a program


@triton.jit(do_not_specialize=["places"])
def _take(
    images, out, places, PIXELS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """images [R, S H W] -> out [R, k k, S h w]; ``places`` is S h w and PIXELS is S H W."""
    blocks = tl.cdiv(places, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # offsets may pass 2**31
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = place // (h * w), place % (h * w) // w, place % w
    within = images + row * PIXELS + image * (H * W)
    outs = out + row * places * (K * K) + place
    for i in tl.static_range(K):
        down = y * STRIDE + i - PADDING
        fits_down = (place < places) & (down >= 0) & (down < H)
        for j in tl.static_range(K):
            across = x * STRIDE + j - PADDING
            value = tl.load(within + down * W + across, fits_down & (across >= 0) & (across < W), 0.0)
            tl.store(outs + (i * K + j) * places, value, place < places)


@triton.jit(do_not_specialize=["pixels"])
def _fold(
    patches, out, pixels, PLACES: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """patches [R, k k, S h w] -> out [R, S H W]; PLACES is S h w and ``pixels`` is S H W."""
    blocks = tl.cdiv(pixels, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = pixel // (H * W), pixel % (H * W) // W, pixel % W
    within = patches + row * (K * K * PLACES) + image * (h * w)
    total = tl.zeros((BLOCK,), patches.dtype.element_ty)
    for i in tl.static_range(K):
        down = y + PADDING - i
        high = down // STRIDE
        fits_down = (pixel < pixels) & (down >= 0) & (high < h) & (high * STRIDE == down)
        for j in tl.static_range(K):
            across = x + PADDING - j
            wide = across // STRIDE
            fits = fits_down & (across >= 0) & (wide < w) & (wide * STRIDE == across)
            total += tl.load(within + (i * K + j) * PLACES + high * w + wide, fits, 0.0)
    tl.store(out + row * pixels + pixel, total, pixel < pixels)


def take(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """x [B, C, S, H, W] -> [B, C k k, S h w]."""
    tasks, channels, images, height, width = x.shape
    h, w = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    pixels, places = images * height * width, images * h * w
    out = x.new_empty(tasks, channels * kernel**2, places)
    with torch.cuda.device_of(out):
        _take[(triton.cdiv(places, BLOCK) * tasks * channels,)](
            x.contiguous(), out, places, pixels, height, width, h, w, kernel, stride, padding, BLOCK
        )
    return out


def fold(patches: Tensor, images: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    """patches [B, C k k, S h w] -> [B, C, S, H, W]."""
    tasks, (h, w) = len(patches), ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    out = patches.new_empty(tasks, patches.shape[1] // kernel**2, images, height, width)
    pixels, places = images * height * width, images * h * w
    with torch.cuda.device_of(out):
        _fold[(triton.cdiv(pixels, BLOCK) * tasks * out.shape[1],)](
            patches.contiguous(), out, pixels, places, height, width, h, w, kernel, stride, padding, BLOCK
        )
    return out
