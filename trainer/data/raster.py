"""
One PNG, JPEG or PGM file: grey values without a header, so that nothing is known of patient, view or window.

Covered: 8 and 16 bits; grey pictures that were saved in colour; JPEG of more than 8 bits and lossless JPEG. Not covered: a
picture in colours, which is no mammogram; animations; 16 bits of more than one channel, which are read as 8.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from libjpeg.utils import decode as decode_jpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer.data.codestream import Frame, check_complete, read_frame
from trainer.data.mammogram import MAX_PIXELS, Header, Mammogram, RejectedError, said_by
from trainer.data.records import Code

_MAX_BYTES = 2 * MAX_PIXELS + 2**24
"""Of a file: the pixels of the largest image, and its header."""
_MAX_ASCII_BYTES = 6 * MAX_PIXELS + 2**24
"""Of a file whose grey values are written as numbers: five digits and a space."""
_HEAD_BYTES = 2**20
"""In which a header mostly lies."""
_FORMATS = ("PNG", "JPEG")
"""As Pillow names them."""
_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of a PNG."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row and distance of columns and rows, of each pass of an interlaced PNG."""
_CHUNK_BYTES = 2**20
_ASCII_PGM, _BINARY_PGM = b"P2", b"P5"
_PGM_HEADER = re.compile(rb"P[25]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s")
"""Width, height and largest value, with comments between them. Source: netpbm's pgm(5)."""
_PGM_HEADER_BYTES = 4096
_GREY_SPREAD = 12
"""Mean difference of a pixel's largest and smallest channel, of 255, from which on a picture is one in colours."""

# What Pillow and libjpeg let out when the bytes are not what they should be.
_FOREIGN_BYTES_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_Grey = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class _Picture:
    """A picture whose size is known and whose pixels are not yet decoded."""

    rows: int
    columns: int
    frames: int
    decode: Callable[[], _Grey]
    """Return the (H, W) grey values."""


def read_header(path: Path) -> Header:
    """Return the size of the picture in *path*. Raises RejectedError."""
    picture = _open(path, whole=False)
    return Header(pixels=picture.rows * picture.columns)


def read_mammogram(path: Path) -> Mammogram:
    """Return the grey values of *path*; the brightest are the densest. Raises RejectedError."""
    picture = _open(path, whole=True)
    try:
        stored = picture.decode()
    except _FOREIGN_BYTES_ERRORS as error:
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise RejectedError(Code.TRUNCATED if truncated else Code.UNDECODABLE, said_by(error)) from error
    values = 2 ** (8 * stored.dtype.itemsize)
    return Mammogram(
        stored=stored, brightness=np.arange(values, dtype=np.float32), padding=np.zeros(values, dtype=np.bool_)
    )


def _open(path: Path, *, whole: bool) -> _Picture:
    """Return the picture in *path*, if it is a single one of a credible size; unless *whole*, to be asked for that size only."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(min(size, _HEAD_BYTES))
        if size > (_MAX_ASCII_BYTES if head.startswith(_ASCII_PGM) else _MAX_BYTES):
            raise RejectedError(Code.TOO_LARGE, f"a file of {size} bytes")
        if not whole:
            try:
                return _picture_in(head)
            except RejectedError as rejected:
                is_pgm = head.startswith((_ASCII_PGM, _BINARY_PGM))  # whose header is short
                if is_pgm or size <= len(head) or rejected.code not in {Code.UNDECODABLE, Code.TRUNCATED}:
                    raise
        file.seek(0)
        return _picture_in(file.read())


def _picture_in(data: bytes) -> _Picture:
    """Return the picture in *data*, if it is a single one of a credible size."""
    frame = read_frame(data)
    if data.startswith((_ASCII_PGM, _BINARY_PGM)):
        picture = _of_pgm(data)
    elif frame is not None and (frame.bits > 8 or frame.is_lossless_jpeg):  # noqa: PLR2004  what Pillow decodes
        picture = _of_libjpeg(data, frame)
    else:
        picture = _of_pillow(data)
    if picture.rows * picture.columns > MAX_PIXELS:
        raise RejectedError(Code.TOO_LARGE, f"{picture.rows} x {picture.columns} pixels")
    if picture.rows * picture.columns == 0:
        raise RejectedError(Code.NOT_IMAGE, f"{picture.rows} x {picture.columns} pixels")
    if picture.frames > 1:
        raise RejectedError(Code.MULTIFRAME, f"{picture.frames} frames")
    return picture


def _of_pgm(data: bytes) -> _Picture:
    """Return the PGM in *data*; Pillow takes a minute for what is not of 255 or 65535 grey levels."""
    header = _PGM_HEADER.match(data[:_PGM_HEADER_BYTES])
    if header is None:
        raise RejectedError(Code.TRUNCATED if len(data) < _PGM_HEADER_BYTES else Code.UNDECODABLE, "no header of a PGM")
    columns, rows, largest = (int(number) for number in header.groups())
    if not 0 < largest < 2**16:
        raise RejectedError(Code.UNDECODABLE, f"a PGM with grey values up to {largest}, expected 8 or 16 bits")
    dtype = np.dtype(np.uint8 if largest < 2**8 else np.uint16)
    is_ascii = data.startswith(_ASCII_PGM)
    body = data[header.end() :]  # cut once, here: the caller lets go of the whole

    def decode() -> _Grey:
        if is_ascii:
            pixels = _numbers(body, rows * columns)
            if pixels.min() < 0 or pixels.max() > largest:
                raise RejectedError(Code.UNDECODABLE, "grey values beyond those that the header promises")
        else:
            missing = rows * columns * dtype.itemsize - len(body)
            if missing > 0:
                raise RejectedError(Code.TRUNCATED, f"{missing} bytes of pixels are missing")
            pixels = np.frombuffer(body, dtype.newbyteorder(">"), rows * columns)
        return pixels.astype(dtype).reshape(rows, columns)

    return _Picture(rows, columns, 1, decode)


def _numbers(text: bytes, count: int) -> NDArray[np.int32]:
    """Return the first *count* numbers of *text*."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # as which numpy reports what is no number
        try:
            numbers = np.fromstring(text, np.int32, sep=" ")  # told how many, it makes up those that are missing
        except (DeprecationWarning, ValueError) as error:
            raise RejectedError(Code.UNDECODABLE, "grey values that are no numbers") from error
    if len(numbers) < count:
        raise RejectedError(Code.TRUNCATED, f"{len(numbers)} grey values, expected {count}")
    return numbers[:count]


