"""Who validates whom: what a division of the images is, and how it is stored."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.records import Dataset
from trainer.errors import DataError

SET_ASIDE = -1
"""In the place of a fold."""
_COLUMNS = ["image", "patient", "label", "fold"]


@dataclass(frozen=True, eq=False)
class Split:
    """The two sides of one fold, as indices into the data set."""

    fold: int
    """From 0."""
    train: NDArray[np.int64]
    """(T,) ascending."""
    validation: NDArray[np.int64]
    """(V,) ascending."""


@dataclass(frozen=True, eq=False)
class Folds:
    """The fold in which each image is validated."""

    assignment: NDArray[np.int64]
    """(N,) int64, 0..n_folds-1, in the data set's order; `SET_ASIDE` for an image that is on neither side of any fold."""
    n_folds: int
    paths: tuple[str, ...]
    """N paths, in the data set's order."""

    @property
    def hash(self) -> str:
        """sha256, in hex, over the pairs of image path and fold."""
        return _hash_pairs(zip(self.paths, self.assignment.tolist(), strict=True))

    @property
    def largest_training_side(self) -> int:
        """The most images that a fold trains on."""
        divided = self.assignment[self.assignment != SET_ASIDE]
        return len(divided) - int(np.bincount(divided, minlength=self.n_folds).min())

    def split(self, fold: int) -> Split:
        """Return the two sides of *fold*."""
        is_train = (self.assignment != fold) & (self.assignment != SET_ASIDE)
        return Split(fold, np.flatnonzero(is_train), np.flatnonzero(self.assignment == fold))


def split_hash(split: Split, dataset: Dataset) -> str:
    """Return the sha256, in hex, over the paths of the validation images and the fold."""
    paths = paths_of(dataset)
    return _hash_pairs((paths[index], split.fold) for index in split.validation)


def to_csv(folds: Folds, dataset: Dataset) -> str:
    """Return *folds* as a table of image, patient, label as the label file writes it, and fold: none for what is set aside."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(
        (record.path, record.patient, dataset.class_names[record.label], "" if fold == SET_ASIDE else fold)
        for record, fold in zip(dataset.records, folds.assignment.tolist(), strict=True)
    )
    return buffer.getvalue()


def from_csv(text: str, dataset: Dataset) -> Folds:
    """
    Return the folds that `to_csv` has written, for the images of *dataset*.

    Raises:
        DataError: the table is not about these images, patients and labels.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != _COLUMNS:
        raise DataError(f"folds: columns {reader.fieldnames}, expected {_COLUMNS}")
    rows = {row["image"]: row for row in reader}
    known = {record.path: record for record in dataset.records}
    for side, there, here in (("folds", rows, known), ("data set", known, rows)):
        missing = sorted(there.keys() - here.keys())
        if missing:
            raise DataError(f"folds and data set differ: {missing[0]} and {len(missing) - 1} more only in the {side}")
    for record in dataset.records:
        row = rows[record.path]
        stored, found = (row["patient"], row["label"]), (record.patient, dataset.class_names[record.label])
        if stored != found:
            raise DataError(f"folds and data set differ: {record.path} has another patient or label in the folds")
        if row["fold"] and not row["fold"].isdecimal():
            raise DataError(f"folds: {record.path} has fold {row['fold']!r}, expected a number from 0 or nothing")
    assignment = np.array([int(rows[record.path]["fold"] or SET_ASIDE) for record in dataset.records], dtype=np.int64)
    return Folds(assignment, int(assignment.max()) + 1, paths_of(dataset))


def paths_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the N paths of *dataset*, in its order."""
    return tuple(record.path for record in dataset.records)


def _hash_pairs(pairs: Iterable[tuple[str, int]]) -> str:
    """Return the sha256, in hex, over *pairs* of path and fold, whatever their order; no path holds a NUL."""
    lines = sorted(f"{path}\0{fold}\n" for path, fold in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
