"""The heap of a training process on a CPU, with glibc's malloc."""

import ctypes
import platform

# malloc maps blocks above a threshold one by one and returns them to the system when they are freed. It cuts
# smaller blocks from its heap, which shrinks only at its end and whose holes seldom fit the next block. The
# threshold starts at LEAST_MAPPED and rises with the size of freed blocks up to LARGEST_IN_HEAP: glibc's
# `DEFAULT_MMAP_THRESHOLD` and `DEFAULT_MMAP_THRESHOLD_MAX`, see mallopt(3).
LEAST_MAPPED = 128 * 2**10
LARGEST_IN_HEAP = 32 * 2**20
_M_MMAP_THRESHOLD = -3  # of <malloc.h>


def map_large_blocks() -> bool:
    """Map every block above 128 KiB in this process, so that its memory is returned when it is freed.

    With an adapter, a step allocates blocks of many sizes, and the heap grows to 1.3 to 1.6 times the memory
    in use. Mapping costs a few percent of processor time.

    Returns:
        Whether the blocks are mapped; False where malloc is not glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LEAST_MAPPED) == 1
