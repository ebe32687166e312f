"""What the process does with memory that tensors no longer need."""

import ctypes
import sys
from collections.abc import Callable


def keep_freed_memory() -> None:
    """Makes glibc reuse large freed blocks instead of returning them to the system.

    A training step on a CPU frees and takes hundreds of megabytes again and again; without this a
    third of its time goes into page faults.
    """
    if not sys.platform.startswith("linux"):
        return
    with_mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if with_mallopt is not None:
        no_mmap, never_trim = (-4, 0), (-1, 2**31 - 1)
        with_mallopt(*no_mmap)
        with_mallopt(*never_trim)
