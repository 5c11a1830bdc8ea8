"""
One DICOM file: stored pixels and what its header means.

Files are judged by content, not by suffix or by one tag, and whatever pydicom stumbles over becomes a `RejectedError`
with a code. Covered: one grey frame of up to 16 bits in every encoding that pydicom's decoders know. Not covered: frames
of tomosynthesis, colour, presentation states.

pydicom warns freely. What silences it is not thread-safe: read from one thread of a process.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset as DicomDataset
from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from trainer.data.records import Code
from trainer.data.stored_values import brightness_table, padding_table

MAX_PIXELS = 128 * 2**20
"""The largest scanned films have 48 million pixels; a header that promises more than this is not believed."""

_MAMMOGRAPHY_CLASSES = {
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
}
_PROJECTION_CLASSES = {
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
}
_FOR_PROCESSING_CLASSES = {
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForProcessing,
}
_BREAST_VIEWS = {"CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "FB", "SIO", "ISO", "AT", "CV"}
_MAMMOGRAPHY_MODALITIES = {"", "MG", "RG"}  # none at all in RSNA's files, RG in test images
_PROJECTION_MODALITIES = {"CR", "DX", "OT", "SC"}  # mammograms only if something else says so

# The bytes are a stranger's: pydicom lets out whatever its parsing and its decoders meet in them.
_FOREIGN_BYTES_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # also NotImplementedError and RecursionError
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class RejectedError(Exception):
    """A file that is not used, with its code and a reason in one line."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = " ".join(reason.split())[:200]


@dataclass(frozen=True)
class Header:
    """What the header of a usable file says about whom and what it shows."""

    patient_id: str | None
    view: str | None
    laterality: str | None


@dataclass(frozen=True, eq=False)
class Mammogram:
    """Stored pixels and how bright each stored value is meant to be."""

    stored: NDArray[np.uint8] | NDArray[np.uint16]
    """(H, W) stored values; negative ones appear as their two's complement."""
    brightness: NDArray[np.float32]
    """(256,) or (65536,) brightness of every stored value, denser tissue brighter, without a unit: after modality LUT,
    VOI LUT or window, and polarity."""
    padding: NDArray[np.bool_]
    """Same shape as brightness: whether a stored value marks pixels that are no image."""


def read_header(path: Path) -> Header:
    """
    Return what the header of *path* says, without reading its pixels.

    Raises:
        RejectedError: it is no usable mammogram, as far as the header tells.
    """
    with _quiet():
        try:
            dataset = _parse(path, stop_before_pixels=True)
            _check_usable(dataset)
            return Header(
                patient_id=_text(dataset, "PatientID") or None,
                view=_text(dataset, "ViewPosition").upper() or None,
                laterality=(_text(dataset, "ImageLaterality") or _text(dataset, "Laterality")).upper() or None,
            )
        except _FOREIGN_BYTES_ERRORS as error:
            raise RejectedError(Code.UNDECODABLE, f"header: {error}") from error


