"""An archive of many tiny DICOM files, made in a moment: one file's bytes with other pixels and another UID in each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

IMAGES_A_PATIENT = 4
SIDE = 64
_UID, _PATIENT = b"1.2.3.10000000", b"PATIENT00000000"


def write_tiny_archive(folder: Path, n_files: int) -> tuple[Path, Path]:
    """Write *n_files* in the archive layout below *folder* and return the label file and the root."""
    template = _template()
    pixels = template.rindex(_pixels().tobytes()) + SIDE * (SIDE // 2)
    root = folder / "archive"
    rows = ["AccessionNumber,Classification\n"]
    for number in range(n_files):
        patient, image = divmod(number, IMAGES_A_PATIENT)
        if image == 0:
            (root / f"{patient:06d}").mkdir(parents=True)
            rows.append(f"{patient:06d},{1 + patient % 4}\n")
        content = bytearray(
            template.replace(_UID, b"1.2.3.%08d" % (10**7 + number)).replace(_PATIENT, b"PATIENT%08d" % patient)
        )
        content[pixels : pixels + 4] = (number % 2**7 + 100, number // 2**7 % 2**7 + 100, number // 2**14 + 100, 100)
        (root / f"{patient:06d}" / f"{image}.dcm").write_bytes(content)
    labels = folder / "classificacao.csv"
    labels.write_text("".join(rows), encoding="utf-8")
    return labels, root


def _pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the (SIDE, SIDE) half of a disc, textured."""
    y, x = np.mgrid[:SIDE, :SIDE]
    breast = x**2 + (y - SIDE / 2) ** 2 < (0.45 * SIDE) ** 2
    return np.where(breast, 120 + (3 * x + 5 * y) % 60, 0).astype(np.uint8)


def _template() -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(_UID.decode())
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = UID(_UID.decode())
    dataset.Modality, dataset.PatientID = "MG", _PATIENT.decode()
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = _pixels().tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
