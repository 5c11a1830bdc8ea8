"""
One DICOM file: stored pixels and what its header means.

Files are judged by content, not by suffix or by one tag, and whatever pydicom stumbles over becomes a `RejectedError`
with a code. Covered: one grey frame of up to 16 bits in every encoding that pydicom's decoders know. Not covered: frames
of tomosynthesis, colour, presentation states; these are refused.

What memory a file takes does not depend on its size: large elements that nobody needs are never read, and pixels only where
they can be those of one image.

pydicom warns freely. What silences it is not thread-safe: read from one thread of a process.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset as DicomDataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_fragmented_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from trainer.data.codestream import check_complete, check_single, check_size
from trainer.data.dicom_header import check_usable, is_for_processing, is_linear, patient_id, photometric
from trainer.data.mammogram import MAX_PIXELS, Header, Mammogram, RejectedError, said_by
from trainer.data.records import Code
from trainer.data.stored_values import brightness_table, padding_table
from trainer.data.views import laterality_of, special_view_of, view_of

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

_MAX_BYTES = 2 * MAX_PIXELS + 2**26
"""Of a file: the pixels of the largest image, and a header beyond all that were seen."""
_MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 2**24
"""Of a deflated file: the pixels of the largest image, and its header."""
_CHUNK_BYTES = 2**20
_LARGE_BYTES = 2**16
"""An element of more than this is read when it is asked for, if at all."""
_NEEDED_WHEN_LARGE = ("PixelData", "ModalityLUTSequence", "VOILUTSequence")
_EXCESS_BYTES = 2**20
"""Of pixel data: what may lie behind the pixels of the one frame."""
_LAST_NEEDED_GROUP = 0x0054
"""Of all that a header is asked for; it is the one of the view's code."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_TAGS_OF_PIXELS = {0x7FE00008, 0x7FE00009, _PIXEL_DATA}


def looks_like_dicom(start: bytes) -> bool:
    """Return whether *start*, the first 132 bytes, has the DICOM mark, or begins with group 2 or 8 where it is absent."""
    return start[128:132] == b"DICM" or start[:2] in {b"\x02\x00", b"\x08\x00"}


def read_header(path: Path) -> Header:
    """
    Return what the header of *path* says, without reading its pixels.

    Raises:
        RejectedError: it is no usable mammogram, as far as the header tells.
    """
    with _quiet():
        try:
            dataset = _usable(path, stop_before_pixels=True)
            return Header(
                pixels=int(dataset.Rows) * int(dataset.Columns),
                patient_id=patient_id(dataset),
                view=view_of(dataset),
                special=special_view_of(dataset),
                laterality=laterality_of(dataset),
                for_processing=is_for_processing(dataset),
            )
        except _FOREIGN_BYTES_ERRORS as error:
            raise RejectedError(Code.UNDECODABLE, f"header: {said_by(error)}") from error


def read_mammogram(path: Path, *, apply_window: bool) -> Mammogram:
    """
    Return the pixels of *path* and their meaning, with the file's first VOI LUT or window if *apply_window*.

    Raises:
        RejectedError: it is no usable mammogram, or cannot be decoded.
    """
    with _quiet():
        try:
            dataset = _usable(path, stop_before_pixels=False)
            _check_pixel_data(dataset, path)
            _fill_in(dataset)
            pixels = _decode(dataset)
            return Mammogram(
                stored=pixels.view(f"u{pixels.dtype.itemsize}"),
                brightness=brightness_table(dataset, pixels.dtype, apply_window=apply_window),
                padding=padding_table(dataset, pixels.dtype),
                is_inverse=photometric(dataset) == "MONOCHROME1",
                is_linear=is_linear(dataset),
            )
        except _FOREIGN_BYTES_ERRORS as error:
            raise RejectedError(Code.UNDECODABLE, said_by(error)) from error


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


