from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.data.image_file import read_header, read_mammogram
from trainer.data.mammogram import Header, RejectedError
from trainer.data.records import Code

SAMPLES = Path(__file__).parent / "samples"
GREY = np.add.outer(np.arange(60), 3 * np.arange(45)).astype(np.uint8)
GREY_16 = GREY.astype(np.uint16) * 200 + 7


def saved(kind: str, pixels: NDArray[Any] = GREY, mode: str | None = None, **options: Any) -> bytes:
    """The bytes of a picture file by Pillow."""
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, interlaced: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG written chunk by chunk; *pixels* with a filter byte before each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def read(data: bytes, folder: Path, name: str = "picture") -> NDArray[Any]:
    """The stored values of a file of these bytes; what the header says of its size is right."""
    path = folder / name
    path.write_bytes(data)
    header, mammogram = read_header(path), read_mammogram(path, apply_window=True)
    assert header == Header(pixels=mammogram.stored.size)
    assert not mammogram.padding.any()
    assert not mammogram.is_inverse
    assert (np.diff(mammogram.brightness) > 0).all()
    return mammogram.stored


def code_of(data: bytes, folder: Path) -> Code | None:
    """The code with which a file of these bytes is refused."""
    try:
        read(data, folder)
    except RejectedError as rejected:
        return rejected.code
    return None


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a"])
def test_grey_in_every_mode_of_a_png(tmp_path: Path, mode: str, name: str) -> None:
    """Grey is grey, however many channels it is saved in, and whatever the file is called."""
    stored = read(saved("PNG", mode=mode), tmp_path, name)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, GREY)


def test_16_bits(tmp_path: Path) -> None:
    """PNG and PGM of 16 bits keep every value; so does a PGM of 12 bits, in binary and in ASCII."""
    np.testing.assert_array_equal(read(saved("PNG", GREY_16), tmp_path), GREY_16)
    np.testing.assert_array_equal(read(saved("PPM", GREY_16), tmp_path), GREY_16)
    twelve = GREY_16 % 4096
    binary = b"P5\n# made by hand\n45 60\n4095\n" + twelve.astype(">u2").tobytes()
    ascii_ = b"P2 45\t60\r\n4095\n" + b"\n".join(b" ".join(b"%d" % value for value in row) for row in twelve)
    for data in (binary, ascii_):
        stored = read(data, tmp_path)
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored, twelve)
    np.testing.assert_array_equal(read(saved("PPM", GREY), tmp_path), GREY)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_grey_levels(tmp_path: Path, depth: int) -> None:
    """PNGs of fewer than 8 bits are read."""
    rows = np.random.default_rng(0).integers(0, 256, (16, 1 + 2 * depth), dtype=np.uint8)
    rows[:, 0] = 0  # no filter
    stored = read(png(16, 16, depth, 0, pixels=rows.tobytes()), tmp_path)
    assert stored.shape == (16, 16)
    assert len(np.unique(stored)) == 2**depth


