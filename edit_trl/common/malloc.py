"""glibc's malloc, set for a process that computes on a CPU."""

import ctypes
import platform

LARGEST_IN_HEAP = 32 * 2**20
"""The most bytes of a block that malloc can cut from its heap; it maps larger blocks one by one."""

# Of <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep the memory of freed blocks of at most `LARGEST_IN_HEAP` in this process, to be used again.

    Otherwise malloc returns and fetches gigabytes in each training step, and the system clears every page of it anew.
    In a virtual machine that is most of the time of a small student's step (`benchmarks/README.md`). One arena for all
    threads, so that the backward pass, which has a thread of its own, uses again what the forward pass has freed.

    Returns:
        Whether it is set; False where malloc is not glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = {
        _M_MMAP_THRESHOLD: LARGEST_IN_HEAP,
        _M_TRIM_THRESHOLD: _NEVER,
        _M_TOP_PAD: LARGEST_IN_HEAP,
        _M_ARENA_MAX: 1,
    }
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in settings.items())