def _usable(path: Path, *, stop_before_pixels: bool) -> DicomDataset:
    """Return the parsed file; reject what is no mammogram, and then what is too large for one."""
    dataset = _parse(path, stop_before_pixels=stop_before_pixels)
    check_usable(dataset)
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise RejectedError(Code.TOO_LARGE, f"a file of {size} bytes")
    return dataset


def _parse(path: Path, *, stop_before_pixels: bool) -> DicomDataset:
    """Return the parsed file without large elements that nobody needs; reject what ends too early."""
    is_deflated = _is_deflated(path)
    try:
        with path.open("rb") as file:
            dataset = read_partial(
                file,
                _is_behind_header if stop_before_pixels else _BehindPixels(),
                # What is deflated has no place in the file from which it could be read later.
                defer_size=None if is_deflated and not stop_before_pixels else _LARGE_BYTES,
                force=True,
            )
    except (EOFError, struct.error) as error:
        raise RejectedError(Code.TRUNCATED, "the file ends inside its header") from error
    # pydicom turns an unexpected end of the file into a warning and an empty dataset.
    if len(dataset) == 0:
        raise RejectedError(Code.TRUNCATED, "the file ends too early")
    dataset.filename = str(path)
    needed = {tag_for_keyword(keyword) for keyword in _NEEDED_WHEN_LARGE}
    for tag in list(dataset.keys()):
        if tag not in needed and _is_unread(dataset.get_item(tag, keep_deferred=True)):
            del dataset[tag]
    if "TransferSyntaxUID" not in dataset.file_meta:  # files without a file meta header: written as they are read
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return dataset


def _is_unread(element: object) -> bool:
    """Return whether pydicom left the value of *element* in the file."""
    return isinstance(element, RawDataElement) and element.value is None and element.length > 0


def _is_behind_header(tag: BaseTag, _vr: str | None, length: int) -> bool:
    """Return whether nothing is needed from *tag* on: of pixels, or of unknown length and so read whole to find its end."""
    return tag in _TAGS_OF_PIXELS or (tag.group > _LAST_NEEDED_GROUP and length == _UNDEFINED_LENGTH)


class _BehindPixels:
    """Whether a tag is behind the pixels: what fills up a file can be many millions of elements without tag and value."""

    def __init__(self) -> None:
        self._is_behind = False

    def __call__(self, tag: BaseTag, _vr: str | None, _length: int) -> bool:
        was_behind = self._is_behind
        self._is_behind = was_behind or tag == _PIXEL_DATA
        return was_behind


def _is_deflated(path: Path) -> bool:
    """
    Return whether the file is deflated; reject one that then ends too early, or is a bomb.

    It is inflated whole before its header can be read.
    """
    with path.open("rb") as file:
        start = file.read(2048)
        if DeflatedExplicitVRLittleEndian.encode() not in start:
            return False
        file.seek(132 if start[128:132] == b"DICM" else 0)
        read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_behind_file_meta)
        inflating, size = zlib.decompressobj(-zlib.MAX_WBITS), path.stat().st_size
        size = size if size > _MAX_INFLATED_BYTES else 0  # it is read whole too, whatever lies behind its end
        while not inflating.eof and size <= _MAX_INFLATED_BYTES:
            deflated = inflating.unconsumed_tail or file.read(_CHUNK_BYTES)
            if not deflated:
                raise RejectedError(Code.TRUNCATED, "the deflated file ends too early")
            size += len(inflating.decompress(deflated, _CHUNK_BYTES))
    if size > _MAX_INFLATED_BYTES:
        raise RejectedError(Code.TOO_LARGE, "a deflated file that is larger than any mammogram")
    return True


