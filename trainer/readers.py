"""
What a process that reads ahead does: it takes the indices of a batch and gives the images back.

Apart from `streaming`, and complete: such a process loads the modules of everything that is sent to it, and those of the
networks take seconds, for each process and pass.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from trainer.data.records import Unkept
from trainer.errors import DataError


@dataclass(frozen=True)
class Unreadable:
    """A batch that cannot be read. A value, because torch would bury an error's one line in a traceback."""

    reason: str
    """One line that names the file."""


class Reader(Protocol):
    """From indices to images; it is pickled once for each process."""

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the (B, H, W) images at *indices* (B,). Raises DataError."""
        ...


@dataclass(frozen=True)
class HeldImages:
    """Images in plain memory; each process gets a copy."""

    images: NDArray[np.uint8]

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the (B, H, W) images at *indices* (B,)."""
        return self.images[indices]


class MappedImages:
    """Images in a mapped file. Pickled as the file's name: each process maps it for itself, and none copies it."""

    def __init__(self, images: np.memmap[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self._path = Path(str(images.filename))
        self._offset, self._shape = images.offset, images.shape
        self._images: NDArray[np.uint8] | None = images

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_images": None}

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the (B, H, W) images at *indices* (B,). Raises DataError."""
        if self._images is None:
            self._images = self._mapped()
        images: NDArray[np.uint8] = self._images[indices]
        return images

    def _mapped(self) -> NDArray[np.uint8]:
        try:
            return np.memmap(self._path, dtype=np.uint8, mode="r", offset=self._offset, shape=self._shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path}: the decoded images cannot be opened any more: {error}") from error


def reader_of(images: NDArray[np.uint8] | Unkept) -> Reader:
    """Return what reads *images*."""
    if not isinstance(images, np.ndarray):
        return images
    # A part of a map has the file's name too, but another place in it.
    if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap):
        return MappedImages(images)
    return HeldImages(images)


class WholeBatches(TorchDataset[Tensor | Unreadable]):
    """A data set for torch's loader from which a whole batch is read at once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitems__(self, indices: list[int]) -> Tensor | Unreadable:
        """Return the (B, H, W) uint8 images at *indices*, or why there are none."""
        try:
            return torch.from_numpy(self._reader.read(np.array(indices, dtype=np.int64)))
        except DataError as error:
            return Unreadable(str(error))


def as_read(part: Any) -> Any:
    """Return *part*: it is a whole batch already, where torch expects a list of images."""
    return part


def begin_reading(_worker: int) -> None:
    """Make this process one that reads ahead: with one thread, deaf to Ctrl-C, and gone when the one that trains is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the process that trains ends this one
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """
    End this process when the one that trains has died.

    Torch looks at the parent's number, which here is the fork server's, and that lives as long as its children do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
