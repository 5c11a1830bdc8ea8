"""What the tests of the data path share: files written tag by tag, and a small synthetic archive."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from trainer.data.phantom import make_phantom

WriteDicom = Callable[..., Path]


@pytest.fixture
def breast() -> NDArray[np.uint16]:
    """(200, 160) stored values: a half ellipse of 1000 to 3000 at the left edge on a background of 0."""
    y, x = np.mgrid[0:200, 0:160]
    inside = ((y - 100) / 80) ** 2 + (x / 110) ** 2 < 1
    return np.where(inside, 1000 + 10 * y, 0).astype(np.uint16)


@pytest.fixture
def write_dicom(tmp_path: Path) -> WriteDicom:
    """A function that writes pixels and any header tags, None to leave one out, to a file and returns its path."""

    def write(pixels: NDArray[Any], path: Path | None = None, **tags: Any) -> Path:
        path = path or tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        bits = 8 * pixels.dtype.itemsize
        defaults = {
            "SOPClassUID": DigitalMammographyXRayImageStorageForPresentation,
            "SOPInstanceUID": generate_uid(),
            "Modality": "MG",
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "BitsAllocated": bits,
            "BitsStored": bits,
            "HighBit": bits - 1,
            "PixelRepresentation": int(pixels.dtype.kind == "i"),
            "PixelData": pixels.tobytes(),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the wrong headers that a test wants
            for name, value in (defaults | tags).items():
                if value is not None:
                    setattr(dataset, name, value)
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format="SOPClassUID" in dataset and dataset.SOPClassUID != "")
        return path

    return write


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive of 16 patients; not to be changed."""
    folder = tmp_path_factory.mktemp("phantom") / "archive"
    make_phantom(folder, patients=16, side=128)
    return folder
