"""Divide the images: patient-grouped and stratified, once for a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from trainer.data.folds import SET_ASIDE, Folds, Split, paths_of
from trainer.data.records import Dataset
from trainer.errors import DataError


def make_folds(dataset: Dataset, n_folds: int, seed: int) -> Folds:
    """
    Return folds with each patient in one of them and each class spread evenly.

    Where the label file's own split is used, its test images are in none of them.

    Source: sklearn.model_selection.StratifiedGroupKFold, which promises neither; hence the checks.

    Raises:
        DataError: there are too few patients, or a class is absent from a side of a fold.
    """
    is_test = np.array([record.split == "test" for record in dataset.records])
    _check_sides(dataset, is_test, "test")
    divided = np.flatnonzero(~is_test)
    _check_patients(dataset, divided, n_folds)
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    assignment = np.full(len(dataset.records), SET_ASIDE, dtype=np.int64)
    patients = [dataset.records[index].patient for index in divided]
    for fold, (_, validation) in enumerate(splitter.split(divided, dataset.labels[divided], patients)):
        assignment[divided[validation]] = fold
    folds = Folds(assignment, n_folds, paths_of(dataset))
    for fold in range(n_folds):
        _check_split(dataset, folds.split(fold))
    return folds


def holdout(dataset: Dataset, val_frac: float, seed: int) -> Split:
    """
    Return one split with about *val_frac* of each class's patients, at least one and not all, for validation.

    A patient with several labels counts for the most frequent one. Where the label file's own split is used, it decides.

    Raises:
        DataError: a class is absent from a side, or a patient of the label file's own split is on both.
    """
    if any(record.split is not None for record in dataset.records):
        return _published(dataset)
    _check_patients(dataset, np.arange(len(dataset.records)), 2)
    random = np.random.default_rng(seed)
    validation: set[str] = set()
    for patients in _patients_by_label(dataset):
        count = min(max(1, round(val_frac * len(patients))), len(patients) - 1)
        validation.update(patients[index] for index in random.permutation(len(patients))[: max(0, count)])
    is_validation = np.array([patient in validation for patient in dataset.patients])
    split = Split(0, np.flatnonzero(~is_validation), np.flatnonzero(is_validation))
    _check_split(dataset, split)
    return split


def _published(dataset: Dataset) -> Split:
    """Return the label file's own split: training images against validation images, or test images where it has none."""
    splits = np.array([record.split for record in dataset.records])
    is_validation = splits == ("validation" if "validation" in splits else "test")
    if not is_validation.any():
        raise DataError("the label file's own split has neither validation nor test images")
    _check_sides(dataset, is_validation, "validation")
    _check_sides(dataset, splits == "test", "test")
    split = Split(0, np.flatnonzero(splits == "train"), np.flatnonzero(is_validation))
    _check_split(dataset, split)
    return split


def _check_sides(dataset: Dataset, is_aside: NDArray[np.bool_], side: str) -> None:
    """Raise DataError if a patient has images both among those that are *is_aside* and among the others."""
    aside = {record.patient for record, is_in in zip(dataset.records, is_aside, strict=True) if is_in}
    others = {record.patient for record, is_in in zip(dataset.records, is_aside, strict=True) if not is_in}
    if aside & others:
        raise DataError(
            f"the label file's own split has {len(aside & others)} patients both among its {side} images and elsewhere"
        )


def _check_patients(dataset: Dataset, divided: NDArray[np.int64], n_folds: int) -> None:
    """Raise DataError if there are fewer patients, or fewer of a class, than folds to spread the images *divided* over."""
    records = [dataset.records[index] for index in divided]
    patients = len({record.patient for record in records})
    if patients < n_folds:
        raise DataError(f"{patients} patients cannot be spread over {n_folds} folds")
    of_class: Counter[int] = Counter()
    for label, _ in {(record.label, record.patient) for record in records}:
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
