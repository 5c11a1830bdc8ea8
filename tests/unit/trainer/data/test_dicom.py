from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
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
    MediaStorageDirectoryStorage,
    RLELossless,
    generate_uid,
)

from trainer.data.image_file import read_header, read_mammogram
from trainer.data.mammogram import Header, Mammogram, RejectedError
from trainer.data.records import Code

WriteDicom = Callable[..., Path]

SAMPLES = Path(__file__).parent / "samples"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
PRIVATE = "1.2.840.113619.4.30"
MALFORMED = {
    "constant_image.dcm": None,  # its pixels are fine; that there is nothing in them is found later
    "dbt_three_frames.dcm": Code.MULTIFRAME,
    "dup_sop_a.dcm": None,
    "dup_sop_b_other_pixels.dcm": None,
    "html_error_page.dcm": Code.NOT_IMAGE,
    "modality_us.dcm": Code.NOT_MAMMOGRAPHY,
    "no_pixel_data.dcm": Code.NOT_IMAGE,
    "no_preamble.dcm": None,
    "rows_too_large.dcm": Code.TRUNCATED,
    "truncated_j2k.dcm": Code.TRUNCATED,
    "truncated_native.dcm": Code.TRUNCATED,
    "zero_bytes.dcm": Code.NOT_IMAGE,
}


def refusal(path: Path) -> RejectedError | None:
    """Why *path* is refused, by its header if that is enough; None if it is accepted."""
    try:
        read_header(path)
        read_mammogram(path, apply_window=True)
    except RejectedError as rejected:
        return rejected
    return None


def outcome(path: Path) -> Code | None:
    """The code that reading *path* gives, None if it is accepted."""
    rejected = refusal(path)
    return None if rejected is None else rejected.code


def shown(mammogram: Mammogram) -> NDArray[np.float32]:
    """How bright each pixel is."""
    return mammogram.brightness[mammogram.stored]


def assert_as_bright(mammogram: Mammogram, expected: NDArray[Any]) -> None:
    """Brightness has neither unit nor origin: assert that it is *expected* but for these, and no less where that is more."""
    order = np.argsort(expected, axis=None)
    found, wanted = shown(mammogram).ravel()[order], expected.ravel()[order].astype(float)
    scaled = (found.astype(float) - found[0]) / (found[-1] - found[0])
    np.testing.assert_allclose(scaled, (wanted - wanted[0]) / (wanted[-1] - wanted[0]), atol=2e-4)


def lut(descriptor: list[int], data: NDArray[Any] | bytes, *, signed: bool = False) -> Sequence:
    """A LUT sequence of one item, whose data are 16-bit words or packed bytes."""
    item = Dataset()
    item.LUTDescriptor = descriptor
    item.LUTData = data if isinstance(data, bytes) else data.astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "SS" if signed else "US", "OW"
    return Sequence([item])


def code_item(value: str) -> Dataset:
    """A coded entry."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", "meaning"
    return item


def reencode(path: Path, syntax: UID, stream: bytes | None = None, **tags: Any) -> Path:
    """The native file *path* in another encoding; *stream* is the whole pixel data element of an encapsulated one."""
    dataset = dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta.TransferSyntaxUID = syntax
    if stream is not None:
        dataset.PixelData = stream
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    elif syntax.is_encapsulated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plugin = "pylibjpeg"
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        if dataset.BitsAllocated == 16:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
            for item in dataset.get(keyword, ()):
                item.LUTData = np.frombuffer(item.LUTData, "<u2").astype(">u2").tobytes()
    target = path.with_name(f"{path.stem}_{syntax.rpartition('.')[2]}.dcm")
    written = Dataset()
    written.update(dataset)
    written.file_meta = dataset.file_meta
    written.save_as(
        target, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return target


def sample_pixels() -> NDArray[np.uint16]:
    """The image of `samples/README.md`."""
    y, x = np.mgrid[0:48, 0:40]
    inside = ((y - 24) / 22) ** 2 + (x / 28) ** 2 < 1
    return np.where(inside, 1200 + 40 * y + (7 * x + 3 * y * y) % 40, 30).astype(np.uint16)


CODESTREAMS = {
    "extended12.jpg": (JPEGExtended12Bit, 4),
    "lossless12_sv4.jpg": (JPEGLossless, 0),
    "lossless12_sv1.jpg": (JPEGLosslessSV1, 0),
    "jpegls12.jls": (JPEGLSLossless, 0),
    "jpegls12_near2.jls": (JPEGLSNearLossless, 2),
}
"""Syntax, and the largest error that it makes."""
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def every_encoding(write_dicom: WriteDicom) -> Iterator[tuple[Path, int]]:
    """The sample image in every encoding that can be made here, with the largest error that each may make."""
    path = write_dicom(sample_pixels(), BitsStored=12, HighBit=11, PatientID="P1", ViewPosition="CC")
    for syntax in [*NATIVE, RLELossless, JPEG2000Lossless]:
        yield reencode(path, syntax), 0
    for name, (syntax, error) in CODESTREAMS.items():
        yield reencode(path, syntax, encapsulate([(SAMPLES / name).read_bytes()])), error


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_get_their_code(real_data: Path, name: str) -> None:
    """Each file that was broken on purpose is refused for what is wrong with it, or accepted if nothing is."""
    assert outcome(real_data / "mg_dicom" / "malformed" / name) == MALFORMED[name]


def test_header(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Patient, view and side come from the header, without padding and in capitals, and the size is known."""
    path = write_dicom(breast, PatientID=" P1 ", ViewPosition="mlo", ImageLaterality=None, Laterality="L")
    assert read_header(path) == Header(pixels=200 * 160, patient_id="P1", view="MLO", laterality="L")
    assert read_header(write_dicom(breast)) == Header(pixels=200 * 160)


