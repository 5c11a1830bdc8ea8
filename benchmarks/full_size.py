"""
Synthetic mammograms of full size, 3328 x 2560 with 12 bits, in the encodings that archives have.

Air is black and the breast is textured on several scales and noisy, so that compressors have their usual work. JPEG-LS is not
here: nothing that is installed encodes it.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

BITS = 12
SHAPE = (3328, 2560)
Image = NDArray[np.uint16]
Tissue = tuple[NDArray[np.float32], NDArray[np.float32]]
"""What the images have in common, and the noise of the first of them."""

_TEXTURES = ((4, 30.0), (32, 150.0), (208, 300.0))
"""Grain in pixels, and its spread."""
_NOISE = 8.0
_CATEGORIES = 17
_CODE_LENGTHS = (2, 2, 3, *range(4, 18))
"""Of Huffman codes of differences, the commonest category first; the rarest of 17 do not occur in 12 bits."""


def tissue() -> Tissue:
    """Return what `mammogram` makes images of."""
    random = np.random.default_rng(0)
    height, width = SHAPE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    breast = (x / (0.75 * width)) ** 2 + ((y - height / 2) / (0.45 * height)) ** 2 < 1
    values = np.full(SHAPE, 1800, dtype=np.float32)
    for grain, spread in _TEXTURES:
        coarse = random.standard_normal((height // grain, width // grain)).astype(np.float32)
        values += spread * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = random.normal(0, _NOISE, SHAPE).astype(np.float32)
    return np.where(breast, values, -1e6).astype(np.float32), noise


def mammogram(number: int, of: Tissue) -> Image:
    """Return image *number*: the same breast *of* all, with noise of its own."""
    values, noise = of
    moved = np.roll(noise, (31 * number, 17 * number), axis=(0, 1))
    image: Image = np.clip(values + moved, 0, 2**BITS - 1).astype(np.uint16)
    return image


def _dicom(image: Image, number: int) -> Dataset:
    """Return *image* as an uncompressed DICOM."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = f"1.2.3.{number}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.PatientID = "MG", f"patient{number}"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS, BITS - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (BITS - 1), 2**BITS
    dataset.PixelData = image.tobytes()
    return dataset


def _bytes_of(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def uncompressed(image: Image, number: int) -> bytes:
    """Return a DICOM of 17 MB."""
    return _bytes_of(_dicom(image, number))


def rle(image: Image, number: int) -> bytes:
    """Return a DICOM with run lengths."""
    dataset = _dicom(image, number)
    dataset.compress(RLELossless, generate_instance_uid=False)
    return _bytes_of(dataset)


def jpeg_2000(image: Image, number: int) -> bytes:
    """Return a DICOM with lossless JPEG 2000."""
    dataset = _dicom(image, number)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    return _bytes_of(dataset)


def jpeg_lossless(image: Image, number: int) -> bytes:
    """Return a DICOM with lossless JPEG, process 14, first-order prediction."""
    dataset = _dicom(image, number)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([lossless_stream(image)])
    dataset["PixelData"].is_undefined_length = True
    return _bytes_of(dataset)


def png(image: Image, _number: int) -> bytes:
    """Return a PNG of 16 bits."""
    return _encoded(".png", (image << (16 - BITS)).astype(np.uint16), [])


def jpeg(image: Image, _number: int) -> bytes:
    """Return a JPEG of 8 bits."""
    return _encoded(".jpg", (image >> (BITS - 8)).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])


def _encoded(suffix: str, image: NDArray[np.uint8] | NDArray[np.uint16], options: list[int]) -> bytes:
    return cv2.imencode(suffix, image, options)[1].tobytes()


ENCODINGS: dict[str, tuple[str, Callable[[Image, int], bytes]]] = {
    "uncompressed": (".dcm", uncompressed),
    "RLE": (".dcm", rle),
    "JPEG lossless": (".dcm", jpeg_lossless),
    "JPEG 2000": (".dcm", jpeg_2000),
    "PNG, 16 bit": (".png", png),
    "JPEG, 8 bit": (".jpg", jpeg),
}
"""Suffix and encoder of each."""


def lossless_stream(image: Image) -> bytes:
    """Return *image* as a codestream of lossless JPEG. Source: ITU-T T.81, annex H; each pixel predicted by its left one."""
    values = image.astype(np.int32)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 2 ** (BITS - 1)
    differences = (values - predicted).ravel()
    categories = np.frexp(np.abs(differences).astype(np.float32))[1].astype(np.int32)  # bits that the magnitude needs
    commonest = np.argsort(-np.bincount(categories, minlength=_CATEGORIES), kind="stable")[: BITS + 2]
    lengths, codes = np.zeros(_CATEGORIES, np.int64), np.zeros(_CATEGORIES, np.int64)
    code = 0
    for category, length, before in zip(commonest, _CODE_LENGTHS, (2, *_CODE_LENGTHS), strict=False):
        code <<= length - before
        lengths[category], codes[category] = length, code
        code += 1
    extra = np.where(differences < 0, differences - 1, differences) & ((1 << categories) - 1)
    stream = _pack((codes[categories] << categories) | extra, lengths[categories] + categories)
    counts = bytes(_CODE_LENGTHS[: len(commonest)].count(length) for length in range(1, 17))
    height, width = (side.to_bytes(2, "big") for side in image.shape)
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, bytes([BITS]) + height + width + b"\x01\x01\x11\x00"),
            _segment(0xC4, b"\x00" + counts + bytes(commonest.tolist())),
            _segment(0xDA, b"\x01\x01\x00\x01\x00\x00"),
            stream.replace(b"\xff", b"\xff\x00"),
            b"\xff\xd9",
        )
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content


def _pack(values: NDArray[np.int64], lengths: NDArray[np.int64], at_once: int = 2**18) -> bytes:
    """Return the lowest *lengths* bits of *values*, one behind the other, the last byte filled up with ones."""
    parts = []
    places = np.arange(32)
    for begin in range(0, len(values), at_once):
        few = lengths[begin : begin + at_once]
        left = (values[begin : begin + at_once] << (32 - few)).astype(">u4")
        bits = np.unpackbits(left.view(np.uint8)).reshape(-1, 32)
        parts.append(bits[places < few[:, None]])
    everything = np.concatenate(parts)
    return np.packbits(np.concatenate([everything, np.ones(-len(everything) % 8, np.uint8)])).tobytes()
