"""One image before it is preprocessed: its stored pixels, what its file says about it, and why a file is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.data.records import Code

MAX_PIXELS = 64 * 2**20
"""The largest scanned films have 48 million pixels; a header that promises more than this is not believed."""

_SAMPLED = 512
"""A fingerprint takes about this many rows and columns in full."""

_QUOTATION = re.compile(r"""(?:\bb)?(?:["`]|(?<!n)'|'(?!t ))""")
"""Where a message begins to quote; the apostrophe of "doesn't" is none."""


class RejectedError(Exception):
    """A file that is not used, with its code and a reason in one line."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = " ".join(reason.split())[:200]


def said_by(error: Exception) -> str:
    """Return what *error* says as far as its first quotation, which may be a patient's data; or of what kind it is."""
    if isinstance(error, MemoryError):
        return "asks for more memory than any mammogram needs"
    text = re.sub(r"'(-\d{4})'", r"\1", str(error))  # libjpeg's error code
    return _QUOTATION.split(text, maxsplit=1)[0].strip(" :(") or type(error).__name__


@dataclass(frozen=True)
class Header:
    """What a usable file says about whom and what it shows, before its pixels are decoded."""

    pixels: int
    """Rows times columns."""
    patient_id: str | None = None
    view: str | None = None
    """One of `VIEWS`."""
    special: str | None = None
    """One of `SPECIAL_VIEWS`, where the picture is of a part of the breast."""
    laterality: str | None = None
    """L or R."""
    for_processing: bool = False
    """Whether the values are the detector's own, with another intensity law than those for presentation."""

    def with_patient(self, patient_id: str) -> Header:
        """Return the same header with another PatientID."""
        return dataclasses.replace(self, patient_id=patient_id)


@dataclass(frozen=True, eq=False)
class Mammogram:
    """Stored pixels and how bright each stored value is meant to be."""

    stored: NDArray[np.uint8] | NDArray[np.uint16]
    """(H, W) stored values; negative ones appear as their two's complement."""
    brightness: NDArray[np.float32]
    """(256,) or (65536,) brightness of every stored value, without unit or origin: after modality LUT and VOI LUT or window;
    denser tissue brighter unless *is_inverse*."""
    padding: NDArray[np.bool_]
    """Same shape as brightness: whether a stored value marks pixels that are no image."""
    is_inverse: bool = False
    """Whether the smallest value is meant to be white (MONOCHROME1)."""
    is_linear: bool = False
    """Whether values are proportional to the intensity of the X-rays, as a detector's raw ones are, and not to its logarithm."""

    def fingerprint(self) -> str:
        """
        Return a hash, in hex, that images share when their stored pixels are the same, however a file encodes them.

        Of a grid of pixels in full, of all others only their sum: hashing them all would take as long as reading them.
        """
        height, width = self.stored.shape
        grid = self.stored[:: max(1, height // _SAMPLED), :: max(1, width // _SAMPLED)]
        total = int(cv2.sumElems(self.stored)[0])  # exact: below 2**53, and ten times as fast as numpy's
        hashed = hashlib.sha256(f"{height} {width} {total}\n".encode())
        hashed.update(grid.astype("<u2").tobytes())
        return hashed.hexdigest()[:32]
