"""The decoded array in memory, for those who may keep nothing on the disk."""

from __future__ import annotations

import os
import weakref
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray


class MemoryWriter:
    """
    A growing (N, side, side) uint8 array in this process's memory.

    Not in plain memory but in a file that has no disk (memfd, Linux): so the processes that read ahead can map it by its
    name like the array of a cache, where plain memory would have to be copied into each.
    """

    def __init__(self, side: int) -> None:
        self.rows = 0
        self._side = side
        self._file = os.fdopen(os.memfd_create("images"), "w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, image: NDArray[np.uint8]) -> None:
        """Write *image*, (side, side), as the next row."""
        self._file.write(image.tobytes())
        self.rows += 1

    def images(self) -> NDArray[np.uint8]:
        """Return the array of the rows so far, at least one; it lives on when this writer is closed."""
        self._file.flush()
        kept = os.dup(self._file.fileno())
        shape = (self.rows, self._side, self._side)
        # The process's number and not "self": whoever opens it is another process.
        images = np.memmap(f"/proc/{os.getpid()}/fd/{kept}", dtype=np.uint8, mode="r+", shape=shape)
        weakref.finalize(images, os.close, kept)
        return images
