"""How a process takes memory from the system: large blocks are kept for the next step, and lie on large pages.

A training step makes and frees tensors of many megabytes, the same in each. By itself the C library gives such blocks
back at once, so that the system has to hand out fresh pages, filled with zeros, 4 KiB at a time.
"""

import ctypes
import os

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # the numbers of mallopt(3)
_LARGEST = 2**31 - 1


def keep_large_blocks() -> None:
    """Let freed blocks be taken again instead of giving them back, and ask for large pages.

    To be called before torch makes a tensor. What the environment says of the allocator stays as it is. It changes
    nothing but time, and nothing at all where the C library is not glibc or the system has no large pages to give.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch, at its first tensor of 2 MiB
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # no block gets a mapping of its own, which would go away with it
        mallopt(_TRIM_THRESHOLD, _LARGEST)
