"""The kernels of ``triton_convolution``, as matrix products whose patches are gathered while they are multiplied.

Letters are those of ``triton_convolution``. A tile has output channels along its rows and places (image, row, column) along
its columns, so that neighbouring threads read neighbouring pixels. Sums are float32 and of an order that the shapes alone
decide: no atomics, and no autotuning, whose choice could differ when a run is resumed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES, CHANNELS, DEPTH = 64, 64, 32  # the largest tile of a product, and how much of its sum one step takes
PROGRAMS, STEPS = 512, 8  # a weight gradient is cut up until there are so many programs, each of so many steps or more
SIZES = ["S", "R", "N", "of_n", "of_r", "H", "W", "h", "w", "O", "C", "span"]  # one kernel serves all of these


@triton.jit(do_not_specialize=SIZES)
def _gather(
    source, weight, out, S, R, N, of_n, of_r, H, W, h, w,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out [B, S, N, h, w] = the sum over R channels and a window of source [B, S, R, H, W], times weight.

    ``of_n``, ``of_r``: the steps in weight from one of N, and of R, to the next. TRANSPOSED: the window holds the places
    whose own window, in a forward convolution, holds this one.
    """
    task, blocks = tl.program_id(1).to(tl.int64), tl.cdiv(N, ROWS)  # offsets between tasks and images may pass 2**31
    n = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    place = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    image, y, x = place // (h * w), place % (h * w) // w, place % w
    sources = source + (task * S + image) * R * H * W  # [COLUMNS]
    weights = weight + task * N * R * K * K + n * of_n  # [ROWS]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, R * K * K, STEP):
        step = start + tl.arange(0, STEP)
        r, i, j = step // (K * K), step % (K * K) // K, step % K
        if TRANSPOSED:
            down, across = y[None, :] + PADDING - i[:, None], x[None, :] + PADDING - j[:, None]
            row, column = down // STRIDE, across // STRIDE
        else:
            row, column = y[None, :] * STRIDE + i[:, None] - PADDING, x[None, :] * STRIDE + j[:, None] - PADDING
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (image < S)[None, :] & (r < R)[:, None]
        if TRANSPOSED:
            inside &= (row * STRIDE == down) & (column * STRIDE == across)
        patches = tl.load(sources[None, :] + r[:, None] * (H * W) + row * W + column, inside, 0.0)  # [STEP, COLUMNS]
        kernel = tl.load(
            weights[:, None] + (r * of_r + step % (K * K))[None, :], (n < N)[:, None] & (r < R)[None, :], 0.0
        )  # [ROWS, STEP]
        total = tl.dot(kernel, patches, total, input_precision=PRECISION)
    outs = out + (task * S + image)[None, :] * N * h * w + n[:, None] * (h * w) + (y * w + x)[None, :]
    tl.store(outs, total, (n < N)[:, None] & (image < S)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _correlate(
    g, x, out, S, O, C, H, W, h, w, span,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out [parts, B, O, C, k, k]: the weight gradient's sum over ``span`` places a part, a multiple of STEP."""
    task, part, blocks = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.cdiv(O, ROWS)
    o = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    tap = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)  # of C * K * K
    c, i, j = tap // (K * K), tap % (K * K) // K, tap % K
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(part * span, part * span + span, STEP):
        place = start + tl.arange(0, STEP)
        image, y, column = place // (h * w), place % (h * w) // w, place % w
        first = task * S + image  # [STEP]
        slopes = g + first[None, :] * O * h * w + o[:, None] * (h * w) + (y * w + column)[None, :]
        slope = tl.load(slopes, (o < O)[:, None] & (image < S)[None, :], 0.0)  # [ROWS, STEP]
        row, column = y[None, :] * STRIDE + i[:, None] - PADDING, column[None, :] * STRIDE + j[:, None] - PADDING
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (c < C)[:, None] & (image < S)[None, :]
        patches = tl.load(x + first[None, :] * C * H * W + c[:, None] * (H * W) + row * W + column, inside, 0.0)
        total = tl.dot(slope, tl.trans(patches), total, input_precision=PRECISION)  # [ROWS, STEP] @ [STEP, COLUMNS]
    outs = out + (part * tl.num_programs(1) + task) * O * C * K * K + o[:, None] * (C * K * K) + tap[None, :]
    tl.store(outs, total, (o < O)[:, None] & (c < C)[None, :])


def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    (_, _, channels, *size), (_, num_out, _, k, _) = x.shape, weight.shape
    height, width = ((s + 2 * padding - k) // stride + 1 for s in size)
    out = x.new_empty(*x.shape[:2], num_out, height, width)
    steps = channels * k * k, k * k  # in weight, from one of O, and of C, to the next
    return _gathered(x, weight, out, steps, K=k, STRIDE=stride, PADDING=padding, TRANSPOSED=False)


def input_gradient(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
    channels, k = weight.shape[2:4]
    out = g.new_empty(*g.shape[:2], channels, height, width)
    steps = k * k, channels * k * k
    return _gathered(g, weight, out, steps, K=k, STRIDE=stride, PADDING=padding, TRANSPOSED=True)


def _gathered(source: Tensor, weight: Tensor, out: Tensor, steps: tuple[int, int], **constants: Any) -> Tensor:
    (tasks, images, depth, *size), (_, _, rows, height, width) = source.shape, out.shape
    places = images * height * width
    tile = _tile(rows, places, depth * constants["K"] ** 2)
    grid = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(places, tile["COLUMNS"]), tasks
    with torch.cuda.device_of(out):
        _gather[grid](
            source.contiguous(), weight.contiguous(), out, images, depth, rows, *steps, *size, height, width,
            **constants, **tile, PRECISION=_precision(),
        )  # fmt: skip
    return out


def weight_gradient(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
    (tasks, images, num_out, height, width), (channels, *size) = g.shape, x.shape[2:]
    places, taps = images * height * width, channels * kernel**2
    tile = _tile(num_out, taps, places)
    blocks = triton.cdiv(num_out, tile["ROWS"]) * triton.cdiv(taps, tile["COLUMNS"])
    steps = triton.cdiv(places, tile["STEP"])
    parts = max(1, min(PROGRAMS // (blocks * tasks), steps // STEPS))
    span = triton.cdiv(steps, parts) * tile["STEP"]
    parts = triton.cdiv(places, span)
    out = g.new_empty(parts, tasks, num_out, channels, kernel, kernel)
    with torch.cuda.device_of(out):
        _correlate[blocks, tasks, parts](
            g.contiguous(), x.contiguous(), out, images, num_out, channels, *size, height, width, span,
            K=kernel, STRIDE=stride, PADDING=padding, **tile, PRECISION=_precision(),
        )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)


def _tile(rows: int, columns: int, depth: int) -> dict[str, int]:
    """Powers of two from 16, the least that ``tl.dot`` takes, to the largest, or to what there is to do."""
    todo = {"ROWS": (rows, CHANNELS), "COLUMNS": (columns, PLACES), "STEP": (depth, DEPTH)}
    tile = {name: min(most, max(16, triton.next_power_of_2(size))) for name, (size, most) in todo.items()}
    # with four warps the largest tile spills registers on sm_80 and sm_90
    return tile | {"num_warps": 8 if tile["ROWS"] * tile["COLUMNS"] > 32 * 64 else 4}


def _precision() -> str:
    """That of torch's own matrix products, which ``tf32`` sets."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
