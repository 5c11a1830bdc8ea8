"""The files of one decoded data set: written once, opened by everybody."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from importlib.metadata import version
from pathlib import Path
from tokenize import TokenError
from typing import get_args

import numpy as np

from trainer.config import PreprocessingConfig, Strict
from trainer.data.records import Dataset, ImageRecord, Rejection, Split
from trainer.data.report import read_report, write_report
from trainer.errors import DataError
from trainer.files import write_text

_IMAGES, _INDEX, _REPORT, _ABOUT = "images.npy", "index.csv", "report.csv", "dataset.json"
_DECIDES_PIXELS = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pydicom",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
)


class About(Strict):
    """What `dataset.json` says of the array beside it."""

    data_hash: str
    class_names: tuple[str, ...]
    """As the label file writes them, in label order."""
    preprocessing: PreprocessingConfig
    versions: dict[str, str]
    """Of the packages that decide what a pixel becomes."""


def array_header(rows: int, side: int) -> bytes:
    """
    Return the header of a .npy file of *rows* images, (rows, side, side) uint8.

    numpy pads it, so that its length is the same for every number of rows.
    """
    buffer = io.BytesIO()
    shape = (rows, side, side)
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def write_about(
    folder: Path,
    about: About,
    records: Sequence[ImageRecord],
    rejections: Sequence[Rejection],
) -> None:
    """Write what belongs beside the array in *folder*: the index, the report, and what it was made with."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(ImageRecord))
    writer.writerows(astuple(record) for record in records)
    write_text(folder / _INDEX, buffer.getvalue())
    write_report(folder / _REPORT, rejections)
    write_text(folder / _ABOUT, about.model_dump_json(indent=2) + "\n")


def images_path(folder: Path) -> Path:
    """Return the path of the array in *folder*."""
    return folder / _IMAGES


def pixel_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a pixel becomes."""
    return {name: version(name) for name in _DECIDES_PIXELS}


def open_folder(folder: Path) -> Dataset:
    """
    Return the data set in *folder*, its array mapped and not read.

    Raises:
        DataError: the folder is damaged.
    """
    try:
        about = About.model_validate_json((folder / _ABOUT).read_bytes())
        records = _read_index(folder / _INDEX)
        # "c": copy-on-write, because torch warns about arrays that it must not write to. No pickle is read, no archive opened.
        images = np.lib.format.open_memmap(images_path(folder), mode="c")
        rejections = read_report(folder / _REPORT)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SyntaxError, TokenError, csv.Error) as error:
        raise DataError(f"{folder}: damaged ({error}); remove it and it is built again") from error
    side = about.preprocessing.img_size
    if images.dtype != np.uint8 or images.shape != (len(records), side, side):
        raise DataError(
            f"{folder}: damaged: {images.dtype} {images.shape} for {len(records)} images of {side} px; "
            "remove it and it is built again"
        )
    return Dataset(images, records, about.class_names, tuple(rejections), about.data_hash)


def _read_index(path: Path) -> tuple[ImageRecord, ...]:
    """Return the records that `write_about` has written to *path*."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            ImageRecord(
                path=row["path"],
                sha256=row["sha256"],
                accession=row["accession"],
                patient=row["patient"],
                label=int(row["label"]),
                view=row["view"] or None,
                laterality=row["laterality"] or None,
                split=_split(row["split"]),
            )
            for row in csv.DictReader(file)
        )


def _split(text: str) -> Split | None:
    """Return the side of the label file's own split that *text* names."""
    known: tuple[Split, ...] = get_args(Split)
    return next((split for split in known if split == text), None)
