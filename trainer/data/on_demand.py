"""Images of which nothing decoded is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data.decoder import decode
from trainer.data.records import Unkept
from trainer.errors import DataError


@dataclass(frozen=True)
class OnDemand:
    """
    An (N, H, W) uint8 array that does not exist: what is read of it is decoded in the process that reads.

    Small, and made of names alone: it is sent to the reading processes. Read from one thread of a process.
    """

    root: Path
    """Absolute: a reading process may have another working directory."""
    paths: tuple[str, ...]
    """N files, relative to the root, POSIX."""
    preprocessing: PreprocessingConfig
    names: tuple[str, ...] | None = None
    """N pseudonyms, where paths must not be told."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return len(self.paths), self.preprocessing.img_size, self.preprocessing.img_size

    @property
    def nbytes(self) -> int:
        """Bytes of the array, if there were one."""
        return math.prod(self.shape)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """
        Return the (B, H, W) images at *indices* (B,).

        Raises:
            DataError: a file cannot be decoded any more.
        """
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        for row, index in enumerate(indices):
            images[row] = self._decoded(int(index))
        return images

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        """Return the (H, W) image at *index*, which could be decoded when the data set was opened."""
        path = self.root / self.paths[index]
        reply, image = decode(path, self.preprocessing)
        if image is None:
            raise DataError(f"{self.names[index] if self.names else path}: cannot be decoded any more: {reply.reason}")
        return image


_: type[Unkept] = OnDemand
