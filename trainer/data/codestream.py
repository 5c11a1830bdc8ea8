"""
What a compressed frame says of itself, before a decoder believes it: its size, its depth, and whether its end is there.

Covered: JPEG of every process, JPEG-LS, JPEG 2000. Decoders fill up what a truncated stream lacks, and reserve the memory that
its own header asks for, whatever the file around it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.mammogram import MAX_PIXELS, RejectedError
from trainer.data.records import Code

_JPEG, _JPEG_2000, _JP2_BOX = b"\xff\xd8", b"\xff\x4f", b"\x00\x00\x00\x0cjP  "
_END = b"\xff\xd9"
"""No decoder meets it earlier: behind FF, codes begin with 0."""
_SIZE_OF_JPEG_2000, _SIZE_LENGTH = b"\xff\x51", 43
"""The marker of the frame's size, and how many bytes it has with one component, counted from the codestream's start."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_NO_FRAME = {0xC4, 0xC8, 0xCC}
"""Markers among those of frames that are none: tables."""
_JPEG_LS_FRAME = 0xF7
_LOSSLESS_FRAMES = {0xC3, 0xC7, 0xCB, 0xCF, _JPEG_LS_FRAME}


@dataclass(frozen=True)
class Frame:
    """What a codestream says of its frame."""

    rows: int
    columns: int
    bits: int
    components: int
    """Of each pixel: 1 where it is grey."""
    is_lossless_jpeg: bool = False


def read_frame(data: bytes) -> Frame | None:
    """Return what the codestream in *data* says of itself, or None where it says nothing that can be read."""
    if data.startswith(_JPEG):
        return _jpeg_frame(data)
    if data.startswith(_JP2_BOX):  # a file of boxes, one of which holds the codestream
        data = data[max(0, data.find(_JPEG_2000 + _SIZE_OF_JPEG_2000)) :][:_SIZE_LENGTH]
    return _jpeg_2000_frame(data) if data.startswith(_JPEG_2000) else None


def check_size(data: bytes, rows: int, columns: int) -> None:
    """Reject a codestream whose frame is not *rows* x *columns* grey pixels; one that says nothing is left to its decoder."""
    frame = read_frame(data)
    if frame is None:
        return
    if frame.components != 1:
        raise RejectedError(Code.UNDECODABLE, f"{frame.components} components in the compressed frame, 1 in the header")
    if (frame.rows, frame.columns) == (rows, columns):
        return
    if frame.rows * frame.columns > MAX_PIXELS:
        raise RejectedError(Code.TOO_LARGE, f"{frame.rows} x {frame.columns} pixels in the compressed frame")
    raise RejectedError(
        Code.UNDECODABLE,
        f"{frame.rows} x {frame.columns} pixels in the compressed frame, {rows} x {columns} in the header",
    )


def check_single(fragments: Sequence[bytes]) -> None:
    """Reject what is meant to be the fragments of one frame if several of them begin one."""
    frames = sum(fragment.startswith((_JPEG + b"\xff", _JPEG_2000 + _SIZE_OF_JPEG_2000)) for fragment in fragments)
    if frames > 1:
        raise RejectedError(Code.MULTIFRAME, f"{frames} compressed frames, 1 in the header")


def check_complete(data: bytes) -> None:
    """Reject a codestream that has a beginning and no end, or neither."""
    content = data.rstrip(b"\0\xff")  # what is filled up with
    if not content:
        raise RejectedError(
            Code.UNDECODABLE, "a pixel stream of nothing but zeros" if data else "an empty pixel stream"
        )
    if content.startswith((_JPEG, _JPEG_2000, _JP2_BOX)) and not content.endswith(_END):
        raise RejectedError(Code.TRUNCATED, "the compressed frame has no end")


def _jpeg_frame(data: bytes) -> Frame | None:
    """Return what the frame header of a JPEG says: the first marker of a frame. Source: ITU-T T.81, B.2."""
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:  # noqa: PLR2004  what every marker begins with
        marker = data[place + 1]
        if marker == 0xFF:  # noqa: PLR2004  fill bytes
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == _JPEG_LS_FRAME:  # noqa: PLR2004
            bits, rows, columns = data[place + 4], _number(data, place + 5, 2), _number(data, place + 7, 2)
            return Frame(rows, columns, bits, data[place + 9], marker in _LOSSLESS_FRAMES)
        else:
            place += 2 + _number(data, place + 2, 2)
    return None


def _jpeg_2000_frame(data: bytes) -> Frame | None:
    """Return what the SIZ marker of a JPEG 2000 codestream says, which comes first. Source: ITU-T T.800, A.5.1."""
    if len(data) < _SIZE_LENGTH or data[2:4] != _SIZE_OF_JPEG_2000:
        return None
    right, bottom, left, top = (_number(data, place, 4) for place in (8, 12, 16, 20))
    return Frame(bottom - top, right - left, (data[42] & 0x7F) + 1, _number(data, 40, 2))


def _number(data: bytes, place: int, size: int) -> int:
    """Return the big-endian number of *size* bytes at *place*."""
    return int.from_bytes(data[place : place + size], "big")