def test_an_interlaced_png(tmp_path: Path) -> None:
    """A PNG that is written in seven passes has the same pixels."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    pixels = b""
    for top, left, down, right in passes:
        pixels += b"".join(b"\0" + row.tobytes() for row in GREY[top::down, left::right])
    np.testing.assert_array_equal(read(png(45, 60, 8, 0, interlaced=1, pixels=pixels), tmp_path), GREY)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("RGB", {}), ("CMYK", {}), ("L", {"progressive": True}), ("RGB", {"subsampling": 0})],
)
def test_grey_in_every_mode_of_a_jpeg(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    """Grey JPEGs of one, three and four channels are read, nearly as they were and not turned over."""
    stored = read(saved("JPEG", mode=mode, quality=95, **options), tmp_path, "a.png")
    assert np.abs(stored.astype(int) - GREY).mean() < 2


@pytest.mark.parametrize(
    ("name", "bits", "error"),
    [
        ("extended12.jpg", 12, 4),
        ("lossless12_sv1.jpg", 12, 0),
        ("lossless12_sv4.jpg", 12, 0),
        ("lossless16_sv1.jpg", 16, 0),
        ("jpegls12.jls", 12, 0),
        ("jpegls12_near2.jls", 12, 2),
    ],
)
def test_jpegs_of_more_than_8_bits(tmp_path: Path, name: str, bits: int, error: int) -> None:
    """JPEG of 12 bits, lossless JPEG and JPEG-LS as files of their own are read in full, and refused where they end early."""
    y, x = np.mgrid[0:48, 0:40]
    inside = ((y - 24) / 22) ** 2 + (x / 28) ** 2 < 1
    pixels = np.where(inside, 1200 + 40 * y + (7 * x + 3 * y * y) % 40, 30) << (bits - 12)
    whole = (SAMPLES / name).read_bytes()
    assert np.abs(read(whole, tmp_path).astype(int) - pixels).max() <= error
    for tenth in range(1, 10):
        assert code_of(whole[: len(whole) * tenth // 10], tmp_path) in {Code.TRUNCATED, Code.UNDECODABLE}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_stand_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """A camera's note of how it was held is obeyed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(2 * np.arange(64), np.arange(48)).astype(np.uint8)
    turned = {
        1: smooth, 2: smooth[:, ::-1], 3: smooth[::-1, ::-1], 4: smooth[::-1], 5: smooth.T, 6: smooth.T[:, ::-1],
        7: smooth.T[::-1, ::-1], 8: smooth.T[::-1],
    }[orientation]  # fmt: skip
    stored = read(saved(kind, smooth, exif=exif), tmp_path)
    assert stored.shape == turned.shape
    assert np.abs(stored.astype(int) - turned).mean() < 2


