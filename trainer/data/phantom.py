"""
A synthetic archive: DICOM files that look enough like mammograms for a small network to learn density from, and to err.

Per patient one accession number with both sides in two views. Covered: the archive's layout and labels, headers of five
fictional vendors, markers, encodings, both polarities. What the images show is `phantom_anatomy`, broken files are
`phantom_malformed`. Not covered: lesions, scanned film.

`python -m trainer.data.phantom PICTURE.png` draws a sheet of four patients, one a grade.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from trainer.data.phantom_anatomy import Anatomy, Field, draw_anatomy, draw_breast, draw_marker
from trainer.data.phantom_malformed import add_malformed
from trainer.errors import InputError
from trainer.files import write_text

_GRADE_SHARES = (0.15, 0.35, 0.35, 0.15)
"""Share of the patients in grades 1 to 4, about as screening finds them."""
_RARITY = (2 / 3, 0.0, 1 / 3, 1.0)
"""By grade, for an imbalance R: a grade has the share of the most frequent one over R to this power."""
_LARGEST_IMBALANCE = 20.0
_DENSE_AREA = (0.12, 0.28, 0.45, 0.64)
"""Mean share of the breast that is dense, by grade."""
_DENSE_AREA_SD = 0.06
"""Between the patients of a grade: neighbours overlap."""
_SMALLEST_SIDE = 64
"""The JPEG 2000 encoder halves an image five times."""
_IMAGES = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))
"""Side and view of a patient's images."""
_ENCODINGS = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, ImplicitVRLittleEndian, RLELossless)
"""In turns; five of them and four images a patient, so that no encoding goes with a view."""
_VIEW_CODES = {"CC": ("R-10242", "cranio-caudal"), "MLO": ("R-10226", "medio-lateral oblique")}
"""Source: DICOM PS3.16, CID 4014, in the codes that most machines still write."""
_AIR = 0.012
"""Brightness where the beam met no tissue."""
_MARKER = 0.95
_MARGIN = 0.02
"""Of air around the skin that no machine takes for padding, in image heights."""


@dataclass(frozen=True)
class _Vendor:
    """What a machine writes, whoever is in front of it."""

    manufacturer: str
    model: str
    bits: int
    """Stored, of 16."""
    inverted: bool = False
    """MONOCHROME1."""
    windows: tuple[tuple[str, float, float], ...] = ()
    """Name, centre and width, as shares of the largest value."""
    sigmoid: bool = False
    """The window's function is not linear."""
    slope: float | None = None
    """Rescale slope, with an intercept of -100."""
    padded: bool = False
    """Air is stored as a padding value, 0."""
    gamma: float = 1.0
    """Of the curve that its processing gives the tissue."""


_VENDORS = (
    _Vendor("Phantom Imaging", "Aurora 24", 12, windows=(("NORMAL", 0.5, 1.0),)),
    _Vendor(
        "Example Medical",
        "Mira 3000",
        12,
        windows=(("NORMAL", 0.46, 0.92), ("HARDER", 0.5, 0.7), ("SOFTER", 0.5, 1.2)),
        padded=True,
        gamma=0.92,
    ),
    _Vendor("Nowhere Systems", "Senotest M1", 14, inverted=True, gamma=1.08),
    _Vendor("Fictional Radiology", "Lumen D", 10, windows=(("STANDARD", 0.5, 1.0),), slope=4.0),
    _Vendor("Imaginary Optics", "MX-5", 12, windows=(("SIGMOID", 0.45, 0.9),), sigmoid=True),
)
"""In turns, one a patient."""


@dataclass(frozen=True)
class _Patient:
    number: int
    """From 1."""
    grade: int
    """1..4."""
    anatomy: Anatomy
    exposure: float
    """Factor on all values."""
    vendor: _Vendor
    """Of the machine in front of which the patient stood."""

    @property
    def accession(self) -> str:
        """With zeros in front, which a reader must keep."""
        return f"{self.number:07d}"


