"""The convolution by Triton kernels: right, to float32 rounding, by triton's interpreter; and refused where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarun.errors import ConfigError
from metarun.models import triton_convolution
from metarun.models.layers import Conv2d, convolving
from tests.composing import experiment

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(not triton_convolution.installed(), reason="the package triton is not installed")


@needs_triton
def test_interpreted_on_the_cpu_it_is_torchs_convolution():
    """In a process of its own: triton is imported either to interpret or to compile."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/interpreted_triton.py"]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("kernel", ["forward", "input gradient", "weight gradient"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(kernel, precision, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from metarun.models import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = triton_kernels._correlate if kernel == "weight gradient" else triton_kernels._gather
    constants = {"K": 3, "STRIDE": 1, "PADDING": 1, "TRANSPOSED": kernel == "input gradient", "PRECISION": precision}
    constants |= triton_kernels._tile(rows=64, columns=1000, depth=1000)
    warps = constants.pop("num_warps")
    types = dict.fromkeys(("source", "weight", "out", "g", "x"), "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    given = {(i,): constants[name] for i, name in enumerate(function.arg_names) if name in constants}
    compiled = triton.compile(
        ASTSource(function, signature, constexprs=given), GPUTarget("cuda", 80, 32), options={"num_warps": warps}
    )
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= 48 * 1024  # what every GPU grants a program


def test_on_a_cpu_it_is_refused_with_the_rule_and_the_fix():
    with pytest.raises(ConfigError, match=r"convolution is triton, but .*\. Set execution\.convolution to auto"):
        experiment("task=prototypes", "dtype=float32", "execution.convolution=triton")


def test_float64_is_refused():
    with pytest.raises(ConfigError, match="its kernels are for float32 and dtype is float64"):
        experiment("task=prototypes", "dtype=float64", "execution.convolution=triton")


@needs_triton
def test_a_layer_on_a_cpu_refuses_it():
    with convolving("triton"), pytest.raises(ValueError, match="its kernels need an NVIDIA GPU"):
        Conv2d(1, 1, 3, 1, 1)(torch.zeros(1, 1, 4, 4))


def test_without_triton_a_layer_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(triton_convolution, "installed", lambda: False)
    with convolving("triton"), pytest.raises(ValueError, match="triton is not installed; pip install triton"):
        Conv2d(1, 1, 3, 1, 1)(torch.zeros(1, 1, 4, 4))


def test_in_float64_a_layer_is_torchs_own():
    conv, x = Conv2d(2, 3, 3, 2, 1).double(), torch.randn(2, 2, 7, 6, dtype=torch.float64)
    expected = conv(x)
    with convolving("triton"):
        assert torch.equal(conv(x), expected)