def colours(width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """A picture in colours."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_colours_are_no_mammogram(tmp_path: Path, kind: str) -> None:
    """A photograph in colours is refused, as it is with transparency or in a palette; a few coloured pixels are not."""
    assert code_of(saved(kind, colours()), tmp_path) == Code.NOT_MAMMOGRAPHY
    marked = np.repeat(GREY[:, :, None], 3, axis=2)
    marked[5:9, 5:9] = 255, 0, 0
    assert code_of(saved(kind, marked, quality=95), tmp_path) is None
    if kind == "PNG":
        for mode in ("RGBA", "P"):
            assert code_of(saved(kind, colours(), mode=mode), tmp_path) == Code.NOT_MAMMOGRAPHY


@pytest.mark.parametrize(
    "whole",
    [
        saved("PNG"), saved("PNG", GREY_16), saved("PNG", mode="P"), saved("JPEG"), saved("JPEG", progressive=True),
        saved("JPEG", mode="RGB"), saved("PPM"), saved("PPM", GREY_16),
    ],
    ids=["png", "png16", "palette", "jpeg", "progressive", "rgb jpeg", "pgm", "pgm16"],
)  # fmt: skip
def test_truncated_anywhere(tmp_path: Path, whole: bytes) -> None:
    """A file that ends early is refused, wherever it ends; behind its header as truncated."""
    for percent in range(9, 100, 7):
        assert code_of(whole[: len(whole) * percent // 100], tmp_path) in {Code.TRUNCATED, Code.UNDECODABLE}
    assert code_of(whole[: len(whole) * 9 // 10], tmp_path) == Code.TRUNCATED
    assert code_of(whole[:-4], tmp_path) == Code.TRUNCATED


def test_a_changed_png(tmp_path: Path) -> None:
    """A PNG with a flipped bit in its pixels or its header is refused; in a comment it does not matter."""
    whole = bytearray(saved("PNG", np.random.default_rng(0).integers(0, 256, (60, 45), dtype=np.uint8)))
    for place in (20, len(whole) // 2, len(whole) - 20):
        changed = bytearray(whole)
        changed[place] ^= 4
        assert code_of(bytes(changed), tmp_path) in {Code.UNDECODABLE, Code.TRUNCATED}
    comment = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    comment[-1] ^= 1
    commented = bytes(whole[:33] + comment + whole[33:])
    assert code_of(commented, tmp_path) in {None, Code.UNDECODABLE}  # Pillow's decision, as it comes before the pixels


def test_animations(tmp_path: Path) -> None:
    """A PNG of several pictures is refused, as frames."""
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    assert code_of(stream.getvalue(), tmp_path) == Code.MULTIFRAME


@pytest.mark.parametrize(
    "data",
    [
        png(60000, 60000, 16, 0),
        png(2**31 - 1, 2**31 - 1, 8, 0),
        png(8193, 8193, 8, 0),
        saved("JPEG").replace(b"\x08\x00\x3c\x00\x2d", b"\x08\xff\xff\xff\xff"),
        (SAMPLES / "lossless12_sv1.jpg").read_bytes().replace(b"\x0c\x00\x30\x00\x28", b"\x0c\xff\xff\xff\xff"),
        b"P5 60000 60000 255\n",
        b"P2 999999999 999999999 255\n1 2 3",
    ],
    ids=["png", "largest png", "just too large", "jpeg", "lossless jpeg", "pgm", "ascii pgm"],
)
def test_bombs(tmp_path: Path, data: bytes) -> None:
    """A file that promises more pixels than any mammogram has is refused before memory is taken for them."""
    path = tmp_path / "bomb"
    path.write_bytes(data)
    tracemalloc.start()
    for refuse in (read_header, lambda path: read_mammogram(path, apply_window=True)):
        with pytest.raises(RejectedError, match="TOO_LARGE"):
            refuse(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A file of *size* bytes, of which those behind *start* are a hole, which takes no place."""
    path.write_bytes(start)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    "start", [b"P5 8000 8000 65535\n", b"P5 8000 8000 70000\n", b"P2 8000 8000 255\n", saved("PNG")]
)
def test_the_memory_of_a_header_is_no_matter_of_size(tmp_path: Path, start: bytes) -> None:
    """Of a large file only the beginning is read to learn its size, also where that makes no sense."""
    path = sparse(tmp_path / "large", start, 128 * 10**6 + len(start))
    tracemalloc.start()
    if b"70000" in start:
        with pytest.raises(RejectedError, match="UNDECODABLE"):
            read_header(path)
    else:
        assert read_header(path).pixels in {8000 * 8000, GREY.size}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_header_behind_a_long_comment(tmp_path: Path, kind: str) -> None:
    """Where a picture begins behind the first mebibyte, its size is still known."""
    whole = saved(kind)
    if kind == "PNG":
        long = whole[:33] + chunk(b"prVt", bytes(2**21)) + whole[33:]
    else:
        long = whole[:2] + 40 * (b"\xff\xe5\xff\xff" + bytes(2**16 - 3)) + whole[2:]
    assert np.abs(read(long, tmp_path).astype(int) - GREY).mean() < 2
    assert code_of(long[: 2**20 + 2**19], tmp_path) in {Code.UNDECODABLE, Code.TRUNCATED}


@pytest.mark.parametrize(
    ("start", "size", "code"),
    [
        (b"P5 8192 8192 65535\n", 2**27 + 2**24, None),
        (b"P5 8192 8192 65535\n", 2**27 + 2**24 + 1, Code.TOO_LARGE),
        (b"P2 8192 8192 65535\n", 6 * 2**26 + 2**24, None),
        (b"P2 8192 8192 65535\n", 6 * 2**26 + 2**24 + 1, Code.TOO_LARGE),
        (saved("JPEG"), 2**28, Code.TOO_LARGE),
    ],
)
def test_the_largest_files(tmp_path: Path, start: bytes, size: int, code: Code | None) -> None:
    """A file may be as large as the largest image is in its format, numbers in ASCII being longer."""
    path = sparse(tmp_path / "large", start, size)
    if code is None:
        assert read_header(path).pixels == 8192 * 8192
    else:
        for refuse in (read_header, lambda path: read_mammogram(path, apply_window=True)):
            with pytest.raises(RejectedError, match=code):
                refuse(path)


