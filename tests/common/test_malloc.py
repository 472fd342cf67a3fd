"""The settings of glibc's malloc, in processes of their own: they cannot be taken back."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys, threading
from edit_trl.common.malloc import LARGEST_IN_HEAP, keep_freed_memory

assert sys.argv[1] == "as it is" or keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    sizes = [100_000, 2**20, 7 * 2**20, LARGEST_IN_HEAP // 2, LARGEST_IN_HEAP // 2]
    blocks = [libc.malloc(size) for size in sizes]
    for block, size in zip(blocks, sizes):
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

def steps(count):
    for _ in range(count):
        step()
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

steps(2)
before = faults()
steps(10)
print(faults() - before)
"""


def faults(case: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, case], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's malloc")
def test_freed_memory_is_used_again_by_every_thread():
    # A step touches 40 MiB, which are 10,240 pages; 20 steps are counted.
    assert faults("as it is") > 50_000
    assert faults("set") < 2_000
