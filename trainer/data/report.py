"""What was used, what was not, and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from trainer.data.records import Code, Dataset, Rejection
from trainer.files import write_text

COLUMNS = ("path", "code", "reason")


def write_report(path: Path, rejections: Iterable[Rejection]) -> None:
    """Write one row a rejection to *path*, whole or not at all."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((rejection.path, rejection.code.value, rejection.reason) for rejection in rejections)
    write_text(path, buffer.getvalue())


def read_report(path: Path) -> list[Rejection]:
    """Return the rejections that `write_report` has written to *path*."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Rejection(row["path"], Code(row["code"]), row["reason"]) for row in csv.DictReader(file)]


def summary(dataset: Dataset) -> str:
    """Return one line: images, patients, classes, and how many were not used by code."""
    classes = ", ".join(
        f"class {name}: {count}" for name, count in zip(dataset.class_names, _class_counts(dataset), strict=True)
    )
    rejected = ", ".join(f"{code} {count}" for code, count in dataset.rejected().items()) or "none"
    patients = len(set(dataset.patients))
    return f"{len(dataset.records)} images of {patients} patients ({classes}); not used: {rejected}"


def _class_counts(dataset: Dataset) -> list[int]:
    """Return the number of images of each class, in label order."""
    return [sum(record.label == label for record in dataset.records) for label in range(len(dataset.class_names))]
