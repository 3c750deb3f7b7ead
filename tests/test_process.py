"""Settings of the process, each tried in a process of its own."""

import platform
import subprocess
import sys

import pytest

FREED = """
from metarun.process import prepare, return_freed_memory
prepare()
import torch
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = held()
x = torch.ones(2**26)
del x
kept = held() - before
return_freed_memory()
print(kept, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_freed_memory_is_kept_until_it_is_returned():
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=env)
    kept, left = map(float, done.stdout.split())
    assert kept > 200
    assert left < 50
