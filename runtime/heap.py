"""How the process keeps the memory that it has freed."""

import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8  # of glibc's malloc.h


def share_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before they start.

    The GNU C library gives each thread a heap of its own, and what one thread frees lies there unused while another
    asks for more: of pictures that pass from thread to thread, memory then grows for minutes. Large blocks are what
    threads ask for here, so that they hardly ever wait for each other. Elsewhere nothing is done.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and no such heaps
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)