def make_phantom(
    out: Path,
    *,
    patients: int,
    seed: int = 42,
    side: int = 512,
    imbalance: float | None = None,
    malformed: bool = False,
) -> None:
    """
    Write `classificacao.csv` and `archive/<accession>/*.dcm` of *patients* to *out*: four images each, *side* pixels high.

    The same arguments give the same files, byte for byte.

    Args:
        out: A new or empty folder.
        patients: With readable images, from 1.
        seed: Of everything that is drawn.
        side: Height of the images in pixels, from 64.
        imbalance: How many times as many patients the most frequent grade, 2, has as the rarest, 4: 1 to 20, as near as whole
            patients allow. None: as in screening.
        malformed: Add what `phantom_malformed` lists, with labels of their own, mostly 2 and 3.

    Raises:
        InputError: *out* has files already, or *side* or *imbalance* is not in its range.
    """
    if side < _SMALLEST_SIDE:
        raise InputError(f"side {side}, expected at least {_SMALLEST_SIDE}")
    if imbalance is not None and not 1 <= imbalance <= _LARGEST_IMBALANCE:
        raise InputError(f"imbalance {imbalance:g}, expected 1 to {_LARGEST_IMBALANCE:g}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: not empty, expected a new folder for the synthetic archive")
    random = np.random.default_rng(seed)
    drawn = list(_draw_patients(random, patients, imbalance))
    for patient in drawn:
        folder = out / "archive" / patient.accession
        folder.mkdir(parents=True)
        for index, (laterality, view) in enumerate(_IMAGES):
            dataset = _draw_dataset(random, patient, laterality, view, side, seed)
            _save(
                dataset, folder / f"{laterality}_{view}.dcm", _ENCODINGS[(4 * patient.number + index) % len(_ENCODINGS)]
            )
    labels = [(patient.accession, str(patient.grade)) for patient in drawn]
    if malformed:
        labels += add_malformed(out / "archive", lambda number, grade: _draw_specimen(number, grade, side, seed))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["AccessionNumber", "Classification", "ClassificationDate"])
    writer.writerows([*label, "2024-01-15"] for label in labels)
    write_text(out / "classificacao.csv", buffer.getvalue())


def draw_sheet(seed: int = 1, side: int = 240) -> NDArray[np.uint8]:
    """Return a picture of four patients, one a grade, each in a row as it is hung up: both CC, both MLO, back to back."""
    random = np.random.default_rng(seed)
    rows = []
    for grade, area in enumerate(_DENSE_AREA, start=1):
        patient = _Patient(grade, grade, draw_anatomy(random, area), 1.0, _VENDORS[0])
        images = [
            _draw_values(random, patient, laterality, view, side)[0] for view in ("CC", "MLO") for laterality in "RL"
        ]
        rows.append(np.hstack(images))
    sheet: NDArray[np.float32] = np.rint(np.vstack(rows).clip(0, 1) * 255)
    return sheet.astype(np.uint8)


def _count_grades(count: int, imbalance: float | None) -> NDArray[np.int64]:
    """Return (4,) how many of *count* patients have each grade: their shares, rounded, and one each if there are four."""
    shares = np.array(_GRADE_SHARES if imbalance is None else [imbalance**-rarity for rarity in _RARITY])
    ends = np.rint(np.cumsum(shares / shares.sum()) * count).astype(np.int64)
    counts: NDArray[np.int64] = np.diff(ends, prepend=0)
    if count >= len(counts):
        missing = counts == 0
        counts[np.argmax(counts)] -= missing.sum()
        counts[missing] = 1
    return counts


def _draw_patients(random: np.random.Generator, count: int, imbalance: float | None) -> Iterator[_Patient]:
    """Yield *count* patients with their grades in random order."""
    grades = np.repeat(np.arange(1, 5), _count_grades(count, imbalance))
    for number, grade in enumerate(random.permutation(grades).tolist(), start=1):
        yield _draw_patient(random, number, grade, _VENDORS[number % len(_VENDORS)])


def _draw_patient(random: np.random.Generator, number: int, grade: int, vendor: _Vendor) -> _Patient:
    area = float(np.clip(random.normal(_DENSE_AREA[grade - 1], _DENSE_AREA_SD), 0.03, 0.9))
    return _Patient(number, grade, draw_anatomy(random, area), float(random.uniform(0.8, 1.0)), vendor)


