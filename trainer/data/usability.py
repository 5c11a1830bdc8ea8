"""Whether an archive can be used as it is, and what those should know who use it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trainer.config import SelectionConfig
from trainer.data.inspection import Usable
from trainer.data.label_formats import LabelFormat
from trainer.data.labels import Labels
from trainer.data.records import Dataset, Rejection
from trainer.errors import DataError, InputError

logger = logging.getLogger(__name__)


class UnusableArchiveError(DataError):
    """An archive that cannot be used as it is: too many broken files, no image, or none of a class."""

    def __init__(self, message: str, rejections: Sequence[Rejection], dataset: Dataset | None = None) -> None:
        super().__init__(message)
        self.rejections = tuple(rejections)
        self.dataset = dataset
        """What is left of it, where it was decoded."""


def check_split(labels: Labels, csv: Path, selection: SelectionConfig) -> None:
    """Raise InputError if the label file's own split is asked for and it has none."""
    if selection.published_split and all(entry.split is None for entry in labels.entries.values()):
        raise InputError(f"{csv}: no split in it, expected a column split for published_split")


def check_broken(
    rejections: Sequence[Rejection], files: int, selection: SelectionConfig, dataset: Dataset | None = None
) -> None:
    """Raise UnusableArchiveError if more of the *files* with a label are broken than may be."""
    counts = Counter(rejection.code.value for rejection in rejections if rejection.code.broken)
    broken = counts.total()
    if broken > selection.max_rejected * files:
        by_code = ", ".join(f"{code} {count}" for code, count in sorted(counts.items()))
        raise UnusableArchiveError(
            f"{broken} of {files} images are broken ({by_code}): more than max_rejected {selection.max_rejected:g}",
            rejections,
            dataset,
        )


def check_classes(
    present: set[int], labels: Labels, csv: Path, rejections: Sequence[Rejection], dataset: Dataset | None = None
) -> None:
    """Raise UnusableArchiveError if a class of the label file has no image."""
    for label, name in enumerate(labels.class_names):
        if label not in present:
            keys = sum(entry.label == label for entry in labels.entries.values())
            raise UnusableArchiveError(
                f"{csv}: class {name!r} has {keys} labels and no usable image", rejections, dataset
            )


def warn_of_what_is_odd(usable: Sequence[Usable], labels: Labels) -> None:
    """Say what those should know who have to defend a number that is made of these images."""
    kinds = Counter(entry.for_processing for entry in usable)
    if len(kinds) > 1:
        logger.warning(
            "%d images are FOR PROCESSING and %d are not: two laws of intensity in one data set",
            kinds[True],
            kinds[False],
            extra={"action": "data_mixed"},
        )
    alone = sum(entry.belonging.stated is None and entry.belonging.patient_id is None for entry in usable)
    if alone and labels.format != LabelFormat.ARCHIVE:
        logger.warning(
            "neither label file nor header names the patient of %d images: each counts as a patient of its own",
            alone,
            extra={"action": "data_patients_unknown"},
        )
