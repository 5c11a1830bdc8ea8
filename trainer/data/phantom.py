"""
A synthetic archive: DICOM files that look enough like mammograms for a small network to learn density from, and to err.

Per patient one accession number with both sides in two views. Covered: breast outline, pectoral muscle, power-law tissue,
exposure, markers, several encodings and both polarities. Not covered: lesions, scanned film, broken files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from trainer.errors import InputError
from trainer.files import write_text

_GRADE_SHARES = (0.15, 0.35, 0.35, 0.15)
"""Share of the patients in grades 1 to 4, as screening finds them."""
_DENSE_AREA = (0.12, 0.28, 0.45, 0.64)
"""Mean share of the breast that is dense, by grade."""
_DENSE_AREA_SD = 0.06
"""Between the patients of a grade: neighbours overlap."""
_TISSUE_EXPONENT = 1.5
"""Of the amplitude spectrum 1/f^e: a power spectrum of exponent 3. Source: Burgess, Med. Phys. 26 (1999)."""
_SOFTNESS = 0.35
"""Of the transition between fat and dense tissue, in standard deviations of the tissue."""
_SMALLEST_SIDE = 64
"""The JPEG 2000 encoder halves an image five times."""
_BITS = 12
_ENCODINGS = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, ExplicitVRLittleEndian, RLELossless)
"""In turns; five of them and four images a patient, so that no encoding goes with a view."""
_INVERTED_EVERY = 7
"""One image in so many is MONOCHROME1."""


@dataclass(frozen=True)
class _Patient:
    number: int
    """From 1."""
    grade: int
    """1..4."""
    dense_area: float
    """Share of the breast, 0..1."""
    size: float
    """Of the breast, as a share of the largest that fits."""
    exposure: float
    """Factor on all values."""

    @property
    def accession(self) -> str:
        """With zeros in front, which a reader must keep."""
        return f"{self.number:07d}"


def make_phantom(out: Path, *, patients: int, seed: int = 42, side: int = 512) -> None:
    """
    Write `classificacao.csv` and `archive/<accession>/*.dcm` of *patients* to *out*: four images each, *side* pixels high.

    The same arguments give the same files, byte for byte.

    Raises:
        InputError: *out* has files already, or *side* is less than 64.
    """
    if side < _SMALLEST_SIDE:
        raise InputError(f"side {side}, expected at least {_SMALLEST_SIDE}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: not empty, expected a new folder for the synthetic archive")
    random = np.random.default_rng(seed)
    drawn = list(_draw_patients(random, patients))
    for patient in drawn:
        folder = out / "archive" / patient.accession
        folder.mkdir(parents=True)
        for index, (laterality, view) in enumerate([("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]):
            image = _draw_image(random, patient, laterality, view, side)
            number = 4 * patient.number + index
            _write_dicom(folder / f"{laterality}_{view}.dcm", image, patient, laterality, view, number, seed)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["AccessionNumber", "Classification", "ClassificationDate"])
    writer.writerows([patient.accession, patient.grade, "2024-01-15"] for patient in drawn)
    write_text(out / "classificacao.csv", buffer.getvalue())


def _draw_patients(random: np.random.Generator, count: int) -> Iterator[_Patient]:
    """Yield *count* patients, with the grades in their shares (rounded, one patient each at least) and in random order."""
    ends = np.rint(np.cumsum(_GRADE_SHARES) * count).astype(int)
    grades = 1 + np.searchsorted(ends, np.arange(count), side="right")
    for number, grade in enumerate(random.permutation(grades).tolist(), start=1):
        yield _Patient(
            number=number,
            grade=grade,
            dense_area=float(np.clip(random.normal(_DENSE_AREA[grade - 1], _DENSE_AREA_SD), 0.03, 0.9)),
            size=float(random.uniform(0.7, 1.0)),
            exposure=float(random.uniform(0.8, 1.0)),
        )


def _draw_image(
    random: np.random.Generator, patient: _Patient, laterality: str, view: str, side: int
) -> NDArray[np.uint16]:
    """Return one (side, 13/16 side) image of 12 bits, dense tissue bright, a left breast's chest wall at the left edge."""
    shape = (side, side * 13 // 16)
    thickness = _draw_thickness(random, patient.size, view, shape)
    breast = thickness > 0
    texture = _draw_texture(random, shape)
    dense = _choose_dense(random, texture, breast, patient.dense_area)
    contrast = random.uniform(0.3, 0.42)
    values = np.where(breast, thickness * (0.3 + 0.05 * texture + contrast * dense), 0.0)
    if view == "MLO":
        muscle = _draw_muscle(random, shape) * breast
        values = values * (1 - muscle) + muscle * (0.6 + 0.03 * texture)
    values = patient.exposure * values + random.normal(0.015, 0.005, shape)
    if laterality == "R":
        values = np.ascontiguousarray(values[:, ::-1])
    values[_draw_marker(shape, laterality, view)] = 0.95
    scaled: NDArray[np.float64] = np.rint(np.clip(values, 0, 1) * (2**_BITS - 1))
    return scaled.astype(np.uint16)


def _grid(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return y (H, 1) and x (1, W), each 0..1 from the top and from the chest wall."""
    return np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 1, shape[1])[None, :]


def _draw_thickness(random: np.random.Generator, size: float, view: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the relative thickness of the compressed breast, 1 inside, falling to 0 at the skin, 0 outside."""
    y, x = _grid(shape)
    centre = 0.5 + random.uniform(-0.03, 0.03) + (0.08 if view == "MLO" else 0.0)
    half_height = 0.42 * size
    squared = ((y - centre) / half_height) ** 2 + (x / (0.8 * size * random.uniform(0.9, 1.0))) ** 2
    if view == "MLO":  # breast and muscle go on to the armpit at the upper edge, with a soft fold between them
        armpit = (x / (0.5 - 0.2 * y)) ** 2 + (np.clip(y - centre, 0, None) / 0.1) ** 2
        squared = -np.logaddexp(-5 * squared, -5 * armpit) / 5
    thickness: NDArray[np.float64] = np.clip(1 - squared, 0, None) ** 0.25
    return thickness


def _draw_texture(random: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return noise with an amplitude spectrum of 1/f^e, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    frequency[0, 0] = np.inf  # no constant part
    spectrum = np.fft.rfft2(random.standard_normal(shape)) / frequency**_TISSUE_EXPONENT
    texture: NDArray[np.float64] = np.fft.irfft2(spectrum, shape)
    scaled: NDArray[np.float64] = texture / texture.std()
    return scaled


def _choose_dense(
    random: np.random.Generator, texture: NDArray[np.float64], breast: NDArray[np.bool_], area: float
) -> NDArray[np.float64]:
    """Return how dense the tissue is, 0..1: dense in about the share *area* of the breast, mostly behind the nipple."""
    y, x = _grid((texture.shape[0], texture.shape[1]))
    away = ((y - 0.52) / 0.35) ** 2 + ((x - 0.35) / 0.4) ** 2
    field = texture - 1.2 * away
    share = float(np.clip(area + random.normal(0, 0.02), 0.02, 0.95))
    threshold = np.quantile(field[breast], 1 - share)
    soft: NDArray[np.float64] = 1 / (1 + np.exp(np.clip((threshold - field) / _SOFTNESS, -30, 30)))
    return soft


def _draw_muscle(random: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the pectoral muscle, 0..1: a triangle at the upper end of the chest wall, with a soft border."""
    y, x = _grid(shape)
    width, height = random.uniform(0.25, 0.38), random.uniform(0.45, 0.65)
    depth = 1 - x / width - y / height
    muscle: NDArray[np.float64] = np.clip(depth / 0.12, 0, 1)
    return muscle


def _draw_marker(shape: tuple[int, int], laterality: str, view: str) -> NDArray[np.bool_]:
    """Return which pixels show side and view, in the upper corner away from the chest wall."""
    height, width = shape
    text, scale, margin = f"{laterality} {view}", height / 700, height // 30
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    left = width - text_width - margin if laterality == "L" else margin
    canvas = np.zeros(shape, dtype=np.uint8)
    drawn = cv2.putText(canvas, text, (left, margin + text_height), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 2)
    return drawn > 0


def _write_dicom(
    path: Path, image: NDArray[np.uint16], patient: _Patient, laterality: str, view: str, number: int, seed: int
) -> None:
    """Write *image* to *path*, in the encoding and polarity that are due for the *number*-th image."""
    inverted = number % _INVERTED_EVERY == 0
    dataset = _header(patient, laterality, view, seed)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    stored = (2**_BITS - 1 - image) if inverted else image
    dataset.PixelData = stored.astype("<u2").tobytes()
    encoding: UID = _ENCODINGS[number % len(_ENCODINGS)]
    if encoding != ExplicitVRLittleEndian:
        dataset.compress(encoding, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _header(patient: _Patient, laterality: str, view: str, seed: int) -> DicomDataset:
    """Return everything but the pixels."""
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
    dataset.AccessionNumber = patient.accession
    dataset.PatientID = f"PHANTOM{patient.number:05d}"
    dataset.PatientName = ""
    dataset.BodyPartExamined = "BREAST"
    dataset.ImageLaterality = laterality
    dataset.ViewPosition = view
    dataset.BurnedInAnnotation = "YES"
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated = 16
    dataset.BitsStored = _BITS
    dataset.HighBit = _BITS - 1
    dataset.PixelRepresentation = 0
    return dataset
