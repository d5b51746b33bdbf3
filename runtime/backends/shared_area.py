"""Memory that two processes share, for arrays on their way from one to the other."""

import math
import mmap
import os
import sys
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_PAGES = 1 << 20  # it grows by this many bytes at least, so that slightly larger arrays need no new map


class SharedArea:
    """Memory without a name, which lives as long as one of the processes holds it; it grows as needed, up to the RAM.

    Args:
        descriptor: of the memory, which both processes have.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Self | None:
        """Make new memory; None where the system has none of this kind. Linux has."""
        if sys.platform != "linux":
            return None
        import fcntl

        try:
            descriptor = os.memfd_create("segship", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # Who reads while the other makes it smaller dies of it.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except OSError:  # a sandbox may forbid it
            return None
        return cls(descriptor)

    def put(self, array: NDArray[Any]) -> None:
        """Copy ``array`` to the beginning of the memory.

        Raises:
            OSError: if there is not so much memory.
        """
        if os.fstat(self.descriptor).st_size < array.nbytes:
            os.ftruncate(self.descriptor, -(-array.nbytes // _PAGES) * _PAGES)
        self.view(array.dtype, array.shape)[...] = array

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the beginning of the memory as an array that is not copied.

        Raises:
            ValueError: if the memory is smaller than that.
        """
        count = math.prod(shape)
        if not count:
            return np.empty(shape, dtype)
        if self._map is None or len(self._map) < count * dtype.itemsize:
            size = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, size) if size else None
        return np.frombuffer(self._map or b"", dtype, count).reshape(shape)

    def close(self) -> None:
        """Let go of the memory; arrays that are views of it keep it until they go."""
        self._map = None
        os.close(self.descriptor)