def test_comments_in_a_pgm(tmp_path: Path) -> None:
    """A comment may follow whatever comes before it, without a space."""
    for header in (
        b"P5#made by hand\n45 60\n255\n",
        b"P5#1\n#2\n 45#3\n60 # 4\n\n#5\n255\n",
        b"P5\n#1\n#2\n45\t60\r\n255\n",
    ):
        np.testing.assert_array_equal(read(header + GREY.tobytes(), tmp_path), GREY)
    numbers = b" ".join(b"%d" % value for value in GREY.ravel())
    np.testing.assert_array_equal(read(b"P2#made by hand\n45 60 255\n" + numbers, tmp_path), GREY)
    assert code_of(b"P5#no end of a comment 45 60 255 ", tmp_path) == Code.TRUNCATED
    assert code_of(b"P5" + b"#\n" * 5000 + b"45 60 255 ", tmp_path) == Code.UNDECODABLE


def test_a_file_larger_than_any_picture(tmp_path: Path) -> None:
    """A file of many gigabytes is not read to learn that it is too large."""
    path = tmp_path / "large"
    path.write_bytes(saved("PNG"))
    with path.open("r+b") as file:
        file.truncate(2**35)  # a hole, which takes no place
    with pytest.raises(RejectedError, match="TOO_LARGE"):
        read_header(path)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", Code.NOT_IMAGE),
        (b"<html>not found</html>", Code.NOT_IMAGE),
        (b"\x89PNG\r\n\x1a\n", Code.UNDECODABLE),
        (b"\xff\xd8\xff", Code.UNDECODABLE),
        (b"P5\n", Code.TRUNCATED),
        (b"P5\n3 3\n", Code.TRUNCATED),
        (b"P5 3 3 0\n" + bytes(9), Code.UNDECODABLE),
        (b"P5 3 3 70000\n" + bytes(36), Code.UNDECODABLE),
        (b"P5 0 3 255\n", Code.NOT_IMAGE),
        (b"P5 x 3 255\n" + bytes(5000), Code.UNDECODABLE),
        (b"P2 2 2 255\n1 2 3", Code.TRUNCATED),
        (b"P2 2 2 255\n1 2 3 four", Code.UNDECODABLE),
        (b"P2 2 2 255\n1 2 3 -4", Code.UNDECODABLE),
        (b"P2 2 2 255\n1 2 3 256", Code.UNDECODABLE),
        (b"P2 2 2 255\n1 2 3 99999999999999999999", Code.UNDECODABLE),
        (b"P6 2 2 255\n" + bytes(12), Code.NOT_IMAGE),
        (png(0, 5, 8, 0), Code.UNDECODABLE),
        (png(5, 5, 8, 0, pixels=bytes(6)), Code.TRUNCATED),
        (png(5, 5, 8, 0, pixels=bytes(29)), Code.TRUNCATED),
        (png(5, 5, 8, 0, pixels=bytes(30)), None),
        (png(5, 5, 8, 0, interlaced=1, pixels=bytes(30)), Code.TRUNCATED),
        (png(5, 5, 8, 0, pixels=bytes(9999)), None),
        (png(5, 5, 3, 0), Code.UNDECODABLE),
        ((SAMPLES / "rgb_lossless8.jpg").read_bytes(), Code.UNDECODABLE),
        (saved("GIF"), Code.NOT_IMAGE),
        (saved("TIFF"), Code.NOT_IMAGE),
        (saved("JPEG2000"), Code.NOT_IMAGE),
    ],
)
def test_files_that_are_no_picture(tmp_path: Path, data: bytes, code: Code | None) -> None:
    """Each kind of nonsense has its code, and what is only unusual is read."""
    assert code_of(data, tmp_path) == code


def test_grey_values_are_not_made_up(tmp_path: Path) -> None:
    """An ASCII PGM that ends early is refused also behind one that was whole, whose memory might be read again."""
    whole = b"P2 40 40 255\n" + b" ".join(b"%d" % (value % 256) for value in range(1600))
    for _ in range(20):
        assert code_of(whole, tmp_path) is None
        assert code_of(whole[:3000], tmp_path) == Code.TRUNCATED
