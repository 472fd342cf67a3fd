"""The heap of a training process on a CPU (L1), where glibc's malloc has it."""

import ctypes
import platform

# malloc maps larger blocks one by one and gives them back when they are freed. Smaller ones it cuts from its
# heap, which seldom shrinks, since it is cut at its end alone, and whose holes seldom fit what comes next.
# The threshold starts at the first and rises with what is freed, up to the second: in glibc
# `DEFAULT_MMAP_THRESHOLD` and `DEFAULT_MMAP_THRESHOLD_MAX`, see mallopt(3).
LEAST_MAPPED = 128 * 2**10
LARGEST_IN_HEAP = 32 * 2**20
_M_MMAP_THRESHOLD = -3  # of <malloc.h>


def map_large_blocks() -> bool:
    """Keep the threshold where it starts, in this process.

    With an adapter, a step asks for blocks of many sizes, and the heap grows to 1.3 to 1.6 times what is in
    use; mapped, they are gone when they are freed, for a few percent of processor time.

    Returns:
        Whether it could be done: with glibc it can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LEAST_MAPPED) == 1
