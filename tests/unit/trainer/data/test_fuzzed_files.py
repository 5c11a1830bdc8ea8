"""Files of strangers: thousands of changed ones, each of which is used or refused with a code, at the cost of no process."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from trainer.config import PreprocessingConfig
from trainer.data.decoder_pool import DecoderPool
from trainer.data.records import Code

WriteDicom = Callable[..., Path]
Mutate = Callable[[bytearray, Generator, list[bytes]], bytearray]

SAMPLES = Path(__file__).parent / "samples"
MUTATIONS = 2400
CONFIG = PreprocessingConfig(img_size=32)
PATIENT = "MUSTER^ANNA"
SECRETS = ("MUSTER", "ANNA", "08154711")
"""What no reason may show, in capitals."""

VRS = b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
ELEMENT = re.compile(b"(?:" + b"|".join(VRS) + b")")
LENGTHS = (0, 1, 2, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0x10000000)


def write_sources(write_dicom: WriteDicom) -> list[bytes]:
    """Small files of every kind and encoding, with a patient's name wherever one can be written."""
    y, x = np.mgrid[0:48, 0:40]
    inside = ((y - 24) / 22) ** 2 + (x / 28) ** 2 < 1
    pixels = np.where(inside, 1200 + 40 * y + (7 * x + 3 * y * y) % 40, 30).astype(np.uint16)
    nested = Dataset()
    nested.CodeValue, nested.CodeMeaning = "R-10242", PATIENT
    nested.ViewModifierCodeSequence = Sequence([])
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 8], (np.arange(4096) // 16).astype("<u2").tobytes()
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
    header: dict[str, Any] = {
        "PatientName": PATIENT, "PatientID": "08154711", "ViewPosition": "CC", "ImageLaterality": "L",
        "BodyPartExamined": "BREAST", "SeriesDescription": f"R CC {PATIENT}", "ViewCodeSequence": Sequence([nested]),
        "BitsStored": 12, "HighBit": 11, "RescaleSlope": "1", "RescaleIntercept": "0", "WindowCenter": ["1500", "2000"],
        "WindowWidth": ["3000", "4000"], "VOILUTFunction": "SIGMOID", "PixelPaddingValue": 30, "InstitutionName": PATIENT,
    }  # fmt: skip
    plain = write_dicom(pixels, **header)
    with_lut = write_dicom(pixels, **header, VOILUTSequence=Sequence([lut]), PhotometricInterpretation="MONOCHROME1")
    eight = write_dicom(
        (pixels >> 4).astype(np.uint8), **header | {"BitsStored": 8, "HighBit": 7, "PixelPaddingValue": 0}
    )
    dicom = [plain.read_bytes(), with_lut.read_bytes(), eight.read_bytes()]
    dicom += [
        _encoded(plain, syntax)
        for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    ]
    for syntax in (RLELossless, JPEG2000Lossless):
        dataset = dcmread(plain)
        dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
        dicom.append(_bytes_of(dataset))
    for name, syntax in (
        ("extended12.jpg", JPEGExtended12Bit), ("lossless12_sv4.jpg", JPEGLossless), ("lossless12_sv1.jpg", JPEGLosslessSV1),
        ("jpegls12.jls", JPEGLSLossless), ("jpegls12_near2.jls", JPEGLSNearLossless),
    ):  # fmt: skip
        dicom.append(_encoded(plain, syntax, (SAMPLES / name).read_bytes()))
    dicom.append(_encoded(eight, JPEGBaseline8Bit, _picture(pixels >> 4, "JPEG")))
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", PATIENT)
    pictures = [
        _picture(pixels >> 4, "PNG", pnginfo=text), _picture(pixels, "PNG", pnginfo=text),
        _picture(pixels >> 4, "PNG", mode="P"), _picture(pixels >> 4, "PNG", mode="RGBA"),
        _picture(pixels >> 4, "JPEG", comment=PATIENT), _picture(pixels >> 4, "JPEG", progressive=True),
        _picture(pixels >> 4, "JPEG", mode="RGB"), _picture(pixels, "PPM"),
        b"P2\n# " + PATIENT.encode() + b"\n40 48\n4095\n" + b" ".join(b"%d" % value for value in pixels.ravel()),
        (SAMPLES / "extended12.jpg").read_bytes(), (SAMPLES / "jpegls12.jls").read_bytes(),
    ]  # fmt: skip
    return dicom + pictures


def _encoded(path: Path, syntax: UID, stream: bytes | None = None) -> bytes:
    dataset = dcmread(path)
    if stream is not None:
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    other = Dataset()  # one that does not remember how it was encoded
    other.update(dataset)
    other.file_meta = dataset.file_meta
    return _bytes_of(other, syntax)


def _bytes_of(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(
        stream, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return stream.getvalue()


def _picture(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(pixels.astype(np.uint8) if pixels.max() < 256 else pixels)
    (picture if mode is None else picture.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def _places(data: bytearray) -> list[int]:
    """Where elements begin that say their VR, as far as that can be told from the bytes."""
    return [found.start() - 4 for found in ELEMENT.finditer(data) if found.start() >= 4] or [0]


def change_bits(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Change single bits, in the header or anywhere."""
    end = len(data) if random.random() < 0.5 else min(len(data), 700)
    for _number in range(random.integers(1, 20)):
        data[random.integers(end)] ^= 1 << random.integers(8)
    return data


def change_bytes(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Put random bytes, or zeros, over a stretch."""
    start, length = random.integers(len(data)), random.integers(1, 40)
    data[start : start + length] = random.bytes(length) if random.random() < 0.5 else bytes(length)
    return data


def truncate(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Cut off the end, and at times fill up with zeros."""
    place = int(random.integers(len(data)))
    return data[:place] + bytes(len(data) - place if random.random() < 0.3 else 0)


def change_length(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Let an element claim another length."""
    place, length = int(random.choice(_places(data))) + 6, int(random.choice(LENGTHS))
    if random.random() < 0.5:
        data[place : place + 2] = (length & 0xFFFF).to_bytes(2, "little")
    else:
        data[place + 2 : place + 6] = length.to_bytes(4, "little")
    return data


def change_vr(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Let an element claim another kind of value."""
    for _number in range(random.integers(1, 4)):
        place = int(random.choice(_places(data))) + 4
        data[place : place + 2] = random.choice(VRS)
    return data


def swap_tags(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Give two elements each other's tag."""
    one, other = (int(place) for place in random.choice(_places(data), 2))
    data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]
    return data


def write_name(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Put the patient's name in the place of an element's value, with the right length."""
    place = int(random.choice(_places(data))) + 6
    length = int.from_bytes(data[place : place + 2], "little")
    value = PATIENT.encode() + b" "
    return data[:place] + len(value).to_bytes(2, "little") + value + data[place + 2 + length :]


def nest(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Insert sequences in sequences, to any depth, at times without an end."""
    place, depth = int(random.choice(_places(data))), int(random.choice([1, 5, 50, 1500]))
    begin = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return data[:place] + depth * begin + (depth if random.random() < 0.7 else 0) * end + data[place:]


def splice(data: bytearray, random: Generator, sources: list[bytes]) -> bytearray:
    """Continue with another file's bytes."""
    other = sources[random.integers(len(sources))]
    return data[: random.integers(len(data))] + other[random.integers(len(other)) :]


def repeat(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Repeat or drop a stretch."""
    start = int(random.integers(len(data)))
    stretch = data[start : start + int(random.integers(1, 300))]
    return data[:start] + stretch * int(random.choice([0, 2, 3, 40])) + data[start + len(stretch) :]


def change_number(data: bytearray, random: Generator, _: list[bytes]) -> bytearray:
    """Give one of the elements that describe the pixels another number."""
    for _number in range(random.integers(1, 5)):
        tag = b"\x28\x00" + int(random.choice([2, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x120])).to_bytes(2, "little")
        place = data.find(tag)
        if place >= 0:
            value = int(random.choice([0, 1, 2, 7, 8, 12, 15, 16, 17, 32, 64, 100, 4096, 8191, 32768, 60000, 65535]))
            data[place + 8 : place + 10] = value.to_bytes(2, "little")
    return data


MUTATORS: tuple[Mutate, ...] = (
    change_bits, change_bytes, truncate, change_length, change_vr, swap_tags, write_name, nest, splice, repeat, change_number,
)  # fmt: skip


def mutate(sources: list[bytes], number: int) -> bytes:
    """Return the changed file of this number, always the same one."""
    random = np.random.default_rng([2024, number])
    data = bytearray(sources[number % len(sources)])
    for _ in range(1 if random.random() < 0.7 else 2):
        data = MUTATORS[random.integers(len(MUTATORS))](data, random, sources) or bytearray(b"\0")
    return bytes(data)


def answers(folder: Path, sources: list[bytes], numbers: range) -> Iterator[tuple[int, str, Code | None, str]]:
    """Yield number, task, code and reason of what comes of each changed file."""
    paths = [folder / str(number) for number in numbers]
    with DecoderPool(CONFIG, len(paths)) as pool:
        for path, number in zip(paths, numbers, strict=True):
            path.write_bytes(mutate(sources, number))
        pixels = []
        for number, (reply, _) in zip(numbers, pool.answers("inspect", ((path, 0) for path in paths)), strict=True):
            assert (reply.header is None) == (reply.code is not None)
            pixels.append(10**5 if reply.header is None else reply.header.pixels)
            yield number, "inspect", reply.code, reply.reason or ""
        for number, (reply, image) in zip(
            numbers, pool.answers("decode", zip(paths, pixels, strict=True)), strict=True
        ):
            assert (image is None) == (reply.code is not None)
            yield number, "decode", reply.code, reply.reason or ""
    for path in paths:
        path.unlink()


def test_the_files_are_good_before_they_are_changed(write_dicom: WriteDicom, tmp_path: Path) -> None:
    """Every file that is going to be changed is accepted as it is."""
    paths = []
    for number, source in enumerate(write_sources(write_dicom)):
        paths.append(tmp_path / f"source{number}")
        paths[-1].write_bytes(source)
    with DecoderPool(CONFIG, len(paths)) as pool:
        for path, (reply, image) in zip(paths, pool.answers("decode", ((path, 2000) for path in paths)), strict=True):
            assert reply.code is None, f"{path.name}: {reply.reason}"
            assert image is not None


@pytest.mark.timeout(200)
def test_changed_files_are_used_or_refused(write_dicom: WriteDicom, tmp_path: Path) -> None:
    """No change of a file ends or hangs a decoder, and no reason has more than a line or quotes a patient."""
    codes: Counter[Code | None] = Counter()
    folder = tmp_path / "changed"
    folder.mkdir()
    for number, task, code, reason in answers(folder, write_sources(write_dicom), range(MUTATIONS)):
        codes[code] += 1
        assert (code is None) == (reason == ""), (number, task)
        assert "ended its process" not in reason, (number, task, reason)
        assert "\n" not in reason, (number, task, reason)
        assert not any(secret in reason.upper() for secret in SECRETS), (number, task, reason)
    assert {None, Code.TRUNCATED, Code.UNDECODABLE, Code.NOT_IMAGE, Code.NOT_MAMMOGRAPHY, Code.BLANK} <= set(codes)
