"""One look at an archive before anything is trained: what would be used of it, what not and why, and how it would look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import CheckConfig, Strict
from trainer.contact_sheet import Shown, draw_contact_sheet
from trainer.data.archive import find_candidates
from trainer.data.decoder_pool import MEMORY_BYTES, DecoderPool
from trainer.data.labels import read_labels
from trainer.data.naming import Naming, choose_naming
from trainer.data.progress import Progress
from trainer.data.records import Dataset, ImageRecord, Rejection
from trainer.data.report import write_report
from trainer.data.usability import UnusableArchiveError
from trainer.errors import DataError, InputError, TrainerError
from trainer.opening import open_archive
from trainer.protocols import StopSignal

REPORT = "data_report.csv"
_SHOWN_OF_A_CLASS = 4
"""Images on a contact sheet, at most."""


class ClassCount(Strict):
    """How much there is of one class."""

    images: int
    patients: int


class ArchiveReport(Strict):
    """What a look at an archive has found."""

    usable: bool
    problem: str | None
    """Why it is not usable, in one line."""
    format: str
    """Of the label file."""
    images: int
    """That are used."""
    patients: int
    classes: dict[str, ClassCount]
    """By class name, as the label file writes it, in label order."""
    views: dict[str, int]
    lateralities: dict[str, int]
    splits: dict[str, int]
    """Images by side of the label file's own split; empty where that is not used."""
    rejected: dict[str, int]
    """How often each code was given."""
    broken: int
    """How many of these are broken files, which count against `max_rejected`."""
    data_hash: str | None
    report: Path
    """Every path that is not used, with its code."""
    preview: Path | None


@dataclass(frozen=True)
class Checked:
    """An archive that was looked at."""

    report: ArchiveReport
    error: TrainerError | None
    """Why it cannot be used, or what of the look at it cannot be written."""


def check_archive(
    config: CheckConfig,
    outputs: Path,
    *,
    preview: Path | None = None,
    stop: StopSignal | None = None,
    progress: Progress | None = None,
) -> Checked:
    """
    Return what is in the archive; write `data_report.csv` to *outputs* and a contact sheet to *preview*.

    Raises:
        InputError: the label file or the root is not what it must be.
        DataError: the decoded images cannot be kept.
        StopRequestedError: asked to *stop*; what is decoded is kept.
    """
    labels = read_labels(config.csv, config.selection())
    error: TrainerError | None = None
    dataset: Dataset | None
    try:
        dataset = open_archive(
            config, config.preprocessing(), outputs,
            cache_mode=config.cache_mode, stop=stop, progress=progress, despite_broken=True,
        )  # fmt: skip
        rejections: Sequence[Rejection] = dataset.rejections
        error = _division_error(config, dataset)
    except UnusableArchiveError as unusable:
        error, dataset, rejections = unusable, unusable.dataset, unusable.rejections
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        write_report(outputs / REPORT, rejections)
    except OSError as unwritable:
        error = error or InputError(f"{outputs / REPORT}: cannot be written: {unwritable.strerror}")
    if preview is not None and dataset is not None:
        _draw(config, dataset, choose_naming(outputs, pseudonyms=config.pseudonyms), preview)
    records = () if dataset is None else dataset.records
    report = ArchiveReport(
        usable=error is None,
        problem=None if error is None else str(error),
        format=labels.format.value,
        images=len(records),
        patients=len({record.patient for record in records}),
        classes={
            name: _count([record for record in records if record.label == label])
            for label, name in enumerate(labels.class_names)
        },
        views=_counts(record.view for record in records),
        lateralities=_counts(record.laterality for record in records),
        splits=_counts(record.split for record in records) if config.published_split else {},
        rejected=_counts(rejection.code.value for rejection in rejections),
        broken=sum(rejection.code.broken for rejection in rejections),
        data_hash=None if dataset is None else dataset.data_hash,
        report=outputs / REPORT,
        preview=preview if dataset is not None else None,
    )
    return Checked(report, error)


def _division_error(config: CheckConfig, dataset: Dataset) -> DataError | None:
    """Return why the folds that are asked for, or the published split, cannot be made, or None."""
    if config.cv_folds is None and not config.published_split:
        return None
    from trainer.data.division import holdout, make_folds  # noqa: PLC0415  a second of imports, for those who ask

    try:
        if config.cv_folds is not None:
            make_folds(dataset, config.cv_folds, config.seed)
        else:
            holdout(dataset, 0.5, config.seed)
    except DataError as error:
        return error
    return None


def _count(records: Sequence[ImageRecord]) -> ClassCount:
    return ClassCount(images=len(records), patients=len({record.patient for record in records}))


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    """Return how often each of *values* occurs, in their order."""
    return dict(sorted(Counter(value or "unknown" for value in values).items()))


def _draw(config: CheckConfig, dataset: Dataset, naming: Naming, preview: Path) -> None:
    """Draw some images of each class, before and after, into *preview*."""
    chosen = _choose(dataset)
    candidates, _ = find_candidates(config.dicom_root, read_labels(config.csv, config.selection()), naming)
    path_of = {candidate.name: config.dicom_root / candidate.path for candidate in candidates}
    records = [dataset.records[index] for index in chosen]
    with DecoderPool(config.preprocessing(), len(records)) as pool:
        # One by one: how much memory each needs is not known any more.
        files = ((path_of[record.path], MEMORY_BYTES) for record in records)
        before = [image for _, image in pool.answers("show", files)]
    after = _images(dataset, chosen)
    shown = [
        Shown(dataset.class_names[record.label], record.laterality, record.view, old, new)
        for record, old, new in zip(records, before, after, strict=True)
    ]
    draw_contact_sheet(shown, preview)


def _images(dataset: Dataset, chosen: Sequence[int]) -> NDArray[np.uint8]:
    """Return the (B, H, W) decoded images at *chosen*."""
    indices = np.array(chosen, dtype=np.int64)
    return dataset.images[indices] if isinstance(dataset.images, np.ndarray) else dataset.images.read(indices)


def _choose(dataset: Dataset) -> list[int]:
    """Return the indices of a few images of each class, spread over it, in order of the classes."""
    chosen: list[int] = []
    for label in range(len(dataset.class_names)):
        of_class = np.flatnonzero(dataset.labels == label)
        places = np.linspace(0, len(of_class) - 1, min(_SHOWN_OF_A_CLASS, len(of_class)))
        chosen += of_class[np.unique(np.rint(places).astype(np.int64))].tolist()
    return chosen
