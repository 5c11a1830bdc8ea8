"""
What hospitals' archives hold besides good mammograms: files broken on purpose, odd ones that are good, and wrong labels.

Each lies in a folder of its own, `09000NN/<what it is>`, and `EXPECTED` says what becomes of it. Ten files count as broken:
below 42 patients that is more than the share of 0.05 that a run accepts by default. Not covered: what stops a whole
run, such as a label file with unknown values.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    XRayRadiationDoseSRStorage,
)

from trainer.data.records import Code

Specimen = Callable[[int, int], DicomDataset]
"""Draws a whole, uncompressed mammogram of 12 bits, of the patient of this number and grade."""
_Write = Callable[[DicomDataset], bytes]

_FIRST_NUMBER = 900_001
_BITS = 12
_SOP_CLASS_TAG = b"\x08\x00\x16\x00"
"""The first of the data set proper."""


def add_malformed(root: Path, specimen: Specimen) -> list[tuple[str, str]]:
    """Write all of `EXPECTED` below *root* and return its labels: accession numbers and classes."""
    labels: list[tuple[str, str]] = []
    for index, (name, _, write) in enumerate(_FILES):
        path, grade = root / _accession(index) / name, _grade(index)
        path.parent.mkdir(parents=True)
        path.write_bytes(write(specimen(_FIRST_NUMBER + index, grade)))
        labels.append((path.parent.name, str(grade)))
    for index, (name, _, target) in enumerate(_LINKS, start=len(_FILES)):
        path = root / _accession(index) / name
        path.parent.mkdir()
        path.symlink_to(target)
        labels.append((path.parent.name, str(_grade(index))))
    return labels + _add_labels(root, specimen)


def _add_labels(root: Path, specimen: Specimen) -> list[tuple[str, str]]:
    """Write the whole files of `_LABELS` below *root* and return their labels."""
    labels: list[tuple[str, str]] = []
    content = b""
    for index, (name, _, label, copy) in enumerate(_LABELS, start=len(_FILES) + len(_LINKS)):
        if name:
            content = copy(content) if copy is not None else _as_file(specimen(_FIRST_NUMBER + index, 2))
            (root / _accession(index)).mkdir()
            (root / _accession(index) / name).write_bytes(content)
        if label:
            labels.append((_accession(index), label))
    return labels


def _accession(index: int) -> str:
    return f"{_FIRST_NUMBER + index:07d}"


def _grade(index: int) -> int:
    """Return 2 or 3, in turns: no class consists of odd images."""
    return 2 + index % 2


def _as_file(dataset: DicomDataset) -> bytes:
    """Return *dataset* as a DICOM file, in the encoding that its file meta names."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _with(**tags: object) -> _Write:
    """Return a writer that sets these header tags; None leaves one out."""

    def write(dataset: DicomDataset) -> bytes:
        for keyword, value in tags.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        return _as_file(dataset)

    return write


def _stored(dataset: DicomDataset) -> NDArray[np.uint16]:
    """Return (H, W) the pixels of a specimen."""
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)