@pytest.mark.parametrize(
    ("written", "patient_id"),
    [
        ("  0012 ", "0012"), ("P1\0", "P1"), ("ANONYMOUS", None), ("anonymous ", None), ("removed", None), ("0", None),
        ("000000", None), ("XXXX", None), ("N/A", None), ("-", None), ("", None), (None, None), ("X1", "X1"), ("10", "10"),
    ],
)  # fmt: skip
def test_patients_that_nobody_is(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], written: str | None, patient_id: str | None
) -> None:
    """What an anonymiser writes for everybody makes no two images one patient's."""
    assert read_header(write_dicom(breast, PatientID=written)).patient_id == patient_id


@pytest.mark.parametrize(
    ("tags", "for_processing"),
    [
        ({}, False),
        ({"PresentationIntentType": "FOR PRESENTATION"}, False),
        ({"PresentationIntentType": "for processing "}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE, "PresentationIntentType": "FOR PROCESSING"}, True),
    ],
)
def test_raw_images_are_flagged(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tags: dict[str, Any], for_processing: bool
) -> None:
    """Detector values are known by the intent or by the class, and are read like others."""
    path = write_dicom(breast, **tags)
    assert read_header(path).for_processing is for_processing
    assert outcome(path) is None


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        # mammograms, each without something that others have
        ({"Modality": None}, None),
        ({"Modality": "RG"}, None),
        ({"Modality": None, "SOPClassUID": SECONDARY_CAPTURE}, None),
        ({"SOPClassUID": SECONDARY_CAPTURE, "ImageType": ["DERIVED", "SECONDARY"]}, None),
        ({"SOPClassUID": SECONDARY_CAPTURE, "ViewPosition": "CC", "ProtocolName": "BREAST SCREEN"}, None),
        ({"SOPClassUID": None}, None),
        ({"Modality": "CR", "SOPClassUID": COMPUTED_RADIOGRAPHY, "ViewPosition": "CC"}, None),
        ({"Modality": "CR", "SOPClassUID": COMPUTED_RADIOGRAPHY, "BodyPartExamined": "BREAST "}, None),
        ({"Modality": "DX", "SOPClassUID": DIGITAL_X_RAY, "ViewPosition": "MLO", "BodyPartExamined": "MAMMA"}, None),
        ({"Modality": "DX", "SOPClassUID": DIGITAL_X_RAY, "BodyPartExamined": "LEFT BREAST"}, None),
        ({"SOPClassUID": PRIVATE}, None),
        ({"SOPClassUID": PRIVATE, "Modality": "CR", "BodyPartExamined": "BREAST"}, None),
        ({"PhotometricInterpretation": "MONOCHROME2 "}, None),
        ({"PhotometricInterpretation": " monochrome2"}, None),
        ({"PhotometricInterpretation": "MONOCHROME1\0"}, None),
        ({"NumberOfFrames": 1}, None),
        ({"NumberOfFrames": ""}, None),
        ({"SamplesPerPixel": None}, None),
        # other pictures
        ({"Modality": "CR", "SOPClassUID": COMPUTED_RADIOGRAPHY, "BodyPartExamined": "CHEST"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "CR", "SOPClassUID": COMPUTED_RADIOGRAPHY}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "DX", "SOPClassUID": DIGITAL_X_RAY, "ViewPosition": "LM", "BodyPartExamined": "LEG"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": None, "SOPClassUID": SECONDARY_CAPTURE, "BodyPartExamined": "HAND"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": None, "SOPClassUID": PRIVATE}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "US", "SOPClassUID": PRIVATE}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "MG", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.50"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "PR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": "MG", "SOPClassUID": "1.2.840.10008.5.1.1.29"}, Code.NOT_MAMMOGRAPHY),  # retired: a film's hard copy
        ({"SOPClassUID": SECONDARY_CAPTURE, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Code.NOT_MAMMOGRAPHY),
        ({"SOPClassUID": SECONDARY_CAPTURE, "SeriesDescription": "Dose Report"}, Code.NOT_MAMMOGRAPHY),
        ({"BodyPartExamined": "SPECIMEN"}, Code.NOT_MAMMOGRAPHY),
        ({"SeriesDescription": "R CC specimen"}, Code.NOT_MAMMOGRAPHY),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Code.NOT_MAMMOGRAPHY),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, Code.NOT_MAMMOGRAPHY),
        ({"PhotometricInterpretation": None}, Code.NOT_IMAGE),
        # frames
        ({"NumberOfFrames": 3}, Code.MULTIFRAME),
        ({"NumberOfFrames": 1, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, Code.MULTIFRAME),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.4"}, Code.MULTIFRAME),
        ({"Rows": 100}, Code.MULTIFRAME),  # two frames of which the header knows one
        # sizes and depths
        ({"Rows": 65535, "Columns": 65535}, Code.TOO_LARGE),
        ({"Rows": 60000, "Columns": 60000}, Code.TOO_LARGE),
        ({"Rows": 0}, Code.NOT_IMAGE),
        ({"Rows": None}, Code.NOT_IMAGE),
        ({"Columns": None}, Code.NOT_IMAGE),
        ({"Rows": 201}, Code.TRUNCATED),
        ({"BitsAllocated": 32}, Code.UNDECODABLE),
        ({"BitsAllocated": 12}, Code.UNDECODABLE),
        ({"BitsAllocated": None}, Code.UNDECODABLE),
        ({"BitsStored": 17}, Code.UNDECODABLE),
        ({"BitsStored": 0}, Code.UNDECODABLE),
        ({"PixelRepresentation": 2}, Code.UNDECODABLE),
        # windows
        ({"WindowCenter": 100, "WindowWidth": 0}, Code.UNDECODABLE),
        ({"WindowCenter": 100, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, Code.UNDECODABLE),
        ({"WindowCenter": 100, "WindowWidth": -5}, Code.UNDECODABLE),
        ({"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "MAGIC"}, Code.UNDECODABLE),
        ({"WindowCenter": 0, "WindowWidth": 0}, None),
        ({"WindowCenter": "", "WindowWidth": ""}, None),
        ({"WindowCenter": 100}, None),
        ({"RescaleSlope": "", "RescaleIntercept": "", "PixelPaddingValue": None}, None),
        ({"RescaleSlope": 1e300}, Code.UNDECODABLE),
        ({"RescaleSlope": "nan"}, Code.UNDECODABLE),
    ],
)  # fmt: skip
def test_files_are_judged_by_content(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tags: dict[str, Any], code: Code | None
) -> None:
    """No single tag decides whether a file is a mammogram that can be used."""
    if "SamplesPerPixel" in tags and tags["SamplesPerPixel"] == 3:
        breast = np.repeat(breast, 3, axis=1)
        tags = {"Columns": 160} | tags
    assert outcome(write_dicom(breast, **tags)) == code


def test_a_missing_class_is_taken_from_before_the_header(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tmp_path: Path
) -> None:
    """A file whose class only its file meta header names is judged by that; a DICOMDIR is no broken image."""
    path = write_dicom(breast)
    dataset = dcmread(path)
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.6.1")
    del dataset.SOPClassUID
    ultrasound = tmp_path / "us.dcm"
    dataset.save_as(ultrasound)
    assert outcome(ultrasound) == Code.NOT_MAMMOGRAPHY
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.FileSetID = "DISC"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert outcome(tmp_path / "DICOMDIR") == Code.NOT_MAMMOGRAPHY


def test_every_encoding_gives_the_same_pixels(write_dicom: WriteDicom) -> None:
    """Whatever encodes it, an image has the same pixels, or nearly where the encoding loses some."""
    for path, error in every_encoding(write_dicom):
        mammogram = read_mammogram(path, apply_window=True)
        assert np.abs(mammogram.stored.astype(int) - sample_pixels()).max() <= error, path
        assert read_header(path).patient_id == "P1"


def test_truncated_anywhere(write_dicom: WriteDicom) -> None:
    """Of every encoding, a file that ends early is refused, wherever it ends; by far most often as truncated."""
    codes = []
    for path, _ in list(every_encoding(write_dicom)):
        whole = path.read_bytes()
        places = {len(whole) * percent // 100 for percent in range(0, 100, 5)} | {
            len(whole) - less for less in (14, 40)
        }
        for place in places:
            path.write_bytes(whole[:place])
            code = outcome(path)
            assert code is not None, f"{path.name} is accepted with {place} of {len(whole)} bytes"
            codes.append(code)
    assert codes.count(Code.TRUNCATED) > 0.7 * len(codes)
    # A file that ends inside of its modality has another one.
    assert sum(code.broken for code in codes) >= len(codes) - 2


def test_codestreams_that_end_early(write_dicom: WriteDicom) -> None:
    """A compressed frame without its end is refused as truncated though the file around it is complete."""
    path = write_dicom(sample_pixels(), BitsStored=12, HighBit=11)
    for name, (syntax, _) in CODESTREAMS.items():
        whole = (SAMPLES / name).read_bytes()
        for percent in range(5, 100, 5):
            cut = whole[: len(whole) * percent // 100]
            for filled in (cut, cut.ljust(len(whole), b"\0")):
                assert outcome(reencode(path, syntax, encapsulate([filled]))) == Code.TRUNCATED
    packed = dcmread(reencode(path, RLELossless)).PixelData[16:]
    for percent in range(5, 95, 5):
        part = packed[: len(packed) * percent // 100]
        assert outcome(reencode(path, RLELossless, encapsulate([part]))) in {Code.UNDECODABLE, Code.TRUNCATED}


def test_jpeg_2000_and_jpeg_that_lose(write_dicom: WriteDicom, tmp_path: Path) -> None:
    """Lossy JPEG 2000 and 8-bit JPEG are read, nearly as they were."""
    from PIL import Image  # noqa: PLC0415  what other tests do without

    eight = (sample_pixels() >> 4).astype(np.uint8)
    for kind, syntax, options in (
        ("JPEG", JPEGBaseline8Bit, {"quality": 95}),
        ("JPEG2000", UID("1.2.840.10008.1.2.4.91"), {"irreversible": True, "quality_layers": [5], "no_jp2": True}),
        ("JPEG2000", UID("1.2.840.10008.1.2.4.91"), {"no_jp2": False}),  # in boxes, as no DICOM should have it
    ):
        Image.fromarray(eight).save(tmp_path / "stream", kind, **options)
        path = reencode(write_dicom(eight), syntax, encapsulate([(tmp_path / "stream").read_bytes()]))
        assert np.abs(read_mammogram(path, apply_window=True).stored.astype(int) - eight).mean() < 3


def test_fragments_and_offset_tables(write_dicom: WriteDicom) -> None:
    """One frame in many fragments is one image; tables of offsets are not believed."""
    path = write_dicom(sample_pixels(), BitsStored=12, HighBit=11)
    stream = (SAMPLES / "lossless12_sv1.jpg").read_bytes()

    def item(data: bytes) -> bytes:
        return b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data

    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    parts = [stream[start : start + 100] for start in range(0, 1000, 100)] + [stream[1000:] + b"\0" * (len(stream) % 2)]
    fragmented = b"".join(item(part) for part in parts)
    for table in (b"", b"\0\0\0\0"):
        good = read_mammogram(reencode(path, JPEGLosslessSV1, item(table) + fragmented + end), apply_window=True)
        np.testing.assert_array_equal(good.stored, sample_pixels())
    nonsense = b"\xff\xff\xff\x7f\x01\0\0\0"
    assert outcome(reencode(path, JPEGLosslessSV1, item(nonsense) + fragmented + end)) in {
        Code.UNDECODABLE,
        Code.TRUNCATED,
    }
    for table in (b"", b"\0\0\0\0"):  # the checks of the stream look behind the table
        for broken, code in (
            (stream[:700], Code.TRUNCATED),
            (b"", Code.UNDECODABLE),
            (b"\0" * 1000, Code.UNDECODABLE),
            (stream.replace(b"\x0c\x00\x30\x00\x28", b"\x0c\xea\x60\xea\x60"), Code.TOO_LARGE),
            (stream.replace(b"\x0c\x00\x30\x00\x28", b"\x0c\x00\x60\x00\x28"), Code.UNDECODABLE),
            ((SAMPLES / "rgb_lossless8.jpg").read_bytes(), Code.UNDECODABLE),
        ):
            assert outcome(reencode(path, JPEGLosslessSV1, item(table) + item(broken) + end)) == code
        assert outcome(reencode(path, JPEGLosslessSV1, item(table) + end)) in {Code.UNDECODABLE, Code.TRUNCATED}
    assert outcome(reencode(path, JPEGLosslessSV1, item(b"") + 2 * item(stream) + end)) == Code.MULTIFRAME


def test_pixel_data_of_another_kind_than_the_header_says(write_dicom: WriteDicom) -> None:
    """Native pixels under a compressed syntax, compressed ones under a native one and unknown syntaxes are refused."""
    path = write_dicom(sample_pixels(), BitsStored=12, HighBit=11)
    for syntax in ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.100", "1.2.3.4", "1.2.840.10008.1.2.5"):
        other = path.with_name(f"{syntax}.dcm")
        data = path.read_bytes()
        uid = ExplicitVRLittleEndian.encode() + b"\0"
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        length = len(padded) - len(uid)
        start = data.index(b"\x02\x00\x10\x00UI")
        group_length = int.from_bytes(data[140:144], "little") + length
        other.write_bytes(
            data[:140] + group_length.to_bytes(4, "little") + data[144 : start + 6]
            + len(padded).to_bytes(2, "little") + padded + data[start + 8 + len(uid) :]
        )  # fmt: skip
        assert outcome(other) == Code.UNDECODABLE
    stream = encapsulate([(SAMPLES / "lossless12_sv1.jpg").read_bytes()])
    native = path.with_name("native.dcm")
    native.write_bytes(
        reencode(path, JPEGLosslessSV1, stream)
        .read_bytes()
        .replace(JPEGLosslessSV1.encode(), b"1.2.840.10008.1.2.1\0\0\0")
    )
    assert outcome(native) in {Code.TRUNCATED, Code.UNDECODABLE}


LARGE = 300 * 2**20


def with_hole(path: Path, before: bytes, element: bytes, length: int) -> Path:
    """The native file *path* with *element*, a tag and its VR, before the tag *before*; its value is a hole of *length*."""
    whole = path.read_bytes()
    place = whole.index(before)
    target = path.with_name("hole.dcm")
    with target.open("wb") as file:
        file.write(whole[:place] + element + length.to_bytes(4, "little"))
        file.truncate(file.tell() + length)
        file.seek(0, 2)
        file.write(whole[place:])
    return target


def peak_of(read: Callable[[], object]) -> int:
    """How many bytes Python held at most while it called *read*, whether that refused a file or not."""
    tracemalloc.start()
    try:
        read()
    except RejectedError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


PIXELS, ROWS = b"\xe0\x7f\x10\x00O", b"\x28\x00\x10\x00U"


@pytest.mark.parametrize(
    ("element", "before"),
    [
        (b"\x19\x00\x10\x10OB\0\0", ROWS),  # private
        (b"\x28\x00\x10\x30SQ\0\0", PIXELS),  # a VOI LUT
        (b"\x18\x00\x00\x14UN\0\0", ROWS),  # what is no such text, where words are looked for
        (b"\x01\x7e\x12\x10OB\0\0", PIXELS),
    ],
)
def test_the_memory_of_a_header_is_no_matter_of_size(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], element: bytes, before: bytes
) -> None:
    """What lies before the pixels is not read if it is large, and the header is the same as without it."""
    path = write_dicom(breast, PatientID="P1", ViewPosition="CC", ImageLaterality="R")
    large = with_hole(path, before, element, LARGE)
    assert peak_of(lambda: read_header(large)) < 2**20
    assert outcome(large) == Code.TOO_LARGE
    small = with_hole(path, before, element, 2**17)
    assert read_header(small) == read_header(path)


def test_large_elements_do_not_change_an_image(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Pixels are those of a file without the large element, of which nothing is read; a large LUT is."""
    path = write_dicom(breast, PatientID="P1")
    large = with_hole(path, ROWS, b"\x19\x00\x10\x10OB\0\0", 100 * 2**20)
    assert peak_of(lambda: read_mammogram(large, apply_window=True)) < 2**23
    np.testing.assert_array_equal(read_mammogram(large, apply_window=True).stored, breast)
    table = np.arange(65536) // 16
    for syntax in NATIVE:
        with_lut = reencode(write_dicom(breast, VOILUTSequence=lut([0, 0, 16], table)), syntax)
        assert_as_bright(read_mammogram(with_lut, apply_window=True), table[breast])


def test_a_deflated_file_with_large_elements(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Elements that are small are read from a deflated file as from others, and large ones are no hindrance."""
    path = with_hole(write_dicom(breast, PatientID="P1", ViewPosition="CC"), ROWS, b"\x19\x00\x10\x10OB\0\0", 2**17)
    deflated = reencode(path, DeflatedExplicitVRLittleEndian)
    assert read_header(deflated) == read_header(path) == Header(pixels=200 * 160, patient_id="P1", view="CC")
    np.testing.assert_array_equal(read_mammogram(deflated, apply_window=True).stored, breast)
    with deflated.open("r+b") as file:
        file.truncate(LARGE)
    assert peak_of(lambda: read_header(deflated)) < 2**20
    assert outcome(deflated) == Code.TOO_LARGE


def test_a_header_ends_where_only_a_vendor_reads_on(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Frames that a vendor keeps in a sequence of unknown length behind the header are not read with it."""
    path = write_dicom(breast, PatientID="P1")
    whole = path.read_bytes()
    place = whole.index(PIXELS)
    frames = b"".join(
        b"\xfe\xff\x00\xe0" + (12 + 2**20).to_bytes(4, "little")
        + b"\x01\x7e\x12\x10OB\0\0" + (2**20).to_bytes(4, "little") + bytes(2**20)
        for _ in range(8)
    )  # fmt: skip
    sequence = b"\x01\x7e\x10\x10SQ\0\0\xff\xff\xff\xff" + frames + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(whole[:place] + sequence + whole[place:])
    assert peak_of(lambda: read_header(path)) < 2**20
    assert read_header(path).patient_id == "P1"
    np.testing.assert_array_equal(read_mammogram(path, apply_window=True).stored, breast)


@pytest.mark.parametrize(
    ("excess", "code"),
    [
        (2, None),
        (2**20, None),
        (2**20 + 2, Code.UNDECODABLE),
        (99 * 200 * 160 * 2, Code.MULTIFRAME),
        (LARGE, Code.TOO_LARGE),
    ],
)
def test_more_pixel_data_than_one_frame_has(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], excess: int, code: Code | None
) -> None:
    """A header that knows of one frame before many is refused without reading them; a little may lie behind the pixels."""
    # 1000 rows, so that a mebibyte more is less than a second frame
    breast = np.repeat(breast, 20, axis=0) if excess <= 2**20 + 2 else breast
    path = write_dicom(breast)
    whole = path.read_bytes()
    place = whole.index(PIXELS) + 8
    with path.open("r+b") as file:
        file.seek(place)
        file.write((breast.nbytes + excess).to_bytes(4, "little"))
        file.truncate(len(whole) + excess)
    assert outcome(path) == code
    if code is not None:
        assert peak_of(lambda: read_mammogram(path, apply_window=True)) < 2**20
        path.write_bytes(whole[:-2])  # a file that ends is truncated, whatever it promised
        assert outcome(path) == Code.TRUNCATED


def test_frames_are_called_so_in_a_file_of_any_size(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Tomosynthesis is no broken file because it is large."""
    path = write_dicom(breast, NumberOfFrames=60)
    with path.open("r+b") as file:
        file.truncate(LARGE)
    for read in (read_header, lambda path: read_mammogram(path, apply_window=True)):
        with pytest.raises(RejectedError, match="MULTIFRAME"):
            read(path)


def test_pixel_data_without_end_are_searched_for_in_parts(write_dicom: WriteDicom) -> None:
    """That a large file ends inside of its compressed pixels is seen wherever their tag lies, and costs no memory."""
    path = write_dicom(sample_pixels(), BitsStored=12, HighBit=11)
    stream = encapsulate([(SAMPLES / "lossless12_sv1.jpg").read_bytes()])
    encoded = reencode(path, JPEGLosslessSV1, stream)
    tag = encoded.read_bytes().index(PIXELS)
    for border in range(5):
        length = 2**20 - tag - 12 - border
        far = with_hole(encoded, PIXELS, b"\x01\x7e\x12\x10OB\0\0", length)
        far.write_bytes(far.read_bytes()[:-200])
        assert outcome(far) == Code.TRUNCATED
    far = with_hole(encoded, PIXELS, b"\x01\x7e\x12\x10OB\0\0", 100 * 2**20)
    with far.open("r+b") as file:
        file.truncate(far.stat().st_size - 200)
    assert peak_of(lambda: read_mammogram(far, apply_window=True)) < 2**23
    assert outcome(far) == Code.TRUNCATED


def test_zeros_behind_the_pixels_are_not_read(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """A file that is filled up with zeros, millions of elements without tag and value, takes no longer."""
    path = write_dicom(breast)
    with path.open("r+b") as file:
        file.truncate(100 * 2**20)
    started = time.process_time()
    np.testing.assert_array_equal(read_mammogram(path, apply_window=True).stored, breast)
    assert time.process_time() - started < 5  # parsing them takes half a minute


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless, JPEG2000Lossless])
def test_what_careless_writers_leave_out(write_dicom: WriteDicom, breast: NDArray[np.uint16], syntax: UID) -> None:
    """Pixels are unsigned, of one channel and of all allocated bits where nothing else is said, and grey in any case."""
    path = reencode(write_dicom(breast), syntax)
    dataset = dcmread(path)
    for keyword in ("SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit"):
        del dataset[keyword]
    dataset.PhotometricInterpretation = "monochrome1"
    dataset.save_as(path)
    mammogram = read_mammogram(path, apply_window=True)
    np.testing.assert_array_equal(mammogram.stored, breast)
    assert mammogram.is_inverse
    dataset.PixelRepresentation = dataset.SamplesPerPixel = dataset.BitsStored = None
    dataset.add_new("PixelPaddingValue", "US", 0)
    dataset.save_as(path)
    mammogram = read_mammogram(path, apply_window=True)
    np.testing.assert_array_equal(mammogram.padding[mammogram.stored], breast == 0)


@pytest.mark.parametrize("function", [None, "LINEAR_EXACT", "SIGMOID"])
def test_a_window_of_zeros_is_none(write_dicom: WriteDicom, breast: NDArray[np.uint16], function: str | None) -> None:
    """Some writers put zeros where they have no window."""
    path = write_dicom(breast, WindowCenter=["0", "9"], WindowWidth=["0", "9"], VOILUTFunction=function)
    assert_as_bright(read_mammogram(path, apply_window=True), breast)


def test_deflated_bombs(tmp_path: Path, write_dicom: WriteDicom) -> None:
    """A deflated file that becomes larger than any mammogram is refused by its header already, at little cost."""
    path = reencode(write_dicom(sample_pixels()), DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    huge = b"".join(squeeze.compress(bytes(2**20)) for _ in range(160)) + squeeze.flush()
    bomb = tmp_path / "bomb"
    bomb.write_bytes(whole[:start] + huge)
    with pytest.raises(RejectedError, match="TOO_LARGE"):
        read_header(bomb)
    bomb.write_bytes(whole[:-40])
    with pytest.raises(RejectedError, match="TRUNCATED"):
        read_header(bomb)


@pytest.mark.parametrize("stored", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], stored: int, signed: bool
) -> None:
    """Whatever lies above or below the stored bits, such as an overlay, is no part of the image."""
    values = (breast >> (16 - stored) if stored < 12 else breast).astype(np.int32)
    if signed:
        values = values // 2 - 2 ** (stored - 2)
    pattern = (values % 2**stored).astype(np.uint16)
    garbage = np.random.default_rng(1).integers(0, 2**16, breast.shape).astype(np.uint16)
    for high in {stored - 1, min(15, stored + 1), 15}:
        below = high + 1 - stored
        mask = np.uint16((2**stored - 1) << below)
        pixels = ((pattern << below) & mask) | (garbage & ~mask)
        mammogram = read_mammogram(
            write_dicom(
                pixels.view(np.int16) if signed else pixels, BitsStored=stored, HighBit=high, RescaleSlope=2, RescaleIntercept=-7
            ),
            apply_window=True,
        )  # fmt: skip
        np.testing.assert_array_equal(mammogram.stored.view(np.int16) if signed else mammogram.stored, values)
        assert_as_bright(mammogram, values)


def test_eight_bits_allocated(write_dicom: WriteDicom) -> None:
    """An odd number of bytes is padded in the file, in every byte order, and is read without the padding."""
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    path = write_dicom(pixels, PixelData=pixels.tobytes() + b"\0")
    for syntax in NATIVE[:2] + NATIVE[3:]:
        np.testing.assert_array_equal(read_mammogram(reencode(path, syntax), apply_window=True).stored, pixels)
    unpadded = write_dicom(pixels)
    np.testing.assert_array_equal(read_mammogram(unpadded, apply_window=True).stored, pixels)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_equals_pydicoms(write_dicom: WriteDicom, breast: NDArray[np.uint16], function: str | None) -> None:
    """The first of several windows is applied after the rescale slope, as pydicom applies it."""
    path = write_dicom(
        breast, WindowCenter=[1500, 9], WindowWidth=[900, 9], VOILUTFunction=function,
        RescaleSlope=2, RescaleIntercept=-500,
    )  # fmt: skip
    assert_as_bright(read_mammogram(path, apply_window=True), apply_voi_lut(breast * 2.0 - 500, dcmread(path)))
    assert_as_bright(read_mammogram(path, apply_window=False), breast)


@pytest.mark.parametrize(
    ("center", "width", "expected"),
    [
        ("1500", " 900 ", (1050, 1949)),
        (" 1.5e3", "900.0", (1050, 1949)),
        (["1500", "9"], "900", (1050, 1949)),
        ("1500", "1", (1499, 1500)),
        ("1500", ["", "900"], None),
    ],
)
def test_windows_as_they_are_written(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], center: Any, width: Any, expected: tuple[int, int] | None
) -> None:
    """Windows are numbers however they are written; what lies outside is black or white, and half a window is none."""
    breast[0, :2] = 1499, 1500
    mammogram = read_mammogram(write_dicom(breast, WindowCenter=center, WindowWidth=width), apply_window=True)
    assert_as_bright(mammogram, breast.astype(float) if expected is None else np.clip(breast.astype(float), *expected))


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_a_negative_slope_under_a_window(write_dicom: WriteDicom, breast: NDArray[np.uint16], function: str) -> None:
    """A negative slope turns the image over once, with a window as without."""
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    window = {"WindowCenter": 2000, "WindowWidth": 9000, "VOILUTFunction": function}
    assert_as_bright(read_mammogram(write_dicom(breast, **tags), apply_window=True), -breast.astype(float))
    windowed = shown(read_mammogram(write_dicom(breast, **tags, **window), apply_window=True))
    assert np.corrcoef(windowed.ravel(), -breast.astype(float).ravel())[0, 1] > 0.99


def test_a_large_intercept_costs_no_precision(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Brightness keeps its steps however far away from zero the header moves it."""
    for tags in ({"RescaleIntercept": 1e9, "RescaleSlope": 1}, {"RescaleSlope": 1e-45}, {"RescaleSlope": 1e40}):
        assert_as_bright(read_mammogram(write_dicom(breast, **tags), apply_window=True), breast)


@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_luts(write_dicom: WriteDicom, breast: NDArray[np.uint16], syntax: UID) -> None:
    """VOI and modality LUTs of 8, 12 and 16 bits are looked up beyond their 256th entry, in every byte order."""
    curve = (np.arange(4096.0) / 4095) ** 2
    for bits in (8, 12, 16):
        table = np.rint(curve * (2**bits - 1))
        for name in ("VOILUTSequence", "ModalityLUTSequence"):
            path = reencode(write_dicom(breast, **{name: lut([4096, 0, bits], table)}), syntax)
            assert_as_bright(read_mammogram(path, apply_window=True), table[breast])
            assert_as_bright(read_mammogram(path, apply_window=False), table[breast] if name[0] == "M" else breast)


def test_luts_with_odd_descriptors(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """The first value is respected, also below zero; 65536 entries are written as 0; bytes may be packed in words."""

    def read(path: Path) -> Mammogram:
        return read_mammogram(path, apply_window=True)

    table = np.arange(1000.0) ** 2 // 16
    expected = table[np.clip(breast.astype(int) - 1500, 0, 999)]
    assert_as_bright(read(write_dicom(breast, VOILUTSequence=lut([1000, 1500, 16], table))), expected)
    signed = breast.astype(np.int16) - 2000
    expected = table[np.clip(signed + 1200, 0, 999)]
    for first, is_signed in ((-1200, True), (2**16 - 1200, False)):
        sequence = lut([1000, first, 16], table, signed=is_signed)
        assert_as_bright(read(write_dicom(signed, VOILUTSequence=sequence)), expected)
    whole = np.arange(65536) // 2
    assert_as_bright(read(write_dicom(breast, VOILUTSequence=lut([0, 0, 16], whole))), breast)
    packed = (np.arange(4096) // 16).astype(np.uint8)
    assert_as_bright(read(write_dicom(breast, VOILUTSequence=lut([4096, 0, 8], packed.tobytes()))), packed[breast])
    short = write_dicom(breast, VOILUTSequence=lut([4096, 0, 16], np.arange(100)))
    assert outcome(short) == Code.UNDECODABLE


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 900}])
def test_monochrome1_is_marked(write_dicom: WriteDicom, breast: NDArray[np.uint16], window: dict[str, int]) -> None:
    """In MONOCHROME1 the same stored values are as bright, and are marked as meant the other way round."""
    there = read_mammogram(write_dicom(breast, **window), apply_window=True)
    inverse = read_mammogram(write_dicom(breast, PhotometricInterpretation="MONOCHROME1", **window), apply_window=True)
    np.testing.assert_array_equal(there.brightness, inverse.brightness)
    assert (there.is_inverse, inverse.is_inverse) == (False, True)


@pytest.mark.parametrize(
    ("value", "limit", "stored"),
    [
        (-2000, -1990, 16),
        (63536, 63546, 16),
        (-2000, None, 16),
        (-1990, -2000, 16),
        (-2000, -1990, 12),
        (2096, 2106, 12),
    ],
)
def test_padding_of_signed_pixels(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], value: int, limit: int | None, stored: int
) -> None:
    """Padding is compared with stored values, from value to limit in any order, also where it is written without its sign."""
    signed = (
        breast.astype(np.int16) - 2000 if stored == 16 else np.where(breast > 0, breast - 1000, -2000).astype(np.int16)
    )
    path = write_dicom(signed, RescaleSlope=3, RescaleIntercept=1, BitsStored=stored, HighBit=stored - 1)
    dataset = dcmread(path)
    for keyword, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if number is not None:
            setattr(dataset, keyword, number)
            dataset[keyword].VR = "SS" if number < 0 else "US"
    dataset.save_as(path)
    mammogram = read_mammogram(path, apply_window=True)
    assert_as_bright(mammogram, signed)
    np.testing.assert_array_equal(
        mammogram.padding[mammogram.stored], signed <= -1990 if limit is not None else signed == -2000
    )


def test_padding_beyond_the_stored_bits(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Padding of 16 set bits in a 12-bit image is what its pixels become; an empty padding value is none."""
    padded = breast.copy()
    padded[:, 140:] = 65535
    path = write_dicom(padded, BitsStored=12, HighBit=11, PixelPaddingValue=65535)
    mammogram = read_mammogram(path, apply_window=True)
    np.testing.assert_array_equal(mammogram.padding[mammogram.stored], padded == 65535)
    assert not read_mammogram(write_dicom(breast, PixelPaddingValue=None), apply_window=True).padding.any()


@pytest.mark.parametrize("implicit", [True, False])
def test_no_file_meta_header(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tmp_path: Path, implicit: bool
) -> None:
    """A file that begins with its first tag, as old archives write them, is read, and so is one without a preamble."""
    path = write_dicom(breast)
    without_preamble = tmp_path / "without preamble"
    without_preamble.write_bytes(path.read_bytes()[132:])
    dataset = dcmread(path)
    dataset.file_meta = FileMetaDataset()
    old = tmp_path / "old"
    dataset.save_as(old, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    for file in (old, without_preamble):
        np.testing.assert_array_equal(read_mammogram(file, apply_window=True).stored, breast)


def test_reading_is_quiet(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], caplog: pytest.LogCaptureFixture
) -> None:
    """What pydicom has against a header, which may quote it, reaches neither warnings nor logs."""
    path = write_dicom(breast, PatientID="x" * 100, ViewPosition="mlo?!", Modality=None)
    caplog.clear()
    assert read_header(path).view == "MLO"
    assert outcome(path) is None
    assert not caplog.records


NAME = "MUSTER^ANNA"


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": NAME}, {"SOPClassUID": NAME, "Modality": None}, {"PhotometricInterpretation": NAME}, {"RescaleSlope": NAME},
        {"Modality": "CR", "SOPClassUID": COMPUTED_RADIOGRAPHY, "BodyPartExamined": NAME}, {"VOILUTFunction": NAME},
        {"WindowCenter": NAME, "WindowWidth": NAME}, {"NumberOfFrames": NAME}, {"RescaleSlope": "O'HARA \"ANNA\" MUSTER^ANNA"},
    ],
)  # fmt: skip
def test_reasons_quote_no_header(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tags: dict[str, str | None]
) -> None:
    """A patient's name in the wrong place is in no reason, which is one line."""
    unwritable = {"RescaleSlope", "NumberOfFrames", "WindowCenter", "WindowWidth", "SOPClassUID"}
    placeholders = {
        name: "12" if name in unwritable and value not in {COMPUTED_RADIOGRAPHY, None} else value
        for name, value in tags.items()
    }
    path = write_dicom(breast, **({"WindowCenter": 1000, "WindowWidth": 100} | placeholders))
    data = path.read_bytes()
    for name, value in tags.items():
        if value is not None and placeholders[name] != value:  # what no writer writes
            tag, text = dcmread(path)[name].tag, value.encode() + b" " * (len(value) % 2)
            start = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
            length = int.from_bytes(data[start + 6 : start + 8], "little")
            data = data[: start + 6] + len(text).to_bytes(2, "little") + text + data[start + 8 + length :]
    path.write_bytes(data)
    rejected = refusal(path)
    assert rejected is not None
    assert rejected.reason
    for part in ("MUSTER", "ANNA", "HARA"):
        assert part not in rejected.reason.upper()
    assert "\n" not in rejected.reason
