"""What ``test_task_convolution`` runs in a process of its own, where triton interprets the kernels on the CPU."""

import pytest
import torch

from metarun.models.exact import convolution as operators
from metarun.models.exact import triton_patches

GEOMETRIES = [(7, 6, 3, 2, 1), (9, 9, 3, 1, 1), (8, 5, 5, 2, 2), (5, 5, 1, 1, 0), (9, 8, 3, 3, 0), (30, 31, 3, 2, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), GEOMETRIES)
def test_the_kernels_give_torchs_patches_and_their_transpose(height, width, kernel, stride, padding, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, height, width, dtype=dtype)
    patches = operators.take(x, kernel, stride, padding)
    assert torch.equal(triton_patches.take(x, kernel, stride, padding), patches)
    given = torch.randn_like(patches)
    expected = operators.fold(given, 4, height, width, kernel, stride, padding)
    assert torch.allclose(triton_patches.fold(given, 4, height, width, kernel, stride, padding), expected, atol=1e-6)
