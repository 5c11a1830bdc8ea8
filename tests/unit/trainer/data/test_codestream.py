from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.codestream import Frame, check_complete, check_single, check_size, read_frame
from trainer.data.mammogram import RejectedError
from trainer.data.records import Code

SAMPLES = Path(__file__).parent / "samples"


def encoded(kind: str, mode: str = "L", **options: object) -> bytes:
    """A codestream of 48 x 40 pixels by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def code_of(check: object, *arguments: object) -> Code | None:
    """The code with which *check* refuses *arguments*."""
    assert callable(check)
    try:
        check(*arguments)
    except RejectedError as rejected:
        return rejected.code
    return None


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        (encoded("JPEG"), Frame(48, 40, 8, 1)),
        (encoded("JPEG", progressive=True), Frame(48, 40, 8, 1)),
        (encoded("JPEG", mode="RGB"), Frame(48, 40, 8, 3)),
        (encoded("JPEG2000", no_jp2=True), Frame(48, 40, 8, 1)),
        (encoded("JPEG2000", no_jp2=False), Frame(48, 40, 8, 1)),
        (encoded("JPEG2000", mode="RGB", no_jp2=True), Frame(48, 40, 8, 3)),
        (encoded("JPEG2000", mode="I;16", no_jp2=True), Frame(48, 40, 16, 1)),
        ((SAMPLES / "extended12.jpg").read_bytes(), Frame(48, 40, 12, 1)),
        ((SAMPLES / "lossless12_sv4.jpg").read_bytes(), Frame(48, 40, 12, 1, is_lossless_jpeg=True)),
        ((SAMPLES / "lossless16_sv1.jpg").read_bytes(), Frame(48, 40, 16, 1, is_lossless_jpeg=True)),
        ((SAMPLES / "jpegls12.jls").read_bytes(), Frame(48, 40, 12, 1, is_lossless_jpeg=True)),
        ((SAMPLES / "rgb_lossless8.jpg").read_bytes(), Frame(48, 40, 8, 3, is_lossless_jpeg=True)),
        (b"\xff\xd8" + b"\xff" * 9 + encoded("JPEG")[2:], Frame(48, 40, 8, 1)),  # bytes that fill up
        (b"", None),
        (b"\xff\xd8", None),
        (b"\xff\xd8\xff\xe0\0\0\xff\xe0\0\0\xff\xe0\0\0\xff\xe0\0\0", None),  # segments of no length
        (b"\xff\x4f\xff\x51" + b"\0" * 38, None),
        (b"\0\0\0\x0cjP  \r\n\x87\n", None),
        (b"something else", None),
    ],
)
def test_read_frame(data: bytes, frame: Frame | None) -> None:
    """Size, depth and channels are read from the codestream itself, of every family; nothing is made up."""
    assert read_frame(data) == frame


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_a_frame_cut_anywhere(kind: str) -> None:
    """Of a codestream that ends early the frame is known or not, and nothing else happens; and that it ends is seen."""
    whole = encoded(kind, no_jp2=True)
    for place in range(len(whole)):
        assert read_frame(whole[:place]) in {None, read_frame(whole)}
        if place >= 2:
            assert code_of(check_complete, whole[:place]) == Code.TRUNCATED
    assert code_of(check_complete, whole) is None


@pytest.mark.parametrize("end", [b"", b"\0", b"\0" * 100, b"\xff", b"\xff\0"])
def test_what_fills_up_behind_the_end(end: bytes) -> None:
    """Padding behind the end of a codestream is no part of it."""
    assert code_of(check_complete, encoded("JPEG") + end) is None
    assert code_of(check_complete, encoded("JPEG")[:-2] + b"\xd9" + end) == Code.TRUNCATED


def test_check_complete_of_nothing() -> None:
    """Nothing and zeros are no codestream; what no family begins with is left to its decoder."""
    assert code_of(check_complete, b"") == Code.UNDECODABLE
    assert code_of(check_complete, bytes(1000)) == Code.UNDECODABLE
    assert code_of(check_complete, b"\x80something") is None


def test_check_size() -> None:
    """A frame has the size that its file promises and one channel; a bomb is called too large."""
    grey = encoded("JPEG")
    assert code_of(check_size, grey, 48, 40) is None
    assert code_of(check_size, grey, 40, 48) == Code.UNDECODABLE
    assert code_of(check_size, encoded("JPEG", mode="RGB"), 48, 40) == Code.UNDECODABLE
    bomb = grey.replace(b"\x08\x00\x30\x00\x28", b"\x08\xff\xff\xff\xff")
    assert code_of(check_size, bomb, 48, 40) == Code.TOO_LARGE
    planes = encoded("JPEG2000", no_jp2=False).replace(b"\0\0\0\x28\0\0\0\x30", b"\0\1\0\0\0\1\0\0")
    assert code_of(check_size, planes, 48, 40) == Code.TOO_LARGE
    assert code_of(check_size, b"no codestream", 48, 40) is None


def test_check_single() -> None:
    """The fragments of one frame begin one frame."""
    grey = encoded("JPEG")
    assert code_of(check_single, [grey[:50], grey[50:]]) is None
    assert code_of(check_single, []) is None
    assert code_of(check_single, [grey, grey]) == Code.MULTIFRAME