def _is_behind_file_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Return whether *tag* is the first of what is deflated."""
    return tag.group != 2  # noqa: PLR2004  the group of file meta


def _check_pixel_data(dataset: DicomDataset, path: Path) -> None:
    """Reject a file without pixels, or with too few of them as far as that can be known before they are decoded."""
    if "PixelData" not in dataset:
        if _mentions_pixel_data(path):  # pydicom drops an element whose end is missing
            raise RejectedError(Code.TRUNCATED, "the file ends inside its pixel data")
        raise RejectedError(Code.NOT_IMAGE, "no pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    expected = rows * columns * int(dataset.BitsAllocated) // 8
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        if syntax != RLELossless:
            fragments = next(generate_fragmented_frames(dataset.PixelData, number_of_frames=1))
            check_single(fragments)
            frame = b"".join(fragments)
            check_complete(frame)
            check_size(frame, rows, columns)
        return
    size = _size_of_pixel_data(dataset, path)
    if size > expected + _EXCESS_BYTES:
        if size % expected <= 1:  # an odd number of bytes is padded
            raise RejectedError(Code.MULTIFRAME, f"{size // expected} frames, 1 in the header")
        raise RejectedError(Code.UNDECODABLE, f"{size} bytes of pixels, expected {expected}")
    if len(dataset.PixelData) < expected:
        raise RejectedError(Code.TRUNCATED, f"{len(dataset.PixelData)} bytes of pixels, expected {expected}")


def _size_of_pixel_data(dataset: DicomDataset, path: Path) -> int:
    """Return how many bytes the pixel data have, before they are read."""
    element = dataset.get_item("PixelData", keep_deferred=True)
    if isinstance(element, RawDataElement) and _is_unread(element):
        return min(element.length, path.stat().st_size - element.value_tell)  # the file may end before
    return len(element.value or b"")


def _mentions_pixel_data(path: Path) -> bool:
    """Return whether the tag of pixel data is among the bytes of *path*."""
    with path.open("rb") as file:
        content = b""
        while chunk := file.read(_CHUNK_BYTES):
            content = content[-3:] + chunk  # a tag may lie across the border
            if b"\xe0\x7f\x10\x00" in content or b"\x7f\xe0\x00\x10" in content:
                return True
    return False


def _fill_in(dataset: DicomDataset) -> None:
    """Give *dataset* what careless writers leave out because there is only one thing it can be."""
    usual = {"SamplesPerPixel": 1, "PixelRepresentation": 0, "BitsStored": int(dataset.BitsAllocated)}
    for keyword, value in usual.items():
        if dataset.get(keyword) in {None, ""}:
            setattr(dataset, keyword, value)


def _decode(dataset: DicomDataset) -> NDArray[Any]:
    """Return the one frame of *dataset*, 8 or 16 bits of native order, without what lies in bits that are not stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    # One decoder: pydicom's second choice for a stream that the first refuses may be one that fills up what is missing.
    plugin = "pylibjpeg" if syntax.is_encapsulated else ""
    shift = 0 if syntax.is_encapsulated else _bits_below(dataset)
    try:
        pixels = pixel_array(
            dataset,
            raw=True,
            decoding_plugin=plugin,
            correct_unused_bits=not shift,
            photometric_interpretation=photometric(dataset),
        )
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the decoder for RLE, in Rust; it is no Exception
            raise
        raise RejectedError(Code.UNDECODABLE, "a stream in which its decoder loses its way") from error
    if shift:
        allocated, stored = 8 * pixels.dtype.itemsize, int(dataset.BitsStored)
        np.left_shift(pixels, allocated - stored - shift, out=pixels)
        np.right_shift(pixels, allocated - stored, out=pixels)  # of signed values it repeats the sign
    if pixels.ndim == 3:  # noqa: PLR2004  one channel, so these are frames
        raise RejectedError(Code.MULTIFRAME, f"{len(pixels)} frames, 1 in the header")
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:  # noqa: PLR2004  a grey frame
        raise RejectedError(Code.UNDECODABLE, f"decoded as {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _bits_below(dataset: DicomDataset) -> int:
    """Return how many bits lie below those that are stored; HighBit says where these begin, and mostly there are none."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    highest = dataset.get("HighBit")
    return int(highest) + 1 - stored if highest is not None and stored <= int(highest) < allocated else 0
