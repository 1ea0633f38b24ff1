"""On a CPU with glibc, what a process frees goes back to the system when it is asked for, and stays without that."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, torch
from seer.parallel.allocator import trim_heap, mmap_large_blocks
if sys.argv[1] == "at once":
    assert mmap_large_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
# as activations do: blocks of many sizes, of which some stay while others go
torch.zeros(7 << 20)  # 28 MB: from here on the C library keeps what is as large
held = [torch.ones(6 << 18) for _ in range(40)]  # 40 blocks of 6 MB
before = resident()
del held[::2]
if sys.argv[1] == "now":
    trim_heap()
print((before - resident()) / (6 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("how", "blocks"), [("at once", 20), ("now", 20), ("kept", 0)])
def test_every_second_block_that_is_freed_goes_back(how, blocks):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(blocks, abs=3)