def _draw_specimen(number: int, grade: int, side: int, seed: int) -> DicomDataset:
    """Return one whole, uncompressed image of 12 bits, the first vendor's, of a patient of its own."""
    random = np.random.default_rng([seed, number])
    patient = _draw_patient(random, number, grade, _VENDORS[0])
    laterality, view = _IMAGES[number % len(_IMAGES)]
    return _draw_dataset(random, patient, laterality, view, side, seed)


def _draw_dataset(
    random: np.random.Generator, patient: _Patient, laterality: str, view: str, side: int, seed: int
) -> DicomDataset:
    """Return one image with its header, uncompressed."""
    values, air = _draw_values(random, patient, laterality, view, side)
    vendor = patient.vendor
    largest = 2**vendor.bits - 1
    stored = np.rint(values.clip(0, 1) * largest).astype("<u2")
    if vendor.inverted:
        stored = (largest - stored).astype("<u2")
    if vendor.padded:
        stored = np.where(air, 0, stored.clip(1)).astype("<u2")
    dataset = _header(patient, laterality, view, seed)
    _describe_pixels(dataset, vendor)
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelData = stored.tobytes()
    return dataset


def _draw_values(
    random: np.random.Generator, patient: _Patient, laterality: str, view: str, side: int
) -> tuple[Field, NDArray[np.bool_]]:
    """Return one image with its marker, 0..1 and denser tissue brighter, and where nothing but air is."""
    breast = draw_breast(random, patient.anatomy, view, side)
    values = patient.exposure * breast.values**patient.vendor.gamma
    # The sum of two bytes: noise enough, at a tenth of the price of normal deviates.
    noise = random.integers(0, 256, (2, *values.shape), dtype=np.uint8).sum(axis=0, dtype=np.float32) - 255
    values += _AIR + noise * (0.00003 + 0.00006 * values)
    away = breast.depth < -_MARGIN
    if laterality == "R":
        values, away = values[:, ::-1], away[:, ::-1]
    marker = draw_marker((values.shape[0], values.shape[1]), laterality, view)
    return np.ascontiguousarray(values + marker * (_MARKER - values)), away & (marker == 0)


def _header(patient: _Patient, laterality: str, view: str, seed: int) -> DicomDataset:
    """Return what identifies an image and says what it shows."""
    name = f"phantom {seed} {patient.number}"
    dataset = DicomDataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[name, laterality, view])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    dataset.StudyDate = "20240115"
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = patient.vendor.manufacturer
    dataset.ManufacturerModelName = patient.vendor.model
    dataset.AccessionNumber = patient.accession
    dataset.PatientID = f"PHANTOM{patient.number:05d}"
    dataset.PatientName = ""
    dataset.BodyPartExamined = "BREAST"
    dataset.ImageLaterality = laterality
    dataset.ViewPosition = view
    code = DicomDataset()
    code.CodeValue, code.CodeMeaning = _VIEW_CODES[view]
    code.CodingSchemeDesignator = "SRT"
    dataset.ViewCodeSequence = DicomSequence([code])
    dataset.BurnedInAnnotation = "YES"
    return dataset


def _describe_pixels(dataset: DicomDataset, vendor: _Vendor) -> None:
    """Put into *dataset* how *vendor* stores pixels and wants them shown."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if vendor.inverted else "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = vendor.bits
    dataset.HighBit = vendor.bits - 1
    dataset.PixelRepresentation = 0
    slope, intercept = (1.0, 0.0) if vendor.slope is None else (vendor.slope, -100.0)
    if vendor.slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    if vendor.padded:
        dataset.PixelPaddingValue = 0
    if vendor.windows:
        largest = slope * (2**vendor.bits - 1)
        names, centres, widths = zip(*vendor.windows, strict=True)
        dataset.WindowCenter = [round(centre * largest + intercept) for centre in centres]
        dataset.WindowWidth = [round(width * largest) for width in widths]
        dataset.WindowCenterWidthExplanation = list(names)
        dataset.VOILUTFunction = "SIGMOID" if vendor.sigmoid else "LINEAR"


def _save(dataset: DicomDataset, path: Path, encoding: UID) -> None:
    """Write *dataset* to *path* in *encoding*."""
    if encoding.is_encapsulated:
        dataset.compress(encoding, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = encoding
    dataset.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    cv2.imwrite(sys.argv[1], draw_sheet())
