"""Who validates whom: patient-grouped, stratified, made once and stored."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from trainer.data.records import Dataset
from trainer.errors import DataError

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
    """(N,) int64, 0..n_folds-1, in the data set's order."""
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
        return len(self.assignment) - int(np.bincount(self.assignment, minlength=self.n_folds).min())

    def split(self, fold: int) -> Split:
        """Return the two sides of *fold*."""
        return Split(fold, np.flatnonzero(self.assignment != fold), np.flatnonzero(self.assignment == fold))


def make_folds(dataset: Dataset, n_folds: int, seed: int) -> Folds:
    """
    Return folds with each patient in one of them and each class spread evenly.

    Source: sklearn.model_selection.StratifiedGroupKFold, which promises neither; hence the checks.

    Raises:
        DataError: there are too few patients, or a class is absent from a side of a fold.
    """
    _check_patients(dataset, n_folds)
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    assignment = np.full(len(dataset.records), -1, dtype=np.int64)
    for fold, (_, validation) in enumerate(splitter.split(assignment, dataset.labels, dataset.patients)):
        assignment[validation] = fold
    folds = Folds(assignment, n_folds, _paths(dataset))
    for fold in range(n_folds):
        _check_split(dataset, folds.split(fold))
    return folds


def holdout(dataset: Dataset, val_frac: float, seed: int) -> Split:
    """
    Return one split with about *val_frac* of each class's patients, at least one and not all, for validation.

    A patient with several labels counts for the most frequent one.

    Raises:
        DataError: a class is absent from a side.
    """
    _check_patients(dataset, 2)
    random = np.random.default_rng(seed)
    validation: set[str] = set()
    for patients in _patients_by_label(dataset):
        count = min(max(1, round(val_frac * len(patients))), len(patients) - 1)
        validation.update(patients[index] for index in random.permutation(len(patients))[: max(0, count)])
    is_validation = np.array([patient in validation for patient in dataset.patients])
    split = Split(0, np.flatnonzero(~is_validation), np.flatnonzero(is_validation))
    _check_split(dataset, split)
    return split


def split_hash(split: Split, dataset: Dataset) -> str:
    """Return the sha256, in hex, over the paths of the validation images and the fold."""
    paths = _paths(dataset)
    return _hash_pairs((paths[index], split.fold) for index in split.validation)


def to_csv(folds: Folds, dataset: Dataset) -> str:
    """Return *folds* as a table of image, patient, label as the label file writes it, and fold."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(
        (record.path, record.patient, dataset.class_names[record.label], fold)
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
        if not row["fold"].isdecimal():
            raise DataError(f"folds: {record.path} has fold {row['fold']!r}, expected a number from 0")
    assignment = np.array([int(rows[record.path]["fold"]) for record in dataset.records], dtype=np.int64)
    return Folds(assignment, int(assignment.max()) + 1, _paths(dataset))


def _paths(dataset: Dataset) -> tuple[str, ...]:
    return tuple(record.path for record in dataset.records)


def _hash_pairs(pairs: Iterable[tuple[str, int]]) -> str:
    """Return the sha256, in hex, over *pairs* of path and fold, whatever their order; no path holds a NUL."""
    lines = sorted(f"{path}\0{fold}\n" for path, fold in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_patients(dataset: Dataset, n_folds: int) -> None:
    """Raise DataError if there are fewer patients, or fewer of a class, than folds to spread them over."""
    patients = len(set(dataset.patients))
    if patients < n_folds:
        raise DataError(f"{patients} patients cannot be spread over {n_folds} folds")
    of_class: Counter[int] = Counter()
    for label, _ in {(record.label, record.patient) for record in dataset.records}:
        of_class[label] += 1
    for label, name in enumerate(dataset.class_names):
        if of_class[label] < n_folds:
            raise DataError(
                f"class {name!r} has {of_class[label]} patients: it would be absent from fold {of_class[label]} of "
                f"{n_folds}, counted from 0"
            )


def _check_split(dataset: Dataset, split: Split) -> None:
    """Raise DataError if a class is absent from a side of *split*."""
    for side, indices in (("training", split.train), ("validation", split.validation)):
        present = set(dataset.labels[indices].tolist())
        for label, name in enumerate(dataset.class_names):
            if label not in present:
                raise DataError(f"class {name!r} is absent from the {side} images of fold {split.fold}")


def _patients_by_label(dataset: Dataset) -> Sequence[list[str]]:
    """Return the sorted patients of each label; one with several labels is in the most frequent one, the lowest at a tie."""
    labels_of: dict[str, Counter[int]] = {}
    for record in dataset.records:
        labels_of.setdefault(record.patient, Counter())[record.label] += 1
    groups: list[list[str]] = [[] for _ in dataset.class_names]
    for patient, counts in sorted(labels_of.items()):
        groups[min(counts, key=lambda label: (-counts[label], label))].append(patient)
    return groups
