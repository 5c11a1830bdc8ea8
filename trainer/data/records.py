"""The records of a data set: an image, a rejection, and all of it decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
"""What a label file's own split makes of an image."""


class Code(StrEnum):
    """Why an image or a label is not used."""

    TRUNCATED = "TRUNCATED"
    UNDECODABLE = "UNDECODABLE"
    NOT_IMAGE = "NOT_IMAGE"
    NOT_MAMMOGRAPHY = "NOT_MAMMOGRAPHY"
    MULTIFRAME = "MULTIFRAME"
    BLANK = "BLANK"
    TOO_LARGE = "TOO_LARGE"
    DUPLICATE = "DUPLICATE"
    """The pixels of an image that is used."""
    CONFLICTING_DUPLICATE = "CONFLICTING_DUPLICATE"
    """The pixels of an image with another label: none of them is used."""
    FOR_PROCESSING = "FOR_PROCESSING"
    EXCLUDED_VIEW = "EXCLUDED_VIEW"
    """A spot or magnified view, or one that was not asked for."""
    NO_LABEL = "NO_LABEL"
    NO_IMAGE = "NO_IMAGE"
    EXCLUDED_CLASS = "EXCLUDED_CLASS"
    UNKNOWN_LABEL = "UNKNOWN_LABEL"
    OUTSIDE_ROOT = "OUTSIDE_ROOT"
    LINK = "LINK"
    """A symbolic link that is not followed: it leads nowhere, in a circle, or to an image that is used under its own name."""
    SYSTEM_FILE = "SYSTEM_FILE"
    """What operating systems leave in folders: hidden files, thumbnails."""

    @property
    def broken(self) -> bool:
        """Whether the file is broken, and not left out on purpose: these count against `max_rejected`."""
        return self in {Code.TRUNCATED, Code.UNDECODABLE, Code.NOT_IMAGE, Code.BLANK, Code.TOO_LARGE}


@dataclass(frozen=True)
class Rejection:
    """One image or label that is not used."""

    path: str
    """Relative to the root, POSIX; for a label without images its key in the label file; or a pseudonym of either."""
    code: Code
    reason: str
    """One line."""


@dataclass(frozen=True)
class ImageRecord:
    """One image that is used."""

    path: str
    """Relative to the root, POSIX; or a pseudonym."""
    sha256: str
    """Of the file's bytes."""
    accession: str
    """Its key in the label file: an accession number, or an image's own name; or a pseudonym."""
    patient: str
    """What groups images: see `group_patients`; or a pseudonym."""
    label: int
    """0..C-1."""
    view: str | None
    laterality: str | None
    split: Split | None = None
    """Of the label file's own split, where that is to be used."""


class Unkept(Protocol):
    """Images of which nothing is kept: they are decoded again whenever they are read."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of the array that they would be."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the array that they would be."""
        ...

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """
        Return the (B, H, W) images at *indices* (B,), decoded in the process that calls.

        Raises:
            DataError: a file cannot be decoded any more; the message names it.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """A decoded data set: its images, and what is known of each."""

    images: NDArray[np.uint8] | Unkept
    """
    (N, H, W) uint8. By the mode of the cache: a map of the file that all processes share, opened copy-on-write, so that
    writing to it never reaches the file; this process's own array; or no array.
    """
    records: tuple[ImageRecord, ...]
    """N records, sorted by the path in the archive."""
    class_names: tuple[str, ...]
    """As the label file writes them, in label order."""
    rejections: tuple[Rejection, ...]
    data_hash: str
    """sha256 over relative paths, contents, labels, patients and preprocessing; not over places or times."""
    features: NDArray[np.float32] | None = None
    """(N, D) float32: a vector of a frozen backbone for each image."""
    features_hash: str | None = None
    """sha256 over the features; None without any."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the images and the features."""
        return self.images.nbytes + (0 if self.features is None else self.features.nbytes)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64 labels."""
        return np.array([record.label for record in self.records], dtype=np.int64)

    @property
    def patients(self) -> list[str]:
        """N patients."""
        return [record.patient for record in self.records]

    def rejected(self) -> dict[str, int]:
        """Return how often each code was given, by code."""
        return dict(sorted(Counter(rejection.code.value for rejection in self.rejections).items()))
