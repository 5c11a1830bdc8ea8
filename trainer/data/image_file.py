"""One file of an archive, of whatever kind: what kind it is, its bytes say, and neither its name nor its suffix."""

from __future__ import annotations

from pathlib import Path

from trainer.data import dicom, raster
from trainer.data.mammogram import Header, Mammogram, RejectedError
from trainer.data.records import Code

_PGM = tuple(kind + separator for kind in (b"P2", b"P5") for separator in (b"\n", b" ", b"\r", b"\t", b"#"))
_RASTER = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_PGM)
"""How PNG, JPEG and PGM files begin."""


def read_header(path: Path) -> Header:
    """
    Return what *path* says about its image before its pixels are decoded.

    Raises:
        RejectedError: it is no usable mammogram, as far as its header tells.
    """
    return raster.read_header(path) if _is_raster(path) else dicom.read_header(path)


def read_mammogram(path: Path, *, apply_window: bool) -> Mammogram:
    """
    Return the pixels of *path* and their meaning, with a DICOM's first VOI LUT or window if *apply_window*.

    Raises:
        RejectedError: it is no usable mammogram, or cannot be decoded.
    """
    return raster.read_mammogram(path) if _is_raster(path) else dicom.read_mammogram(path, apply_window=apply_window)


def _is_raster(path: Path) -> bool:
    """Return whether *path* is a PNG, JPEG or PGM and no DICOM; reject what is neither."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise RejectedError(Code.UNDECODABLE, f"cannot be read: {error.strerror}") from error
    if not start:
        raise RejectedError(Code.NOT_IMAGE, "empty file")
    if dicom.looks_like_dicom(start):
        return False
    if not start.startswith(_RASTER):
        raise RejectedError(Code.NOT_IMAGE, "neither DICOM nor PNG, JPEG or PGM")
    return True
