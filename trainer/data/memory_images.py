"""The decoded array in memory, for those who may keep nothing on the disk."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.decoding import Outcome, Sink


class MemoryWriter:
    """
    A growing (N, side, side) uint8 array in this process's memory.

    Not in plain memory but in a file that has no disk (memfd, Linux): so the processes that read ahead can map it by its
    name like the array of a cache, where plain memory would have to be copied into each.
    """

    done: Sequence[Outcome] = ()

    def __init__(self, side: int) -> None:
        self._rows = 0
        self._side = side
        self._file = os.fdopen(os.memfd_create("images"), "w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, outcome: Outcome, image: NDArray[np.uint8] | None) -> None:  # noqa: ARG002  a disk needs the outcome
        """Take *image*, (side, side), as the next row, if the file is decoded."""
        if image is not None:
            self._file.write(image.tobytes())
            self._rows += 1

    def images(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Return the array of *rows*, ascending and at least one; it lives on when this writer is closed."""
        self._file.flush()
        kept = os.dup(self._file.fileno())
        # The process's number and not "self": whoever opens it is another process.
        name = f"/proc/{os.getpid()}/fd/{kept}"
        if len(rows) < self._rows:
            everything = np.memmap(name, dtype=np.uint8, mode="r+", shape=(self._rows, self._side, self._side))
            for place, row in enumerate(rows):
                everything[place] = everything[row]
            del everything
            os.ftruncate(kept, len(rows) * self._side**2)
        images = np.memmap(name, dtype=np.uint8, mode="r+", shape=(len(rows), self._side, self._side))
        weakref.finalize(images, os.close, kept)
        return images


_: type[Sink] = MemoryWriter