def read_mammogram(path: Path, *, apply_window: bool) -> Mammogram:
    """
    Return the pixels of *path* and their meaning, with the file's first VOI LUT or window if *apply_window*.

    Raises:
        RejectedError: it is no usable mammogram, or cannot be decoded.
    """
    with _quiet():
        try:
            dataset = _parse(path, stop_before_pixels=False)
            _check_usable(dataset)
            _check_pixel_data(dataset)
            pixels = _as_stored(dataset.pixel_array)
            return Mammogram(
                stored=pixels.view(f"u{pixels.dtype.itemsize}"),
                brightness=brightness_table(dataset, pixels.dtype, apply_window=apply_window),
                padding=padding_table(dataset, pixels.dtype),
            )
        except _FOREIGN_BYTES_ERRORS as error:
            raise RejectedError(Code.UNDECODABLE, str(error) or type(error).__name__) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's complaints, which may quote a patient's data, out of warnings and logs."""
    pydicom_logger = logging.getLogger("pydicom")
    level = pydicom_logger.level
    pydicom_logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom_logger.setLevel(level)


def _parse(path: Path, *, stop_before_pixels: bool) -> DicomDataset:
    """Return the parsed file; reject what is no DICOM and what ends too early."""
    with path.open("rb") as file:
        start = file.read(132)
    if not start:
        raise RejectedError(Code.NOT_IMAGE, "empty file")
    if not _looks_like_dicom(start):
        raise RejectedError(Code.NOT_IMAGE, "no DICOM file")
    try:
        dataset = dcmread(path, stop_before_pixels=stop_before_pixels, force=True)
    except (EOFError, struct.error) as error:
        raise RejectedError(Code.TRUNCATED, "the file ends inside its header") from error
    # pydicom turns an unexpected end of the file into a warning and an empty dataset.
    if len(dataset) == 0:
        raise RejectedError(Code.TRUNCATED, "the file ends too early")
    if "TransferSyntaxUID" not in dataset.file_meta:  # files without a file meta header: written as they are read
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return dataset


def _looks_like_dicom(start: bytes) -> bool:
    """Return whether *start*, the first 132 bytes, has the DICOM mark, or begins with group 2 or 8 where it is absent."""
    return start[128:132] == b"DICM" or start[:2] in {b"\x02\x00", b"\x08\x00"}


def _check_usable(dataset: DicomDataset) -> None:
    """Reject what is no single grey mammogram for presentation of a credible size."""
    _check_mammography(dataset)
    sop_class = _text(dataset, "SOPClassUID")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1 or sop_class == BreastTomosynthesisImageStorage:
        raise RejectedError(Code.MULTIFRAME, f"{frames} frames")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise RejectedError(Code.NOT_IMAGE, "no rows and columns")
    intent = _text(dataset, "PresentationIntentType").upper()
    if intent == "FOR PROCESSING" or sop_class in _FOR_PROCESSING_CLASSES:
        raise RejectedError(Code.FOR_PROCESSING, "raw detector values: another intensity law")
    photometric = _text(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"photometric interpretation {photometric or 'absent'}")
    if int(dataset.BitsAllocated) not in {8, 16}:
        raise RejectedError(Code.UNDECODABLE, f"{dataset.BitsAllocated} bits allocated, expected 8 or 16")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > MAX_PIXELS:
        raise RejectedError(Code.TOO_LARGE, f"{rows} x {columns} pixels")
    if rows * columns == 0:
        raise RejectedError(Code.NOT_IMAGE, f"{rows} x {columns} pixels")


def _check_mammography(dataset: DicomDataset) -> None:
    """Reject what is no projection of a breast. No tag alone decides: each is missing or odd in some archive."""
    modality = _text(dataset, "Modality").upper()
    sop_class = _text(dataset, "SOPClassUID")
    if sop_class and sop_class not in _MAMMOGRAPHY_CLASSES | _PROJECTION_CLASSES:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"SOP class {dataset.SOPClassUID.name}")
    if modality not in _MAMMOGRAPHY_MODALITIES | _PROJECTION_MODALITIES:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"modality {modality}")
    if modality == "MG" or sop_class in _MAMMOGRAPHY_CLASSES:
        return
    body_part = _text(dataset, "BodyPartExamined").upper()
    of_breast = body_part == "BREAST" or _text(dataset, "ViewPosition").upper() in _BREAST_VIEWS
    if (modality in _PROJECTION_MODALITIES or body_part) and not of_breast:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"modality {modality or 'absent'}, body part {body_part or 'absent'}")


def _check_pixel_data(dataset: DicomDataset) -> None:
    """Reject a file without pixels or, where its length is known beforehand, with too few of them."""
    if "PixelData" not in dataset:
        raise RejectedError(Code.NOT_IMAGE, "no pixel data")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    expected = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    if len(dataset.PixelData) < expected:
        raise RejectedError(Code.TRUNCATED, f"{len(dataset.PixelData)} bytes of pixels, expected {expected}")


def _as_stored(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return *pixels* if they are one frame of integers of 8 or 16 bits; reject them otherwise."""
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:  # noqa: PLR2004  a grey frame
        raise RejectedError(Code.UNDECODABLE, f"decoded as {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(pixels)


def _text(dataset: DicomDataset, keyword: str) -> str:
    """Return a header's text without padding; empty where it is absent."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).replace("\0", "").strip()
