"""The files of one decoded data set: written once, opened by everybody."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import astuple, fields
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig, Strict
from trainer.data.records import Dataset, ImageRecord, Rejection
from trainer.data.report import read_report, write_report
from trainer.errors import DataError
from trainer.files import write_text

_IMAGES, _INDEX, _REPORT, _ABOUT = "images.npy", "index.csv", "report.csv", "dataset.json"
_DECIDES_PIXELS = ("numpy", "opencv-python-headless", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")


class About(Strict):
    """What `dataset.json` says of the array beside it."""

    data_hash: str
    class_names: tuple[str, ...]
    """As the label file writes them, in label order."""
    preprocessing: PreprocessingConfig
    versions: dict[str, str]
    """Of the packages that decide what a pixel becomes."""


class ImageWriter:
    """
    A growing (N, side, side) uint8 array in a .npy file.

    With pwrite and not through a memory map, whose written pages count as the process's own memory.
    """

    def __init__(self, path: Path, side: int) -> None:
        self.rows = 0
        self._side = side
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._start = len(self._header())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._write(self._header(), 0)
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def append(self, image: NDArray[np.uint8]) -> None:
        """Write *image*, (side, side), as the next row."""
        data = image.tobytes()
        self._write(data, self._start + self.rows * len(data))
        self.rows += 1

    def _header(self) -> bytes:
        """Return the header of the array so far; numpy pads it, so that its length is the same for every number of rows."""
        buffer = io.BytesIO()
        shape = (self.rows, self._side, self._side)
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written


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
        # "c": copy-on-write, because torch warns about arrays that it must not write to.
        images = np.load(images_path(folder), mmap_mode="c", allow_pickle=False)
        rejections = read_report(folder / _REPORT)
    except (OSError, ValueError, KeyError) as error:
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
            )
            for row in csv.DictReader(file)
        )