def _truncated_native(dataset: DicomDataset) -> bytes:
    return _as_file(dataset)[: -len(dataset.PixelData) // 2]


def _truncated_jpeg_2000(dataset: DicomDataset) -> bytes:
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    return _as_file(dataset)[: -len(dataset.PixelData) // 2]


def _stream_of_zeros(dataset: DicomDataset) -> bytes:
    dataset.PixelData = encapsulate([bytes(4096)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return _as_file(dataset)


def _constant(dataset: DicomDataset) -> bytes:
    dataset.PixelData = np.full((dataset.Rows, dataset.Columns), 1000, "<u2").tobytes()
    return _as_file(dataset)


def _three_frames(dataset: DicomDataset) -> bytes:
    dataset.PixelData *= 3
    return _with(SOPClassUID=BreastTomosynthesisImageStorage, NumberOfFrames=3)(dataset)


def _dose_report(dataset: DicomDataset) -> bytes:
    """Return a structured report: text in a tree, without pixels."""
    report = DicomDataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in (
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "StudyDate",
        "AccessionNumber",
        "PatientID",
    ):
        setattr(report, keyword, dataset[keyword].value)
    report.SOPClassUID, report.Modality = XRayRadiationDoseSRStorage, "SR"
    title = DicomDataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "113701", "DCM", "X-Ray Radiation Dose Report"
    report.ValueType, report.ConceptNameCodeSequence = "CONTAINER", DicomSequence([title])
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    return _as_file(report)


def _dose_screenshot(dataset: DicomDataset) -> bytes:
    """Return a page of text that a workstation has sent as an image."""
    page = np.zeros((dataset.Rows, dataset.Columns), dtype=np.uint8)
    height = len(page)
    for row, line in enumerate(("Dose report", "AGD 1.4 mGy", "28 kV  W/Rh", "Force 96 N")):
        place = (height // 20, (row + 2) * height // 10)
        cv2.putText(page, line, place, cv2.FONT_HERSHEY_SIMPLEX, height / 500, 255, 1, cv2.LINE_AA)
    _set_bytes(dataset, page)
    for keyword in (
        "PresentationIntentType",
        "BodyPartExamined",
        "ImageLaterality",
        "ViewPosition",
        "ViewCodeSequence",
    ):
        delattr(dataset, keyword)
    return _with(SOPClassUID=SecondaryCaptureImageStorage, Modality="OT", ConversionType="WSD")(dataset)


def _photograph(dataset: DicomDataset) -> bytes:
    """Return a colour image of the kind that a camera in the examination room makes."""
    grey = cv2.GaussianBlur((_stored(dataset) >> (_BITS - 8)).astype(np.uint8), (0, 0), 2)
    _set_bytes(dataset, np.stack([grey, (grey * 0.8).astype(np.uint8), (grey * 0.7).astype(np.uint8)], axis=-1))
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "ConversionType": "DI"}
    return _with(SOPClassUID=SecondaryCaptureImageStorage, **tags)(dataset)


def _set_bytes(dataset: DicomDataset, pixels: NDArray[np.uint8]) -> None:
    """Give *dataset* these pixels of 8 bits, and a window that fits them."""
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    content = pixels.tobytes()
    dataset.PixelData = content + bytes(len(content) % 2)
    dataset["PixelData"].VR = "OB"


def _for_processing(dataset: DicomDataset) -> bytes:
    """Return detector values: the more tissue, the fewer."""
    dataset.PixelData = (2**_BITS - 1 - _stored(dataset)).astype("<u2").tobytes()
    tags = {"SOPClassUID": DigitalMammographyXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}
    return _with(**tags, PhotometricInterpretation="MONOCHROME1", WindowCenter=None, WindowWidth=None)(dataset)


def _modified_view(code: str, meaning: str) -> _Write:
    """Return a writer of a part of a breast, with this code of DICOM PS3.16, CID 4015."""

    def write(dataset: DicomDataset) -> bytes:
        modifier = DicomDataset()
        modifier.CodeValue, modifier.CodingSchemeDesignator, modifier.CodeMeaning = code, "SRT", meaning
        dataset.ViewCodeSequence[0].ViewModifierCodeSequence = DicomSequence([modifier])
        part = _stored(dataset)[dataset.Rows // 4 : -dataset.Rows // 4]
        dataset.PixelData, dataset.Rows = part.tobytes(), len(part)
        return _as_file(dataset)

    return write


def _without_preamble(dataset: DicomDataset) -> bytes:
    """Return the bare data set: without preamble, mark and file meta."""
    content = _as_file(dataset)
    return content[content.index(_SOP_CLASS_TAG) :]


def _padded_with_the_maximum(dataset: DicomDataset) -> bytes:
    """Return an image whose edge away from the chest wall is filled up with the largest value."""
    largest, stored = 2**_BITS - 1, _stored(dataset).copy()
    strip = slice(-dataset.Columns // 20, None) if dataset.ImageLaterality == "L" else slice(dataset.Columns // 20)
    stored[:, strip] = largest
    dataset.PixelData, dataset.PixelPaddingValue = stored.tobytes(), largest
    return _as_file(dataset)


def _eight_bits(dataset: DicomDataset) -> bytes:
    _set_bytes(dataset, (_stored(dataset) >> (_BITS - 8)).astype(np.uint8))
    return _as_file(dataset)


def _big_endian(dataset: DicomDataset) -> bytes:
    dataset.PixelData = _stored(dataset).astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    return _as_file(dataset)


def _deflated(dataset: DicomDataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return _as_file(dataset)


def _same_bytes(content: bytes) -> bytes:
    return content


def _in_another_encoding(content: bytes) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    dataset.compress(RLELossless, generate_instance_uid=False)
    return _as_file(dataset)


def _png(dataset: DicomDataset) -> bytes:
    return cv2.imencode(".png", _stored(dataset) << (16 - _BITS))[1].tobytes()


def _jpeg(dataset: DicomDataset) -> bytes:
    return cv2.imencode(".jpg", (_stored(dataset) >> (_BITS - 8)).astype(np.uint8))[1].tobytes()


_FILES: tuple[tuple[str, Code | None, _Write], ...] = (
    ("truncated_native.dcm", Code.TRUNCATED, _truncated_native),
    ("truncated_jpeg_2000.dcm", Code.TRUNCATED, _truncated_jpeg_2000),
    ("more_rows_than_pixels.dcm", Code.TRUNCATED, _with(Rows=20_000)),
    ("zero_bytes.dcm", Code.NOT_IMAGE, lambda _: b""),
    ("html_error_page.dcm", Code.NOT_IMAGE, lambda _: b"<html><body>502 Bad Gateway</body></html>\n"),
    ("a_note.txt", Code.NOT_IMAGE, lambda _: b"Images on CD, see second envelope.\n"),
    ("no_pixel_data.dcm", Code.NOT_IMAGE, _with(PixelData=None)),
    ("constant_image.dcm", Code.BLANK, _constant),
    ("stream_of_zeros.dcm", Code.UNDECODABLE, _stream_of_zeros),
    ("enormous_size.dcm", Code.TOO_LARGE, _with(Rows=65535, Columns=65535)),
    ("tomosynthesis_three_frames.dcm", Code.MULTIFRAME, _three_frames),
    ("ultrasound.dcm", Code.NOT_MAMMOGRAPHY, _with(SOPClassUID=UltrasoundImageStorage, Modality="US")),
    ("dose_report_sr.dcm", Code.NOT_MAMMOGRAPHY, _dose_report),
    ("dose_screenshot.dcm", Code.NOT_MAMMOGRAPHY, _dose_screenshot),
    ("photograph_rgb.dcm", Code.NOT_MAMMOGRAPHY, _photograph),
    ("for_processing.dcm", Code.FOR_PROCESSING, _for_processing),
    ("spot_compression.dcm", Code.EXCLUDED_VIEW, _modified_view("R-102D7", "Spot Compression")),
    ("magnification.dcm", Code.EXCLUDED_VIEW, _modified_view("R-102D6", "Magnification")),
    ("no_preamble.dcm", None, _without_preamble),
    ("no_modality.dcm", None, _with(Modality=None)),
    ("modality_rg.dcm", None, _with(Modality="RG")),
    ("padded_with_the_maximum.dcm", None, _padded_with_the_maximum),
    ("eight_bits.dcm", None, _eight_bits),
    ("big_endian.dcm", None, _big_endian),
    ("deflated.dcm", None, _deflated),
    ("sixteen_bits.png", None, _png),
    ("eight_bits.jpg", None, _jpeg),
)
"""Name, expected code (None: the file is used), and what makes it of a whole mammogram."""

_LINKS: tuple[tuple[str, Code, str], ...] = (
    ("link_out_of_the_root.dcm", Code.OUTSIDE_ROOT, "../../classificacao.csv"),
    ("link_to_nowhere.dcm", Code.LINK, "absent.dcm"),
    ("link_to_itself.dcm", Code.LINK, "link_to_itself.dcm"),
)
"""Name, expected code, and where it leads."""

_LABELS: tuple[tuple[str, Code | None, str, Callable[[bytes], bytes] | None], ...] = (
    ("original.dcm", None, "2", None),
    ("duplicate_with_the_same_label.dcm", Code.DUPLICATE, "2", _same_bytes),
    ("duplicate_in_another_encoding.dcm", Code.DUPLICATE, "2", _in_another_encoding),
    ("original_in_conflict.dcm", Code.CONFLICTING_DUPLICATE, "2", None),
    ("duplicate_with_another_label.dcm", Code.CONFLICTING_DUPLICATE, "3", _same_bytes),
    ("folder_without_a_label.dcm", Code.NO_LABEL, "", None),
    ("", Code.NO_IMAGE, "3", None),
    ("class_5.dcm", Code.EXCLUDED_CLASS, "5", None),
)
"""Name (empty: a label without a folder), expected code, label (empty: none), and what makes a copy of the file before."""

_ALL: tuple[tuple[str, Code | None], ...] = (
    *((name, code) for name, code, _ in _FILES),
    *((name, code) for name, code, _ in _LINKS),
    *((name, code) for name, code, *_ in _LABELS),
)

EXPECTED: Mapping[str, Code | None] = {
    f"{_accession(index)}/{name}".removesuffix("/"): code for index, (name, code) in enumerate(_ALL)
}
"""By path below the root, or by accession number where there is no file: the code that refuses it, None if it is used."""