def _of_libjpeg(data: bytes, frame: Frame) -> _Picture:
    """Return the JPEG in *data*, one that Pillow does not decode: of more than 8 bits, or lossless."""
    if frame.components != 1:
        raise RejectedError(Code.UNDECODABLE, f"{frame.components} components of {frame.bits} bits, expected grey")

    def decode() -> _Grey:
        check_complete(data)
        pixels = np.asarray(decode_jpeg(data))
        if pixels.ndim != 2 or pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:  # noqa: PLR2004  a grey frame
            raise RejectedError(Code.UNDECODABLE, f"decoded as {pixels.dtype} of shape {pixels.shape}")
        return np.ascontiguousarray(pixels)

    return _Picture(frame.rows, frame.columns, 1, decode)


def _of_pillow(data: bytes) -> _Picture:
    """Return the PNG or JPEG in *data*."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is at the caller; and what is odd about it is decided there
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
            frames = getattr(picture, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise RejectedError(Code.TOO_LARGE, "more pixels than any mammogram has") from error
    except _FOREIGN_BYTES_ERRORS as error:
        raise RejectedError(Code.UNDECODABLE, f"no PNG or JPEG that can be read: {type(error).__name__}") from error

    def decode() -> _Grey:
        if data.startswith(_PNG):
            _check_png(data)
        return _grey(picture)

    return _Picture(picture.height, picture.width, frames, decode)


def _check_png(data: bytes) -> None:
    """Reject a PNG of which a part is missing or changed: Pillow looks at no checksum of pixels, and fills up missing rows."""
    view, place, kind = memoryview(data), len(_PNG), b""
    missing = _bytes_of_rows(data)
    inflating = zlib.decompressobj()
    while kind != b"IEND":
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        if end > len(view):
            raise RejectedError(Code.TRUNCATED, "the PNG has no end")
        kind = bytes(view[place + 4 : place + 8])
        is_needed = kind[:1].isupper()
        if is_needed and zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise RejectedError(Code.UNDECODABLE, "a checksum of the PNG is wrong")
        if kind == b"IDAT":
            deflated: bytes | memoryview = view[place + 8 : end - 4]
            while deflated and missing > 0:
                missing -= len(inflating.decompress(deflated, _CHUNK_BYTES))
                deflated = inflating.unconsumed_tail
        place = end
    if missing > 0:
        raise RejectedError(Code.TRUNCATED, f"{missing} bytes of pixels are missing")


def _bytes_of_rows(data: bytes) -> int:
    """Return how many bytes the rows of a PNG have, with the one of the filter before each. Source: PNG, 7.2 and 8.2."""
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[colour]
    total = 0
    for left, top, across, down in _PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)  # rounded up
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _grey(picture: Image.Image) -> _Grey:
    """Return the (H, W) grey values of *picture*, the right way up."""
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow also hands out as 32
        values = np.asarray(picture)
        if values.min() < 0 or values.max() >= 2**16:
            raise RejectedError(Code.UNDECODABLE, f"values from {values.min()} to {values.max()}, expected 16 bits")
        return values.astype(np.uint16)
    if picture.mode in {"L", "LA", "La", "1"}:
        return np.array(picture.convert("L"))
    # Every eighth row and column: all three channels in full are more memory than the rest of the work together.
    few = picture.resize((1 + picture.width // 8, 1 + picture.height // 8), Image.Resampling.NEAREST)
    channels = np.asarray(few.convert("RGB"))
    spread = channels.max(axis=2) - channels.min(axis=2)
    if spread.mean() > _GREY_SPREAD:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, "a picture in colours")
    return np.array(picture.convert("L"))
